"""Masks of COCO annotations without decoding them: run lengths, centre of mass, pixels.

Points are (x, y) in pixel indices: the middle of the top left pixel is (0, 0). A centre of mass
is the mean of the indices of a mask's pixels, the point that PointWSSIS labels with.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

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
    with Image.open(path) as image:
        return image.height, image.width


def segmentation_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Compressed RLE (`counts` bytes) of any COCO segmentation: polygons or RLE of either kind.

    Raises:
        ValueError: what is wrong, without saying where; the caller knows the file and the entry.
    """
    if isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            if (
                not isinstance(polygon, list)
                or len(polygon) % 2
                or len(polygon) < MIN_POLYGON_NUMBERS
            ):
                raise ValueError("a polygon must be a list of x, y, x, y, ... of 3 corners or more")
        if not np.isfinite(np.concatenate(segmentation).astype(np.float64)).all():
            raise ValueError("a polygon has a coordinate that is not finite")
        return mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError("no mask: expected polygons or RLE with 'size' and 'counts'")
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"RLE of size {segmentation['size']} in an image of {[height, width]}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        _check_runs(np.array(counts, np.int64), height, width)
        return mask_utils.frPyObjects(segmentation, height, width)
    rle = {
        "size": [height, width],
        "counts": counts.encode() if isinstance(counts, str) else counts,
    }
    _check_runs(_run_lengths(rle["counts"]), height, width)
    return rle


def _check_runs(runs: np.ndarray, height: int, width: int) -> None:
    """Refuse what pycocotools would read beyond its memory for."""
    if runs.sum() != height * width or (runs < 0).any():
        raise ValueError(f"RLE counts are not runs that add up to {height} x {width}")


def _run_lengths(counts: bytes) -> np.ndarray:
    """Run lengths (R,) int64, zeros first, of COCO's compressed counts.

    Each number is written in groups of 5 bits, low ones first; bit 5 says that another group
    follows, bit 4 of the last group is the sign; from the fourth number on, each is the
    difference to the one two before.
    """
    symbols = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not len(symbols) or symbols.min() < 0 or symbols.max() > 63 or symbols[-1] & 32:
        raise ValueError("RLE counts are not in COCO's compressed form")
    last = np.flatnonzero(symbols & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    shift = 5 * (np.arange(len(symbols)) - np.repeat(first, last - first + 1))
    runs = np.add.reduceat((symbols & 31) << shift, first)
    runs -= np.where(symbols[last] & 16, 1 << (shift[last] + 5), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


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
        bounds = np.cumsum(_run_lengths(rle["counts"]))
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
