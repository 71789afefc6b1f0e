"""Turn points from an annotation tool into a weak file: COCO json with one point per instance.

    wsis import-points export.zip --format cvat --image-root images --categories strong.json \\
        --output weak.json

Formats: csv (image,x,y,category), labelme (a file or a folder of them), cvat (images 1.1, xml or
zip), labelstudio (JSON export), coco-keypoints. Categories and their ids come from a COCO file or
a comma-separated list; without either they are the labels in alphabetical order. Where it is a COCO
file, ids of images and annotations go on after its largest ones, so that the two can be merged.
"""

import argparse
from pathlib import Path

from weaklabels.files import write_json
from weaklabels.importers.formats import READERS
from weaklabels.importers.points import import_file

OUTPUT = "output"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("input", type=Path, help="the export: a file, or a folder of LabelMe files")
    parser.add_argument("--format", required=True, choices=sorted(READERS))
    parser.add_argument("--image-root", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--categories", help="a COCO .json (the strong file), or a,b,c")
    parser.add_argument("--skip-invalid", action="store_true", help="list bad points and go on")


def run(args: argparse.Namespace) -> int:
    """Write the weak file and tell what is in it and what is not."""
    result = import_file(
        args.input,
        format=args.format,
        image_root=args.image_root,
        categories=args.categories,
        skip_invalid=args.skip_invalid,
    )
    content, findings = result.content, result.findings
    write_json(args.output, content)
    for message in findings.skipped:
        print(f"skipped: {message}")
    for what, count in sorted(findings.passed_over.items()):
        if count:
            print(f"passed over: {count} {what}")
    print(
        f"{args.output}: {len(content['annotations'])} points in {len(content['images'])} images, "
        f"{len(content['categories'])} categories, {len(findings.skipped)} skipped"
    )
    return 0
