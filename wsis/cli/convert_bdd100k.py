"""Turn BDD100K's instance labels into the COCO files that the registered splits read.

    wsis convert-bdd100k --polygons ins_seg_train.json --image-root BDD100K/train \\
        --output BDD100K/annotations/bdd100k_ins_labels_train.json

`--bitmasks FOLDER` reads the PNG form instead. Crowds and ignored regions become crowds, which
neither train nor count; classes other than the eight are left out and counted.
"""

import argparse
from pathlib import Path

from weaklabels.converters.bdd100k import convert_bdd100k
from weaklabels.files import write_json
from wsis.cli.skipped import tell_skipped

OUTPUT = "output"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    labels = parser.add_mutually_exclusive_group(required=True)
    labels.add_argument("--polygons", type=Path, help="json with poly2d labels")
    labels.add_argument("--bitmasks", type=Path, help="folder of RGBA PNGs")
    parser.add_argument("--image-root", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)


def run(args: argparse.Namespace) -> int:
    """Write the COCO file and tell what is in it and what is not."""
    skipped: list[str] = []
    content, left_out = convert_bdd100k(
        args.image_root, polygons=args.polygons, bitmasks=args.bitmasks, skipped=skipped
    )
    write_json(args.output, content)
    for what, count in sorted(left_out.items()):
        print(f"left out: {count} {what}")
    images, annotations = content["images"], content["annotations"]
    print(f"{args.output}: {len(annotations)} instances in {len(images)} images")
    return tell_skipped(skipped)
