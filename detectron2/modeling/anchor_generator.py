"""Anchors: boxes of given sizes and shapes at every cell of the feature maps."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes
from detectron2.utils.registry import Registry

# Called as f(cfg, input_shape: list[ShapeSpec]); maps -> anchors.
ANCHOR_GENERATOR_REGISTRY = Registry("ANCHOR_GENERATOR")

# One list for all maps, or one list for each map.
PerLevel = Sequence[Sequence[float]] | Sequence[float]


class BufferList(nn.Module):
    """A list of tensors that move with the module and are not in its state dict."""

    def __init__(self, buffers: Sequence[Tensor]):
        super().__init__()
        for i, buffer in enumerate(buffers):
            self.register_buffer(str(i), buffer, persistent=False)

    def __len__(self) -> int:
        return len(self._buffers)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._buffers.values())


@ANCHOR_GENERATOR_REGISTRY.register()
class DefaultAnchorGenerator(nn.Module):
    """Axis-aligned anchors of each size and aspect ratio at each cell.

    Attributes:
        box_dim: numbers of one anchor.
        cell_anchors: for each feature map, (A, 4) anchors around (0, 0), ordered by size, then by
            aspect ratio.
    """

    box_dim: int = 4

    @configurable
    def __init__(
        self,
        *,
        sizes: PerLevel,
        aspect_ratios: PerLevel,
        strides: Sequence[int],
        offset: float = 0.5,
    ):
        """
        Args:
            sizes: square roots of areas in input pixels, as one list for each feature map, or one
                list (flat or nested) for all.
            aspect_ratios: height / width, in the same form.
            strides: of each feature map, in input pixels.
            offset: position of the center in its cell, in cells, in [0, 1).
        """
        super().__init__()
        if not 0.0 <= offset < 1.0:
            raise ValueError(f"anchor offset {offset}: expected a number of cells in [0, 1)")
        self.strides = list(strides)
        self.num_features = len(self.strides)
        self.offset = offset
        sizes = _broadcast(sizes, self.num_features, "sizes")
        aspect_ratios = _broadcast(aspect_ratios, self.num_features, "aspect_ratios")
        self.cell_anchors = BufferList(
            [
                self.generate_cell_anchors(own_sizes, own_ratios)
                for own_sizes, own_ratios in zip(sizes, aspect_ratios, strict=True)
            ]
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        """Constructor arguments from `MODEL.ANCHOR_GENERATOR` and the feature maps' strides."""
        node = cfg.MODEL.ANCHOR_GENERATOR
        return {
            "sizes": node.SIZES,
            "aspect_ratios": node.ASPECT_RATIOS,
            "strides": [shape.stride for shape in input_shape],
            "offset": node.OFFSET,
        }

    @property
    def num_anchors(self) -> list[int]:
        """Anchors at each cell, for each feature map."""
        return [len(anchors) for anchors in self.cell_anchors]

    def generate_cell_anchors(
        self,
        sizes: Sequence[float] = (32, 64, 128, 256, 512),
        aspect_ratios: Sequence[float] = (0.5, 1, 2),
    ) -> Tensor:
        """(len(sizes) * len(aspect_ratios), 4) anchors x0, y0, x1, y1 around (0, 0)."""
        anchors = []
        for size in sizes:
            for ratio in aspect_ratios:
                width = math.sqrt(size**2.0 / ratio)
                height = ratio * width
                anchors.append([-width / 2, -height / 2, width / 2, height / 2])
        return torch.tensor(anchors)

    def forward(self, features: list[Tensor]) -> list[Boxes]:
        """Anchors of each map, in input pixels.

        Args:
            features: maps (N, C, H, W); only their sizes are used.

        Returns:
            for each map H * W * A anchors, row by row, A for each cell.
        """
        anchors = []
        for feature, stride, cell_anchors in zip(
            features, self.strides, self.cell_anchors, strict=True
        ):
            height, width = feature.shape[-2:]
            x, y = (
                (torch.arange(n, device=cell_anchors.device, dtype=torch.float32) + self.offset)
                * stride
                for n in (width, height)
            )
            y, x = torch.meshgrid(y, x, indexing="ij")
            centers = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)  # (H * W, 1, 4)
            anchors.append(Boxes((centers + cell_anchors).reshape(-1, 4)))
        return anchors


def _broadcast(values: PerLevel, num_features: int, name: str) -> list[Sequence[float]]:
    """One list a feature map."""
    if not isinstance(values, Sequence) or len(values) == 0:
        raise ValueError(f"anchor {name}={values!r}: expected a list, or one list for each map")
    if not isinstance(values[0], Sequence):
        values = [values]
    if len(values) not in (1, num_features):
        raise ValueError(
            f"anchor {name}={list(values)} are for {len(values)} feature maps, there are "
            f"{num_features}; give one list for each map, or one for all"
        )
    return list(values) * num_features if len(values) == 1 else list(values)


def build_anchor_generator(cfg: CfgNode, input_shape: list[ShapeSpec]) -> nn.Module:
    """Anchor generator `cfg.MODEL.ANCHOR_GENERATOR.NAME` for feature maps of these shapes."""
    return ANCHOR_GENERATOR_REGISTRY.get(cfg.MODEL.ANCHOR_GENERATOR.NAME)(cfg, input_shape)
