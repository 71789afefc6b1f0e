"""Read the proposal pickles that WeakSAM's authors released.

Two forms: a list with one array (n, 4) an image, in the order of the dataset's image list; or a
dict with lists `boxes`, `scores` and `indexes`, the last ones image ids as numbers. Their boxes end
at the index of the last pixel, ours behind it. They are read by an unpickler that runs no code.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detectron2.checkpoint.safe_files import read_pickle_file
from weaksam.proposals.files import DROPPED, ImageProposals, Proposals, check_boxes, collect
from weaksam.proposals.images import ImageRecord

KEYS = ("boxes", "scores", "indexes")


def read_released(path: Path, images: Sequence[ImageRecord]) -> Proposals:
    """Proposals of `images` from a released pickle of either form.

    Rows 0, 0, 0, 0, which stand for empty masks, are dropped and counted in `meta`.

    Raises:
        ValueError: the file calls something, is of another form or dataset, or a box lies outside
            its image.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected released proposals (.pkl)")
    content = read_pickle_file(str(path))
    if isinstance(content, dict):
        form, boxes = "dict", _of_dict(path, content, images)
    elif isinstance(content, list):
        form, boxes = "list", content
        if len(content) != len(images):
            raise ValueError(
                f"{path} has boxes of {len(content)} images, the dataset has {len(images)}: it "
                "has to be of the same split"
            )
    else:
        raise ValueError(
            f"{path} holds a {type(content).__name__}; expected a list of arrays, or a dict with "
            f"{list(KEYS)}"
        )
    parts = [_image(path, record, rows) for record, rows in zip(images, boxes, strict=True)]
    meta = {
        "method": "released",
        "file": path.name,
        "form": form,
        DROPPED: sum(part.dropped for part in parts),
    }
    proposals = collect(images, parts, meta)
    check_boxes(path, proposals)
    return proposals


def _of_dict(path: Path, content: dict[str, Any], images: Sequence[ImageRecord]) -> list[Any]:
    """The arrays of `images`, in their order."""
    missing = [key for key in KEYS if key not in content]
    if missing:
        raise ValueError(f"{path} lacks {missing}; released dicts have {list(KEYS)}")
    lengths = {key: len(content[key]) for key in KEYS}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{path}: its lists differ in length: {lengths}")
    row_of = {int(np.asarray(name).item()): row for row, name in enumerate(content["indexes"])}
    if len(row_of) < len(content["indexes"]):
        raise ValueError(f"{path}: an image id occurs twice in 'indexes'")
    found = []
    for record in images:
        digits = record.id.replace("_", "")  # 2008_000002 is 2008000002 in the pickle
        row = row_of.get(int(digits)) if digits.isdecimal() else None
        if row is None:
            raise ValueError(
                f"{path}: 'indexes' has no image {record.id}; it has {len(row_of)} images, such "
                f"as {next(iter(row_of), 'none')}"
            )
        found.append(content["boxes"][row])
    if len(row_of) > len(images):
        raise ValueError(
            f"{path}: 'indexes' has {len(row_of)} images, the dataset {len(images)}: it has to be "
            "of the same split"
        )
    return found


def _image(path: Path, record: ImageRecord, rows: Any) -> ImageProposals:
    boxes = np.asarray(rows, np.float32)
    if boxes.size == 0:  # an image without boxes has the shape (0,)
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{path}: image {record.id} has boxes of shape {boxes.shape}, not (n, 4)")
    empty = (boxes == 0).all(axis=1)
    return ImageProposals.of("released", boxes[~empty] + [0, 0, 1, 1], dropped=int(empty.sum()))
