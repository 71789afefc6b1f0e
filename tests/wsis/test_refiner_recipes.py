"""The comparison of MaskRefineNet's recipes, on the few recorded images."""

import pytest

from maskrefinenet.predictions import read_predictions
from maskrefinenet.recipe import RECIPES
from tests.wsis.plans import stage_named
from weaklabels.coco import load_annotations
from weaklabels.files import dumps
from wsis.benchmarks import refiner_recipes as benchmark
from wsis.benchmarks.refiner_recipes import Data, Training, compare, spread, table, variants
from wsis.recipes import quickstart
from wsis.runner import ROOT

TINY = ROOT / "tests" / "golden" / "mrn_tinycoco"
QUICK = Training(iterations=2, batch_size=2, size=32)


@pytest.fixture
def data(tmp_path) -> Data:
    """The strong images serve as the judged ones, too, so that their masks are known."""
    strong = TINY / "instances_train2017_tiny_s.json"
    records = [TINY / f"pred_strong{number}.pth" for number in (1, 2)]
    judged = read_predictions(records[0], load_annotations(strong))
    (tmp_path / "judged.jsonl").write_text("".join(dumps(record) + "\n" for record in judged))
    return Data("tiny", strong, tuple(records), TINY, strong, tmp_path / "judged.jsonl", TINY)


def test_each_variant_is_ours_with_one_option_of_the_paper(tmp_path):
    ours, paper = vars(RECIPES["ours"]), vars(RECIPES["paper"])
    found = variants(pretrained=True)
    assert (vars(found.pop("paper")), vars(found.pop("ours"))) == (paper, ours)
    assert len(found) == len(ours) - 1  # mixed precision needs a GPU
    for name, recipe in found.items():
        (option,) = (key for key in ours if getattr(recipe, key) != ours[key])
        assert (
            name == f"ours, {option} {paper[option]}" and getattr(recipe, option) == paper[option]
        )
    left_out = set(variants(pretrained=True)) - set(variants(pretrained=False))
    assert left_out == {"ours, stem random"}


def test_finished_runs_are_kept_and_a_killed_one_goes_on(data, tmp_path, monkeypatch):
    few = dict(list(variants(pretrained=False).items())[:2])
    monkeypatch.setattr(benchmark, "variants", lambda pretrained: few)
    output, refine = tmp_path / "output", benchmark.refine

    def killed(settings, job):
        if "ours" in str(settings.output):
            raise SystemError("killed")
        return refine(settings, job)

    monkeypatch.setattr(benchmark, "refine", killed)
    with pytest.raises(SystemError):
        list(compare([data], output, 1, QUICK))
    monkeypatch.setattr(benchmark, "refine", refine)
    done = output / "tiny" / "results" / "paper_0.json"
    before = done.stat().st_mtime_ns
    assert (output / "tiny" / "ours_0" / "last.pth").exists()
    results = list(compare([data], output, 1, QUICK))
    assert done.stat().st_mtime_ns == before
    assert [name for _, name, _ in results] == ["paper", "ours"]
    assert sorted(path.name for path in (output / "tiny").iterdir()) == ["results"]
    for _, name, result in results:
        assert result["recipe"] == vars(RECIPES[name]) and result["cpu_seconds"] > 0
        for figures in (result["before"], result["after"]):
            assert 0 <= figures["AP"] <= 100 and 0 <= figures["miou"] <= 100
    assert results[0][2]["before"] == results[1][2]["before"]
    with pytest.raises(ValueError, match="paper_0.json was made with other settings"):
        list(compare([data], output, 1, Training(iterations=3, batch_size=2, size=32)))


def test_the_table_has_means_and_deviations_of_the_seeds_that_are_there():
    def result(seed, before, after):
        before, after = (dict.fromkeys(("miou", "AP"), value) for value in (before, after))
        return {"seed": seed, "before": before, "after": after}

    rows = [("shapes", "paper", result(seed, 50.0, 60.0 + 4 * seed)) for seed in (0, 1)]
    rows += [("nuclei", "paper", result(seed, 40.0, 45.0 + seed)) for seed in (0, 1)]
    rows += [("nuclei", "ours", result(1, 40.0, 46.5))]
    lines = table(rows).splitlines()
    assert lines[0] == (
        "| recipe | shapes: mean IoU | shapes: AP | nuclei: mean IoU | nuclei: AP |"
    )
    assert lines[2] == "| unrefined | 50.0 | 50.0 | 40.0 | 40.0 |"
    assert lines[3] == (
        "| paper | 62.0 ± 2.8 (2) | 62.0 ± 2.8 (2) | 45.5 ± 0.7 (2) | 45.5 ± 0.7 (2) |"
    )
    assert lines[4] == "| ours | not run | not run | 46.5 (1) | 46.5 (1) |"
    assert lines[-1] == "| paper | not run | not run | -0.5 (1) | -0.5 (1) |"
    assert lines[-3] == lines[0] and lines[6].startswith("Differences from ours with the same seed")
    assert spread([1.0, 2.0, 3.0]) == "2.0 ± 1.0 (3)"


def test_one_teacher_predicts_strong_and_validation_images(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(benchmark, "run_stages", lambda run: ran.extend(run.stages))
    data = benchmark.make_data(tmp_path, "shapes", None)
    assert [stage.name for stage in ran] == ["data", *benchmark.SHARED, "val"]
    made = {path for stage in ran for path in stage.makes}
    assert {data.strong, *data.strong_records, data.judged, data.judged_records} <= made
    val = ran[-1].command
    assert val.flags["prompt"] == "point" and str(data.judged) in val.flags["dataset"]
    assert str(data.judged_images) in val.flags["dataset"]


def test_missing_data_are_told_in_one_line(tmp_path, capsys):
    words = ["--output", str(tmp_path / "o"), "--data", "nuclei", "--nuclei", str(tmp_path / "n")]
    assert benchmark.main(words) == 2
    assert "refiner_recipes: --data nuclei needs --root" in capsys.readouterr().err


def test_the_quick_start_trains_by_our_recipe(tmp_path):
    plan = quickstart.make_plan(quickstart.Settings(output=tmp_path), seed=0)
    assert stage_named(plan, "refiner").command.flags["recipe"] == "ours"
