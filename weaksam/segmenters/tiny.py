"""The segmenter of our own that comes with the package: `tiny`.

It has learned from tiny_scenes.py alone; tiny.json beside its weights says with which command, and
how well it does.
"""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from weaksam.segmenters.protocol import CombiningSegmenter, PromptBatch
from weaksam.segmenters.tiny_network import (
    PAD_TO,
    PIXEL_MEAN,
    STRIDE,
    Features,
    Prompts,
    TinyNetwork,
)

WEIGHTS = Path(__file__).with_name("tiny.safetensors")
SIDE = 160  # images are resized so that their longer side is this
OBJECT = 1  # of its masks: region, object, group


class TinySegmenter(CombiningSegmenter):
    """`TinyNetwork` behind the protocol. Its three masks are ordered: region, object, group.

    Args:
        network: in evaluation mode already, on its device.
        identity: see `Segmenter`.
        side: of the network's input, the longer one.
    """

    combines = frozenset({"clicks"})  # it has learned from clicks or a box, never from both
    prompts_per_batch = 16  # more do not fit a CPU's cache

    def __init__(self, network: TinyNetwork, identity: str, side: int = SIDE):
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # a fifth faster on a CPU
        self.identity, self.side, self.crop_side = identity, side, side
        self._features: Features | None = None
        self._device = next(network.parameters()).device

    def encode(self, image: np.ndarray) -> None:
        height, width = image.shape[:2]
        scale = self.side / max(height, width)
        cells = [max(1, round(side * scale / STRIDE)) for side in (height, width)]
        inner = (cells[0] * STRIDE, cells[1] * STRIDE)
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        small = cv2.resize(image, inner[::-1], interpolation=method)
        padded = [-(-side // PAD_TO) * PAD_TO for side in inner]
        canvas = torch.full((1, 3, *padded), PIXEL_MEAN)
        canvas[0, :, : inner[0], : inner[1]] = torch.from_numpy(small).permute(2, 0, 1).float()
        self._features = self.network.encode(canvas.to(self._device))
        self._inner, self._image, self._cells = inner, (height, width), cells
        self._rows, self._columns = (
            enlarging(few, many).to(self._device)
            for few, many in zip(cells, (height, width), strict=True)
        )

    def draw_combined(self, prompts: PromptBatch, multimask: bool) -> tuple[Tensor, Tensor]:
        logits, predicted_iou = self.network(
            self._features, self._prompts(prompts.clicks, prompts.boxes)
        )
        if not multimask:
            logits, predicted_iou = logits[:, OBJECT, None], predicted_iou[:, OBJECT, None]
        low = logits[..., : self._cells[0], : self._cells[1]].flatten(0, 1)
        wide = low.contiguous() @ self._columns.T
        enlarged = self._rows.expand(len(wide), -1, -1).bmm(wide)
        return enlarged.unflatten(0, logits.shape[:2]), predicted_iou

    def embedding(self) -> np.ndarray:
        rows, columns = self._cells
        return self._features.context[0, :, :rows, :columns].cpu().numpy()

    def _prompts(self, clicks: np.ndarray | None, boxes: np.ndarray | None) -> Prompts:
        """Prompts in the network's frame."""
        scale = np.array([self._inner[1] / self._image[1], self._inner[0] / self._image[0]])
        if boxes is not None:
            corners = boxes.reshape(-1, 2, 2) * scale - 0.5
            edges = corners.reshape(-1, 4)
        else:
            edges = np.full((len(clicks), 4), np.nan)
        if clicks is not None:
            inside = (clicks + 0.5) * scale - 0.5
        else:
            inside = corners.mean(axis=1, keepdims=True)
        count, at_once = inside.shape[:2]
        return Prompts(
            clicks=torch.from_numpy(inside).float().to(self._device),
            valid=torch.ones(count, at_once, dtype=torch.bool, device=self._device),
            boxes=torch.from_numpy(edges).float().to(self._device),
            images=torch.zeros(count, dtype=torch.int64, device=self._device),
        )


def enlarging(few: int, many: int) -> Tensor:
    """The matrix (many, few) of linear interpolation along one axis.

    Two products with such matrices are what bilinear interpolation does, ten times as fast.
    """
    return F.interpolate(torch.eye(few)[None], size=many, mode="linear")[0].T.contiguous()


def load_tiny(path: Path = WEIGHTS, device: str = "cpu", side: int = SIDE) -> TinySegmenter:
    """The segmenter with the weights of a safetensors file, the package's own by default."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the tiny segmenter's weights")
    network = TinyNetwork()
    try:
        network.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit the tiny segmenter: {error}") from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return TinySegmenter(network.eval().to(device), f"tiny side {side} sha256 {digest}", side)
