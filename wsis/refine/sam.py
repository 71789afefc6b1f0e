"""A promptable segmenter as a refiner: each rough mask becomes its prompts."""

import numpy as np
import torch

from weaksam.image_shards import one_thread
from weaksam.mask_prompts import refined_masks, require_boxes
from weaksam.segmenters.protocol import Segmenter
from weaksam.segmenters.spec import load_segmenter

from .protocol import Refiner


class SamRefiner(Refiner):
    """Masks of a segmenter prompted as SAMRefiner does; see `weaksam.mask_prompts`.

    It makes no difference between classes, and records keep their scores. One thread of a process
    works, because sums depend on how many threads share them.
    """

    category_ids = None

    def __init__(self, segmenter: Segmenter, batch_size: int):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}; at least 1 is needed")
        require_boxes(segmenter)
        self.segmenter, self.batch_size = segmenter, batch_size
        self.identity = segmenter.identity

    @classmethod
    def load(cls, spec: str, device: torch.device, batch_size: int, download: bool) -> "SamRefiner":
        """The segmenter of a name; see `weaksam.segmenters.spec`."""
        return cls(load_segmenter(spec, str(device), download), batch_size)

    def refine(
        self, image_rgb: np.ndarray, masks: np.ndarray, points: np.ndarray, class_ids: np.ndarray
    ) -> tuple[np.ndarray, None]:
        with one_thread():
            masks = refined_masks(self.segmenter, image_rgb, masks, points, self.batch_size)
        return masks, None
