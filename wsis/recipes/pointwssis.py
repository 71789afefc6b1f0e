"""The stages of PointWSSIS as a list of commands, with the published schedules.

Teacher on the strong images, predictions of two of its checkpoints there, MaskRefineNet trained on
those, point-guided pseudo labels on the weak images, refinement, merging, student, evaluation.
Each stage reads files and writes files, so that it can be skipped, resumed or redone by itself.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wsis.sources import DataSource

ROOT = Path(__file__).resolve().parents[2]
REFERENCE_GPUS = 8  # the published schedules are for 8 GPUs with 2 images each
CHECKPOINT_PERIOD = 5000  # iterations between the teacher's checkpoints, SPEC 3.6
RLE_LABELS = ("INPUT.MASK_FORMAT", "bitmask")  # pseudo labels are RLE, which polygon configs refuse
# Weak images without any label are trained on: there is nothing to find in them (SPEC 7).
UNLABELLED_IMAGES = ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False")
CHECKPOINTS_OF_A_SHORT_TEACHER = 9  # where MAX_ITER is overridden: about so many checkpoints


@dataclass(frozen=True)
class Schedule:
    """Teacher schedule of one subset; the refiner learns from the masks at `refiner_iterations`."""

    max_iter: int
    steps: tuple[int, ...]
    refiner_iterations: tuple[int, ...]


# SPEC 3.6, Table of the teacher's schedules; the reference has no script for 40p.
SCHEDULES = {
    "1p": Schedule(10001, (5000, 8000), (4999, 9999)),
    "2p": Schedule(25001, (15000, 20000), (9999, 19999)),
    "5p": Schedule(30001, (20000, 25000), (14999, 24999)),
    "10p": Schedule(45001, (35000, 40000), (29999, 39999)),
    "20p": Schedule(120001, (90000, 110000), (69999, 99999)),
    "30p": Schedule(160001, (120000, 150000), (99999, 129999)),
    "40p": Schedule(215001, (165000, 200000), (139999, 184999)),
    "50p": Schedule(270001, (210000, 250000), (179999, 239999)),
}
STUDENT_SCHEDULE = Schedule(270000, (210000, 250000), ())


@dataclass(frozen=True)
class Plan:
    """All that decides the commands of one run.

    num_gpus: of one node; 0 trains on the CPU. overrides: KEY VALUE pairs for every training.
    student_solver: further pairs for the student alone.
    launcher: what precedes a Python file on several machines (torchrun and its arguments).
    """

    source: DataSource
    subset: str
    schedule: Schedule
    output: Path
    teacher_config: str
    student_config: str
    num_gpus: int
    num_nodes: int
    overrides: tuple[str, ...]
    refiner_options: tuple[str, ...]
    split_options: tuple[str, ...]
    with_refiner: bool
    student_solver: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()

    @property
    def world_size(self) -> int:
        return self.num_gpus * self.num_nodes

    @property
    def scale(self) -> float:
        """Batch and learning rate of the trainings, of the published ones; see `teacher_solver`."""
        if self.world_size == 0 or self.override("SOLVER.REFERENCE_WORLD_SIZE"):
            return 1.0
        return self.world_size / REFERENCE_GPUS

    def override(self, key: str) -> str | None:
        """The value that the user gives for a key, the last one where it is given twice."""
        pairs = dict(zip(self.overrides[::2], self.overrides[1::2], strict=True))
        return pairs.get(key)


@dataclass(frozen=True)
class Stage:
    """One command and the files that it needs and makes.

    keep_existing: results that are there before the first run are taken as given.
    everywhere: runs on every node of a multi-node job; other stages run on node 0 alone.
    """

    name: str
    what: str
    command: tuple[str, ...]
    needs: tuple[Path, ...]
    makes: tuple[Path, ...]
    keep_existing: bool = False
    everywhere: bool = False


def teacher_solver(plan: Plan) -> tuple[list[str], list[int]]:
    """The teacher's SOLVER overrides, and the iterations whose checkpoints train the refiner.

    An own SOLVER.MAX_ITER keeps the published proportions. With other than 8 GPUs
    SOLVER.REFERENCE_WORLD_SIZE scales batch and learning rate linearly and the iterations
    inversely, checkpoints included.
    """
    published, own = plan.schedule, plan.override("SOLVER.MAX_ITER")
    max_iter = int(own) if own else published.max_iter
    period = max(1, max_iter // CHECKPOINTS_OF_A_SHORT_TEACHER) if own else CHECKPOINT_PERIOD
    period = int(plan.override("SOLVER.CHECKPOINT_PERIOD") or period)
    if period > max_iter:
        raise ValueError(
            f"SOLVER.CHECKPOINT_PERIOD {period} saves nothing within {max_iter} iterations; "
            "MaskRefineNet trains on the masks of two of the teacher's checkpoints: lower it"
        )
    share = max_iter / published.max_iter
    numbers = [max(1, round((i + 1) * share / period)) for i in published.refiner_iterations]
    # As auto_scale_workers of detectron2.engine does it.
    scaled_period = max(1, round(period / plan.scale))
    last = round(max_iter / plan.scale) // scaled_period
    saved = [min(number, last) * scaled_period - 1 for number in numbers]
    options = ["SOLVER.MAX_ITER", str(max_iter), *steps(plan, max_iter, published)]
    return [*options, "SOLVER.CHECKPOINT_PERIOD", str(period)], saved


def student_solver(plan: Plan) -> list[str]:
    """The student's overrides: unlabelled images, and the steps where MAX_ITER is an own one."""
    own, (key, _) = plan.override("SOLVER.MAX_ITER"), UNLABELLED_IMAGES
    options = [] if plan.override(key) else list(UNLABELLED_IMAGES)
    return [*options, *(steps(plan, int(own), STUDENT_SCHEDULE) if own else [])]


def steps(plan: Plan, max_iter: int, published: Schedule) -> list[str]:
    """SOLVER.STEPS at the published shares of `max_iter`; nothing where the user gives them."""
    if plan.override("SOLVER.STEPS"):
        return []
    moved = {round(step * max_iter / published.max_iter) for step in published.steps}
    return ["SOLVER.STEPS", tuple_text(sorted(step for step in moved if 0 < step < max_iter))]


def tuple_text(values: Sequence[object]) -> str:
    """A tuple as KEY VALUE options take it: (1,2), (1,) or ()."""
    return "(" + ",".join(repr(value) for value in values) + ("," if len(values) == 1 else "") + ")"


def python(plan: Plan, script: str, *, distributed: bool = False) -> list[str]:
    if distributed and plan.launcher:
        return [*plan.launcher, script]
    return [sys.executable, *(["-m", "maskrefinenet"] if script == "maskrefinenet" else [script])]


def gpu_flags(plan: Plan) -> list[str]:
    return [] if plan.launcher else ["--num-gpus", str(plan.num_gpus)]


def common_overrides(plan: Plan) -> list[str]:
    """What every SOLOv2 command is told: classes, device, scaling."""
    options = []
    if plan.source.num_classes is not None:
        options += ["MODEL.SOLOV2.NUM_CLASSES", str(plan.source.num_classes)]
    if plan.num_gpus == 0:
        options += ["MODEL.DEVICE", "cpu"]
    if plan.world_size not in (0, REFERENCE_GPUS):
        options += ["SOLVER.REFERENCE_WORLD_SIZE", str(REFERENCE_GPUS)]
    return options


def training(
    plan: Plan, config: str, train_name: str, output: Path, solver: Sequence[str]
) -> list[str]:
    """tools/train_net.py on one data set; --resume starts afresh where there is no checkpoint."""
    command = [*python(plan, "tools/train_net.py", distributed=True), "--config-file", config]
    command += [*gpu_flags(plan), "--resume", "OUTPUT_DIR", str(output)]
    command += ["DATASETS.TRAIN", tuple_text([train_name])]
    command += ["DATASETS.TEST", tuple_text([plan.source.test_name])]
    return [*command, *common_overrides(plan), *plan.overrides, *solver]


def generation(plan: Plan, kind: str, prompt: str, weights: Path, output: Path) -> list[str]:
    """tools/generate_pseudo_labels.py on the strong or weak images of the subset."""
    command = python(plan, "tools/generate_pseudo_labels.py", distributed=True)
    command += ["--config-file", plan.teacher_config, *gpu_flags(plan)]
    command += ["--dataset", plan.source.name(plan.subset, kind), "--prompt", prompt]
    command += ["--output", str(output), *common_overrides(plan), *plan.overrides]
    # Last: an own MODEL.WEIGHTS is what a training starts from.
    return [*command, "MODEL.WEIGHTS", str(weights)]


def teacher_stages(plan: Plan) -> list[Stage]:
    source, subset = plan.source, plan.subset
    strong, weak = source.path(subset, "s"), source.path(subset, "w")
    split = [*python(plan, "tools/split_coco.py"), str(source.train_json)]
    split += [*plan.split_options, "--out-dir", str(strong.parent)]
    split += ["--percent", subset.removesuffix("p")]
    solver, _ = teacher_solver(plan)
    output = plan.output / "teacher"
    return [
        Stage(
            "split",
            "strong images keep masks, weak images keep one point per instance",
            tuple(split),
            needs=(source.train_json,),
            makes=(strong, weak),
            keep_existing=True,
        ),
        Stage(
            "teacher",
            "SOLOv2 on the strong images",
            tuple(training(plan, plan.teacher_config, source.name(subset, "s"), output, solver)),
            needs=(strong, source.image_root, source.val_json),
            makes=(output / "model_final.pth",),
            everywhere=True,
        ),
    ]


def refiner_stages(plan: Plan) -> list[Stage]:
    """Predictions of two teacher checkpoints on the strong images, and MaskRefineNet on them."""
    source, teacher, output = plan.source, plan.output / "teacher", plan.output / "refiner"
    strong = source.path(plan.subset, "s")
    stages, records = [], []
    for number, iteration in enumerate(teacher_solver(plan)[1], start=1):
        weights = teacher / f"model_{iteration:07d}.pth"
        records.append(plan.output / f"strong_{number}.jsonl")
        stages.append(
            Stage(
                f"strong_{number}",
                f"teacher masks on the strong images at iteration {iteration}",
                tuple(generation(plan, "s", "point_with_size", weights, records[-1])),
                needs=(weights, strong, source.image_root),
                makes=(records[-1],),
                everywhere=True,
            )
        )
    if plan.launcher:
        command = [*plan.launcher, "-m", "maskrefinenet", "train"]
    elif plan.num_gpus > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={plan.num_gpus}", "-m", "maskrefinenet", "train"]
    else:
        command = [*python(plan, "maskrefinenet"), "train"]
    command += ["--strong-json", str(strong), "--image-root", str(source.image_root)]
    command += ["--predictions", *map(str, records), "--out", str(output), "--resume"]
    command += ["--amp"] if plan.num_gpus else ["--device", "cpu"]
    stages.append(
        Stage(
            "refiner",
            "MaskRefineNet on those masks",
            (*command, *plan.refiner_options),
            needs=(*records, strong, source.image_root),
            makes=(output / "last.pth",),
            everywhere=True,
        )
    )
    return stages


def pseudo_label_stages(plan: Plan) -> list[Stage]:
    """Point-guided masks on the weak images, refined and merged with the strong labels."""
    source, subset = plan.source, plan.subset
    strong, weak = source.path(subset, "s"), source.path(subset, "w")
    teacher, refiner = plan.output / "teacher" / "model_final.pth", plan.output / "refiner"
    records, refined = plan.output / "weak.jsonl", plan.output / "weak_refined.jsonl"
    stages = [
        Stage(
            "weak",
            "the teacher follows the points of the weak images",
            tuple(generation(plan, "w", "point", teacher, records)),
            needs=(teacher, weak, source.image_root),
            makes=(records,),
            everywhere=True,
        )
    ]
    if plan.with_refiner:
        command = [*python(plan, "maskrefinenet"), "refine"]
        command += ["--checkpoint", str(refiner / "last.pth"), "--predictions", str(records)]
        command += ["--image-root", str(source.image_root), "--out", str(refined)]
        command += [] if plan.num_gpus else ["--device", "cpu"]
        stages.append(
            Stage(
                "refine",
                "MaskRefineNet improves them",
                tuple(command),
                needs=(refiner / "last.pth", records, source.image_root),
                makes=(refined,),
            )
        )
    used, merged = (refined if plan.with_refiner else records), merged_json(plan)
    merge = [*python(plan, "tools/merge_labels.py"), "--strong-json", str(strong)]
    merge += ["--records", str(used), "--weak-json", str(weak), "--output", str(merged)]
    stages.append(
        Stage(
            "merge",
            "strong labels and pseudo labels in one file",
            tuple(merge),
            needs=(strong, weak, used),
            makes=(merged,),
        )
    )
    return stages


def merged_kind(plan: Plan) -> str:
    return "sw_refined" if plan.with_refiner else "sw"


def merged_json(plan: Plan) -> Path:
    return plan.source.path(plan.subset, merged_kind(plan))


def student_stages(plan: Plan) -> list[Stage]:
    output = plan.output / "student"
    train_name = plan.source.name(plan.subset, merged_kind(plan))
    solver = [*student_solver(plan), *plan.student_solver]
    train = training(plan, plan.student_config, train_name, output, solver)
    results = output / "inference" / "coco_instances_results.json"
    return [
        Stage(
            "student",
            "a plain SOLOv2 on strong labels and pseudo labels, evaluated at the end",
            tuple(train),
            needs=(merged_json(plan), plan.source.image_root, plan.source.val_json),
            makes=(output / "model_final.pth", results),
            everywhere=True,
        ),
    ]


def build_stages(plan: Plan) -> list[Stage]:
    """Every stage of one run, in order."""
    refiner = refiner_stages(plan) if plan.with_refiner else []
    return [*teacher_stages(plan), *refiner, *pseudo_label_stages(plan), *student_stages(plan)]
