"""Masks from boxes without a network: OpenCV's GrabCut, the baseline of box prompts."""

from collections.abc import Iterator

import cv2
import numpy as np
import torch

from weaksam.segmenters.protocol import MaskBatch

ITERATIONS = 5
MARGIN = 0.5  # of the box's sides, what GrabCut sees of the ground around a box


class GrabCut:
    """GrabCut behind the protocol: one mask a box; clicks are refused."""

    prompts = frozenset({"boxes"})
    identity = f"grabcut {ITERATIONS} iterations, margin {MARGIN}"

    def __init__(self) -> None:
        self._image: np.ndarray | None = None

    def set_image(self, image: np.ndarray) -> None:
        """Take an image, uint8 RGB (H, W, 3)."""
        self._image = np.ascontiguousarray(image)

    def points(self, xy: np.ndarray, groups: np.ndarray | None = None) -> Iterator[MaskBatch]:
        """Not possible: GrabCut needs a box."""
        raise ValueError("grabcut takes boxes only; clicks need tiny, segment_anything or another")

    def boxes(self, xyxy: np.ndarray, multimask: bool = False) -> Iterator[MaskBatch]:
        """One mask a box; predicted IoU and stability are unknown, NaN."""
        if multimask:
            raise ValueError("grabcut gives one mask a box; multimask is not possible")
        if self._image is None:
            raise RuntimeError("set_image comes first: there is no image to segment")
        for row, box in enumerate(np.asarray(xyxy, dtype=np.float64).reshape(-1, 4)):
            mask = torch.from_numpy(box_mask(self._image, box))[None, None]
            unknown = torch.full((1, 1), torch.nan)
            yield MaskBatch(torch.tensor([row]), mask, unknown, unknown)


def box_mask(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Foreground (H, W) bool inside a half-open box; all of the box where nothing is around it."""
    height, width = image.shape[:2]
    low = np.clip(np.floor(box[:2]), 0, (width - 1, height - 1)).astype(int)
    high = np.maximum(np.clip(np.ceil(box[2:]), 0, (width, height)).astype(int), low + 1)
    margin = np.ceil((high - low) * MARGIN).astype(int)
    x0, y0 = np.maximum(low - margin, 0)
    x1, y1 = np.minimum(high + margin, (width, height))
    mask = np.zeros((height, width), bool)
    window = np.full((y1 - y0, x1 - x0), cv2.GC_BGD, np.uint8)
    window[low[1] - y0 : high[1] - y0, low[0] - x0 : high[0] - x0] = cv2.GC_PR_FGD
    if (window == cv2.GC_PR_FGD).all():
        mask[low[1] : high[1], low[0] : high[0]] = True
        return mask
    cv2.setRNGSeed(0)  # its clusters start at random
    pixels = np.ascontiguousarray(image[y0:y1, x0:x1, ::-1])
    cv2.grabCut(pixels, window, None, None, None, ITERATIONS, cv2.GC_INIT_WITH_MASK)
    mask[y0:y1, x0:x1] = (window == cv2.GC_FGD) | (window == cv2.GC_PR_FGD)
    return mask
