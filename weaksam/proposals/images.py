"""The images that proposals are for: any COCO-form file that lists images, such as tags.json."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detectron2.data.image_utils import read_image
from weaklabels.files import read_json
from weaklabels.image_root import check_image_name, image_path
from weaklabels.masks import check_image_size

KEYS = ("id", "file_name", "height", "width")


@dataclass(frozen=True)
class ImageRecord:
    """One image. id: as text, however the file has it.  size_hw: in pixels."""

    id: str
    file_name: str
    size_hw: tuple[int, int]


def read_images(path: str | Path) -> list[ImageRecord]:
    """The images of a COCO-form file in its order; nothing else of it is looked at."""
    content = read_json(path)
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: no list 'images' with an entry; expected a COCO-form file")
    records = []
    for number, entry in enumerate(entries):
        missing = [key for key in KEYS if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise ValueError(f"{path}: image number {number} lacks {missing}")
        size_hw = (entry["height"], entry["width"])
        try:
            if not isinstance(entry["file_name"], str) or not entry["file_name"]:
                raise ValueError(f"file_name {entry['file_name']!r} is not a name")
            check_image_name(entry["file_name"])
            check_image_size(*size_hw)
        except ValueError as error:
            raise ValueError(f"{path}: image id {entry['id']}: {error}; correct it") from error
        records.append(ImageRecord(str(entry["id"]), entry["file_name"], size_hw))
    twice = [name for name, count in Counter(r.id for r in records).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: image id {twice[0]} occurs twice; remove one")
    return records


def read_rgb(record: ImageRecord, root: Path) -> np.ndarray:
    """The image's pixels, uint8 RGB (H, W, 3), checked against its record."""
    path = image_path(root, record.file_name)
    pixels = read_image(str(path), "RGB")
    if pixels.shape[:2] != record.size_hw:
        raise ValueError(
            f"{path} is {pixels.shape[0]} x {pixels.shape[1]} (height x width), image id "
            f"{record.id} says {record.size_hw[0]} x {record.size_hw[1]}"
        )
    return pixels
