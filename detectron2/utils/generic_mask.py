"""One mask as pixels or as polygons, whichever it was made from."""

from functools import cached_property
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
        source = mask_or_polygons
        if isinstance(source, list):
            polygons = [np.asarray(p, dtype=np.float64).reshape(-1) for p in source]
            self._outlines = (polygons, False)  # polygons count as having no holes
            return
        if isinstance(source, dict):
            uncompressed = isinstance(source["counts"], list)
            rle = mask_util.frPyObjects(source, *source["size"]) if uncompressed else source
            source = mask_util.decode(rle)
        if not isinstance(source, np.ndarray):
            raise ValueError(
                f"a mask of type {type(source).__name__}; expected an (H, W) array, an RLE dict or "
                "a list of polygons"
            )
        if source.shape != (height, width):
            raise ValueError(f"mask of size {source.shape} in an image of size {(height, width)}")
        self.mask = source.astype(np.uint8)

    @cached_property
    def mask(self) -> np.ndarray:
        """(H, W) uint8, 0 or 1."""
        return self.polygons_to_mask(self.polygons)

    @cached_property
    def _outlines(self) -> tuple[list[np.ndarray], bool]:
        return self.mask_to_polygons(self.mask)

    @property
    def polygons(self) -> list[np.ndarray]:
        """Outlines [x0, y0, x1, y1, ...]; holes have their own outlines."""
        return self._outlines[0]

    @property
    def has_holes(self) -> bool:
        return self._outlines[1]

    def mask_to_polygons(self, mask: np.ndarray) -> tuple[list[np.ndarray], bool]:
        """Outlines through the centers of an (H, W) mask's border pixels; whether it has holes."""
        mask = np.ascontiguousarray(mask, dtype=np.uint8)
        contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        outlines = [contour.reshape(-1) + 0.5 for contour in contours]
        has_holes = bool(contours) and bool((hierarchy[..., 3] >= 0).any())  # a hole has a parent
        return [line for line in outlines if len(line) >= _MIN_POLYGON_VALUES], has_holes

    def polygons_to_mask(self, polygons: list[np.ndarray]) -> np.ndarray:
        """(H, W) uint8: the union of the polygons, rasterized as by the COCO API."""
        # below three points there is no area, and the COCO API would take four numbers as a box
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
        x, y, width, height = cv2.boundingRect(self.mask)
        return np.array([x, y, x + width, y + height], dtype=np.float64)


def without_specks(mask: np.ndarray, min_area: int) -> np.ndarray:
    """An (H, W) uint8 mask without its 8-connected parts of fewer than `min_area` pixels."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    is_kept = stats[:, cv2.CC_STAT_AREA] >= min_area
    is_kept[0] = False  # the background
    return is_kept[parts].astype(np.uint8)
