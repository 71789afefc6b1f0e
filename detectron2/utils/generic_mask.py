"""One mask that can be asked for its pixels or its polygons, whichever it was made from."""

from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_util

__all__ = ["GenericMask", "without_specks"]

_MIN_POLYGON_VALUES = 6  # three points


class GenericMask:
    """A mask of an image of `height` x `width` pixels.

    Args:
        mask_or_polygons: an (H, W) array, an RLE dict (compressed or not), or a list of polygons
            [x0, y0, x1, y1, ...].
    """

    def __init__(self, mask_or_polygons: Any, height: int, width: int):
        self.height, self.width = height, width
        self._mask: np.ndarray | None = None
        self._polygons: list[np.ndarray] | None = None
        self._has_holes: bool | None = None
        if isinstance(mask_or_polygons, dict):
            self._mask = self._decode(mask_or_polygons)
        elif isinstance(mask_or_polygons, list):
            polygons = [np.asarray(p, dtype=np.float64).reshape(-1) for p in mask_or_polygons]
            self._polygons = polygons
            self._has_holes = False
        elif isinstance(mask_or_polygons, np.ndarray):
            self._mask = mask_or_polygons.astype(np.uint8)
            self._check_size(self._mask)
        else:
            raise ValueError(
                f"a mask of type {type(mask_or_polygons).__name__}; expected an (H, W) array, an "
                "RLE dict or a list of polygons"
            )

    def _decode(self, rle: dict[str, Any]) -> np.ndarray:
        if isinstance(rle["counts"], list):
            rle = mask_util.frPyObjects(rle, *rle["size"])
        mask = mask_util.decode(rle)
        self._check_size(mask)
        return mask

    def _check_size(self, mask: np.ndarray) -> None:
        if mask.shape != (self.height, self.width):
            raise ValueError(
                f"mask of size {mask.shape} in an image of size {(self.height, self.width)}"
            )

    @property
    def mask(self) -> np.ndarray:
        """(H, W) uint8, 0 or 1."""
        if self._mask is None:
            self._mask = self.polygons_to_mask(self._polygons)
        return self._mask

    @property
    def polygons(self) -> list[np.ndarray]:
        """Outlines [x0, y0, x1, y1, ...]; holes are outlines of their own."""
        if self._polygons is None:
            self._polygons, self._has_holes = self.mask_to_polygons(self._mask)
        return self._polygons

    @property
    def has_holes(self) -> bool:
        """Whether the mask has holes; polygons are taken to have none."""
        if self._has_holes is None:
            self._polygons, self._has_holes = self.mask_to_polygons(self._mask)
        return self._has_holes

    def mask_to_polygons(self, mask: np.ndarray) -> tuple[list[np.ndarray], bool]:
        """Outlines through the centres of an (H, W) mask's border pixels; whether it has holes."""
        mask = np.ascontiguousarray(mask, dtype=np.uint8)
        contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        if hierarchy is None:
            return [], False
        has_holes = bool((hierarchy.reshape(-1, 4)[:, 3] >= 0).any())
        outlines = [contour.reshape(-1) + 0.5 for contour in contours]
        return [outline for outline in outlines if len(outline) >= _MIN_POLYGON_VALUES], has_holes

    def polygons_to_mask(self, polygons: list[np.ndarray]) -> np.ndarray:
        """(H, W) uint8: the union of the polygons, as COCO's tools rasterise them."""
        # under three points there is no area (and COCO's tools would take four numbers as a box)
        solid = [p.tolist() for p in polygons if len(p) >= _MIN_POLYGON_VALUES]
        if not solid:
            return np.zeros((self.height, self.width), dtype=np.uint8)
        rles = mask_util.frPyObjects(solid, self.height, self.width)
        return mask_util.decode(mask_util.merge(rles))

    def area(self) -> int:
        """Number of pixels."""
        return int(self.mask.sum())

    def bbox(self) -> np.ndarray:
        """Tight box [x0, y0, x1, y1], (4,) float64; zeros for an empty mask."""
        rows, columns = self.mask.any(axis=1).nonzero()[0], self.mask.any(axis=0).nonzero()[0]
        if not len(rows):
            return np.zeros(4)
        return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)


def without_specks(mask: np.ndarray, min_area: int) -> np.ndarray:
    """An (H, W) uint8 mask without its 8-connected parts of fewer than `min_area` pixels."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    is_kept = stats[:, cv2.CC_STAT_AREA] >= min_area
    is_kept[0] = False  # the background
    return is_kept[parts].astype(np.uint8)
