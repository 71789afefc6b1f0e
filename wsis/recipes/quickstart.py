"""The whole method on a small dataset on a CPU, with baselines, a table and a report."""

import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from wsis.quickstart_report import FULL_ROW, SeedRun, table_rows, write_report
from wsis.recipes import given
from wsis.recipes.plan import Plan, Schedule
from wsis.recipes.pointwssis import (
    SUMMARY,
    build_stages,
    evaluate,
    generate,
    make_run,
    merge,
    merge_stage,
    records_stage,
    training_stage,
)
from wsis.runner import Check, Command, FlagValue, Machines, PipelineError, Stage, run_stages
from wsis.sources import DataSource, own_data

CONFIDENT = 0.5  # score from which the teacher's own predictions serve as labels without points
WITHOUT_POINTS = {"MODEL.SOLOV2.NMS_TYPE": "matrix"}
SHAPES = "configs/Quickstart/shapes_{}.yaml"
NUCLEI = "configs/Quickstart/nuclei.yaml"
CONFIGS = {  # of teacher and student
    "shapes": (SHAPES.format("teacher"), SHAPES.format("student")),
    "coco": (SHAPES.format("teacher"), SHAPES.format("student")),
    "nuclei": (NUCLEI, NUCLEI),
}
STUDENT_CONFIGS = {"solov2": None, "mask_rcnn": "configs/Quickstart/mask_rcnn_shapes.yaml"}
# annotations and images of training and validation, below the dataset's folder
FILES = {
    "shapes": (
        "annotations/instances_train.json",
        "train",
        "annotations/instances_val.json",
        "val",
    ),
    "coco": (
        *("annotations/instances_train2017.json", "train2017"),
        *("annotations/instances_val2017.json", "val2017"),
    ),
}
FILES["nuclei"] = FILES["shapes"]


@dataclass(frozen=True)
class Size:
    """How much of everything one quick start takes; `refiner` has flags of its training."""

    train_images: int
    val_images: int
    teacher: Schedule
    checkpoint_period: int
    student_iterations: int
    refiner: dict[str, FlagValue] = field(default_factory=dict)


REFINER = {"recipe": "ours", "encoder": "resnet18", "weights": "none", "workers": 1}
# Chosen so that a run takes about ten minutes on two cores, and the smoke run under two.
NORMAL = Size(
    train_images=600,
    val_images=100,
    teacher=Schedule(500, (400,), (349, 449)),
    checkpoint_period=50,
    student_iterations=800,
    refiner={**REFINER, "size": 64, "iterations": 250, "batch-size": 16, "lr": 0.001},
)
SMOKE = Size(
    train_images=40,
    val_images=8,
    teacher=Schedule(6, (4,), (3, 5)),
    checkpoint_period=2,
    student_iterations=6,
    refiner={**REFINER, "size": 32, "iterations": 4, "batch-size": 4, "lr": 0.001},
)


@dataclass(frozen=True)
class Settings:
    """One quick start.

    data: a key of CONFIGS.  root: the user's copy of the data; None makes synthetic shapes.
    subset: share of images with masks ("10p").  seeds: number of runs to average.
    supervised: one network on all masks and nothing else.
    """

    output: Path
    data: str = "shapes"
    root: Path | None = None
    subset: str = "10p"
    seeds: int = 1
    student: str = "solov2"
    baseline: bool = True
    full: bool = False
    supervised: bool = False
    smoke: bool = False

    @property
    def size(self) -> Size:
        return SMOKE if self.smoke else NORMAL

    @property
    def percent(self) -> int:
        """Share of the images with masks."""
        return 100 if self.supervised else int(self.subset.removesuffix("p"))

    @property
    def folder(self) -> Path:
        """The dataset's folder.

        Raises:
            PipelineError: the data are the user's own, and `root` does not hold them.
        """
        if self.root is None and self.data == "shapes":
            return (self.output / "shapes").absolute()
        if self.root is None or not (self.root / "annotations").is_dir():
            raise PipelineError(
                f"--data {self.data} needs --root: your copy, a folder that holds annotations/; "
                f"got {self.root}"
            )
        return self.root.absolute()


def default_output(*, smoke: bool, supervised: bool, student: str) -> Path:
    """output/quickstart, with another name for each short form and student."""
    name = "smoke" if smoke else "quickstart"
    name += "_supervised" if supervised else ""
    return Path("output", name + ("" if student == "solov2" else f"_{student}"))


def data_source(settings: Settings, output: Path) -> DataSource:
    files = (settings.folder / name for name in FILES[settings.data])
    return own_data(*files, subset_folder=output.absolute() / "annotations")


def make_plan(settings: Settings, seed: int) -> Plan:
    output, size = settings.output / f"seed_{seed}", settings.size
    teacher_config, student_config = CONFIGS[settings.data]
    return Plan(
        source=data_source(settings, output),
        subset=settings.subset,
        schedule=size.teacher,
        output=output,
        machines=Machines(num_gpus=0),
        teacher_config=teacher_config,
        student_config=STUDENT_CONFIGS[settings.student] or student_config,
        overrides={
            "SEED": str(seed),
            "SOLVER.CHECKPOINT_PERIOD": str(size.checkpoint_period),
        },
        refiner_flags={**size.refiner, "seed": seed},
        split_flags={"seed": seed, "stratify": True},
        student_options={"SOLVER.MAX_ITER": str(size.student_iterations)},
    )


def data_stages(plan: Plan, settings: Settings) -> list[Stage]:
    """The stage that makes the shapes; none where the data are the user's own."""
    if settings.root is not None:
        return []
    size, source = settings.size, plan.source
    flags = {"train": size.train_images, "val": size.val_images}
    command = Command("make-shapes", arguments=(str(settings.folder),), flags=flags)
    makes = (source.train_json, source.val_json)
    check = Check(partial(given.check_labels, like=source.val_json), (source.val_json,))
    checks = dict.fromkeys(makes, check)
    leaves = (source.image_root,)
    return [Stage("data", "synthetic scenes of shapes", command, (), makes, leaves, checks=checks)]


def quality_stage(plan: Plan, name: str, records: Path) -> Stage:
    """Pseudo labels against the hidden masks of the weak images."""
    report, sheet = plan.output / f"{name}.json", plan.output / f"{name}.png"
    flags = {"records": records, "annotations": plan.source.train_json}
    flags |= {"weak-annotations": plan.weak}
    flags |= {"image-root": plan.source.image_root, "output": report, "sheet": sheet}
    return Stage(
        name,
        f"{records.name} against hidden masks",
        Command("evaluate-labels", flags=flags),
        needs=(records,),
        makes=(report,),
        leaves=(sheet,),
        checks={report: Check(given.check_json)},
    )


def teacher_evaluation(plan: Plan) -> Stage:
    """The teacher as a plain detector: no points at test time."""
    output = plan.output / "teacher_detector"
    options = {"MODEL.SOLOV2.PROMPT": "none", **WITHOUT_POINTS}
    plain = replace(plan, overrides={})
    return Stage(
        output.name,
        "the teacher as a detector, without points",
        evaluate(plain, plan.teacher_config, plan.teacher, output, options),
        needs=(plan.teacher,),
        makes=(output / SUMMARY,),
        folder=output,
        checks={output / SUMMARY: Check(given.check_json)},
    )


def other_student(plan: Plan, name: str, what: str, labels: Path) -> Stage:
    """A student of the same schedule on another label file."""
    train_name = f"{plan.output.name}_{name}={labels}:{plan.source.image_root}"
    options = plan.student_options
    return training_stage(plan, name, what, labels, train_name, plan.student_config, options)


def baseline_stages(plan: Plan) -> list[Stage]:
    """Semi-supervision without points: the teacher's own confident masks as pseudo labels."""
    records = plan.output / "confident.jsonl"
    merged = plan.source.path(plan.subset, "confident")
    return [
        records_stage(
            "confident",
            "the teacher's own predictions on the weak images, without points",
            generate(plan, "w", "none", plan.teacher, records, WITHOUT_POINTS),
            (plan.teacher, plan.weak),
            records,
            plan.weak,
        ),
        merge_stage(
            plan,
            "confident_merge",
            f"those with a score of at least {CONFIDENT} as labels",
            merge(plan, records, merged, min_score=CONFIDENT),
            records,
            merged,
        ),
        other_student(plan, "student_without_points", "a student of those labels", merged),
    ]


def full_stage(plan: Plan) -> Stage:
    """The upper bound: the student's network on the masks of all images."""
    return other_student(plan, FULL_ROW.name, "all masks", plan.source.train_json)


def seed_stages(plan: Plan, *, baseline: bool, full: bool) -> list[Stage]:
    """Everything that one row of the table needs, for one seed."""
    extra = {
        "teacher": [teacher_evaluation(plan)],
        "weak": [quality_stage(plan, "quality_unrefined", plan.output / "weak.jsonl")],
        "refine": [quality_stage(plan, "quality_refined", plan.output / "weak_refined.jsonl")],
        "student": baseline_stages(plan) if baseline else [],
    }
    if full:
        extra["student"].append(full_stage(plan))
    return [s for stage in build_stages(plan) for s in (stage, *extra.get(stage.name, ()))]


def quickstart(settings: Settings) -> str:
    """Run what is not finished and write the report; returns the table as text.

    Raises:
        ValueError: data are missing, or a stage failed; the message says what to do.
    """
    runs, ran, began = [], 0, time.monotonic()
    optional = {"baseline": settings.baseline, "full": settings.full}
    for seed in range(settings.seeds):
        plan = make_plan(settings, seed)
        data = data_stages(plan, settings) if seed == 0 else []
        stages = [full_stage(plan)] if settings.supervised else seed_stages(plan, **optional)
        if data:
            ran += run_stages(make_run(plan, tuple(data)))
        ran += run_stages(make_run(plan, tuple(stages)))
        runs.append(SeedRun(seed, plan.output))
    minutes, output = (time.monotonic() - began) / 60, settings.output
    rows = [FULL_ROW] if settings.supervised else table_rows(settings.percent, **optional)
    table = write_report(
        output, runs, plan.source, rows, percent=settings.percent, smoke=settings.smoke
    )
    return f"{table}\n{ran} stages ran in {minutes:.1f} minutes; see {output / 'report.html'}"
