"""Turn points from an annotation tool into a weak file: COCO json with one point per instance.

    python tools/import_points.py --format cvat export.zip --image-root images \
        --categories strong.json --output weak.json

Formats: csv (image,x,y,category), labelme (a file or a folder of them), cvat (images 1.1, xml or
zip), labelstudio (JSON export), coco-keypoints. Categories and their ids come from a COCO file or
a comma-separated list; without either they are the labels in alphabetical order.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the folder above holds the `tools` package
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image, ImageOps

from tools.coco_files import CocoFile, write_json
from tools.point_formats import READERS, LabelledPoint


class ImageTable:
    """The images below a folder, each with its COCO entry once a point names it."""

    def __init__(self, root: Path):
        if not root.is_dir():
            raise FileNotFoundError(f"--image-root {root}: no such folder")
        self.root = root
        self.entries: dict[str, dict[str, Any]] = {}

    def find(self, point: LabelledPoint) -> dict[str, Any]:
        """The entry of the point's image.

        Raises:
            ValueError: no image of that name, or its size is not the one that the export states.
        """
        for name in point.images:
            if name in self.entries or (self.root / name).is_file():
                break
        else:
            raise ValueError(
                f"{point.where}: no image {' or '.join(map(repr, point.images))} in {self.root}"
            )
        if name not in self.entries:
            with Image.open(self.root / name) as image:
                width, height = ImageOps.exif_transpose(image).size
            entry = {"id": len(self.entries) + 1, "file_name": name}
            self.entries[name] = entry | {"height": height, "width": width}
        entry = self.entries[name]
        size_hw = (entry["height"], entry["width"])
        if point.size_hw not in (None, size_hw):
            raise ValueError(
                f"{point.where}: states size {point.size_hw} (height, width), but "
                f"{self.root / name} is {size_hw}: was the image resized or rotated?"
            )
        if not (0 <= point.x < entry["width"] and 0 <= point.y < entry["height"]):
            raise ValueError(
                f"{point.where}: point ({point.x:g}, {point.y:g}) lies outside the image of "
                f"{entry['width']} x {entry['height']} pixels"
            )
        return entry


def read_categories(text: str | None, labels: list[str]) -> list[dict[str, Any]]:
    """COCO categories from a COCO file, a comma-separated list, or the labels that occur."""
    if text and text.endswith(".json"):
        return CocoFile(text).header["categories"]
    names = text.split(",") if text else sorted(set(labels))
    return [{"id": index, "name": name.strip()} for index, name in enumerate(names, start=1)]


def import_points(
    points: list[LabelledPoint],
    image_root: Path,
    categories: list[dict[str, Any]],
    *,
    skip_invalid: bool,
) -> tuple[dict[str, Any], list[str]]:
    """Content of the weak file, and what was skipped, a message each.

    Raises:
        ValueError: a point outside its image, an unknown category or image, and not skip_invalid.
    """
    images, skipped = ImageTable(image_root), []
    ids = {category["name"]: category["id"] for category in categories}
    annotations = []
    for point in points:
        try:
            if point.category not in ids:
                raise ValueError(
                    f"{point.where}: category {point.category!r} is not one of {sorted(ids)}"
                )
            image = images.find(point)
        except ValueError as error:
            if not skip_invalid:
                raise
            skipped.append(str(error))
            continue
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image["id"],
                "category_id": ids[point.category],
                "point": [round(point.x, 3), round(point.y, 3)],
                "iscrowd": 0,
            }
        )
    content = {"images": list(images.entries.values()), "annotations": annotations}
    return content | {"categories": categories}, skipped


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", type=Path)
    parser.add_argument("--format", required=True, choices=sorted(READERS))
    parser.add_argument("--image-root", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--categories", help="a COCO .json (the strong file), or a,b,c")
    parser.add_argument("--skip-invalid", action="store_true", help="list bad points and go on")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    passed_over: Counter = Counter()
    try:
        if not args.input.exists():
            raise FileNotFoundError(f"{args.input}: no such file")
        points = list(READERS[args.format](args.input, passed_over))
        if not points:
            raise ValueError(f"{args.input}: holds no point; passed over: {dict(passed_over)}")
        categories = read_categories(args.categories, [point.category for point in points])
        content, skipped = import_points(
            points, args.image_root, categories, skip_invalid=args.skip_invalid
        )
    except (ValueError, FileNotFoundError) as error:
        print(f"import_points: {error}", file=sys.stderr)
        return 1
    write_json(args.output, content)
    for message in skipped:
        print(f"skipped: {message}")
    for what, count in sorted(passed_over.items()):
        if count:
            print(f"passed over: {count} {what}")
    print(
        f"{args.output}: {len(content['annotations'])} points in {len(content['images'])} images, "
        f"{len(categories)} categories, {len(skipped)} skipped"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
