"""Run WeakSAM from image tags to a weakly supervised detector, stage by stage.

    wsis run weaksam voc07 [--detector mist|oicr] [--until STAGE] [--from STAGE] [KEY VALUE ...]
    wsis run weaksam own --train-json FILE --image-root FOLDER --val-json FILE --val-root FOLDER

Boxes and masks of the training images are read by the stages that measure, and by no other. What
stands where a stage writes before that stage was started (a released classifier, proposals, a
detector) is checked and used as it is. KEY VALUE pairs override the detector's configuration. The
environment says where and with what: DETECTRON2_DATASETS (./datasets), OUTPUT_DIR
(output/weaksam_<dataset>), NUM_GPUS, NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT.
"""

import argparse
import os
from pathlib import Path

from wsis.cli.run import add_run_arguments, flags_of, machines_of, overrides_of, start
from wsis.recipes.weaksam import make_run
from wsis.recipes.weaksam_plan import (
    CLASSIFIER,
    DETECTORS,
    PROPOSALS,
    SEGMENTER,
    STAGES,
    WEAK_SOURCES,
    WeakPlan,
    WeakSource,
    own_data,
)
from wsis.runner import PipelineError

OWN_CONFIG = "voc07"  # whose schedule own data get unless --config-file says otherwise


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", choices=[*WEAK_SOURCES, "own"])
    parser.add_argument("--train-json", type=Path, help="own: COCO file of the training images")
    parser.add_argument("--image-root", type=Path, help="own: training images")
    parser.add_argument("--val-json", type=Path, help="own: validation file")
    parser.add_argument("--val-root", type=Path, help="own: validation images")
    parser.add_argument("--detector", choices=DETECTORS, default="mist")
    parser.add_argument("--config-file", help="another config than that of --detector")
    parser.add_argument(
        "--segmenter", default=SEGMENTER, help=f"that is prompted (default: {SEGMENTER})"
    )
    parser.add_argument("--proposals", choices=PROPOSALS, default=PROPOSALS[0])
    parser.add_argument(
        "--proposal-options", default="", metavar="OPTIONS", help="of wsis proposals"
    )
    parser.add_argument("--classifier", default="", metavar="OPTIONS", help="of wsis clues train")
    parser.add_argument("--points", default="", metavar="OPTIONS", help="of wsis clues points")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage")
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    todo = make_run(make_plan(args))
    code = start(todo, args)
    if not (args.dry_run or args.set_aside):
        print(f"Result: {todo.stages[-1].makes[0]}")
    return code


def make_plan(args: argparse.Namespace) -> WeakPlan:
    """The plan that the arguments and the environment describe."""
    config = DETECTORS[args.detector].format(OWN_CONFIG if args.dataset == "own" else args.dataset)
    prompted = args.proposals == "points"
    segmenter = {"segmenter": args.segmenter} if prompted else {}
    return WeakPlan(
        source=source_of(args),
        output=Path(os.environ.get("OUTPUT_DIR") or f"output/weaksam_{args.dataset}"),
        machines=machines_of(),
        config=args.config_file or config,
        overrides=overrides_of(args.opts),
        classifier={**CLASSIFIER, **flags_of(args.classifier, "--classifier", "clues")},
        points=flags_of(args.points, "--points", "clues"),
        proposals=args.proposals,
        proposal_flags={
            **segmenter,
            **flags_of(args.proposal_options, "--proposal-options", "proposals"),
        },
        until=args.until,
    )


def source_of(args: argparse.Namespace) -> WeakSource:
    """The dataset that the arguments and DETECTRON2_DATASETS name."""
    if args.dataset != "own":
        folder = Path(os.environ.get("DETECTRON2_DATASETS") or "datasets")
        return WEAK_SOURCES[args.dataset](folder.absolute())
    paths = (args.train_json, args.image_root, args.val_json, args.val_root)
    if None in paths:
        raise PipelineError("own data need --train-json, --image-root, --val-json and --val-root")
    return own_data(*(path.absolute() for path in paths))
