"""Write image tags (which classes each image shows) from VOC, COCO, a CSV file or folders.

    wsis tags --voc VOCdevkit/VOC2007 --split trainval --output tags.json
    wsis tags --coco annotations/instances_train2014.json --output tags.json
    wsis tags --csv labels.csv --image-root images --output tags.json
    wsis tags --folders images --output tags.json

The tag file is COCO JSON without annotations: each image has `category_ids`. A CSV file has the
columns image,label with ";" between labels. Folders are DIR/CLASS/IMAGE. Images without a tag are
counted and listed in OUTPUT.skipped.json. Names are relative to VOC's JPEGImages, COCO's image
folder, --image-root and DIR.
"""

import argparse
from pathlib import Path

from weaklabels.make_tags import READS, TagSettings, make_tags
from weaklabels.tags import Tags
from wsis.cli.flags import add_flag

OUTPUT = "output"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--voc", type=Path, metavar="FOLDER", help="VOC2007 or the like")
    source.add_argument("--coco", type=Path, metavar="FILE", help="COCO instance file")
    source.add_argument("--csv", type=Path, metavar="FILE", help="columns image,label")
    source.add_argument("--folders", type=Path, metavar="DIR", help="a folder for each class")
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="VOC: list in ImageSets/Main; else the name that is written down (COCO: by default "
        "of the file's name)",
    )
    add_flag(parser, "--image-root", help="folder of a CSV file's images")
    parser.add_argument(
        "--classes", nargs="+", metavar="NAME", help="class list in order (not with --coco)"
    )
    parser.add_argument(
        "--difficult",
        action="store_true",
        help="keep a class of which an image has difficult objects (COCO: crowds) only, as "
        "WeakSAM's classifier has it; its detectors do not",
    )
    parser.add_argument(
        "--allow-absent-classes", action="store_true", help="take classes that no image shows"
    )
    add_flag(parser, "--output", "-o", required=True, help="tag file to write")


def run(args: argparse.Namespace) -> int:
    """Write the tag file and tell what is in it."""
    (source,) = (name for name in READS if getattr(args, name) is not None)
    settings = TagSettings(
        source=source,
        path=getattr(args, source),
        output=args.output,
        split=args.split,
        image_root=args.image_root,
        classes=tuple(args.classes) if args.classes else None,
        difficult=args.difficult,
        allow_absent=args.allow_absent_classes,
    )
    tags, skipped = make_tags(settings)
    print(f"{settings.output}: {describe(tags)}")
    if without := len(tags.without_tags()):
        print(f"{without} images without a tag are listed in {skipped}")
    return 0


def describe(tags: Tags) -> str:
    """Numbers of images and classes."""
    images, classes = len(tags.images), len(tags.categories)
    shown = sum(len(image.category_ids) for image in tags.images)
    return f"{images} images, {classes} classes, {shown / max(images, 1):.2f} tags an image"
