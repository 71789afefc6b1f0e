"""Make the shapes dataset: small synthetic scenes in COCO layout, for trying everything at once.

    wsis make-shapes datasets/shapes --train 400 --val 100

writes FOLDER/{train,val}/*.jpg and FOLDER/annotations/instances_{train,val}.json. The same seed
gives the same files (for one version of NumPy and OpenCV), and image i does not depend on how many
images are asked for.
"""

import argparse
from pathlib import Path

from weaklabels.shapes.dataset import make_shapes
from weaklabels.shapes.scene import MAX_FORMS

OUTPUT = "folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("folder", type=Path, help="folder to write, made where it is missing")
    parser.add_argument("--train", type=int, default=400, help="training images")
    parser.add_argument("--val", type=int, default=100, help="validation images")
    parser.add_argument("--size", type=int, default=160, help="longer side in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--min-forms", type=int, default=1, help="least shapes in a scene")
    parser.add_argument("--max-forms", type=int, default=MAX_FORMS, help="most shapes in a scene")
    parser.add_argument(
        "--classes-per-image", type=int, help="most classes in a scene (default: any number)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the dataset."""
    written = make_shapes(
        args.folder,
        args.train,
        args.val,
        args.size,
        args.seed,
        args.max_forms,
        args.classes_per_image,
        args.min_forms,
    )
    for (path, annotations), images in zip(written.items(), (args.train, args.val), strict=True):
        print(f"{path}: {images} images, {annotations} annotations")
    return 0
