"""Features of regions for the prediction of classes and boxes."""

import math
from collections.abc import Sequence
from typing import Any

from fvcore.nn.weight_init import c2_msra_fill, c2_xavier_fill
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.utils.registry import Registry

# Called as f(cfg, input_shape: ShapeSpec); have an output_shape; pooled -> predictor features.
ROI_BOX_HEAD_REGISTRY = Registry("ROI_BOX_HEAD")


@ROI_BOX_HEAD_REGISTRY.register()
class FastRCNNConvFCHead(nn.Sequential):
    """3x3 convolutions, then fully connected layers: conv1, conv2, ..., flatten, fc1, fc2, ..."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        conv_dims: Sequence[int],
        fc_dims: Sequence[int],
        conv_norm: str = "",
    ):
        """
        Args:
            input_shape: channels, height and width of the input.
            conv_dims: channels of the convolutions.
            fc_dims: sizes of the fully connected layers.
            conv_norm: norm of the convolutions, see `get_norm`.
        """
        super().__init__()
        if len(conv_dims) + len(fc_dims) == 0:
            raise ValueError(
                "a box head needs a layer: set MODEL.ROI_BOX_HEAD.NUM_CONV or NUM_FC above 0"
            )
        channels, height, width = input_shape.channels, input_shape.height, input_shape.width
        convs, fcs = [], []
        for i, conv_dim in enumerate(conv_dims, start=1):
            conv = Conv2d(
                channels,
                conv_dim,
                kernel_size=3,
                padding=1,
                bias=not conv_norm,
                norm=get_norm(conv_norm, conv_dim),
                activation=nn.ReLU(),
            )
            self.add_module(f"conv{i}", conv)
            convs.append(conv)
            channels = conv_dim
        self._output_shape = ShapeSpec(channels=channels, height=height, width=width)
        size = math.prod((channels, height, width)) if len(fc_dims) else 0
        for i, fc_dim in enumerate(fc_dims, start=1):
            if i == 1:
                self.add_module("flatten", nn.Flatten())
            fc = nn.Linear(size, fc_dim)
            self.add_module(f"fc{i}", fc)
            self.add_module(f"fc_relu{i}", nn.ReLU())
            fcs.append(fc)
            size = fc_dim
            self._output_shape = ShapeSpec(channels=fc_dim)
        for conv in convs:
            c2_msra_fill(conv)
        for fc in fcs:
            c2_xavier_fill(fc)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Constructor arguments from `MODEL.ROI_BOX_HEAD`."""
        node = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "conv_dims": [node.CONV_DIM] * node.NUM_CONV,
            "fc_dims": [node.FC_DIM] * node.NUM_FC,
            "conv_norm": node.NORM,
        }

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, H, W) -> (R, fc), or (R, conv, H, W) without fully connected layers."""
        return super().forward(x)

    @property
    def output_shape(self) -> ShapeSpec:
        """Shape of the output; after fully connected layers, only channels."""
        return self._output_shape


def build_box_head(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """Box head `cfg.MODEL.ROI_BOX_HEAD.NAME` for pooled features of this shape."""
    return ROI_BOX_HEAD_REGISTRY.get(cfg.MODEL.ROI_BOX_HEAD.NAME)(cfg, input_shape)
