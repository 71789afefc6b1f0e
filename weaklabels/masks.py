"""Masks of COCO annotations without decoding them: run lengths, centre of mass, pixels.

Points are (x, y) in pixel indices: the middle of the top left pixel is (0, 0). A centre of mass
is the mean of the indices of a mask's pixels, the point that PointWSSIS labels with.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from weaklabels.files import missing_keys

MIN_POLYGON_NUMBERS = 6  # three corners


def make_annotation(category_id: int, rle: dict[str, Any], crowd: bool = False) -> dict[str, Any]:
    """A COCO annotation, yet without ids, of a compressed RLE (`counts` bytes)."""
    return {
        "category_id": category_id,
        "iscrowd": int(crowd),
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
        "area": int(mask_utils.area(rle)),
        "bbox": mask_utils.toBbox(rle).tolist(),
    }


def image_size_hw(path: Path, where: str) -> tuple[int, int]:
    """Height and width from an image's header; `where` says what names the image."""
    if not path.is_file():
        raise FileNotFoundError(f"{where} names the image {path}, which is not there")
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except OSError as error:
        raise ValueError(
            f"{where} names the image {path}, which is not readable: {error}"
        ) from None


def check_segmentation(segmentation: Any, height: int, width: int) -> None:
    """Refuse what `segmentation_rle` could not turn into a mask, without drawing any polygon.

    Raises:
        ValueError: what is wrong, without saying where; the caller knows the file and the entry.
    """
    if isinstance(segmentation, list) and segmentation:
        _check_polygons(segmentation)
        return
    if missing_keys(segmentation, ("size", "counts")):
        raise ValueError("no mask: expected polygons or RLE with 'size' and 'counts'")
    if segmentation["size"] != [height, width]:
        raise ValueError(f"RLE of size {segmentation['size']} in an image of {[height, width]}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if not set(map(type, counts)) <= {int}:
            raise ValueError("RLE counts are not whole numbers only")
        runs = np.array(counts, np.int64)
    elif isinstance(counts, str | bytes):
        runs = run_lengths(counts)
    else:
        raise ValueError(f"RLE counts are {counts!r}, neither a list of runs nor a string")
    # pycocotools would read beyond its memory for others.
    if runs.sum() != height * width or (runs < 0).any():
        raise ValueError(f"RLE counts are not runs that add up to {height} x {width}")


def run_lengths(counts: str | bytes) -> np.ndarray:
    """Run lengths (R,) int64, of background first, in COCO's compressed counts.

    A number is written in groups of 5 bits, low ones first, each in a character from "0" on. Bit 5
    tells that more groups follow, bit 4 of the last one is the sign; from the fourth number on it
    is the difference to the last but one.
    """
    characters = counts.encode() if isinstance(counts, str) else counts
    if not isinstance(characters, bytes) or not characters:
        raise ValueError("segmentation: counts are neither a list nor COCO's compressed form")
    groups = np.frombuffer(characters, dtype=np.uint8).astype(np.int64) - ord("0")
    if groups.min() < 0 or groups.max() > 63 or groups[-1] > 31:
        raise ValueError("segmentation: counts are cut off or not in COCO's compressed form")
    ends = np.flatnonzero(groups < 32) + 1
    starts = np.append(0, ends[:-1])
    places = np.arange(len(groups)) - np.repeat(starts, ends - starts)
    digits = groups & 31
    digits[ends - 1] -= (groups[ends - 1] & 16) << 1  # the sign of a number in two's complement
    runs = np.add.reduceat(digits << 5 * places, starts)
    for first in (1, 2):
        runs[first::2] = runs[first::2].cumsum()
    return runs


def _check_polygons(polygons: list[Any]) -> None:
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) % 2 or len(polygon) < MIN_POLYGON_NUMBERS:
            raise ValueError("a polygon must be a list of x, y, x, y, ... of 3 corners or more")
        if not set(map(type, polygon)) <= {int, float}:
            raise ValueError("a polygon has a coordinate that is not a number")
        if not all(map(math.isfinite, polygon)):
            raise ValueError("a polygon has a coordinate that is not finite")


def segmentation_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Compressed RLE (`counts` bytes) of any COCO segmentation: polygons or RLE of either kind.

    Raises:
        ValueError: as `check_segmentation` does.
    """
    check_segmentation(segmentation, height, width)
    if isinstance(segmentation, list):
        return mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
    counts = segmentation["counts"]
    if isinstance(counts, list):
        return mask_utils.frPyObjects(segmentation, height, width)
    counts = counts.encode() if isinstance(counts, str) else counts
    return {"size": [height, width], "counts": counts}


@dataclass(frozen=True)
class Runs:
    """Runs of a mask's pixels, which are numbered down the columns: x * height + y.

    starts, stops: (R,) int64, run i holds the pixels starts[i] .. stops[i] - 1.
    """

    starts: np.ndarray
    stops: np.ndarray
    height: int

    @classmethod
    def of(cls, rle: dict[str, Any]) -> "Runs":
        """The foreground runs of a compressed RLE (`counts` bytes)."""
        bounds = np.cumsum(run_lengths(rle["counts"]))
        stops = bounds[1::2]
        return cls(bounds[0::2][: len(stops)], stops, int(rle["size"][0]))

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int((self.stops - self.starts).sum())

    def centre_of_mass(self) -> tuple[float, float]:
        """Mean pixel index (x, y), exact up to the final division; the mask is not empty."""
        sum_x = int((self._sum_of_x(self.stops) - self._sum_of_x(self.starts)).sum())
        squares = self.stops * (self.stops - 1) - self.starts * (self.starts - 1)
        sum_of_numbers = int(squares.sum()) // 2
        return sum_x / self.area, (sum_of_numbers - self.height * sum_x) / self.area

    def _sum_of_x(self, stop: np.ndarray) -> np.ndarray:
        """Sum of x over the pixels 0 .. stop - 1: whole columns, then part of the next one."""
        columns, rest = np.divmod(stop, self.height)
        return self.height * (columns * (columns - 1) // 2) + columns * rest

    def pixel(self, index: int) -> tuple[int, int]:
        """(x, y) of the mask's pixel number `index` of 0 .. area - 1."""
        ends = np.cumsum(self.stops - self.starts)
        run = int(np.searchsorted(ends, index, side="right"))
        number = int(self.stops[run] - (ends[run] - index))
        return number // self.height, number % self.height

    def holds(self, x: int, y: int) -> bool:
        """Whether pixel (x, y), which lies in the image, belongs to the mask."""
        number = x * self.height + y
        run = int(np.searchsorted(self.stops, number, side="right"))
        return run < len(self.stops) and bool(self.starts[run] <= number)

    def nearest_pixel(self, x: float, y: float) -> tuple[int, int]:
        """The mask's pixel closest to (x, y); of equal ones the leftmost, then the topmost."""
        numbers = np.concatenate(
            [np.arange(a, b) for a, b in zip(self.starts, self.stops, strict=True)]
        )
        xs, ys = np.divmod(numbers, self.height)
        best = int(np.argmin((xs - x) ** 2 + (ys - y) ** 2))
        return int(xs[best]), int(ys[best])
