"""Run PointWSSIS from split to student, stage by stage.

    wsis run pointwssis 10p [--dataset coco] [--dry-run] [--from STAGE] [KEY VALUE ...]
    wsis run pointwssis 10p --set-aside STAGE    (before a redo on several machines)
    wsis run pointwssis 10p --start-from released[:WHAT] [--released-root DIR]

    wsis run pointwssis 10p --refiner sam|maskrefinenet,sam --segmenter SPEC
    wsis run pointwssis 10p --teacher sam --segmenter SPEC

Finished stages are skipped, interrupted ones resume. What stands where a stage writes before that
stage was started (a released teacher, refiner, label file, student) is checked and used as it is.
KEY VALUE pairs override the configuration of the teacher and of the student. The environment says
where and with what: DETECTRON2_DATASETS (./datasets), OUTPUT_DIR (output/<dataset>_<subset>),
NUM_GPUS (all that are there; 0 trains on the CPU), and on several machines NNODES, NODE_RANK,
MASTER_ADDR and MASTER_PORT as torchrun names them.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from weaksam.segmenters.spec import DEFAULT_SEGMENTER, FORMS
from wsis.cli.run import add_run_arguments, flags_of, machines_of, overrides_of, start
from wsis.recipes.plan import (
    MASKREFINENET,
    REFINERS,
    SAM,
    SCHEDULES,
    SOLOV2,
    STUDENT_CONFIGS,
    STUDENT_OPTIONS,
    TEACHER_CONFIG,
    TEACHERS,
    Plan,
    describe_schedule,
    images_of,
)
from wsis.recipes.pointwssis import make_run
from wsis.recipes.start_from import (
    DEFAULT_ROOT,
    ENTRIES,
    lay_out,
    parse_start,
    released_files,
)
from wsis.released import DRIVE_URL
from wsis.runner import PipelineError, Run
from wsis.sources import DATA_SOURCES, DataSource, own_data


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subset", choices=SCHEDULES)
    parser.add_argument("--dataset", choices=[*DATA_SOURCES, "own"], default="coco")
    parser.add_argument("--train-json", type=Path, help="with --dataset own: all annotations")
    parser.add_argument("--image-root", type=Path, help="with --dataset own: training images")
    parser.add_argument("--val-json", type=Path, help="with --dataset own: validation file")
    parser.add_argument("--val-root", type=Path, help="with --dataset own: validation images")
    parser.add_argument("--teacher-config", default=TEACHER_CONFIG)
    parser.add_argument("--student", choices=STUDENT_CONFIGS, default="solov2")
    parser.add_argument("--student-config", help="another config than that of --student")
    parser.add_argument("--split", default="", metavar="OPTIONS", help="options of the split")
    parser.add_argument(
        "--teacher",
        choices=TEACHERS,
        default=SOLOV2,
        help="sam: each point prompts the segmenter, and no teacher is trained; what it draws is "
        "refined only where --refiner says so",
    )
    parser.add_argument(
        "--refiner",
        default="",
        metavar="[NAMES] [OPTIONS]",
        help="maskrefinenet (default), sam (the segmenter, prompted by the rough masks), or both "
        "in the order of their work, as in maskrefinenet,sam; then options of MaskRefineNet's "
        "training",
    )
    parser.add_argument(
        "--segmenter", help=f"of sam, one of {FORMS} (default: {DEFAULT_SEGMENTER})"
    )
    parser.add_argument("--without-refiner", action="store_true", help="merge unrefined labels")
    parser.add_argument(
        "--keep-batch-size",
        action="store_true",
        help="16 images, published learning rates and iterations on any number of GPUs, as in the "
        "reference; without it the schedule scales with the GPUs",
    )
    parser.add_argument(
        "--keep-unlabeled",
        action="store_true",
        help="the student also trains on images without any label; the reference leaves them out",
    )
    parser.add_argument(
        "--scale-to-images",
        action="store_true",
        help="other datasets than COCO: iterations in proportion to the training images",
    )
    released = parser.add_argument_group("what the authors released")
    released.add_argument(
        "--start-from",
        metavar="released[:WHAT]",
        help=f"download it and go on from there; WHAT: some of {', '.join(ENTRIES)}, with commas "
        "between (default: teacher,refiner)",
    )
    released.add_argument(
        "--released-root",
        type=Path,
        metavar="DIR",
        default=DEFAULT_ROOT,
        help=f"where the files are, or are downloaded to (default: {DEFAULT_ROOT})",
    )
    released.add_argument("--released-url", metavar="URL", default=DRIVE_URL, help="a mirror")
    released.add_argument(
        "--fetch-only", action="store_true", help="put the files in place, and stop"
    )
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    plan = make_plan(args)
    todo = make_run(plan)
    for line in describe_schedule(plan):
        print(f"# {line}", flush=True)
    if args.fetch_only and not args.start_from:
        raise PipelineError("--fetch-only needs --start-from")
    if args.start_from:
        start_from(plan, todo, args)
    if args.fetch_only:
        return 0
    code = start(todo, args)
    if not (args.dry_run or args.set_aside):
        print(f"Student: {todo.stages[-1].makes[0]}")
    return code


def start_from(plan: Plan, todo: Run, args: argparse.Namespace) -> None:
    """Put what --start-from asks for where the stages look; a dry run only says so."""
    entries = parse_start(args.start_from, with_refiner=MASKREFINENET in plan.refiners)
    files = released_files(plan, entries, args.released_root)
    refuse_released(plan, entries)
    if args.start or args.set_aside:
        raise PipelineError("--start-from goes on after given stages: it takes no --from STAGE")
    if plan.machines.num_nodes > 1:
        raise PipelineError(
            "--start-from on several machines: run it on one of them with --fetch-only (and "
            "NNODES unset), then start them all without it"
        )
    if args.dry_run:
        for file in files:
            print(f"# given for stage {file.stage}: {file.source} as {file.target}")
    else:
        lay_out(todo, files, plan.subset, args.released_url)


def refuse_released(plan: Plan, entries: Sequence[str]) -> None:
    """PipelineError for released files that a run with a segmenter has no use for."""
    if plan.teacher_kind == SAM and set(entries) != {"split"}:
        raise PipelineError(
            "--start-from: --teacher sam trains no network on the authors' masks, so only their "
            "split fits: say released:split"
        )
    if plan.uses_segmenter and {"pseudo-labels", "student"} & set(entries):
        raise PipelineError(
            "--start-from: the released pseudo labels and student were made without a segmenter: "
            "leave --refiner sam out, or say released:teacher"
        )


def make_plan(args: argparse.Namespace) -> Plan:
    """The plan that the arguments and the environment describe."""
    source = source_of(args)
    refiners, options = refiners_of(args)
    if args.teacher == SAM and args.teacher_config != TEACHER_CONFIG:
        raise PipelineError("--teacher-config is of --teacher solov2; sam is not trained")
    if args.segmenter is not None and SAM not in (args.teacher, *refiners):
        raise PipelineError("--segmenter is for --teacher sam or --refiner sam: leave it out")
    return Plan(
        source=source,
        subset=args.subset,
        schedule=SCHEDULES[args.subset],
        output=Path(os.environ.get("OUTPUT_DIR") or f"output/{args.dataset}_{args.subset}"),
        machines=machines_of(),
        teacher_config=args.teacher_config,
        student_config=args.student_config or STUDENT_CONFIGS[args.student],
        overrides=overrides_of(args.opts),
        student_options=STUDENT_OPTIONS[args.student],
        refiner_flags=flags_of(options, "--refiner", "train-refiner"),
        split_flags=flags_of(args.split, "--split", "split"),
        teacher_kind=args.teacher,
        refiners=refiners,
        segmenter=args.segmenter or DEFAULT_SEGMENTER,
        keep_batch_size=args.keep_batch_size,
        keep_unlabeled=args.keep_unlabeled,
        image_share=images_of(source) if args.scale_to_images else 1.0,
    )


def refiners_of(args: argparse.Namespace) -> tuple[tuple[str, ...], str]:
    """The refiners that the arguments name, and the options of MaskRefineNet's training.

    Raises:
        PipelineError: a name is unknown, or the options are of no refiner of the run.
    """
    text = args.refiner.strip()
    word, options = ("", text) if text.startswith("-") else (text.partition(" ")[::2])
    names = tuple(word.split(",")) if word else ()
    if not set(names) <= set(REFINERS) or len(set(names)) != len(names):
        raise PipelineError(
            f"--refiner {args.refiner!r}: expected {' or '.join(REFINERS)}, or both with a comma "
            "between, and then options of MaskRefineNet's training"
        )
    if args.without_refiner:
        if names:
            raise PipelineError(f"--without-refiner and --refiner {word}: give one of them")
        return (), options
    if options and names and MASKREFINENET not in names:
        raise PipelineError(
            f"--refiner {args.refiner!r}: {options.strip()} are options of MaskRefineNet's "
            "training, which this run does not have; --segmenter chooses what sam prompts"
        )
    if names or (args.teacher == SAM and not options):
        return names, options
    return (MASKREFINENET,), options


def source_of(args: argparse.Namespace) -> DataSource:
    """The dataset that the arguments and DETECTRON2_DATASETS name."""
    if args.dataset != "own":
        return DATA_SOURCES[args.dataset](Path(os.environ.get("DETECTRON2_DATASETS") or "datasets"))
    paths = (args.train_json, args.image_root, args.val_json, args.val_root)
    if None in paths:
        raise PipelineError(
            "--dataset own needs --train-json, --image-root, --val-json and --val-root"
        )
    return own_data(*(path.absolute() for path in paths))
