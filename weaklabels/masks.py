"""Masks of label files: one validator, one reader of every COCO form, and run lengths.

pycocotools trusts its input: counts that are cut off make it read beyond its memory, and polygons
far outside the image exhaust it. So `check_segmentation` looks at every segmentation first.

Points are (x, y) in pixel indices: the middle of the top left pixel is (0, 0). A center of mass is
the mean of the indices of a mask's pixels, the point that PointWSSIS labels with.
"""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from weaklabels.files import missing_keys
from weaklabels.limits import max_image_pixels, too_many_pixels

MIN_POLYGON_NUMBERS = 6  # x and y of three corners
MAX_SIDE = 1 << 17  # pixels; far more than any camera's, and safe for pycocotools
MAX_COUNT = (1 << 31) - 1  # pycocotools counts pixels in 32 bits
MAX_GROUPS = 7  # of 5 bits in one compressed number: more than 32 bits need none


def is_finite_number(value: Any) -> bool:
    """Whether a JSON value is a number that a float can hold."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def check_image_size(height: Any, width: Any) -> None:
    """Refuse sizes that are not whole, not positive, or absurd, as ValueError."""
    for side in (height, width):
        if type(side) is not int or not 0 < side <= MAX_SIDE:
            raise ValueError(
                f"height {height!r} and width {width!r} are not whole numbers from 1 to {MAX_SIDE}"
            )
    if height * width > min(max_image_pixels(), MAX_COUNT):
        raise ValueError(too_many_pixels(f"an image of {height} x {width} pixels"))


def check_segmentation(segmentation: Any, height: int, width: int) -> None:
    """Refuse what `segmentation_rle` could not turn into a mask, without drawing any polygon.

    Args:
        segmentation: polygons, or RLE with a list of runs or with compressed `counts`.
        height, width: of the image; a size that `check_image_size` accepts.

    Raises:
        ValueError: "fault: detail", without saying where; the caller knows the file and the entry.
    """
    if isinstance(segmentation, list) and segmentation:
        if not drawable_polygons(segmentation, height, width):
            raise ValueError("no mask: not one polygon of 3 corners or more")
        return
    if missing_keys(segmentation, ("size", "counts")):
        raise ValueError("no mask: expected polygons or RLE with 'size' and 'counts'")
    size, counts = segmentation["size"], segmentation["counts"]
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        raise ValueError(f"RLE of size {size!r} in an image of {[height, width]} (height, width)")
    check_image_size(height, width)
    if isinstance(counts, list):
        if not set(map(type, counts)) <= {int}:
            raise ValueError("RLE counts are not whole numbers only")
        fits = sum(counts) == height * width and min(counts) >= 0
    elif isinstance(counts, str | bytes):
        runs = run_lengths(counts)
        fits = runs.sum() == height * width and runs.min() >= 0
    else:
        raise ValueError(f"RLE counts are {counts!r}, neither a list of runs nor a string")
    if not fits:
        raise ValueError(f"RLE counts are not runs that add up to its size: {height} x {width}")


def drawable_polygons(polygons: list[Any], height: int, width: int) -> list[list[float]]:
    """The polygons of at least three corners; the others cover nothing and are left out.

    Raises:
        ValueError: one of them is no list of finite numbers, or lies farther outside than the
            image is large.
    """
    drawable = []
    for polygon in polygons:
        if not isinstance(polygon, list):
            raise ValueError("a polygon is no list of x, y, x, y, ... of 3 corners or more")
        if not set(map(type, polygon)) <= {int, float}:
            raise ValueError("a polygon has a coordinate that is not a number")
        if len(polygon) % 2 or len(polygon) < MIN_POLYGON_NUMBERS:
            continue
        if any(value - value for value in polygon):  # NaN for NaN and the infinities
            raise ValueError("a polygon has a coordinate that is not finite")
        _check_extent(polygon[0::2], width, "x")
        _check_extent(polygon[1::2], height, "y")
        drawable.append(polygon)
    return drawable


def _check_extent(values: list[float], size: int, axis: str) -> None:
    low, high = min(values), max(values)
    if low < -size or high > 2 * size:
        far = max(low, -sys.float_info.max) if low < -size else min(high, sys.float_info.max)
        raise ValueError(
            f"a polygon lies farther outside than the image is large: {axis} {far:g} where the "
            f"image has 0 to {size}"
        )


def run_lengths(counts: str | bytes) -> np.ndarray:
    """Run lengths (R,) int64, of background first, in COCO's compressed counts.

    A number is written in groups of 5 bits, low ones first, each in a character from "0" on. Bit 5
    tells that more groups follow, bit 4 of the last one is the sign; from the fourth number on it
    is the difference to the last but one.
    """
    if isinstance(counts, str) and not counts.isascii():
        raise ValueError("RLE counts are not in COCO's compressed form")
    characters = counts.encode() if isinstance(counts, str) else counts
    if not characters:
        raise ValueError("RLE counts are empty, which is not COCO's compressed form")
    groups = np.frombuffer(characters, dtype=np.uint8).astype(np.int64) - ord("0")
    if groups.min() < 0 or groups.max() > 63 or groups[-1] > 31:
        raise ValueError("RLE counts are cut off or not in COCO's compressed form")
    ends = np.flatnonzero(groups < 32) + 1
    starts = np.append(0, ends[:-1])
    lengths = ends - starts
    if lengths.max() > MAX_GROUPS:
        raise ValueError("RLE counts hold a number of more than 32 bits")
    places = np.arange(len(groups)) - np.repeat(starts, lengths)
    digits = groups & 31
    digits[ends - 1] -= (groups[ends - 1] & 16) << 1  # the sign of a number in two's complement
    runs = np.add.reduceat(digits << 5 * places, starts)
    for first in (1, 2):
        runs[first::2] = runs[first::2].cumsum()
    return runs


def segmentation_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Compressed RLE (`counts` bytes) of any COCO segmentation: polygons or RLE of either kind.

    Raises:
        ValueError: as `check_segmentation` does.
    """
    if isinstance(segmentation, list) and segmentation:
        polygons = drawable_polygons(segmentation, height, width)
        if polygons:
            return mask_utils.merge(mask_utils.frPyObjects(polygons, height, width))
    check_segmentation(segmentation, height, width)
    counts = segmentation["counts"]
    if isinstance(counts, list):
        return mask_utils.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    counts = counts.encode() if isinstance(counts, str) else counts
    return {"size": [height, width], "counts": counts}


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """(H, W) uint8 mask, 0 or 1, of a segmentation in any COCO form; ValueError as above."""
    return mask_utils.decode(segmentation_rle(segmentation, height, width))


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Compressed RLE of an (H, W) mask, as JSON holds it: `counts` is a str."""
    return json_rle(mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8)))


def json_rle(rle: dict[str, Any]) -> dict[str, Any]:
    """A compressed RLE as JSON holds it: `counts` is a str."""
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }


def mask_fields(rle: dict[str, Any]) -> dict[str, Any]:
    """The fields of a label that follow from its compressed RLE: bbox, area, segmentation.

    `bbox` is [x, y, width, height] in floats, wherever a label is written.
    """
    return {
        "bbox": [float(value) for value in mask_utils.toBbox(rle)],
        "area": int(mask_utils.area(rle)),
        "segmentation": json_rle(rle),
    }


def make_annotation(category_id: int, rle: dict[str, Any], crowd: bool = False) -> dict[str, Any]:
    """A COCO annotation, yet without ids, of a compressed RLE."""
    fields = mask_fields(rle)
    return {
        "category_id": category_id,
        "iscrowd": int(crowd),
        "segmentation": fields["segmentation"],
        "area": fields["area"],
        "bbox": fields["bbox"],
    }


def center_of_mass(mask: np.ndarray) -> tuple[float, float] | None:
    """(x, y), the mean pixel indices of an (H, W) mask; None where it is empty."""
    runs = Runs.of(mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8)))
    return runs.center_of_mass() if runs.area else None


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

    def center_of_mass(self) -> tuple[float, float]:
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
