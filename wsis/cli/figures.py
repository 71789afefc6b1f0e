"""Draw the pictures of figure/ from finished quick starts.

    wsis quickstart --full
    wsis figures overview pseudo_labels
    wsis quickstart --subset 1p --without-baseline --output output/budget/1p
        (and so for 2p, 5p, 20p, 50p)
    wsis figures results --budgets output/quickstart output/budget/*

`overview` is the pipeline on one weak image: its points, the teacher's masks, the refined ones, the
student's own, the truth. `pseudo_labels` shows more images before and after refinement.
`results` plots mask AP over the share of images with masks.
"""

import argparse
from pathlib import Path

from weaklabels.pictures import write_picture
from wsis.cli.flags import add_flag
from wsis.figures import overview, pseudo_labels, results

PICTURES = {
    "overview": lambda args: overview(args.run, args.image_id),
    "pseudo_labels": lambda args: pseudo_labels(args.run),
    "results": lambda args: results(args.budgets),
}

OUTPUT = "output"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("figures", nargs="+", choices=PICTURES)
    parser.add_argument("--run", type=Path, default=Path("output/quickstart/seed_0"))
    parser.add_argument("--image-id", type=int, help="of the overview; default: most instances")
    parser.add_argument("--budgets", type=Path, nargs="+", help="quick starts of several subsets")
    add_flag(parser, "--output", default=Path("figure"), help="folder (default: figure)")


def run(args: argparse.Namespace) -> int:
    if "results" in args.figures and not args.budgets:
        raise ValueError("results needs --budgets, the folders of the quick starts to plot")
    for name in args.figures:
        path = args.output / f"{name}.png"
        write_picture(path, PICTURES[name](args))
        print(path)
    return 0
