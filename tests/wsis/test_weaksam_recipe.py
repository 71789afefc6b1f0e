"""WeakSAM's recipe: what its stages read, what they are told, and published schedules."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.wsis.test_schedules import value_of
from tests.wsis.test_train_weak import SCHEDULES
from wsis.cli.run import recipe_parser
from wsis.cli.weaksam import make_plan
from wsis.config import load_config
from wsis.recipes import weaksam_quickstart as quickstart
from wsis.recipes import weaksam_quickstart_retraining as retraining
from wsis.recipes.segmenters import segmenter_file_of
from wsis.recipes.weaksam import build_stages, make_run
from wsis.recipes.weaksam_plan import STAGES
from wsis.runner import PipelineError, dry_run, run_stages

# Nothing reads what these write.
MEASURING = {"recall", "wsod_quality", "pseudo_boxes_quality"}


@pytest.fixture
def plan_of(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "output"))
    monkeypatch.setenv("NUM_GPUS", "0")

    def make(*words):
        from wsis.cli import weaksam

        return make_plan(recipe_parser("weaksam", weaksam).parse_intermixed_args(list(words)))

    return make


@pytest.mark.parametrize(
    "words",
    [
        ("voc07",),
        ("voc12", "--proposals", "selective_search"),
        ("coco14", "--detector", "oicr"),
        ("coco14", "--classifier", "--network lite0"),
        ("voc12", "--retrain", "dino", "--mask-boxes", "retrain", "--segmenter", "mask2former"),
        ("coco14", "--mask-boxes", "retrain"),
    ],
)
def test_every_stage_reads_what_is_there(plan_of, words):
    plan = plan_of(*words)
    there = {*plan.source.reads, plan.source.train.images, plan.source.test.images}
    there |= {plan.segmenter_file, segmenter_file_of(plan.masks)}
    there |= plan.source.masks.reads.keys() if plan.segmenter else set()
    stages = build_stages(plan)
    for stage in stages:
        assert set(stage.needs) <= there, stage.name
        there |= {*stage.makes, *stage.leaves}
    assert len({stage.name for stage in stages}) == len(stages)


@pytest.mark.parametrize("dataset", ["voc07", "voc12", "coco14"])
def test_truth_reaches_tags_and_figures_alone(plan_of, dataset):
    plan = plan_of(dataset)
    truth = {str(path) for path in (*plan.source.train.truth.values(), *plan.source.reads[1:2])}
    truth -= {str(plan.source.test.images), "trainval"}
    judged = {"mask_test"}  # makes the true masks of the test images
    for stage in build_stages(plan):
        # The images lie in VOC's own folder, so whole words are compared.
        told = {*stage.command.argv(plan.machines), *(str(path) for path in stage.needs)}
        if not (stage.name.startswith("tags_") or stage.name in MEASURING | judged):
            assert not told & truth, stage.name
        later = {path for other in build_stages(plan) for path in other.needs}
        assert stage.name not in MEASURING or not set(stage.makes) & later
        reads_masks = any(path.name == "mask_test.json" for path in stage.needs)
        assert not reads_masks or stage.name == "segmenter"


def test_test_images_are_searched_for_predicted_classes(plan_of):
    stages = {stage.name: stage for stage in build_stages(plan_of("voc07"))}
    assert stages["points_train"].command.flags["labels"] == "given"
    assert stages["points_test"].command.flags["labels"] == "predicted"
    assert "difficult" in stages["tags_clues"].command.flags
    assert "difficult" not in stages["tags_train"].command.flags


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_detector_trains_as_published(plan_of, name):
    dataset, detector = name.split("_")
    stages = {s.name: s for s in build_stages(plan_of(dataset, "--detector", detector))}
    command = stages["wsod"].command
    words = [word for pair in command.config.items() for word in pair]
    cfg = load_config(command.flags["config-file"], words, num_gpus=0)
    assert {key: value_of(cfg, key) for key in SCHEDULES[name]} == SCHEDULES[name]


def test_until_ends_the_run(plan_of):
    ends = {until: build_stages(plan_of("coco14", "--until", until))[-1].name for until in STAGES}
    assert ends == {
        "classifier": "classifier",
        "points": "clusters_test",
        "proposals": "recall",
        "wsod": "wsod_quality",
        "pseudo_boxes": "pseudo_boxes_quality",
        "retrain": "retrain",
        "masks": "masks",
        "segmenter": "segmenter",
    }


def test_selective_search_needs_no_classifier(plan_of):
    names = {s.name for s in build_stages(plan_of("voc07", "--proposals", "selective_search"))}
    assert not {"classifier", "points_train"} & names


def test_what_is_missing_is_said_before_anything_runs(plan_of, tmp_path):
    for name in ("JPEGImages", "Annotations"):
        (tmp_path / "datasets" / "VOC2007" / name).mkdir(parents=True)
    run = make_run(plan_of("voc07"))
    with pytest.raises(PipelineError, match=r"sam_vit_h_4b8939.pth is missing.*2.6 GB.*fbaipublic"):
        run_stages(run)
    plan = plan_of("voc07", "--segmenter", "tiny")
    with pytest.raises(PipelineError, match="MODEL.WEIGHTS"):
        run_stages(make_run(plan))
    assert not plan.tags("train").exists()


def test_a_dry_run_prints_the_commands(plan_of):
    text = dry_run(make_run(plan_of("voc07", "SOLVER.MAX_ITER", "7")))
    assert "voc07_mist.yaml" in text and "SOLVER.MAX_ITER 7" in text
    assert "proposals points" in text and "sam_vit_h_4b8939.pth" in text


def test_stages_of_the_quick_start_read_what_earlier_ones_make(tmp_path):
    settings = quickstart.Settings(tmp_path, full=True)
    plan = quickstart.make_plan(settings, 1)
    there: set[Path] = set()
    stages = [quickstart.data_stage(plan, settings), *quickstart.seed_stages(plan, settings)]
    for stage in stages:
        missing = set(stage.needs) - there - {plan.source.test.images}
        assert not missing, stage.name
        there |= {*stage.makes, *stage.leaves}
    rows = quickstart.seed_run(plan, settings).rows
    assert {path for row in rows for path in (row.train, row.test)} <= there
    retrained = quickstart.seed_run(plan, settings).retrained
    results = (*retrained.boxes.values(), *retrained.detectors.values(), *retrained.masks.values())
    assert set(results) <= there
    fewer = replace(settings, retrain=False)
    assert len(quickstart.seed_stages(plan, fewer)) < len(stages) - 10
    assert quickstart.seed_run(plan, fewer).retrained is None


def test_the_quick_starts_detectors_have_the_classifiers_backbone(tmp_path):
    plan = quickstart.make_plan(quickstart.Settings(tmp_path), 0)
    configs = [f"configs/Quickstart/{variant.config}" for variant in quickstart.VARIANTS]
    for config in (*configs, retraining.DETECTOR_CONFIG, retraining.SEGMENTER_CONFIG):
        cfg = load_config(config, num_gpus=0)
        other = cfg.clone()
        other.merge_from_list([w for pair in plan.classifier_config.items() for w in pair])
        assert other == cfg
        assert cfg.MODEL.ROI_HEADS.IN_FEATURES == [plan.classifier["feature"]]


def test_only_the_upper_bound_of_the_quick_start_learns_from_truth(tmp_path):
    settings = quickstart.Settings(tmp_path)
    plan = quickstart.make_plan(settings, 0)
    truth = str(plan.source.train.truth["annotations"])
    told = {
        stage.name
        for stage in quickstart.seed_stages(plan, settings)
        if any(truth in word for word in stage.command.argv(plan.machines))
    }
    quality = {"boxes_top1_quality", "boxes_adaptive_quality"}
    assert told == {*quality, "tags_train", "faster_rcnn_true"}


def test_networks_of_the_quick_start_see_the_same_number_of_images(tmp_path):
    settings = quickstart.Settings(tmp_path)
    plan = quickstart.make_plan(settings, 0)
    stages = {stage.name: stage for stage in quickstart.seed_stages(plan, settings)}
    seen, drops = set(), {}
    for name in (*(row.name for row in retraining.ROWS), retraining.MASK_RCNN):
        command = stages[name].command
        words = [word for pair in command.config.items() for word in pair]
        cfg = load_config(str(command.flags["config-file"]), words, num_gpus=0)
        seen.add(cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH)
        drops[name] = cfg.MODEL.INSTANCE_DROP.ISON
        assert cfg.MODEL.WEIGHTS == str(plan.weights)
    assert seen == {retraining.retrained_run(plan, smoke=False).images_seen}
    assert [name for name, drop in drops.items() if drop] == ["faster_rcnn_drop"]


def test_options_of_the_other_quick_start_are_refused(capsys):
    from wsis.cli.main import program

    assert program("quickstart", ["--method", "weaksam", "--supervised"]) == 2
    assert "--supervised is not for --method weaksam" in capsys.readouterr().err


def test_a_given_proposal_file_is_checked(plan_of, tmp_path):
    plan = replace(plan_of("voc07"), proposals="selective_search")
    stage = {s.name: s for s in build_stages(plan)}["proposals_train_selective_search"]
    check = stage.checks[stage.makes[0]]
    plan.output.mkdir(parents=True)
    image = {"id": 1, "file_name": "1.jpg", "height": 9, "width": 9, "category_ids": [1]}
    content = {"images": [image], "categories": [{"id": 1, "name": "dog"}]}
    plan.tags("train").write_text(json.dumps(content))
    stage.makes[0].write_bytes(b"no zip")
    with pytest.raises(ValueError, match="npz"):
        check.look(stage.makes[0])
