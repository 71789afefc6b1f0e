"""What a promptable segmenter does, whichever network is behind it.

Images are uint8 RGB (H, W, 3). Clicks are (x, y) of pixel centers: row r, column c is x = c, y = r.
Boxes are x0, y0, x1, y1, half-open: a mask in columns 3 to 5 has x0 = 3, x1 = 6. Both in pixels of
the image that was set.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

STABILITY_OFFSET = 1.0  # logits
BATCH_PIXELS = 2**26  # logits of the image's size held at once: 256 MiB as float32


@dataclass(frozen=True)
class MaskBatch:
    """Masks of G prompts, M each (3, or 1).

    prompts: (G,) int64, the prompt's row (of `boxes`, of `points` without groups) or its group.
    masks: (G, M, H, W) bool.  predicted_iou, stability: (G, M) float32.  An empty mask has
    stability 0.
    """

    prompts: Tensor
    masks: Tensor
    predicted_iou: Tensor
    stability: Tensor

    @classmethod
    def from_logits(cls, prompts: Tensor, logits: Tensor, predicted_iou: Tensor) -> "MaskBatch":
        """Binarize (G, M, H, W) logits at 0, after measuring how far that threshold matters."""
        sure, likely = (_area(logits > at) for at in (STABILITY_OFFSET, -STABILITY_OFFSET))
        stability = sure / likely.clamp(min=1)
        return cls(prompts, logits > 0, predicted_iou.float(), stability)

    def best(self) -> tuple[Tensor, Tensor]:
        """Of each prompt's masks the one (G, H, W) of the highest predicted IoU, and that (G,).

        Empty masks come last; a predicted IoU that is unknown is 1.
        """
        quality = self.predicted_iou.nan_to_num(nan=1.0)
        order = torch.where(self.masks.flatten(2).any(dim=2), quality, -torch.inf)
        chosen = torch.arange(len(order), device=order.device), order.argmax(dim=1)
        return self.masks[chosen], quality[chosen]


@dataclass(frozen=True)
class PromptBatch:
    """G prompts that consist of the same parts; None where they do not have one.

    clicks: (G, K, 2) float64 x, y.  background: (G, K) bool, the clicks that are not on the object.
    boxes: (G, 4) float64.  masks: (G, H, W) float32 logits in the image's size.
    """

    clicks: np.ndarray | None = None
    background: np.ndarray | None = None
    boxes: np.ndarray | None = None
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return max((len(part) for part in vars(self).values() if part is not None), default=0)

    @property
    def parts(self) -> frozenset[str]:
        """Names of the parts that the prompts have."""
        return frozenset(f.name for f in fields(self) if getattr(self, f.name) is not None)

    def rows(self, part: slice) -> "PromptBatch":
        """Some of the prompts."""
        return PromptBatch(**{name: getattr(self, name)[part] for name in self.parts})


@runtime_checkable
class Segmenter(Protocol):
    """Encodes an image once, then answers any number of prompts about it.

    identity: names network and weights, so that results of others are not mixed with its own.
    prompts: what it takes, "points", "boxes" or both; asking for the other is a ValueError.
    """

    identity: str
    prompts: frozenset[str]

    def set_image(self, image: np.ndarray) -> None:
        """Encode an image; later prompts are about it."""
        ...

    def points(self, xy: np.ndarray, groups: np.ndarray | None = None) -> Iterator[MaskBatch]:
        """Masks of foreground clicks, three a prompt, batch by batch.

        Args:
            xy: (N, 2) clicks.
            groups: (N,) int; the clicks of one group are one prompt. Each click alone without it.
        """
        ...

    def boxes(self, xyxy: np.ndarray, multimask: bool = False) -> Iterator[MaskBatch]:
        """Masks of boxes (N, 4), one a box, or three with `multimask`."""
        ...


class BatchedSegmenter(ABC):
    """The part that all networks share: checks, groups, batches. They encode and draw."""

    identity: str
    prompts = frozenset({"points", "boxes"})
    prompts_per_batch: int = 64

    def __init__(self) -> None:
        self.size_hw: tuple[int, int] | None = None

    @abstractmethod
    def encode(self, image: np.ndarray) -> None:
        """Keep what `draw` needs of an image that was checked."""

    @abstractmethod
    def draw(
        self, clicks: np.ndarray | None, boxes: np.ndarray | None, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """Logits (G, M, H, W) in the image's size and predicted IoUs (G, M) of G prompts.

        Args:
            clicks: (G, K, 2) float64 x, y, or None where `boxes` (G, 4) float64 are given.
        """

    def set_image(self, image: np.ndarray) -> None:
        """See `Segmenter.set_image`."""
        good = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3
        if not good or image.shape[2] != 3 or 0 in image.shape:
            shape = getattr(image, "shape", type(image).__name__)
            raise ValueError(
                f"got an image {shape} of {getattr(image, 'dtype', '?')}; expected uint8 RGB "
                "(H, W, 3)"
            )
        self.size_hw = None
        with torch.inference_mode():
            self.encode(np.ascontiguousarray(image))
        self.size_hw = image.shape[:2]

    def points(self, xy: np.ndarray, groups: np.ndarray | None = None) -> Iterator[MaskBatch]:
        """See `Segmenter.points`. Prompts of as many clicks as each other share batches."""
        self._require_image()
        xy = _numbers(xy, 2, "clicks")
        rows = np.arange(len(xy)) if groups is None else np.asarray(groups)
        if rows.shape != (len(xy),):
            raise ValueError(f"{len(xy)} clicks need a group each, got groups {rows.shape}")
        names, inverse, counts = np.unique(rows, return_inverse=True, return_counts=True)
        by_group = np.split(np.argsort(inverse, kind="stable"), np.cumsum(counts)[:-1])
        for count in np.unique(counts):
            same = np.flatnonzero(counts == count)
            members = np.stack([by_group[i] for i in same])  # (G, K)
            yield from self._prompted(names[same], PromptBatch(clicks=xy[members]), True)

    def boxes(self, xyxy: np.ndarray, multimask: bool = False) -> Iterator[MaskBatch]:
        """See `Segmenter.boxes`."""
        self._require_image()
        xyxy = _numbers(xyxy, 4, "boxes")
        flat = np.flatnonzero((xyxy[:, 2:] <= xyxy[:, :2]).any(axis=1))
        if len(flat):
            raise ValueError(f"box {flat[0]} is {xyxy[flat[0]].tolist()}: x1 > x0, y1 > y0 needed")
        yield from self._prompted(np.arange(len(xyxy)), PromptBatch(boxes=xyxy), multimask)

    def _prompted(
        self, names: np.ndarray, prompts: PromptBatch, multimask: bool
    ) -> Iterator[MaskBatch]:
        def draw(part: PromptBatch) -> tuple[Tensor, Tensor]:
            return self.draw(part.clicks, part.boxes, multimask)

        return self._batches(names, prompts, draw)

    def _batches(
        self,
        names: np.ndarray,
        prompts: PromptBatch,
        draw: Callable[[PromptBatch], tuple[Tensor, Tensor]],
    ) -> Iterator[MaskBatch]:
        height, width = self._require_image()
        step = max(1, min(self.prompts_per_batch, BATCH_PIXELS // (3 * height * width)))
        for start in range(0, len(names), step):
            part = slice(start, start + step)
            with torch.inference_mode():
                logits, predicted_iou = draw(prompts.rows(part))
                rows = torch.from_numpy(names[part].astype(np.int64))
                batch = MaskBatch.from_logits(rows, logits, predicted_iou)
            yield batch

    def _require_image(self) -> tuple[int, int]:
        if self.size_hw is None:
            raise RuntimeError("set_image comes first: there is no image to segment")
        return self.size_hw


class CombiningSegmenter(BatchedSegmenter):
    """A segmenter whose prompts may have several parts, and that shows its features of the image.

    Optional: what needs it asks `isinstance(segmenter, CombiningSegmenter)`.
    combines: the parts of a `PromptBatch` that it takes together.
    crop_side: of an image with a longer side than this a small object is better shown by itself;
        None where that is never worth another encoding.
    """

    combines: frozenset[str]
    crop_side: int | None = None

    @abstractmethod
    def draw_combined(self, prompts: PromptBatch, multimask: bool) -> tuple[Tensor, Tensor]:
        """As `draw`, of prompts whose parts are among `combines`."""

    @abstractmethod
    def embedding(self) -> np.ndarray:
        """Features (C, h, w) float32 of the image that was set; its cells share it evenly."""

    def draw(
        self, clicks: np.ndarray | None, boxes: np.ndarray | None, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        return self.draw_combined(PromptBatch(clicks=clicks, boxes=boxes), multimask)

    def combined(self, prompts: PromptBatch) -> Iterator[MaskBatch]:
        """Masks of prompts, three each, batch by batch; ValueError for a part it does not take."""
        size_hw = self._require_image()
        if other := sorted(prompts.parts - self.combines):
            raise ValueError(
                f"segmenter {self.identity} takes no {other[0]}; prompts may combine "
                f"{', '.join(sorted(self.combines))}"
            )
        if prompts.masks is not None and prompts.masks.shape[1:] != size_hw:
            raise ValueError(
                f"mask prompts {prompts.masks.shape} of an image {size_hw}: both need one size"
            )

        def draw(part: PromptBatch) -> tuple[Tensor, Tensor]:
            return self.draw_combined(part, multimask=True)

        return self._batches(np.arange(len(prompts)), prompts, draw)


def _area(masks: Tensor) -> Tensor:
    """Pixels (G, M) of masks (G, M, H, W)."""
    if masks.device.type != "cpu":
        return masks.sum((-2, -1))
    # torch's sum first widens all pixels to whole numbers, which takes ten times as long.
    counts = [np.count_nonzero(mask) for mask in masks.flatten(0, 1).numpy()]
    return torch.tensor(counts, dtype=torch.int64).view(masks.shape[:2])


def _numbers(values: np.ndarray, columns: int, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0:
        return values.reshape(0, columns)
    if values.ndim != 2 or values.shape[1] != columns or not np.isfinite(values).all():
        raise ValueError(
            f"{name} have to be finite numbers of shape (N, {columns}), got shape {values.shape}"
        )
    return values
