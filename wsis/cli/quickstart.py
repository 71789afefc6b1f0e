"""Show on a CPU, in minutes, what points or image tags are worth: whole methods and baselines.

    wsis quickstart [--data shapes|nuclei|coco --root DIR] [--subset 10p] [--seeds 3]
        [--student mask_rcnn] [--full] [--without-baseline] [--supervised] [--smoke]
    wsis quickstart --method weaksam [--until wsod] [--seeds 3] [--full] [--smoke]

Makes (or takes) a small dataset, runs every stage of PointWSSIS on it with the masks of 10% of the
images, trains a student from the teacher's own confident predictions for comparison, and writes a
table, output/quickstart/report.html and pictures. A second run continues where the first stopped.
`--supervised` is the short form: one network on all masks, and its AP.

`--method weaksam` learns from image tags alone, on scenes of its own: a classifier, its clues, two
kinds of proposals, weak detectors, detectors and a segmenter that learn from MIST's boxes;
output/quickstart_weaksam/report.html shows what each found. `--until wsod` leaves the latter out.
"""

import argparse
from pathlib import Path

from wsis.recipes.plan import SCHEDULES
from wsis.recipes.quickstart import (
    CONFIGS,
    STUDENT_CONFIGS,
    Settings,
    default_output,
    quickstart,
)

METHODS = ("pointwssis", "weaksam")
POINTS_ONLY = ("data", "root", "subset", "student", "supervised", "without_baseline")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", choices=METHODS, default=METHODS[0])
    parser.add_argument("--until", choices=("wsod",), help="weaksam: end with MIST")
    parser.add_argument("--data", choices=sorted(CONFIGS), default="shapes")
    parser.add_argument("--root", type=Path, help="own copy of the data; nuclei and coco need it")
    parser.add_argument("--subset", choices=SCHEDULES, default="10p", help="images with masks")
    parser.add_argument("--output", type=Path, help="default: output/quickstart")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs to average")
    parser.add_argument("--student", choices=sorted(STUDENT_CONFIGS), default="solov2")
    masks = parser.add_mutually_exclusive_group()
    masks.add_argument(
        "--full",
        action="store_true",
        help="also train on all masks; weaksam: also on the tiny segmenter's proposals",
    )
    masks.add_argument(
        "--supervised", action="store_true", help="train one network on all masks, nothing else"
    )
    parser.add_argument(
        "--without-baseline", action="store_true", help="no student without points to compare with"
    )
    parser.add_argument("--smoke", action="store_true", help="a few iterations of everything")


def run(args: argparse.Namespace) -> int:
    print(weak_quickstart(args) if args.method == "weaksam" else quickstart(settings_of(args)))
    return 0


def weak_quickstart(args: argparse.Namespace) -> str:
    """WeakSAM's quick start; options of the other method are refused.

    Raises:
        ValueError: see `wsis.recipes.weaksam_quickstart.quickstart`, or such an option is given.
    """
    usual = argparse.ArgumentParser()
    add_arguments(usual)
    for name in POINTS_ONLY:
        if getattr(args, name) != usual.get_default(name):
            raise ValueError(
                f"--{name.replace('_', '-')} is not for --method weaksam: leave it out"
            )
    from wsis.recipes import weaksam_quickstart as weak

    output = args.output or weak.default_output(smoke=args.smoke)
    retrain = args.until is None
    return weak.quickstart(weak.Settings(output, args.seeds, args.smoke, args.full, retrain))


def settings_of(args: argparse.Namespace) -> Settings:
    short = {"smoke": args.smoke, "supervised": args.supervised}
    return Settings(
        output=args.output or default_output(**short, student=args.student),
        data=args.data,
        root=args.root,
        subset=args.subset,
        seeds=args.seeds,
        student=args.student,
        baseline=not args.without_baseline,
        full=args.full,
        **short,
    )
