"""Proposals that need no segmenter: selective search, and random boxes as the yardstick."""

import zlib
from dataclasses import dataclass

import cv2
import numpy as np

from weaksam.proposals.files import ImageProposals


@dataclass(frozen=True)
class SelectiveSearch:
    """OpenCV's selective search.

    mode: "fast" or "quality".  max_side: longer sides above it are resized to it first.
    min_side: boxes with a shorter side, in pixels of the original image, are left out.
    """

    mode: str = "fast"
    max_side: int = 500
    min_side: float = 8.0

    def __post_init__(self) -> None:
        if self.mode not in ("fast", "quality"):
            raise ValueError(f"mode={self.mode!r}; expected 'fast' or 'quality'")


@dataclass(frozen=True)
class RandomBoxes:
    """`count` boxes an image: two corners uniform in the image.  seed: with the image's id."""

    count: int = 1000
    seed: int = 0


def selective_search(image: np.ndarray, settings: SelectiveSearch) -> ImageProposals:
    """Boxes of an image, uint8 RGB (H, W, 3), largest first, each once.

    OpenCV ranks boxes with C's global random numbers; their set does not depend on these. The order
    here is of our own, so that equal images give equal files.
    """
    if not hasattr(cv2, "ximgproc"):
        raise ImportError(
            "this OpenCV has no ximgproc, which selective search needs: pip uninstall -y "
            "opencv-python opencv-python-headless, then pip install --force-reinstall "
            "opencv-contrib-python-headless"
        )
    height, width = image.shape[:2]
    scale = min(1.0, settings.max_side / max(height, width))
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image[..., ::-1], inner, interpolation=cv2.INTER_AREA)
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(small)
    if settings.mode == "fast":
        search.switchToSelectiveSearchFast()
    else:
        search.switchToSelectiveSearchQuality()
    found = np.unique(np.asarray(search.process(), np.float64).reshape(-1, 4), axis=0)
    boxes = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], axis=1)
    boxes *= np.tile([width / inner[0], height / inner[1]], 2)
    sides = boxes[:, 2:] - boxes[:, :2]
    keep = (sides >= settings.min_side).all(axis=1)
    boxes, area = boxes[keep], sides[keep].prod(axis=1)
    boxes = np.minimum(boxes, [width, height, width, height])
    return ImageProposals.of("selective_search", boxes[np.argsort(-area, kind="stable")])


def random_boxes(
    image_id: str, size_hw: tuple[int, int], count: int, seed: int = 0
) -> ImageProposals:
    """`count` boxes whose two corners are uniform in the image; equal arguments, equal boxes."""
    rng = np.random.default_rng([seed, zlib.crc32(image_id.encode())])
    corners = rng.random((count, 2, 2)) * (size_hw[1], size_hw[0])
    low, high = corners.min(axis=1), corners.max(axis=1)
    limit = np.array([size_hw[1], size_hw[0]], float)
    low = np.minimum(low, limit - 1)  # at least a pixel wide and high
    return ImageProposals.of("random", np.concatenate([low, np.maximum(high, low + 1)], axis=1))
