"""Runs that start from what the authors released; a local folder stands in for the download.

Its files have the released names and keys, at sizes that a CPU can run; the images are a few of
COCO's.
"""

import json
from pathlib import Path

import pytest
import torch

from detectron2.modeling import build_model
from weaklabels.files import file_sha256
from wsis.cli.main import program
from wsis.config import load_config
from wsis.recipes.start_from import parse_start
from wsis.released import CONFIGS, expected_shapes, released_path
from wsis.runner import ROOT, PipelineError
from wsis.runner.markers import FINISHED, STARTED, Marker, read_marker, write_note

COCO_MINI = ROOT.parent / "shared" / "data" / "coco_mini"
KEYS = ROOT / "tests" / "golden"
NOWHERE = "http://127.0.0.1:9/"  # nothing listens there
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": "8",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "16",
    "MODEL.RESNETS.WIDTH_PER_GROUP": "8",
    "MODEL.FPN.OUT_CHANNELS": "32",
    "MODEL.SOLOV2.INSTANCE_IN_CHANNELS": "32",
    "MODEL.SOLOV2.INSTANCE_CHANNELS": "32",
    "MODEL.SOLOV2.NUM_KERNELS": "32",
    "MODEL.SOLOV2.MASK_IN_CHANNELS": "32",
    "MODEL.SOLOV2.MASK_CHANNELS": "32",
    "MODEL.SOLOV2.NUM_MASKS": "32",
    "INPUT.MIN_SIZE_TRAIN": "(96,)",
    "INPUT.MIN_SIZE_TEST": "96",
    "INPUT.MAX_SIZE_TEST": "160",
    "DATALOADER.NUM_WORKERS": "0",
}
TRAINING = {"MODEL.WEIGHTS": "", "SOLVER.MAX_ITER": "2", "SOLVER.IMS_PER_BATCH": "2"}
STRONG = 2  # images; twice as many are weak


def words_of(options: dict[str, str]) -> list[str]:
    return [word for pair in options.items() for word in pair]


def few_instances(content: dict, count: int) -> dict:
    """Images with one or two instances and no crowd."""
    rows: dict[int, list[dict]] = {}
    for annotation in content["annotations"]:
        rows.setdefault(annotation["image_id"], []).append(annotation)
    chosen = [
        image
        for image in content["images"]
        if 1 <= len(rows.get(image["id"], ())) <= 2
        and not any(row["iscrowd"] for row in rows[image["id"]])
    ][:count]
    return part(content, chosen)


def part(content: dict, images: list[dict]) -> dict:
    ids = {image["id"] for image in images}
    rows = [row for row in content["annotations"] if row["image_id"] in ids]
    return {**content, "images": images, "annotations": rows}


def write(path: Path, content: dict) -> dict:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return content


def golden_keys(name: str) -> set[str]:
    return {line.split("\t")[0] for line in (KEYS / name).read_text().splitlines()}


def write_network(path: Path, kind: str) -> None:
    """A SOLOv2 with the released keys, narrow, with seeded random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(load_config(CONFIGS[kind], words_of(TINY)))
    assert model.state_dict().keys() == golden_keys("keys_solov2_r101.tsv")
    torch.save({"model": model.state_dict(), "iteration": 0}, path)


def write_refiner(path: Path) -> None:
    """A MaskRefineNet with the released keys and shapes; one stored number a tensor."""
    shapes = expected_shapes("maskrefinenet")
    assert shapes.keys() == golden_keys("keys_maskrefinenet.tsv")
    state = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    torch.save({"model_state": state, "epoch": 1, "last_itr": 2, "best_AP": 3.0}, path)


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    """`datasets/` with a few images of COCO, and `released/`, the authors' folder."""
    if not COCO_MINI.is_dir():
        pytest.skip("../shared/data/coco_mini is absent")
    folder = tmp_path_factory.mktemp("material")
    coco = folder / "datasets" / "coco"
    coco.mkdir(parents=True)
    contents = {}
    for split, count in (("train2017", 3 * STRONG), ("val2017", 3)):
        (coco / split).symlink_to(COCO_MINI / split)
        name = f"annotations/instances_{split}.json"
        few = few_instances(json.loads((COCO_MINI / name).read_text()), count)
        contents[split] = write(coco / name, few)
    train = contents["train2017"]
    released = folder / "released"
    for kind, images in (("s", train["images"][:STRONG]), ("w", train["images"][STRONG:])):
        write(released_path(released, "10p", f"split_{kind}"), part(train, images))
    write(released_path(released, "10p", "pseudo_labels"), train)
    for kind in ("teacher", "student"):
        write_network(released_path(released, "10p", kind), kind)
    write_refiner(released_path(released, "10p", "maskrefinenet"))
    return folder


@pytest.fixture
def start(material, tmp_path, monkeypatch):
    """Runs with a datasets folder of their own; the exit code."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("NUM_GPUS", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "output"))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    own, shared = tmp_path / "datasets" / "coco", material / "datasets" / "coco"
    (own / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (own / split).symlink_to(shared / split)
        name = f"annotations/instances_{split}.json"
        (own / name).symlink_to(shared / name)

    def run(what: str, *words: str, root: Path = material / "released") -> int:
        place = ["--start-from", what, "--released-root", str(root), "--released-url", NOWHERE]
        small = words_of({**TINY, **TRAINING})
        return program("run", ["pointwssis", "10p", *place, *words, *small])

    return run


def states(output: Path) -> dict[str, str]:
    return {path.stem: read_marker(path).state for path in (output / "stages").glob("*.json")}


def sums(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): file_sha256(str(path)) for path in files}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "words", "given", "made"),
    [
        ("split", ["--without-refiner"], {"split"}, {"teacher", "weak", "merge", "student"}),
        (
            *("teacher,refiner", [], {"split", "teacher", "refiner"}),
            {"weak", "refine", "merge", "student"},
        ),
        ("pseudo-labels", [], {"merge"}, {"student"}),
        ("student", [], set(), {"student"}),
    ],
)
def test_each_entry_point_runs_to_the_end(
    start, material, tmp_path, capfd, what, words, given, made
):
    released, output = sums(material / "released"), tmp_path / "output"
    assert start(f"released:{what}", *words) == 0
    found = states(output)
    assert {name for name, state in found.items() if state == "given"} == given
    assert {name for name, state in found.items() if state == "finished"} == made
    summary = json.loads((output / "student/inference/summary.json").read_text())
    assert summary["mode"] == "detector" and "segm" in summary["results"]
    assert sums(material / "released") == released
    before = sums(tmp_path)
    capfd.readouterr()
    assert start(f"released:{what}", *words) == 0  # a second run does nothing
    assert "Nothing to do" in capfd.readouterr().out
    assert sums(tmp_path) == before
    copies = {digest for name, digest in before.items() if "released" not in name}
    if what == "student":
        assert released["10p/student.pth"] in copies


def test_without_a_network_it_says_which_files_to_put_where(start, tmp_path, capsys):
    root = tmp_path / "empty"
    assert start("released", root=root) == 2
    message = capsys.readouterr().err
    for name in ("teacher.pth", "maskrefinenet.pth"):
        assert f"save it as {root / '10p' / name}" in message
    for kind in ("s", "w"):
        name = f"instances_train2017_10p_{kind}.json"
        assert f"take {name} from https://drive.google.com/drive/folders/1g_Vzih2k" in message
    assert "student.pth" not in message and not (tmp_path / "output").exists()


def test_files_are_put_in_place_and_need_no_download_afterwards(start, tmp_path):
    assert start("released", "--fetch-only") == 0
    assert (tmp_path / "output" / "teacher" / "model_final.pth").is_file()
    assert (tmp_path / "output" / "refiner" / "last.pth").is_file()
    assert states(tmp_path / "output") == {}
    assert start("released", "--fetch-only", root=tmp_path / "gone") == 0


def test_other_files_in_their_place_are_left_alone(start, tmp_path, capsys):
    split = tmp_path / "datasets/coco/annotations/instances_train2017_10p_s.json"
    split.write_text("{}")
    assert start("released", "--fetch-only") == 2
    assert "instances_train2017_10p_s.json is another file than" in capsys.readouterr().err
    assert split.read_text() == "{}"


@pytest.mark.parametrize("state", [STARTED, FINISHED])
def test_a_run_with_a_teacher_of_its_own_is_left_alone(start, tmp_path, capsys, state):
    """An interrupted training would go on, and overwrite what is put in its place."""
    Marker(state).write(tmp_path / "output" / "stages" / "teacher.json")
    assert start("released", "--fetch-only") == 2
    assert "has its own results of stage 'teacher': run --set-aside" in capsys.readouterr().err
    assert not (tmp_path / "output" / "teacher").exists()


def test_a_split_of_another_run_is_not_taken_for_the_authors(start, tmp_path, capsys):
    split = tmp_path / "datasets/coco/annotations/instances_train2017_10p_s.json"
    split.write_text("{}")
    write_note(split, "another run", {}, ())
    assert start("released", root=tmp_path / "empty") == 2
    assert f"take {split.name} from" in capsys.readouterr().err


def test_a_dry_run_copies_nothing(start, tmp_path, capsys):
    assert start("released:student", "--dry-run") == 0
    assert "# given for stage student: " in capsys.readouterr().out
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["released:refiners"], "such as released:teacher,refiner"),
        (["output"], "expected released, or released:"),
        (["released:teacher"], "add refiner, or run --without-refiner"),
        (["released:pseudo-labels", "--without-refiner"], "are refined"),
        (["released", "--dataset", "bdd100k"], "those of --dataset coco"),
        (["released", "--from", "weak"], "takes no --from STAGE"),
    ],
)
def test_unfit_requests_are_refused(words, message, capsys):
    assert program("run", ["pointwssis", "10p", "--start-from", *words, "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_only_a_given_split_starts_from_teacher_and_refiner_by_default():
    assert parse_start("released", with_refiner=True) == ("teacher", "refiner")
    assert parse_start("released", with_refiner=False) == ("teacher",)
    with pytest.raises(PipelineError):
        parse_start("release", with_refiner=True)


def test_fetching_alone_needs_something_to_fetch(capsys):
    assert program("run", ["pointwssis", "10p", "--fetch-only"]) == 2
    assert "--fetch-only needs --start-from" in capsys.readouterr().err
