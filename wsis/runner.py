"""Run PointWSSIS from split to student, stage by stage: skip what is done, resume what is not.

    python tools/pipeline.py 10p [--dataset coco] [--dry-run] [--from STAGE] [KEY VALUE ...]
    python tools/pipeline.py 10p --set-aside STAGE    (before a redo on several machines)

KEY VALUE pairs override the configuration of the teacher and of the student. The environment says
where and with what: DETECTRON2_DATASETS (./datasets), OUTPUT_DIR (output/<dataset>_<subset>),
NUM_GPUS (all that are there; 0 trains on the CPU), and on several machines NNODES, NODE_RANK,
MASTER_ADDR and MASTER_PORT as torchrun names them.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from weaklabels.coco import CocoFile
from weaklabels.files import atomic_text
from weaklabels.merge import refuse_other_categories, refuse_shared_images
from wsis.recipes.pointwssis import (
    RLE_LABELS,
    ROOT,
    SCHEDULES,
    Plan,
    Stage,
    build_stages,
    teacher_solver,
)
from wsis.sources import DATA_SOURCES, own_data

BYTES_PER_CHECKPOINT = 550e6  # R-101-FPN SOLOv2 with its momentum buffers, measured
IMAGES_LOOKED_FOR = 20  # of each annotation file, before a stage starts
SECONDS_BETWEEN_LOOKS = 5.0
STUDENTS = {
    "solov2": "configs/PointWSSIS/R101_student.yaml",
    "mask_rcnn": "configs/COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml",
}


class PipelineError(ValueError):
    """Something that the user has to mend; the message says what and how."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("subset", choices=sorted(SCHEDULES, key=lambda name: int(name[:-1])))
    parser.add_argument("--dataset", choices=[*DATA_SOURCES, "own"], default="coco")
    parser.add_argument("--train-json", type=Path, help="with --dataset own: all annotations")
    parser.add_argument("--image-root", type=Path, help="with --dataset own: training images")
    parser.add_argument("--val-json", type=Path, help="with --dataset own: validation file")
    parser.add_argument("--val-root", type=Path, help="with --dataset own: validation images")
    parser.add_argument("--teacher-config", default="configs/PointWSSIS/R101_teacher.yaml")
    parser.add_argument("--student", choices=STUDENTS, default="solov2")
    parser.add_argument("--student-config", help="another than --student's own")
    parser.add_argument("--split", default="", metavar="OPTIONS", help="for tools/split_coco.py")
    parser.add_argument("--refiner", default="", metavar="OPTIONS", help="for its training")
    parser.add_argument("--without-refiner", action="store_true", help="merge unrefined labels")
    parser.add_argument("--from", dest="start", metavar="STAGE", help="redo from here on")
    parser.add_argument(
        "--set-aside", metavar="STAGE", help="rename the results from here on, and stop"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides")
    return parser


def make_plan(args: argparse.Namespace) -> Plan:
    """The plan that the arguments and the environment describe."""
    if len(args.opts) % 2:
        raise PipelineError(f"overrides come in pairs of KEY VALUE; got {' '.join(args.opts)!r}")
    if args.dataset == "own":
        paths = (args.train_json, args.image_root, args.val_json, args.val_root)
        if None in paths:
            raise PipelineError(
                "--dataset own needs --train-json, --image-root, --val-json and --val-root"
            )
        source = own_data(*(path.absolute() for path in paths))
    else:
        datasets = Path(os.environ.get("DETECTRON2_DATASETS") or "datasets")
        source = DATA_SOURCES[args.dataset](datasets)
    num_gpus = int(os.environ.get("NUM_GPUS") or torch.cuda.device_count())
    num_nodes = int(os.environ.get("NNODES") or 1)
    return Plan(
        source=source,
        subset=args.subset,
        schedule=SCHEDULES[args.subset],
        output=Path(os.environ.get("OUTPUT_DIR") or f"output/{args.dataset}_{args.subset}"),
        teacher_config=args.teacher_config,
        student_config=args.student_config or STUDENTS[args.student],
        student_solver=RLE_LABELS if args.student == "mask_rcnn" else (),
        num_gpus=num_gpus,
        num_nodes=num_nodes,
        overrides=tuple(args.opts),
        refiner_options=tuple(shlex.split(args.refiner)),
        split_options=tuple(shlex.split(args.split)),
        with_refiner=not args.without_refiner,
        launcher=torchrun(num_nodes, max(1, num_gpus)) if num_nodes > 1 else (),
    )


def torchrun(num_nodes: int, processes: int) -> tuple[str, ...]:
    """The start of a command that runs on this node as one of several."""
    missing = [name for name in ("NODE_RANK", "MASTER_ADDR") if not os.environ.get(name)]
    if missing:
        raise PipelineError(
            f"NNODES={num_nodes} also needs {' and '.join(missing)} in the environment; "
            "scripts/slurm_example.sh shows how"
        )
    return (
        *(sys.executable, "-m", "torch.distributed.run", f"--nnodes={num_nodes}"),
        *(f"--node-rank={os.environ['NODE_RANK']}", f"--nproc-per-node={processes}"),
        f"--master-addr={os.environ['MASTER_ADDR']}",
        f"--master-port={os.environ.get('MASTER_PORT') or 29500}",
    )


def marker(plan: Plan, stage: Stage) -> Path:
    return plan.output / "stages" / f"{stage.name}.json"


def failure(plan: Plan, stage: Stage) -> Path:
    """Written by the first of several machines where a stage fails that it runs for all."""
    return marker(plan, stage).with_suffix(".failed")


def words(plan: Plan, stage: Stage) -> list[str]:
    """The stage's command without what differs from machine to machine."""
    start = len(plan.launcher) if plan.launcher and stage.everywhere else 1
    return list(stage.command[start:])


def is_finished(plan: Plan, stage: Stage) -> bool:
    """True if the stage ran to its end with this very command, or its results were given.

    Raises:
        PipelineError: it was finished by another command.
    """
    there = all(path.exists() for path in stage.makes)
    if not marker(plan, stage).exists():
        if stage.keep_existing and there:
            given = ", ".join(str(path) for path in stage.makes)
            print(f"{stage.name}: {given} are there and used as they are", flush=True)
        return stage.keep_existing and there
    done = json.loads(marker(plan, stage).read_text())
    if done["command"] != words(plan, stage):
        raise PipelineError(
            f"stage {stage.name!r} in {plan.output} was finished by another command:\n"
            f"  then: {shlex.join(done['command'])}\n  now:  {shlex.join(words(plan, stage))}\n"
            f"redo it with --from {stage.name}, or set OUTPUT_DIR to another folder"
        )
    return there


def write_marker(plan: Plan, stage: Stage, seconds: float) -> None:
    record = {"command": words(plan, stage), "seconds": round(seconds, 1)}
    with atomic_text(marker(plan, stage)) as file:
        file.write(json.dumps(record, indent=1) + "\n")


def set_aside(plan: Plan, stages: list[Stage], start: str) -> None:
    """Rename what the stages from `start` on have made, so that they run again from nothing."""
    names = [stage.name for stage in stages]
    if start not in names:
        raise PipelineError(f"{start!r}: no such stage; stages are {', '.join(names)}")
    suffix = time.strftime(".old-%Y%m%d-%H%M%S")
    for stage in stages[names.index(start) :]:
        marker(plan, stage).unlink(missing_ok=True)
        for made in stage.makes:
            # A checkpoint's folder holds what a resumed training would continue from, parts of a
            # record file what a resumed generation or refinement would.
            path = made.parent if made.suffix == ".pth" else made
            for old in (path, *path.parent.glob(f"{path.name}.*part*")):
                if old.exists() and ".old-" not in old.name:
                    old.rename(old.with_name(old.name + suffix))
                    print(f"kept as {old.name + suffix}: {old}")


def check_needs(plan: Plan, stage: Stage) -> None:
    """Every file that the stage reads is there, with the first images of its annotation files."""
    for path in stage.needs:
        if not path.exists():
            hint = (
                plan.source.how_to_get
                if path_is_data(plan, path)
                else (f"an earlier stage makes it: run without --from, or look into {plan.output}")
            )
            raise PipelineError(f"stage {stage.name!r} needs {path}, which is missing: {hint}")
    if stage.name == "teacher":
        check_split(plan)
        check_disk(plan)


def path_is_data(plan: Plan, path: Path) -> bool:
    return path in (plan.source.train_json, plan.source.image_root, plan.source.val_json)


def check_split(plan: Plan) -> None:
    """Images of the split are there, and both of its files fit together, as merging will need."""
    strong, weak = (CocoFile(plan.source.path(plan.subset, kind)) for kind in "sw")
    for image in list(strong.images.values())[:IMAGES_LOOKED_FOR]:
        path = plan.source.image_root / image["file_name"]
        if not path.exists():
            raise PipelineError(
                f"{strong.path} names {path}, which is missing: {plan.source.how_to_get}"
            )
    refuse_other_categories(strong, weak)
    refuse_shared_images(strong, weak.images, weak.path)


def check_disk(plan: Plan) -> None:
    options, _ = teacher_solver(plan)
    solver = dict(zip(options[::2], options[1::2], strict=True))
    checkpoints = int(solver["SOLVER.MAX_ITER"]) // int(solver["SOLVER.CHECKPOINT_PERIOD"]) + 2
    needed = checkpoints * BYTES_PER_CHECKPOINT
    plan.output.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(plan.output).free
    if free < needed:
        raise PipelineError(
            f"the teacher writes about {checkpoints} checkpoints, {needed / 1e9:.1f} GB; "
            f"{plan.output} has {free / 1e9:.1f} GB free: make room, raise "
            "SOLVER.CHECKPOINT_PERIOD, or set OUTPUT_DIR to a larger disk"
        )


def run_stage(plan: Plan, stage: Stage) -> None:
    """Run one stage, or on another node than the first wait until the first has run it.

    Raises:
        ValueError: an input is missing or unfit, the command failed or did not make its results.
    """
    node_rank = int(os.environ.get("NODE_RANK") or 0)
    if node_rank and not stage.everywhere:
        wait_for(plan, stage)
        return
    began = time.monotonic()
    try:
        run_here(plan, stage)
        if not node_rank:
            check_made(stage)
    except ValueError as error:
        if plan.num_nodes > 1 and not node_rank:
            with atomic_text(failure(plan, stage)) as file:
                file.write(f"{time.time()} {error}\n")
        raise
    if node_rank:
        wait_for(plan, stage)
        return
    write_marker(plan, stage, time.monotonic() - began)


def run_here(plan: Plan, stage: Stage) -> None:
    """Run the stage's command on this machine, having looked whether its inputs are there."""
    check_needs(plan, stage)
    environment = os.environ | {"PYTHONPATH": search_path()}
    code = subprocess.run(stage.command, cwd=ROOT, env=environment).returncode
    if code:
        raise PipelineError(
            f"stage {stage.name!r} ended with exit code {code}; its message is above. "
            "The same command again goes on from where it stopped:\n  " + shlex.join(stage.command)
        )


def check_made(stage: Stage) -> None:
    missing = [str(path) for path in stage.makes if not path.exists()]
    if missing:
        raise PipelineError(f"stage {stage.name!r} ended well but did not make {missing}")


def wait_for(plan: Plan, stage: Stage) -> None:
    """Wait until the first machine has finished a stage.

    Raises:
        PipelineError: the stage fails there while this machine waits.
    """
    path = failure(plan, stage)
    of_an_earlier_run = path.read_text() if path.exists() else None
    while not marker(plan, stage).exists():
        if path.exists() and path.read_text() != of_an_earlier_run:
            raise PipelineError(f"on the first machine, {path.read_text().partition(' ')[2]}")
        time.sleep(SECONDS_BETWEEN_LOOKS)


def search_path() -> str:
    """PYTHONPATH that finds `tools`, whatever the working folder."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def run(plan: Plan, stages: list[Stage]) -> int:
    """Run what is not finished; returns how many stages that were."""
    ran = 0
    for number, stage in enumerate(stages, start=1):
        head = f"[{number}/{len(stages)}] {stage.name}"
        if is_finished(plan, stage):
            print(f"{head}: finished, skipped", flush=True)
            continue
        print(f"{head}: {stage.what}\n  {shlex.join(stage.command)}", flush=True)
        run_stage(plan, stage)
        ran += 1
    return ran


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_intermixed_args(argv)
    try:
        plan = make_plan(args)
        stages = build_stages(plan)
        if args.dry_run:
            for stage in stages:
                print(f"# {stage.name}: {stage.what}\n{shlex.join(stage.command)}")
            return 0
        if args.start and plan.num_nodes > 1:
            raise PipelineError(
                "--from on several machines: run --set-aside on one of them, then start them all"
            )
        if args.start or args.set_aside:
            set_aside(plan, stages, args.start or args.set_aside)
        if args.set_aside:
            return 0
        ran = run(plan, stages)
    except ValueError as error:
        print(f"pipeline: {error}", file=sys.stderr)
        return 1
    if not ran:
        print(f"Nothing to do: every stage of {plan.output} is finished.")
    print(f"Student: {stages[-1].makes[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
