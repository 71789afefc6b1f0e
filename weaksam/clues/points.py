"""Point files: where a classifier believes classes to be, for all images of a dataset.

An .npz without pickles. Image i has the points offsets[i] to offsets[i + 1] of the arrays `xy`,
`cls`, `score`, `head` and `layer`. Points are (x, y) in pixel indices of the original image: the
middle of the top left pixel is (0, 0).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from weaksam.npz import IDS, TEXT, WHOLE, check_offsets, read_npz, write_npz

NONE = -1  # a point without a class, head or layer
DTYPES = {
    "xy": np.float32,
    "cls": np.int16,
    "score": np.float32,
    "head": np.int8,
    "layer": np.int8,
}
FORMS = {
    **{"ids": (IDS, 1), "offsets": (WHOLE, 1), "sizes": (WHOLE, 2), "meta": (TEXT, 0)},
    **{name: (np.dtype(kind).kind, 2 if name == "xy" else 1) for name, kind in DTYPES.items()},
}


@dataclass(frozen=True)
class Points:
    """Points of one image; P may be 0.

    xy: (P, 2) float32.  cls: (P,) int16, contiguous class from 0, or -1.  score: (P,) float32.
    head: (P,) int8 from 0, or -1.  layer: (P,) int8 from 1, or -1.
    """

    xy: np.ndarray
    cls: np.ndarray
    score: np.ndarray
    head: np.ndarray
    layer: np.ndarray

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in DTYPES}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"points have arrays of different lengths: {lengths}")

    def __len__(self) -> int:
        return len(self.xy)

    @classmethod
    def of(
        cls,
        xy: np.ndarray,
        score: np.ndarray,
        class_index: int = NONE,
        head: int = NONE,
        layer: int = NONE,
    ) -> "Points":
        """Points of one class, head and layer."""
        count = len(xy)
        return cls(
            xy=np.asarray(xy, np.float32).reshape(-1, 2),
            cls=np.full(count, class_index, np.int16),
            score=np.asarray(score, np.float32),
            head=np.full(count, head, np.int8),
            layer=np.full(count, layer, np.int8),
        )

    @classmethod
    def joined(cls, parts: Sequence["Points"]) -> "Points":
        """All points of `parts`, in their order."""
        empty = cls.of(np.zeros((0, 2)), np.zeros(0))
        names = DTYPES if parts else ()
        arrays = {name: np.concatenate([getattr(p, name) for p in parts]) for name in names}
        return cls(**arrays) if parts else empty


@dataclass(frozen=True)
class PointFile:
    """Points of a dataset's images.

    ids: image ids as text, each once.  sizes_hw: height and width of each image.
    meta: how the points were made; `source`, `classes` (names) and `labels` at least.
    """

    ids: tuple[str, ...]
    sizes_hw: tuple[tuple[int, int], ...]
    points: tuple[Points, ...]
    meta: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def of_image(self, image_id: int | str) -> Points:
        """Points of one image; KeyError where the file does not have it."""
        try:
            return self.points[self.ids.index(str(image_id))]
        except ValueError:
            raise KeyError(f"no image id {image_id} among the {len(self)} of the points") from None


def write_points(path: str | Path, content: PointFile) -> None:
    """Write a point file; equal content gives equal bytes."""
    joined = Points.joined(content.points)
    arrays = {name: np.asarray(getattr(joined, name), kind) for name, kind in DTYPES.items()}
    lengths = [len(points) for points in content.points]
    write_npz(
        path,
        {
            "ids": np.array(content.ids, dtype=np.str_),
            "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            **arrays,
            "sizes": np.array(content.sizes_hw, np.int32).reshape(-1, 2),
            "meta": np.array(json.dumps(content.meta, sort_keys=True, allow_nan=False)),
        },
    )


def read_points(path: str | Path) -> PointFile:
    """Read and check a point file; a ValueError names the file and the image that is wrong."""
    arrays = read_npz(path, FORMS)
    try:
        meta = json.loads(str(arrays["meta"]))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: 'meta' is no json: {error}") from error
    ids, offsets, sizes = arrays["ids"].astype(np.str_), arrays["offsets"], arrays["sizes"]
    count, total = len(ids), len(arrays["xy"])
    for name, kind in DTYPES.items():
        shape = (total, 2) if name == "xy" else (total,)
        if arrays[name].dtype != kind or arrays[name].shape != shape:
            raise ValueError(
                f"{path}: {name} is {arrays[name].dtype} {arrays[name].shape}; expected "
                f"{np.dtype(kind)} {shape}"
            )
    check_offsets(path, ids, offsets, sizes, total)
    _check_values(path, arrays, np.repeat(np.arange(count), np.diff(offsets)), meta)
    bounds = zip(offsets[:-1], offsets[1:], strict=True)
    points = tuple(Points(**{name: arrays[name][a:b] for name in DTYPES}) for a, b in bounds)
    size_tuples = tuple((int(h), int(w)) for h, w in sizes)
    return PointFile(tuple(ids.tolist()), size_tuples, points, meta)


def _check_values(path: str | Path, arrays: dict, owner: np.ndarray, meta: Any) -> None:
    """Refuse points outside their image (owner: (P,) its number), or without a known class."""
    if not isinstance(meta, dict) or not isinstance(meta.get("classes"), list):
        raise ValueError(f"{path}: 'meta' has no list 'classes'")
    xy = arrays["xy"]
    height, width = arrays["sizes"][owner].reshape(-1, 2).T
    inside = (xy >= 0).all(axis=1) & (xy[:, 0] <= width - 1) & (xy[:, 1] <= height - 1)
    known = (arrays["cls"] >= NONE) & (arrays["cls"] < len(meta["classes"]))
    for good, what in (
        (inside, "a point outside the image"),  # not a number is outside, too
        (np.isfinite(arrays["score"]), "a score that is not finite"),
        (known, f"a class that is not among the {len(meta['classes'])}"),
    ):
        if not good.all():
            number = int(np.flatnonzero(~good)[0])
            raise ValueError(
                f"{path}: image id {arrays['ids'][owner[number]]} has {what}: "
                f"{xy[number].tolist()}, class {arrays['cls'][number]}; make the points again from "
                "this dataset"
            )
