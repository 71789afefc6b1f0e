"""Write a checkpoint with its config, class names and license as a folder to publish.

    wsis package --config-file PointWSSIS/R101_student.yaml --weights student/model_final.pth \\
        --license CC-BY-NC-4.0 --output my_student
    wsis package --weights refiner/last.pth --license CC-BY-NC-4.0 --output my_refiner

OUTPUT gets model.safetensors, config.json and package.json. Others name the folder wherever a
config or weights are asked for: `--config-file my_student` (which brings the weights along),
`--weights my_student`, `MODEL.WEIGHTS my_student`, `--refiner my_refiner`. It holds no code and no
pickle. Without --config-file the checkpoint is a MaskRefineNet.
"""

import argparse

from wsis.cli.flags import add_config, add_flag
from wsis.package import PackageSettings, describe, package


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser, help="config of the network; none for a MaskRefineNet")
    add_flag(parser, "--weights", required=True)
    add_flag(parser, "--output", required=True, help="folder to write")
    parser.add_argument(
        "--license", required=True, help="of the weights: an SPDX expression such as CC-BY-4.0"
    )
    add_flag(
        parser,
        "--annotations",
        help="COCO file whose categories are the classes (default: the checkpoint's, or COCO's)",
    )
    parser.add_argument("--description", default="", metavar="TEXT")


def run(args: argparse.Namespace) -> int:
    settings = PackageSettings(
        weights=args.weights,
        output=args.output,
        license=args.license,
        config_file=args.config_file,
        overrides=tuple(args.opts),
        annotations=args.annotations,
        description=args.description,
    )
    print(describe(settings.output, package(settings)))
    return 0
