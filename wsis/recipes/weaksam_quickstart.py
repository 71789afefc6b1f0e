"""WeakSAM on synthetic scenes on a CPU: from tags to detectors and masks, baselines, a report."""

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from wsis.recipes import given
from wsis.recipes.weaksam import (
    classifier_stage,
    clue_tags,
    detections,
    detector_stages,
    make_run,
    point_stages,
    proposal_stage,
    recall_stage,
    tag_stages,
)
from wsis.recipes.weaksam_plan import WeakPlan, classifier_file, own_data
from wsis.recipes.weaksam_quickstart_retraining import retrained_run, retraining_stages
from wsis.recipes.weaksam_report import DetectorRow, WeakRun, write_report
from wsis.runner import Check, Command, Launch, Machines, Stage, run_stages

# The backbone of configs/Quickstart/weak_mist.yaml, which the classifier trains.
BACKBONE = {
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.BACKBONE.FREEZE_AT": "0",
    "MODEL.RESNETS.DEPTH": "34",
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": "32",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "32",
    "MODEL.RESNETS.OUT_FEATURES": '["res3"]',
    "MODEL.PIXEL_STD": "[57.375,57.12,58.395]",
}
CLASSIFIER = {"network": "cam", "feature": "res3", "loss": "soft_margin"}
POINTS = {"scales": (1.0,)}
SEARCH, POINTS_KIND = "selective_search", "points"
RETRAINED_FROM = "mist_search"  # the detector whose boxes are learned from


@dataclass(frozen=True)
class Variant:
    """One detector of the table. config: below configs/Quickstart.  proposals: their kind."""

    name: str
    title: str
    config: str
    proposals: str


VARIANTS = (
    Variant("oicr_search", "OICR, selective search", "weak_oicr.yaml", SEARCH),
    Variant("mist_search", "MIST, selective search", "weak_mist.yaml", SEARCH),
    Variant("mist_tiny", "MIST, tiny segmenter", "weak_mist.yaml", POINTS_KIND),
)


@dataclass(frozen=True)
class Size:
    """How much of everything one quick start takes. grid: clicks a side of the segmenter."""

    train_images: int
    val_images: int
    epochs: int
    iterations: int
    grid: int


# Sides of the classifier's input, half of the scenes': on a CPU it learns far more from many small
# images than from few large ones (class AP 0.86 at 80 pixels, 0.35 at 128, in equal time).
CLASSIFIER_SIDE = 80

# Chosen so that a run takes about eight minutes on two cores.
NORMAL = Size(train_images=1200, val_images=200, epochs=20, iterations=450, grid=8)
SMOKE = Size(train_images=24, val_images=8, epochs=1, iterations=4, grid=4)


@dataclass(frozen=True)
class Settings:
    """One quick start.

    seeds: number of runs to average.  full: also a detector on the tiny segmenter's proposals.
    retrain: also what learns from the boxes of MIST.
    """

    output: Path
    seeds: int = 1
    smoke: bool = False
    full: bool = False
    retrain: bool = True

    @property
    def size(self) -> Size:
        return SMOKE if self.smoke else NORMAL

    @property
    def scenes(self) -> Path:
        return (self.output / "scenes").absolute()

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The detectors that are trained."""
        return VARIANTS if self.full else VARIANTS[:-1]


def default_output(*, smoke: bool) -> Path:
    return Path("output", "smoke_weaksam" if smoke else "quickstart_weaksam")


def make_plan(settings: Settings, seed: int) -> WeakPlan:
    """What all stages of one seed share; proposals and config are those of selective search."""
    scenes, size, output = settings.scenes, settings.size, settings.output / f"seed_{seed}"
    steps = {"SOLVER.MAX_ITER": str(size.iterations)}
    if settings.smoke:
        steps |= {"SOLVER.STEPS": "()", "SOLVER.CHECKPOINT_PERIOD": str(size.iterations)}
    return WeakPlan(
        source=own_data(
            scenes / "annotations" / "instances_train.json",
            scenes / "train",
            scenes / "annotations" / "instances_val.json",
            scenes / "val",
        ),
        output=output,
        machines=Machines(num_gpus=0),
        config="configs/Quickstart/weak_mist.yaml",
        overrides={"SEED": str(seed), "MODEL.WEIGHTS": str(classifier_file(output)), **steps},
        classifier={**CLASSIFIER, "epochs": size.epochs, "size": CLASSIFIER_SIDE, "seed": seed},
        classifier_config=BACKBONE,
        points=POINTS,
        proposals=SEARCH,
        proposal_flags={},
    )


def with_points(plan: WeakPlan, size: Size) -> WeakPlan:
    """The plan with proposals of the tiny segmenter, prompted by points and a grid."""
    flags = {"segmenter": "tiny", "grid": size.grid, "grid-nms": 0.7}
    return replace(plan, proposals=POINTS_KIND, proposal_flags=flags)


def data_stage(plan: WeakPlan, settings: Settings) -> Stage:
    """Scenes whose tags say enough: four shapes of at most two classes, so often several of one."""
    size, reads = settings.size, plan.source.reads
    flags = {"train": size.train_images, "val": size.val_images}
    flags |= {"min-forms": 4, "max-forms": 4, "classes-per-image": 2}
    command = Command("make-shapes", (str(settings.scenes),), flags)
    makes, leaves = reads[::2], (reads[1],)
    check = Check(partial(given.check_labels, like=makes[1]), (makes[1],))
    checks = dict.fromkeys(makes, check)
    return Stage("data", "synthetic scenes of shapes", command, (), makes, leaves, checks=checks)


def cam_boxes(plan: WeakPlan, part: str) -> Path:
    return plan.output / f"cam_boxes_{part}.json"


def cam_box_stage(plan: WeakPlan, part: str) -> Stage:
    """The baseline without a detector: a box around each class map."""
    tags, images = clue_tags(plan, part), getattr(plan.source, part).images
    output = cam_boxes(plan, part)
    labels = "given" if part == "train" else "predicted"
    flags = {"weights": plan.weights, "tags": tags, "image-root": images, "output": output}
    command = Command("clues", ("boxes",), {**flags, "labels": labels}, launch=Launch.SHARE)
    what, needs = f"one box for each class of the images for {part}", (plan.weights, tags, images)
    checks = {output: Check(given.check_json)}
    return Stage(output.stem, what, command, needs, (output,), checks=checks)


def seed_stages(plan: WeakPlan, settings: Settings) -> list[Stage]:
    """All stages of one seed but the scenes."""
    prompted = with_points(plan, settings.size)
    stages = [*tag_stages(plan), classifier_stage(plan)]
    for part in ("train", "test"):
        stages += [cam_box_stage(plan, part), proposal_stage(plan, part)]
        if part == "test" or settings.full:  # the test images show how good they are
            stages += [*point_stages(plan, part), proposal_stage(prompted, part)]
    files = {"selective search": plan.proposal_file("test")}
    files["tiny segmenter"] = prompted.proposal_file("test")
    stages.append(recall_stage(plan, files, "test"))
    for variant in settings.variants:
        own = replace(
            prompted if variant.proposals == POINTS_KIND else plan,
            config=f"configs/Quickstart/{variant.config}",
        )
        training, boxes, _ = detector_stages(own, variant.name)
        stages += [replace(training, needs=(plan.weights, *training.needs)), boxes]
    if settings.retrain:
        found = detections(plan, plan.output / f"{RETRAINED_FROM}_boxes")
        stages += retraining_stages(plan, found, smoke=settings.smoke)
    return stages


def seed_run(plan: WeakPlan, settings: Settings) -> WeakRun:
    """Where the results of one seed are."""
    rows = [DetectorRow("one box per CAM", cam_boxes(plan, "test"), cam_boxes(plan, "train"))]
    for variant in settings.variants:
        folder = plan.output / variant.name
        test = detections(plan, folder)
        train = detections(plan, plan.output / f"{variant.name}_boxes")
        rows.append(DetectorRow(variant.title, test, train))
    retrained = retrained_run(plan, smoke=settings.smoke) if settings.retrain else None
    return WeakRun(plan, with_points(plan, settings.size), tuple(rows), retrained)


def quickstart(settings: Settings) -> str:
    """Run what is not finished and write the report; returns the tables as text.

    Raises:
        ValueError: a stage failed; the message says what to do.
    """
    runs, ran, began = [], 0, time.monotonic()
    for seed in range(settings.seeds):
        plan = make_plan(settings, seed)
        if seed == 0:
            ran += run_stages(make_run(plan, (data_stage(plan, settings),)))
        ran += run_stages(make_run(plan, tuple(seed_stages(plan, settings))))
        runs.append(seed_run(plan, settings))
    minutes, output = (time.monotonic() - began) / 60, settings.output
    table = write_report(output, runs, smoke=settings.smoke)
    return f"{table}\n{ran} stages ran in {minutes:.1f} minutes; see {output / 'report.html'}"
