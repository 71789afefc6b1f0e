"""VGG's fully connected layers on pooled proposals, with dropout."""

from typing import Any

from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY

__all__ = ["DropoutFCHead"]


@ROI_BOX_HEAD_REGISTRY.register()
class DropoutFCHead(nn.Module):
    """fc1, fc2, ... of equal width, each with ReLU and dropout: (R, C, S, S) -> (R, width)."""

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, width: int, num_layers: int, dropout: float):
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"MODEL.ROI_BOX_HEAD.NUM_FC={num_layers}: DropoutFCHead needs a layer")
        inputs = input_shape.channels * input_shape.height * input_shape.width
        self.num_layers = num_layers
        for i in range(1, num_layers + 1):
            layer = nn.Linear(inputs, width)
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
            self.add_module(f"fc{i}", layer)
            inputs = width
        self.activation = nn.Sequential(nn.ReLU(), nn.Dropout(dropout))
        self.output_shape = ShapeSpec(channels=width)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Constructor arguments from `MODEL.ROI_BOX_HEAD` and `MODEL.WSOD.DROPOUT`."""
        node = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "width": node.FC_DIM,
            "num_layers": node.NUM_FC,
            "dropout": cfg.MODEL.WSOD.DROPOUT,
        }

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(start_dim=1)
        for i in range(1, self.num_layers + 1):
            x = self.activation(getattr(self, f"fc{i}")(x))
        return x
