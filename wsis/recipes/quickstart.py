"""Show on a CPU, in minutes, what a point per instance is worth: the whole chain and its rivals.

    python tools/quickstart.py [--data shapes|nuclei|coco --root DIR] [--subset 10p] [--seeds 3]
        [--student mask_rcnn] [--full] [--without-baseline] [--supervised] [--smoke]

Makes (or takes) a small data set, runs every stage of tools/pipeline.py on it with the masks of
10% of the images, trains a student from the teacher's own confident predictions for comparison,
and writes a table, output/quickstart/report.html and pictures. A second run goes on where the
first stopped. `--supervised` is the short form: one network on all masks, and its AP.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from wsis.quickstart_report import FULL_ROW, SeedRun, table_rows, write_report
from wsis.recipes.pointwssis import (
    SCHEDULES,
    Plan,
    Schedule,
    Stage,
    build_stages,
    generation,
    python,
    training,
)
from wsis.runner import PipelineError, run
from wsis.sources import DataSource, own_data

CONFIDENT = 0.5  # score from which the teacher's own predictions serve as labels without points
SHAPES = "configs/Quickstart/shapes_{}.yaml"
NUCLEI = "configs/Quickstart/nuclei.yaml"
CONFIGS = {
    "shapes": (SHAPES.format("teacher"), SHAPES.format("student")),
    "coco": (SHAPES.format("teacher"), SHAPES.format("student")),
    "nuclei": (NUCLEI, NUCLEI),
}
STUDENT_CONFIGS = {"solov2": None, "mask_rcnn": "configs/Quickstart/mask_rcnn_shapes.yaml"}
# annotations and images of training and validation, below the data set's folder
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
    """How much of everything one quick start takes."""

    train_images: int
    val_images: int
    teacher: Schedule
    checkpoint_period: int
    student_iterations: int
    refiner: tuple[str, ...]


REFINER = ("--encoder", "resnet18", "--weights", "none", "--workers", "1", "--size")
# Chosen so that a run takes about ten minutes on two cores, and the smoke run under two.
NORMAL = Size(
    train_images=600,
    val_images=100,
    teacher=Schedule(500, (400,), (349, 449)),
    checkpoint_period=50,
    student_iterations=800,
    refiner=(*REFINER, "64", "--iterations", "250", "--batch-size", "16", "--lr", "0.001"),
)
SMOKE = Size(
    train_images=40,
    val_images=8,
    teacher=Schedule(6, (4,), (3, 5)),
    checkpoint_period=2,
    student_iterations=6,
    refiner=(*REFINER, "32", "--iterations", "4", "--batch-size", "4", "--lr", "0.001"),
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=sorted(CONFIGS), default="shapes")
    parser.add_argument("--root", type=Path, help="own copy of the data; nuclei and coco need it")
    parser.add_argument("--subset", choices=SCHEDULES, default="10p", help="images with masks")
    parser.add_argument("--output", type=Path, help="default: output/quickstart")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs to average")
    parser.add_argument("--student", choices=sorted(STUDENT_CONFIGS), default="solov2")
    masks = parser.add_mutually_exclusive_group()
    masks.add_argument("--full", action="store_true", help="also train on all masks")
    masks.add_argument(
        "--supervised", action="store_true", help="train one network on all masks, nothing else"
    )
    parser.add_argument(
        "--without-baseline", action="store_true", help="no student without points to compare with"
    )
    parser.add_argument("--smoke", action="store_true", help="a few iterations of everything")
    return parser


def data_folder(args: argparse.Namespace) -> Path:
    if args.root is None and args.data == "shapes":
        return (args.output / "shapes").absolute()
    if args.root is None or not (args.root / "annotations").is_dir():
        raise PipelineError(
            f"--data {args.data} needs --root: your copy, a folder that holds annotations/; "
            f"got {args.root}"
        )
    return args.root.absolute()


def data_source(args: argparse.Namespace, folder: Path, output: Path) -> DataSource:
    files = (folder / name for name in FILES[args.data])
    return own_data(*files, subset_folder=output.absolute() / "annotations")


def make_plan(args: argparse.Namespace, size: Size, folder: Path, seed: int) -> Plan:
    output = args.output / f"seed_{seed}"
    teacher_config, student_config = CONFIGS[args.data]
    return Plan(
        source=data_source(args, folder, output),
        subset=args.subset,
        schedule=size.teacher,
        output=output,
        teacher_config=teacher_config,
        student_config=STUDENT_CONFIGS[args.student] or student_config,
        num_gpus=0,
        num_nodes=1,
        overrides=("SEED", str(seed), "SOLVER.CHECKPOINT_PERIOD", str(size.checkpoint_period)),
        refiner_options=(*size.refiner, "--seed", str(seed)),
        split_options=("--seed", str(seed), "--stratify"),
        with_refiner=True,
        student_solver=("SOLVER.MAX_ITER", str(size.student_iterations)),
    )


def data_stage(plan: Plan, args: argparse.Namespace, size: Size, folder: Path) -> list[Stage]:
    """The stage that makes the shapes; none where the data are the user's own."""
    if args.root is not None:
        return []
    command = [*python(plan, "tools/make_shapes.py"), str(folder)]
    command += ["--train", str(size.train_images), "--val", str(size.val_images)]
    made = (plan.source.train_json, plan.source.val_json)
    return [Stage("data", "synthetic scenes of shapes", tuple(command), (), made)]


def quality_stage(plan: Plan, name: str, records: Path) -> Stage:
    """Pseudo labels against the hidden masks of the weak images."""
    report, sheet = plan.output / f"{name}.json", plan.output / f"{name}.png"
    command = [*python(plan, "tools/evaluate_labels.py"), "--labels", str(records)]
    command += ["--truth-json", str(plan.source.train_json)]
    command += ["--weak-json", str(plan.source.path(plan.subset, "w"))]
    command += ["--image-root", str(plan.source.image_root)]
    command += ["--output", str(report), "--sheet", str(sheet)]
    return Stage(
        name, f"{records.name} against hidden masks", tuple(command), (records,), (report,)
    )


def teacher_evaluation(plan: Plan) -> Stage:
    """The teacher as a plain detector: no points at test time."""
    output, weights = plan.output / "teacher_detector", plan.output / "teacher/model_final.pth"
    command = [*python(plan, "tools/train_net.py"), "--config-file", plan.teacher_config]
    command += ["--num-gpus", "0", "--eval-only", "OUTPUT_DIR", str(output)]
    command += ["DATASETS.TRAIN", "()", "DATASETS.TEST", f"('{plan.source.test_name}',)"]
    command += ["MODEL.SOLOV2.PROMPT", "none", "MODEL.SOLOV2.NMS_TYPE", "matrix"]
    command += ["MODEL.WEIGHTS", str(weights)]
    made = (output / "inference" / "summary.json",)
    what = "the teacher as a detector, without points"
    return Stage("teacher_detector", what, tuple(command), (weights,), made)


def student_stage(plan: Plan, name: str, what: str, annotations: Path) -> Stage:
    """A student of the same schedule on another label file."""
    output = plan.output / name
    train_name = f"{plan.output.name}_{name}={annotations}:{plan.source.image_root}"
    command = training(plan, plan.student_config, train_name, output, plan.student_solver)
    made = (output / "model_final.pth", output / "inference" / "summary.json")
    return Stage(name, what, tuple(command), (annotations,), made)


def baseline_stages(plan: Plan) -> list[Stage]:
    """Semi-supervision without points: the teacher's own confident masks as pseudo labels."""
    source, records = plan.source, plan.output / "confident.jsonl"
    weights, merged = plan.output / "teacher/model_final.pth", source.path(plan.subset, "confident")
    generate = generation(plan, "w", "none", weights, records)
    generate += ["MODEL.SOLOV2.NMS_TYPE", "matrix"]
    strong, weak = source.path(plan.subset, "s"), source.path(plan.subset, "w")
    merge = [*python(plan, "tools/merge_labels.py"), "--strong-json", str(strong)]
    merge += ["--records", str(records), "--weak-json", str(weak), "--output", str(merged)]
    merge += ["--min-score", str(CONFIDENT)]
    return [
        Stage(
            "confident",
            "the teacher's own predictions on the weak images, without points",
            tuple(generate),
            (weights, weak),
            (records,),
        ),
        Stage(
            "confident_merge",
            f"those with a score of at least {CONFIDENT} as labels",
            tuple(merge),
            (strong, weak, records),
            (merged,),
        ),
        student_stage(plan, "student_without_points", "a student of those labels", merged),
    ]


def full_stage(plan: Plan) -> Stage:
    """The upper bound: the student's network on the masks of all images."""
    return student_stage(plan, FULL_ROW.name, "all masks", plan.source.train_json)


def seed_stages(plan: Plan, *, baseline: bool, full: bool) -> list[Stage]:
    """Everything that one row of the table needs, for one seed."""
    stages = build_stages(plan)
    names = [stage.name for stage in stages]
    extra = {
        "teacher": [teacher_evaluation(plan)],
        "weak": [quality_stage(plan, "quality_unrefined", plan.output / "weak.jsonl")],
        "refine": [quality_stage(plan, "quality_refined", plan.output / "weak_refined.jsonl")],
        "student": baseline_stages(plan) if baseline else [],
    }
    if full:
        extra["student"].append(full_stage(plan))
    ordered = []
    for name, stage in zip(names, stages, strict=True):
        ordered += [stage, *extra.get(name, ())]
    return ordered


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    size, began = (SMOKE if args.smoke else NORMAL), time.monotonic()
    name = "smoke" if args.smoke else "quickstart"
    name += "_supervised" if args.supervised else ""
    name += "" if args.student == "solov2" else f"_{args.student}"
    args.output = args.output or Path("output", name)
    runs, ran, optional = [], 0, {"baseline": not args.without_baseline, "full": args.full}
    try:
        folder = data_folder(args)
        for seed in range(args.seeds):
            plan = make_plan(args, size, folder, seed)
            if seed == 0:
                ran += run(plan, data_stage(plan, args, size, folder))
            stages = [full_stage(plan)] if args.supervised else seed_stages(plan, **optional)
            ran += run(plan, stages)
            runs.append(SeedRun(seed, plan.output))
    except ValueError as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 1
    minutes = (time.monotonic() - began) / 60
    percent = 100 if args.supervised else int(args.subset.removesuffix("p"))
    rows = [FULL_ROW] if args.supervised else table_rows(percent, **optional)
    print(write_report(args.output, runs, plan.source, rows, percent=percent, smoke=args.smoke))
    print(f"{ran} stages ran in {minutes:.1f} minutes; see {args.output / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
