"""What decides a run of PointWSSIS: the published schedules, and how a run departs from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from weaklabels.coco import CocoFile
from weaksam.segmenters.spec import DEFAULT_SEGMENTER, parse_spec
from wsis.recipes.segmenters import require_clicks
from wsis.runner import FlagValue, Machines, PipelineError
from wsis.sources import DataSource

# Published figures: SPEC 3.6.
REFERENCE_GPUS = 8  # the published schedules are for 8 GPUs with 2 images each
IMAGES_PER_BATCH = 16
REFERENCE_IMAGES = 118287  # of COCO's train2017
SEED = 1
EVAL_PERIOD = 5000  # iterations between evaluations, of teacher and student
CHECKPOINT_PERIOD = 5000  # iterations between the teacher's checkpoints
TEACHER_WARMUP, STUDENT_WARMUP = 3000, 1000  # iterations
CHECKPOINTS_OF_A_SHORT_TEACHER = 9  # where MAX_ITER is overridden: about so many checkpoints
FINAL_MODEL = "model_final.pth"
VALIDATION_FLAG = "val-records"  # of MaskRefineNet's training: then it also writes best.pth
SOLOV2, SAM, MASKREFINENET = "solov2", "sam", "maskrefinenet"
TEACHERS = (SOLOV2, SAM)  # SAM: each point prompts a segmenter, and nothing is trained
REFINERS = (MASKREFINENET, SAM)
TEACHER_CONFIG = "configs/PointWSSIS/R101_teacher.yaml"
STUDENT_CONFIGS = {
    "solov2": "configs/PointWSSIS/R101_student.yaml",
    "mask_rcnn": "configs/COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml",
}
# Pseudo labels are RLE, which configs of polygons refuse.
STUDENT_OPTIONS = {"solov2": {}, "mask_rcnn": {"INPUT.MASK_FORMAT": "bitmask"}}
# The teacher is judged as a maker of labels: its masks on the points of the validation images count
# alike, whatever their scores.
TEACHER_EVALUATION = {"MODEL.SOLOV2.EVAL_PSEUDO_LABEL": "True"}
KEEP_UNLABELED = {"DATALOADER.FILTER_EMPTY_ANNOTATIONS": "False"}


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
    teacher_kind: one of TEACHERS.  refiners: some of REFINERS, in their order of work.
    segmenter: what "sam" prompts, see weaksam.segmenters.spec.
    keep_batch_size: the published batch, learning rates and iterations on any number of GPUs.
    keep_unlabeled: the student also trains on images without any label; the reference leaves out
        those whose points all failed.
    image_share: scales all iterations, see `images_of`.
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
    teacher_kind: str = SOLOV2
    refiners: tuple[str, ...] = (MASKREFINENET,)
    segmenter: str = DEFAULT_SEGMENTER
    keep_batch_size: bool = False
    keep_unlabeled: bool = False
    image_share: float = 1.0

    def __post_init__(self) -> None:
        if self.uses_segmenter:
            parse_spec(self.segmenter)
        if self.teacher_kind == SAM:
            require_clicks(self.segmenter)
        gpus = self.machines.world_size
        if self.keep_batch_size and gpus and self.batch % gpus:
            raise PipelineError(
                f"--keep-batch-size: {gpus} GPUs cannot share {self.batch} images evenly; use a "
                "divisor of it, or leave the option out to have batch and schedule scaled"
            )

    @property
    def batch(self) -> int:
        """Images of a training step on the published number of GPUs."""
        return int(self.overrides.get("SOLVER.IMS_PER_BATCH") or IMAGES_PER_BATCH)

    @property
    def reference_gpus(self) -> int:
        """SOLVER.REFERENCE_WORLD_SIZE of the trainings; 0: nothing scales with the GPUs."""
        own = self.overrides.get("SOLVER.REFERENCE_WORLD_SIZE")
        if own:
            return int(own)
        published = self.machines.world_size in (0, REFERENCE_GPUS)
        return 0 if published or self.keep_batch_size else REFERENCE_GPUS

    @property
    def scale(self) -> float:
        """Batch and learning rate of the trainings, of the published ones; see `teacher_solver`."""
        return max(1, self.machines.world_size) / self.reference_gpus if self.reference_gpus else 1

    @property
    def strong(self) -> Path:
        """Label file of the images with masks."""
        return self.source.path(self.subset, "s")

    @property
    def weak(self) -> Path:
        """Label file of the images with points."""
        return self.source.path(self.subset, "w")

    @property
    def uses_segmenter(self) -> bool:
        return SAM in (self.teacher_kind, *self.refiners)

    @property
    def merged(self) -> Path:
        """Label file of the student: strong labels and pseudo labels; the method's own by name."""
        if self.uses_segmenter:
            return self.output / "merged.json"
        return self.source.path(self.subset, "sw_refined" if self.refiners else "sw")

    @property
    def merged_name(self) -> str:
        """What DATASETS.TRAIN says for it."""
        if self.uses_segmenter:
            return f"{self.output.name}_merged={self.merged}:{self.source.image_root}"
        return self.source.name(self.subset, "sw_refined" if self.refiners else "sw")

    @property
    def teacher(self) -> Path:
        """The teacher's final checkpoint."""
        return self.output / "teacher" / FINAL_MODEL

    @property
    def student(self) -> Path:
        """The student's final checkpoint."""
        return self.output / "student" / FINAL_MODEL

    @property
    def refiner(self) -> Path:
        """The checkpoint that refines: the last, or the best where a validation was asked for."""
        best = VALIDATION_FLAG in self.refiner_flags
        return self.output / "refiner" / ("best.pth" if best else "last.pth")


def teacher_solver(plan: Plan) -> tuple[dict[str, str], list[int]]:
    """The teacher's overrides, and the iterations whose checkpoints train the refiner.

    An own SOLVER.MAX_ITER keeps the published proportions. With other than 8 GPUs
    SOLVER.REFERENCE_WORLD_SIZE scales batch and learning rate linearly and the iterations
    inversely, checkpoints included.
    """
    published = plan.schedule
    max_iter = own_iterations(plan, published) or published.max_iter
    period = CHECKPOINT_PERIOD
    if max_iter != published.max_iter:
        period = max(1, max_iter // CHECKPOINTS_OF_A_SHORT_TEACHER)
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
    options |= {"SOLVER.CHECKPOINT_PERIOD": str(period), **common_solver(plan, TEACHER_WARMUP)}
    return {**options, **without_own(plan, TEACHER_EVALUATION)}, saved


def student_solver(plan: Plan) -> dict[str, str]:
    """The student's overrides; the iterations and steps where they are not the published ones."""
    own = own_iterations(plan, STUDENT_SCHEDULE)
    iterations = {"SOLVER.MAX_ITER": str(own), **steps(plan, own, STUDENT_SCHEDULE)} if own else {}
    unlabeled = without_own(plan, KEEP_UNLABELED) if plan.keep_unlabeled else {}
    return {**common_solver(plan, STUDENT_WARMUP), **unlabeled, **iterations}


def own_iterations(plan: Plan, published: Schedule) -> int | None:
    """SOLVER.MAX_ITER where it is the user's own or scaled to the number of images."""
    own = plan.overrides.get("SOLVER.MAX_ITER")
    if own:
        return int(own)
    return None if plan.image_share == 1 else max(1, round(published.max_iter * plan.image_share))


def common_solver(plan: Plan, warmup: int) -> dict[str, str]:
    """What the schedules of teacher and student share; periods are scaled as the iterations."""
    share = plan.image_share
    options = {"SEED": str(SEED), "TEST.EVAL_PERIOD": str(max(1, round(EVAL_PERIOD * share)))}
    if share != 1:
        options["SOLVER.WARMUP_ITERS"] = str(round(warmup * share))
    return without_own(plan, options)


def without_own(plan: Plan, options: Mapping[str, str]) -> dict[str, str]:
    """The options that the user has not set."""
    return {key: value for key, value in options.items() if not plan.overrides.get(key)}


def images_of(source: DataSource) -> float:
    """Training images of a dataset relative to COCO's, which the published schedules are for.

    Raises:
        FileNotFoundError: the number is not known, and the annotation file is not there.
    """
    return (source.train_images or len(CocoFile(source.train_json).images)) / REFERENCE_IMAGES


def describe_schedule(plan: Plan) -> list[str]:
    """How the schedule of this run differs from the published one, for the user to read."""
    gpus, scale, where = plan.machines.world_size, plan.scale, "on the CPU"
    if gpus:
        where = f"on {gpus} GPU{'s' * (gpus > 1)}"
    batch = f"batches of {round(plan.batch * scale)} images {where}"
    lines = [f"Schedule: {batch}, learning rates and iterations not scaled (published for 8 GPUs)"]
    if scale != 1:
        lines = [
            f"Schedule: {batch}, learning rates x {scale:g}, iterations x {1 / scale:g}, scaled "
            f"from {plan.reference_gpus} GPUs; --keep-batch-size keeps {plan.batch} images, "
            "learning rates and iterations whatever the number of GPUs, as the reference does"
        ]
    if plan.image_share != 1:
        lines.append(
            f"Iterations: COCO's x {plan.image_share:.3g}, scaled to the number of training images"
        )
    elif not plan.source.is_reference:
        lines.append(
            "Iterations: COCO's for this share of images, as none are published for this dataset; "
            f"--scale-to-images scales them to its images (COCO has {REFERENCE_IMAGES}"
            + (f", it has {plan.source.train_images})" if plan.source.train_images else ")")
        )
    return lines


def steps(plan: Plan, max_iter: int, published: Schedule) -> dict[str, str]:
    """SOLVER.STEPS at the published shares of `max_iter`; nothing where the user gives them."""
    if plan.overrides.get("SOLVER.STEPS"):
        return {}
    moved = {round(step * max_iter / published.max_iter) for step in published.steps}
    return {"SOLVER.STEPS": tuple_text(sorted(step for step in moved if 0 < step < max_iter))}


def tuple_text(values: Sequence[object]) -> str:
    """A tuple as KEY VALUE options take it: (1,2), (1,) or ()."""
    return "(" + ",".join(repr(value) for value in values) + ("," if len(values) == 1 else "") + ")"
