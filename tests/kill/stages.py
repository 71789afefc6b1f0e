"""The long stages of both recipes, each on a handful of small images."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.bad_input.world import World, make_pristine
from tests.bad_input.world import run as run_program
from tests.kill.moments import Stage
from tests.wsis.test_train_weak import SMALL, tags_of, write_proposals
from tests.wsis.weak_data import SMALL_NETWORK
from weaklabels.shapes.dataset import make_shapes
from weaklabels.tags import write_tags
from wsis.cli.main import main

ONE = ("--num-gpus", 0, "--num-processes", 1)


def make_files(folder: Path) -> Path:
    """What the stages read: labels, records, networks; tags, proposals, boxes, a classifier."""
    make_pristine(folder / "points")
    weak = folder / "weak"
    make_shapes(weak, train=6, val=2, size=64, seed=0)
    for split in ("train", "val"):
        content = json.loads((weak / "annotations" / f"instances_{split}.json").read_text())
        write_proposals(weak / f"{split}.npz", content["images"])
    content = json.loads((weak / "annotations" / "instances_train.json").read_text())
    write_tags(weak / "tags.json", tags_of(content))
    for annotation in content["annotations"]:
        annotation.pop("segmentation")
    (weak / "boxes.json").write_text(json.dumps(content))
    found = [
        {key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5}
        for a in content["annotations"]
    ]
    (weak / "detections.json").write_text(json.dumps(found))
    assert _classifier(weak)(weak) == 0
    assert _points(weak)(weak) == 0
    grid = ("--kind", "random", "--count", 9, *ONE, "--output", "{out}/own.npz")
    assert of_weak("proposals", "grid", *DATA, *grid)(weak)(weak) == 0
    return folder


def command(*words: object) -> int:
    return main([str(word) for word in words])


def of_points(program: str, *more: object, flags: tuple[str, ...] = ()) -> Callable[[Path], Stage]:
    """A stage of PointWSSIS: a program of the world of bad input, written somewhere else."""

    def make(files: Path) -> Stage:
        world = World(files / "points", "kill")

        def stage(folder: Path) -> int:
            words = [w.replace(str(world.out), str(folder)) for w in world.words(program)]
            return run_program(program, [*flags, *words, *map(str, more)])

        return stage

    return make


def of_weak(*words: object) -> Callable[[Path], Stage]:
    """A stage of WeakSAM; {out} stands for its folder, other names for files beside the tags."""

    def make(weak: Path) -> Stage:
        weak = weak / "weak" if (weak / "weak").is_dir() else weak

        def stage(folder: Path) -> int:
            filled = [str(word).format(out=folder, weak=weak) for word in words]
            return command(*filled)

        return stage

    return make


DATA = ("--tags", "{weak}/tags.json", "--image-root", "{weak}/train")
_classifier = of_weak(
    *("clues", "train", *DATA, "--output", "{out}/classifier", *SMALL_NETWORK[:6]),
    *("--epochs", 5, *SMALL_NETWORK[8:]),
)
_points = of_weak(
    *("clues", "points", *DATA, "--weights", "{weak}/classifier/classifier.pth", "--kernel", 7),
    *("--scales", 1.0, *ONE, "--output", "{out}/points"),
)
_wsod = SMALL | {
    "DATASETS.TRAIN": ("kill_weak={weak}/tags.json:{weak}/train",),
    "DATASETS.TEST": (),
    "DATASETS.PROPOSAL_FILES_TRAIN": ("{weak}/train.npz",),
    "OUTPUT_DIR": "{out}/wsod",
    "SOLVER.MAX_ITER": 6,
}
TRAINED = ("SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 2)
REFINED = ("--iterations", 4, "--checkpoint-period", 2, "--resume")  # 90 MB each
STAGES: dict[str, Callable[[Path], Stage]] = {
    "split": of_points("split"),
    "teacher": of_points("train", *TRAINED, flags=("--resume",)),
    "generation": of_points("generate"),
    "MaskRefineNet": of_points("train-refiner", *REFINED),
    "refinement": of_points("refine"),
    "merging": of_points("merge"),
    "classifier": _classifier,
    "points": _points,
    "clue boxes": of_weak(
        *("clues", "boxes", *DATA, "--weights", "{weak}/classifier/classifier.pth", *ONE),
        *("--output", "{out}/boxes.json"),
    ),
    "proposals": of_weak(
        *("proposals", "points", *DATA, "--coarse", "{weak}/points/points_coarse.npz"),
        *("--grid", 3, *ONE, "--output", "{out}/proposals.npz"),
    ),
    "merged proposals": of_weak(
        *("proposals", "merge", "--tags", "{weak}/tags.json", "--output", "{out}/both.npz"),
        *("--proposals", "{weak}/own.npz", "{weak}/own.npz"),
    ),
    "WeakRCNN": of_weak(
        *("train", "--config-file", "configs/WeakSAM/voc07_mist.yaml", "--num-gpus", 0, "--resume"),
        *(word for name, value in _wsod.items() for word in (name, value)),
    ),
    "pseudo boxes": of_weak(
        *("pseudo-boxes", "--detections", "{weak}/detections.json", "--tags", "{weak}/tags.json"),
        *("--output", "{out}/boxes.json"),
    ),
    "masks of boxes": of_weak(
        *("box-masks", "--boxes", "{weak}/boxes.json", "--image-root", "{weak}/train", *ONE),
        *("--output", "{out}/masks.json"),
    ),
}
