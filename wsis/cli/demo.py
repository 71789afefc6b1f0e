"""Segment images, guided by points or not, and draw the result.

    wsis demo --config-file PointWSSIS/R101_teacher.yaml --weights checkpoints/10p/teacher.pth \\
        --input cat.jpg --point 210,160,cat --point 420,300,dog \\
        --refiner checkpoints/10p/maskrefinenet.pth
    wsis demo --config-file PointWSSIS/R101_student.yaml --weights checkpoints/10p/student.pth \\
        --input *.jpg

Each point asks for one mask of its class. Without points the network finds the instances itself.
OUTPUT gets NAME_overlay.png for each image, and predictions.jsonl, the prediction records.
"""

import argparse
from pathlib import Path

from adet.config import get_cfg
from wsis.cli.flags import add_config, add_flag, any_gpu
from wsis.demo import CONFIDENCE_WITHOUT_POINTS, DemoSettings, demonstrate

OUTPUT = "output"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser, required=True)
    add_flag(parser, "--weights", type=str, help="trained network (default: MODEL.WEIGHTS)")
    parser.add_argument("--input", nargs="+", required=True, metavar="IMAGE")
    parser.add_argument(
        "--point",
        action="append",
        default=[],
        metavar="X,Y,CLASS",
        help="pixels from the top left corner, and a class by name or index; one image only",
    )
    add_flag(parser, "--output", default=Path("output/demo"), help="folder (default: output/demo)")
    parser.add_argument("--refiner", type=Path, help="MaskRefineNet checkpoint to redraw the masks")
    parser.add_argument(
        "--confidence",
        type=float,
        help=f"least score to keep; default {CONFIDENCE_WITHOUT_POINTS} without points, 0 with",
    )
    names = parser.add_mutually_exclusive_group()
    names.add_argument("--classes", help="names in the network's order: a,b,c")
    names.add_argument("--classes-json", type=Path, help="COCO annotation file, or list of names")
    add_flag(
        parser,
        "--num-gpus",
        choices=(0, 1),
        metavar=None,
        default=any_gpu(),
        help="0: the CPU (default: 1 if there is a GPU)",
    )


def split_input(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The images, and the config overrides behind them, which argparse takes for images."""
    keys = get_cfg().keys()
    places = (
        place
        for place, word in enumerate(args.input)
        if word.split(".")[0] in keys and not Path(word).exists()
    )
    end = next(places, len(args.input))
    return args.input[:end], [*args.input[end:], *args.opts]


def run(args: argparse.Namespace) -> int:
    images, overrides = split_input(args)
    names = args.classes.split(",") if args.classes else []
    demonstrate(
        DemoSettings(
            config_file=args.config_file,
            images=tuple(map(Path, images)),
            output=args.output,
            points=tuple(args.point),
            overrides=tuple(overrides),
            weights=args.weights,
            refiner=args.refiner,
            confidence=args.confidence,
            class_names=tuple(name.strip() for name in names),
            classes_json=args.classes_json,
            num_gpus=args.num_gpus,
        )
    )
    return 0
