"""Proposal files: boxes of many images with the source of each.

An npz file holds `image_ids` (P,), `boxes` (P, 4) and `scores` (P,), as DATASETS.PROPOSAL_FILES_*
reads them, and `source` (P,), `ids` (N,), `offsets` (N + 1,), `sizes` (N, 2), `meta` (json text).
Rows of an image lie together, images in the order of `ids`, which names those without a box, too.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from weaksam.npz import IDS, NUMBERS, TEXT, WHOLE, check_offsets, read_npz, write_npz
from weaksam.proposals.images import ImageRecord

SOURCES = ("grid", "coarse", "fine", "cross", "selective_search", "random", "released")
FORMS = {
    **{"ids": (IDS, 1), "offsets": (WHOLE, 1), "boxes": (NUMBERS, 2), "source": (WHOLE, 1)},
    **{"scores": (NUMBERS, 1), "sizes": (WHOLE, 2), "meta": (TEXT, 0)},
}
DROPPED = "empty_masks_dropped"  # key of a file's meta: how many
UNKNOWN_SCORE = 1.0  # what the reference's files have; detectron2 refuses NaN


@dataclass(frozen=True)
class Proposals:
    """Boxes of N images; those of image i are the rows offsets[i] to offsets[i + 1].

    ids: (N,) str.  boxes: (P, 4) float32 x0, y0, x1, y1, half-open pixels of the original image.
    source: (P,) uint8, index into SOURCES.  scores: (P,) float32, predicted IoU, UNKNOWN_SCORE
    where there is none.  sizes: (N, 2) int32, height and width.  meta: how they were made.
    """

    ids: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    source: np.ndarray
    scores: np.ndarray
    sizes: np.ndarray
    meta: dict[str, Any] = field(default_factory=dict)

    def rows(self, index: int) -> slice:
        """Rows of image `index`."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def by_image(self) -> dict[str, slice]:
        """Rows of each image by its id."""
        return {str(name): self.rows(index) for index, name in enumerate(self.ids)}


@dataclass(frozen=True)
class ImageProposals:
    """Boxes (n, 4), source (n,) and scores (n,) of one image; see `Proposals`.

    dropped: how many masks were empty, so that they gave no box.
    """

    boxes: np.ndarray
    source: np.ndarray
    scores: np.ndarray
    dropped: int = 0

    @classmethod
    def of(
        cls, source: str, boxes: np.ndarray, scores: np.ndarray | None = None, dropped: int = 0
    ) -> "ImageProposals":
        """All boxes of one source."""
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        if scores is None:
            scores = np.full(len(boxes), UNKNOWN_SCORE)
        numbers = np.full(len(boxes), SOURCES.index(source), np.uint8)
        return cls(boxes, numbers, np.asarray(scores, np.float32), dropped)

    @classmethod
    def join(cls, parts: Sequence["ImageProposals"]) -> "ImageProposals":
        """All boxes of several, in their order; none at all of an empty list."""
        parts = [cls.of(SOURCES[0], np.zeros((0, 4))), *parts]
        return cls(
            np.concatenate([part.boxes for part in parts]),
            np.concatenate([part.source for part in parts]),
            np.concatenate([part.scores for part in parts]),
            sum(part.dropped for part in parts),
        )


def collect(
    records: Sequence[ImageRecord], parts: Sequence[ImageProposals], meta: dict[str, Any]
) -> Proposals:
    """Proposals of images, in their order."""
    joined = ImageProposals.join(parts)
    return Proposals(
        ids=np.array([record.id for record in records], dtype=str),
        offsets=np.cumsum([0, *(len(part.boxes) for part in parts)]).astype(np.int64),
        boxes=joined.boxes,
        source=joined.source,
        scores=joined.scores,
        sizes=np.array([record.size_hw for record in records], np.int32).reshape(-1, 2),
        meta=meta,
    )


def write_proposals(path: str | Path, proposals: Proposals) -> None:
    """Write a proposal file, whole or not at all; equal proposals give equal bytes."""
    image_ids = np.repeat(_plain_ids(proposals.ids), np.diff(proposals.offsets))
    arrays = {
        "image_ids": image_ids,
        "ids": proposals.ids,
        "offsets": proposals.offsets.astype(np.int64),
        "boxes": proposals.boxes.astype(np.float32),
        "source": proposals.source.astype(np.uint8),
        "scores": proposals.scores.astype(np.float32),
        "sizes": proposals.sizes.astype(np.int32),
        "meta": np.array(json.dumps(proposals.meta, sort_keys=True)),
    }
    write_npz(path, arrays, compress=True)


def _plain_ids(ids: np.ndarray) -> np.ndarray:
    """Ids as whole numbers where all are such, which take a fifth of the room of texts."""
    numbers = [int(name) for name in ids if name.isdecimal() and len(name) < 19]
    same = len(numbers) == len(ids) and all(
        str(number) == name for number, name in zip(numbers, ids, strict=True)
    )
    return np.array(numbers, np.int64) if same else ids


def read_proposal_file(path: str | Path, images: Sequence[ImageRecord] = ()) -> Proposals:
    """Read and check a proposal file.

    Args:
        images: if given, the file has to be of exactly these; the result is in their order.

    Raises:
        ValueError: naming the file and the image, where a box is not finite, empty or outside its
            image, an image is missing or of another size, or the file is of another dataset.
    """
    arrays = read_npz(path, FORMS)
    ids, offsets, sizes = arrays["ids"].astype(str), arrays["offsets"], arrays["sizes"]
    count = len(arrays["boxes"])
    check_offsets(path, ids, offsets, sizes, count)
    lengths = {key: len(arrays[key]) for key in ("boxes", "source", "scores")}
    if set(lengths.values()) != {count} or arrays["boxes"].shape != (count, 4):
        raise ValueError(
            f"{path}: arrays of different lengths, {lengths}; boxes {arrays['boxes'].shape}"
        )
    check_source(path, arrays["source"])
    proposals = Proposals(
        *(ids, offsets, arrays["boxes"].astype(np.float32), arrays["source"]),
        *(arrays["scores"].astype(np.float32), sizes, _meta(path, arrays["meta"])),
    )
    check_boxes(path, proposals)
    return in_order(path, proposals, images) if images else proposals


def check_source(path: str | Path, source: np.ndarray) -> None:
    """ValueError where a number stands for none of SOURCES."""
    unknown = (source < 0) | (source >= len(SOURCES))
    if unknown.any():
        raise ValueError(
            f"{path}: source {int(source[unknown][0])}; expected 0 to {len(SOURCES) - 1} for "
            f"{', '.join(SOURCES)}"
        )


def _meta(path: str | Path, text: np.ndarray) -> dict[str, Any]:
    try:
        meta = json.loads(str(text))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: 'meta' is no json: {error}") from error
    if not isinstance(meta, dict):
        raise ValueError(f"{path}: 'meta' is no json object")
    return meta


def check_boxes(path: str | Path, proposals: Proposals) -> None:
    """ValueError for the first box that cannot be."""
    boxes = proposals.boxes
    image_of = np.repeat(np.arange(len(proposals.ids)), np.diff(proposals.offsets))
    limits = np.tile(proposals.sizes[image_of][:, ::-1], 2).reshape(-1, 4)  # W, H, W, H
    problems = {
        "holds NaN or infinite numbers": ~np.isfinite(boxes).all(axis=1),
        "has no area": (boxes[:, 2:] <= boxes[:, :2]).any(axis=1),
        "lies outside of it": (boxes < 0).any(axis=1) | (boxes > limits).any(axis=1),
        "has a score that is NaN or infinite": ~np.isfinite(proposals.scores),
    }
    for problem, bad in problems.items():
        if bad.any():
            row = int(bad.argmax())
            image = image_of[row]
            number = row - int(proposals.offsets[image])
            raise ValueError(
                f"{path}: image {proposals.ids[image]}, {proposals.sizes[image].tolist()} (height, "
                f"width): box {number}, {boxes[row].tolist()}, {problem}"
            )


def in_order(path: str | Path, proposals: Proposals, images: Sequence[ImageRecord]) -> Proposals:
    """The same proposals in the order of `images`, which have to be those of the file."""
    index_of = {str(name): index for index, name in enumerate(proposals.ids)}
    missing = [record.id for record in images if record.id not in index_of]
    if len(missing) == len(images):
        raise ValueError(
            f"{path} has none of the {len(images)} images (such as {missing[0]}); its ids are "
            f"{list(index_of)[:5]}, ...: is it the file of another dataset?"
        )
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} of {len(images)} images, such as {missing[0]}; make "
            "proposals for these images and merge the files"
        )
    if len(index_of) > len(images):
        other = sorted(set(index_of) - {record.id for record in images})
        raise ValueError(f"{path} has {len(other)} images that are not wanted, such as {other[0]}")
    parts = []
    for record in images:
        index = index_of[record.id]
        if tuple(proposals.sizes[index]) != record.size_hw:
            raise ValueError(
                f"{path}: image {record.id} is of {proposals.sizes[index].tolist()}, but it should "
                f"be of {list(record.size_hw)} (height, width): another dataset?"
            )
        rows = proposals.rows(index)
        columns = (proposals.boxes, proposals.source, proposals.scores)
        parts.append(ImageProposals(*(column[rows] for column in columns)))
    return collect(images, parts, proposals.meta)
