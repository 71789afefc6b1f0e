"""Turn the instance masks of Pascal VOC 2012 into COCO files, those of SBD with them.

    wsis voc-to-coco --voc datasets/VOC2012 --split val \\
        --output datasets/VOC2012/annotations/instances_val.json
    wsis voc-to-coco --voc datasets/VOC2012 --split train --without val \\
        --sbd datasets/benchmark_RELEASE/dataset \\
        --output datasets/VOC2012/annotations/instances_train_aug.json

The second gives the 10,582 images known as "trainaug": SBD's masks where VOC has none of its own.
The files are read as voc_2012_instances_val and voc_2012_instances_train_aug.
"""

import argparse
from pathlib import Path

from weaklabels.converters.voc import convert_voc
from weaklabels.files import write_json
from wsis.cli.skipped import tell_skipped

OUTPUT = "output"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--voc", type=Path, required=True, help="folder VOC2012 of the devkit")
    parser.add_argument("--split", required=True, help="a list in ImageSets/Segmentation")
    parser.add_argument("--sbd", type=Path, help="SBD's folder `dataset`: take its images, too")
    parser.add_argument("--without", help="a list in ImageSets/Segmentation to leave out")
    parser.add_argument("--output", type=Path, required=True)


def run(args: argparse.Namespace) -> int:
    """Write the COCO file and tell what is in it."""
    skipped: list[str] = []
    content = convert_voc(args.voc, args.split, args.sbd, args.without, skipped)
    write_json(args.output, content)
    images, annotations = content["images"], content["annotations"]
    print(f"{args.output}: {len(annotations)} instances in {len(images)} images")
    return tell_skipped(skipped)
