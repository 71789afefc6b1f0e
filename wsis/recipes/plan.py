"""What decides a run of PointWSSIS: the published schedules, and how a run departs from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wsis.runner import FlagValue, Machines, PipelineError
from wsis.sources import DataSource

REFERENCE_GPUS = 8  # the published schedules are for 8 GPUs with 2 images each
CHECKPOINT_PERIOD = 5000  # iterations between the teacher's checkpoints
CHECKPOINTS_OF_A_SHORT_TEACHER = 9  # where MAX_ITER is overridden: about so many checkpoints
FINAL_MODEL = "model_final.pth"
TEACHER_CONFIG = "configs/PointWSSIS/R101_teacher.yaml"
STUDENT_CONFIGS = {
    "solov2": "configs/PointWSSIS/R101_student.yaml",
    "mask_rcnn": "configs/COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml",
}
# Pseudo labels are RLE, which configs of polygons refuse.
STUDENT_OPTIONS = {"solov2": {}, "mask_rcnn": {"INPUT.MASK_FORMAT": "bitmask"}}
# Weak images without any label are trained on: nothing was found in them.
UNLABELED_IMAGES = {"DATALOADER.FILTER_EMPTY_ANNOTATIONS": "False"}


@dataclass(frozen=True)
class Schedule:
    """Teacher schedule of one subset; the refiner learns from the masks at `refiner_iterations`."""

    max_iter: int
    steps: tuple[int, ...]
    refiner_iterations: tuple[int, ...]


# Published schedules by subset; the reference has none for 40p.
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
    """All that decides the stages of one run.

    overrides: configuration of every training and generation.
    student_options: further configuration of the student alone.
    refiner_flags, split_flags: options of MaskRefineNet's training and of the split.
    """

    source: DataSource
    subset: str
    schedule: Schedule
    output: Path
    machines: Machines
    teacher_config: str = TEACHER_CONFIG
    student_config: str = STUDENT_CONFIGS["solov2"]
    overrides: Mapping[str, str] = field(default_factory=dict)
    student_options: Mapping[str, str] = field(default_factory=dict)
    refiner_flags: Mapping[str, FlagValue] = field(default_factory=dict)
    split_flags: Mapping[str, FlagValue] = field(default_factory=dict)
    with_refiner: bool = True

    @property
    def scale(self) -> float:
        """Batch and learning rate of the trainings, of the published ones; see `teacher_solver`."""
        world_size = self.machines.world_size
        if world_size == 0 or self.overrides.get("SOLVER.REFERENCE_WORLD_SIZE"):
            return 1.0
        return world_size / REFERENCE_GPUS

    @property
    def strong(self) -> Path:
        """Label file of the images with masks."""
        return self.source.path(self.subset, "s")

    @property
    def weak(self) -> Path:
        """Label file of the images with points."""
        return self.source.path(self.subset, "w")

    @property
    def merged_kind(self) -> str:
        return "sw_refined" if self.with_refiner else "sw"

    @property
    def merged(self) -> Path:
        """Label file of the student: strong labels and pseudo labels."""
        return self.source.path(self.subset, self.merged_kind)

    @property
    def teacher(self) -> Path:
        """The teacher's final checkpoint."""
        return self.output / "teacher" / FINAL_MODEL


def teacher_solver(plan: Plan) -> tuple[dict[str, str], list[int]]:
    """The teacher's SOLVER overrides, and the iterations whose checkpoints train the refiner.

    An own SOLVER.MAX_ITER keeps the published proportions. With other than 8 GPUs
    SOLVER.REFERENCE_WORLD_SIZE scales batch and learning rate linearly and the iterations
    inversely, checkpoints included.
    """
    published, own = plan.schedule, plan.overrides.get("SOLVER.MAX_ITER")
    max_iter = int(own) if own else published.max_iter
    period = max(1, max_iter // CHECKPOINTS_OF_A_SHORT_TEACHER) if own else CHECKPOINT_PERIOD
    period = int(plan.overrides.get("SOLVER.CHECKPOINT_PERIOD") or period)
    if period > max_iter:
        raise PipelineError(
            f"SOLVER.CHECKPOINT_PERIOD {period} saves nothing within {max_iter} iterations; "
            "MaskRefineNet trains on the masks of two of the teacher's checkpoints: lower it"
        )
    share = max_iter / published.max_iter
    numbers = [max(1, round((i + 1) * share / period)) for i in published.refiner_iterations]
    # As auto_scale_workers of detectron2.engine does it.
    scaled_period = max(1, round(period / plan.scale))
    last = round(max_iter / plan.scale) // scaled_period
    saved = [min(number, last) * scaled_period - 1 for number in numbers]
    options = {"SOLVER.MAX_ITER": str(max_iter), **steps(plan, max_iter, published)}
    return {**options, "SOLVER.CHECKPOINT_PERIOD": str(period)}, saved


def student_solver(plan: Plan) -> dict[str, str]:
    """The student's overrides: unlabeled images, and the steps where MAX_ITER is an own one."""
    own = plan.overrides.get("SOLVER.MAX_ITER")
    unlabeled = {k: v for k, v in UNLABELED_IMAGES.items() if not plan.overrides.get(k)}
    return {**unlabeled, **(steps(plan, int(own), STUDENT_SCHEDULE) if own else {})}


def steps(plan: Plan, max_iter: int, published: Schedule) -> dict[str, str]:
    """SOLVER.STEPS at the published shares of `max_iter`; nothing where the user gives them."""
    if plan.overrides.get("SOLVER.STEPS"):
        return {}
    moved = {round(step * max_iter / published.max_iter) for step in published.steps}
    return {"SOLVER.STEPS": tuple_text(sorted(step for step in moved if 0 < step < max_iter))}


def tuple_text(values: Sequence[object]) -> str:
    """A tuple as KEY VALUE options take it: (1,2), (1,) or ()."""
    return "(" + ",".join(repr(value) for value in values) + ("," if len(values) == 1 else "") + ")"
