"""Run WeakSAM from image tags to detectors and instance segmenters, stage by stage.

    wsis run weaksam voc07 [--detector mist|oicr] [--retrain faster_rcnn|dino] [KEY VALUE ...]
    wsis run weaksam voc12 [--segmenter mask_rcnn|mask2former] [--until STAGE] [--from STAGE]
    wsis run weaksam voc07 --start-from released[:WHAT] [--released-root DIR]
    wsis run weaksam own --train-json FILE --image-root FOLDER --val-json FILE --val-root FOLDER

voc07 ends with a detector that learns from pseudo boxes, voc12 with a segmenter that learns from
their masks, coco14 with both, own data with the detector (--segmenter mask_rcnn adds the other).
Boxes and masks of the training images are read by the stages that measure, and by no other. What
stands where a stage writes before that stage was started (proposals, a detector, pseudo boxes,
masks) is checked and used as it is; --from STAGE begins there, with what earlier stages make in its
place. KEY VALUE pairs override the weak detector's configuration. The environment says where and
with what: DETECTRON2_DATASETS (./datasets), OUTPUT_DIR (output/weaksam_<dataset>), NUM_GPUS,
NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT.
"""

import argparse
import os
import shlex
from dataclasses import replace
from pathlib import Path

from weaksam.segmenters.spec import FORMS
from wsis.cli.run import add_run_arguments, flags_of, machines_of, overrides_of, start
from wsis.recipes import weaksam_start as released
from wsis.recipes.start_from import DEFAULT_ROOT
from wsis.recipes.weaksam import build_stages, group_stages, make_run
from wsis.recipes.weaksam_plan import (
    BOX_SOURCES,
    CLASSIFIER,
    DETECTORS,
    ENDS,
    NOTHING,
    PROPOSALS,
    RETRAINED,
    SEGMENTER,
    SEGMENTERS,
    STAGES,
    WEAK_SOURCES,
    Network,
    WeakPlan,
    WeakSource,
    own_data,
)
from wsis.runner import PipelineError, Run

# Whose schedules own data get unless other configs are given: weak and retrained, segmenters.
OWN_CONFIG, OWN_MASK_CONFIG = "voc07", "voc12"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", choices=[*WEAK_SOURCES, "own"])
    parser.add_argument("--train-json", type=Path, help="own: COCO file of the training images")
    parser.add_argument("--image-root", type=Path, help="own: training images")
    parser.add_argument("--val-json", type=Path, help="own: validation file")
    parser.add_argument("--val-root", type=Path, help="own: validation images")
    parser.add_argument("--detector", choices=DETECTORS, default="mist", help="the weak one")
    parser.add_argument("--config-file", help="another config than that of --detector")
    parser.add_argument(
        "--segmenter",
        action="append",
        default=[],
        metavar="NAME",
        help=f"that is prompted (one of {FORMS}; default: {SEGMENTER}), or that is trained on the "
        f"masks ({', '.join(SEGMENTERS)}, {NOTHING}); may be given twice, for both",
    )
    parser.add_argument("--proposals", choices=PROPOSALS, default=PROPOSALS[0])
    for name, command in (("proposal-options", "proposals"), ("points", "clues points")):
        parser.add_argument(f"--{name}", default="", metavar="OPTIONS", help=f"of wsis {command}")
    parser.add_argument("--classifier", default="", metavar="OPTIONS", help="of wsis clues train")
    add_retraining_arguments(parser.add_argument_group("behind the weak detector"))
    add_released_arguments(parser.add_argument_group("what the authors released"))
    parser.add_argument("--until", choices=STAGES, help="the last stage (default: the whole run)")
    add_run_arguments(parser)


def add_retraining_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--pseudo-boxes", default="", metavar="OPTIONS", help="of wsis pseudo-boxes")
    group.add_argument("--retrain", choices=[*RETRAINED, NOTHING], help="what learns from them")
    group.add_argument("--masks", default="", metavar="OPTIONS", help="of wsis box-masks")
    group.add_argument(
        "--mask-boxes",
        choices=BOX_SOURCES,
        default=BOX_SOURCES[0],
        help="masks are made of the weak detector's pseudo boxes, or of those that the same rule "
        f"chooses among the retrained one's boxes (default: {BOX_SOURCES[0]})",
    )
    for name, what in (("retrain", "retrained detector"), ("segmenter", "segmenter")):
        group.add_argument(f"--{name}-config", metavar="FILE", help=f"another config of the {what}")
        group.add_argument(
            f"--{name}-options",
            default="",
            metavar="'KEY VALUE ...'",
            help=f"overrides of the {what}'s configuration",
        )


def add_released_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--start-from",
        metavar="released[:WHAT]",
        help=f"begin with it; WHAT: some of {', '.join(released.ENTRIES)}, with commas between "
        "(default: proposals; voc12: masks)",
    )
    group.add_argument(
        "--released-root",
        type=Path,
        metavar="DIR",
        default=DEFAULT_ROOT,
        help=f"the files are in DIR/{released.FOLDER} (default: {DEFAULT_ROOT})",
    )


def run(args: argparse.Namespace) -> int:
    plan = make_plan(args)
    todo = make_todo(plan, args)
    code = start(todo, args)
    if not (args.dry_run or args.set_aside):
        print(f"Result: {todo.stages[-1].makes[0]}")
    return code


def make_todo(plan: WeakPlan, args: argparse.Namespace) -> Run:
    """The run that the arguments ask for, with released files in place; sets `args.start`."""
    stages, first, files = build_stages(plan), None, []
    if args.start_from:
        if args.start or args.set_aside:
            raise PipelineError("--start-from begins at a stage itself: it takes no --from STAGE")
        entries = released.parse_start(args.start_from, args.dataset)
        files = released.wanted_files(entries, choices_of(args), args.released_root)
        plan = released.with_released(plan, files)
        stages = released.evaluated(build_stages(plan), files)
        first = released.stage_named(plan, stages, released.earliest(entries))
    elif args.start:
        first = args.start = released.stage_named(plan, stages, args.start)
    elif args.set_aside:
        args.set_aside = released.stage_named(plan, stages, args.set_aside)
    if first:
        if args.start and not args.dry_run:
            released.refuse_missing(stages, first)
        stages = released.begin_at(stages, first)
    todo = make_run(plan, stages)
    if files and args.dry_run:
        for file in files:
            print(f"# released: {file.path}, from {file.url}")
    elif files:
        released.lay_out(todo, plan, files)
    return todo


def make_plan(args: argparse.Namespace) -> WeakPlan:
    """The plan that the arguments and the environment describe."""
    prompted, _ = segmenters_of(args)
    config = DETECTORS[args.detector].format(OWN_CONFIG if args.dataset == "own" else args.dataset)
    uses_points = args.proposals == "points"
    options = flags_of(args.proposal_options, "--proposal-options", "proposals")
    plan = WeakPlan(
        source=source_of(args),
        output=Path(os.environ.get("OUTPUT_DIR") or f"output/weaksam_{args.dataset}"),
        machines=machines_of(),
        config=args.config_file or config,
        overrides=overrides_of(args.opts),
        classifier={**CLASSIFIER, **flags_of(args.classifier, "--classifier", "clues")},
        points=flags_of(args.points, "--points", "clues"),
        proposals=args.proposals,
        proposal_flags={**({"segmenter": prompted} if uses_points else {}), **options},
        pseudo_boxes=flags_of(args.pseudo_boxes, "--pseudo-boxes", "pseudo-boxes"),
        masks={"segmenter": prompted, **flags_of(args.masks, "--masks", "box-masks")},
        mask_boxes=args.mask_boxes,
        until=args.until or STAGES[-1],
    )
    return with_networks(plan, args)


def with_networks(plan: WeakPlan, args: argparse.Namespace) -> WeakPlan:
    """The plan with what learns from pseudo labels.

    Raises:
        PipelineError: these networks do not fit together, or the dataset.
    """
    chosen = choices_of(args)
    own = args.dataset == "own"
    retrain = network_of(
        RETRAINED.get(chosen.retrain), OWN_CONFIG if own else args.dataset, args, "retrain"
    )
    segmenter = network_of(
        SEGMENTERS.get(chosen.segmenter),
        OWN_MASK_CONFIG if own else args.dataset,
        args,
        "segmenter",
    )
    if segmenter and plan.source.masks is None:
        raise PipelineError(
            f"--segmenter {chosen.segmenter}: no masks are measured on {args.dataset}: take voc12, "
            "coco14 or own data"
        )
    if plan.mask_boxes == BOX_SOURCES[1] and retrain is None:
        raise PipelineError(
            f"--mask-boxes {BOX_SOURCES[1]} needs a retrained detector: add --retrain faster_rcnn"
        )
    plan = replace(plan, retrain=retrain, segmenter=segmenter)
    if args.until and args.until in STAGES[-3:] and not group_stages(plan)[args.until]:
        option = "--retrain faster_rcnn" if args.until == "retrain" else "--segmenter mask_rcnn"
        raise PipelineError(
            f"--until {args.until}: the run of {args.dataset} has no such stage without {option}"
        )
    return plan


def network_of(
    configs: dict[str, str] | None, dataset: str, args: argparse.Namespace, option: str
) -> Network | None:
    """The network of --OPTION; `configs` by dataset, None for none.

    Raises:
        PipelineError: options are given for a network that is not there.
    """
    config = getattr(args, f"{option}_config")
    words = shlex.split(getattr(args, f"{option}_options"))
    if configs is None and (config or words):
        raise PipelineError(
            f"--{option}-config and --{option}-options belong to a network that this run does not "
            f"train: add --{option}"
        )
    if configs is None:
        return None
    return Network(config or configs.get(dataset, ""), overrides_of(words))


def segmenters_of(args: argparse.Namespace) -> tuple[str, str | None]:
    """The prompted segmenter and, where it is named, the one that is trained.

    Raises:
        PipelineError: one of them is given twice.
    """
    trained = [name for name in args.segmenter if name in (*SEGMENTERS, NOTHING)]
    prompted = [name for name in args.segmenter if name not in trained]
    for names in (trained, prompted):
        if len(names) > 1:
            raise PipelineError(
                f"--segmenter {' and '.join(names)}: one of them; a second --segmenter names the "
                f"one that is {'prompted' if names is trained else 'trained on the masks'}"
            )
    return prompted[0] if prompted else SEGMENTER, trained[0] if trained else None


def choices_of(args: argparse.Namespace) -> released.Choices:
    """The networks of a run, by their names."""
    usual = ENDS[args.dataset]
    segmenter = segmenters_of(args)[1]
    return released.Choices(
        args.dataset, args.detector, args.retrain or usual[0], segmenter or usual[1]
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
