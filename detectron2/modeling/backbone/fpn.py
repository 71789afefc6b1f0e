"""Feature pyramid network: each output joins a fine map with the coarser ones."""

import math
from collections.abc import Sequence
from itertools import pairwise

from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.modeling.backbone.build import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from detectron2.modeling.backbone.resnet_blocks import Norm

FUSE_TYPES = ("sum", "avg")


class FPN(Backbone):
    """Pyramid over the maps of another backbone; level `p{n}` has stride 2 ** n."""

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        norm: Norm = "",
        top_block: nn.Module | None = None,
        fuse_type: str = "sum",
    ) -> None:
        """
        Args:
            bottom_up: backbone with the maps `in_features`, each half as large as the one before.
            out_channels: of every output.
            norm: of every convolution; "" for none (then they have a bias).
            top_block: returns a list of `num_levels` coarser maps. Its `in_feature` names its
                input: a map of `bottom_up` or an output.
            fuse_type: join levels by "sum" or "avg".
        """
        super().__init__()
        if fuse_type not in FUSE_TYPES:
            raise ValueError(f"fuse_type={fuse_type!r}: expected one of {FUSE_TYPES}")
        shapes = bottom_up.output_shape()
        unknown = [name for name in in_features if name not in shapes]
        if unknown or not in_features:
            raise ValueError(
                f"in_features={list(in_features)}: the backbone offers {list(shapes)}, ask for at "
                "least one of them"
            )
        strides = [shapes[name].stride for name in in_features]
        _check_strides(in_features, strides)

        lateral_convs, output_convs = [], []
        for name, stride in zip(in_features, strides, strict=True):
            lateral = Conv2d(
                shapes[name].channels,
                out_channels,
                kernel_size=1,
                bias=norm == "",
                norm=get_norm(norm, out_channels),
            )
            output = Conv2d(
                out_channels,
                out_channels,
                kernel_size=3,
                padding=1,
                bias=norm == "",
                norm=get_norm(norm, out_channels),
            )
            c2_xavier_fill(lateral)
            c2_xavier_fill(output)
            level = int(math.log2(stride))
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)
            lateral_convs.append(lateral)
            output_convs.append(output)
        self.lateral_convs = lateral_convs[::-1]  # coarse to fine, as forward goes
        self.output_convs = output_convs[::-1]
        self.top_block = top_block
        self.in_features = tuple(in_features)
        self.bottom_up = bottom_up

        levels = [int(math.log2(stride)) for stride in strides]
        if top_block is not None:
            levels += range(levels[-1] + 1, levels[-1] + 1 + top_block.num_levels)
        self._out_features = [f"p{level}" for level in levels]
        self._out_feature_strides = {f"p{level}": 2**level for level in levels}
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._size_divisibility = strides[-1]
        self._fuse_type = fuse_type

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> {"p2": (B, out, H / 4, W / 4), ...}.

        H and W must be multiples of `size_divisibility`.
        """
        features = self.bottom_up(x)
        merged: Tensor | None = None
        results: list[Tensor] = []  # coarse to fine
        for name, lateral, output in zip(
            reversed(self.in_features), self.lateral_convs, self.output_convs, strict=True
        ):
            own = lateral(features[name])
            if merged is None:
                merged = own
            else:
                merged = own + F.interpolate(merged, scale_factor=2.0, mode="nearest")
                if self._fuse_type == "avg":
                    merged = merged / 2
            results.append(output(merged))
        results.reverse()
        if self.top_block is not None:
            name = self.top_block.in_feature
            top = features[name] if name in features else results[self._out_features.index(name)]
            results.extend(self.top_block(top))
        return dict(zip(self._out_features, results, strict=True))


def _check_strides(names: Sequence[str], strides: Sequence[int]) -> None:
    if any(fine * 2 != coarse for fine, coarse in pairwise(strides)):
        raise ValueError(
            f"strides {list(strides)} of {list(names)}: each must be twice the one before"
        )


class LastLevelMaxPool(nn.Module):
    """One more level: every second value of the coarsest one, by default p6 of p5."""

    def __init__(self, in_feature: str = "p5") -> None:
        super().__init__()
        self.num_levels = 1
        self.in_feature = in_feature

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> [(B, C, ceil(H / 2), ceil(W / 2))]."""
        return [F.max_pool2d(x, kernel_size=1, stride=2)]


class LastLevelP6P7(nn.Module):
    """p6 and p7: 3x3 convolutions of stride 2, as in RetinaNet."""

    def __init__(self, in_channels: int, out_channels: int, in_feature: str = "res5") -> None:
        super().__init__()
        self.num_levels = 2
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, 2, 1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, 2, 1)
        for conv in (self.p6, self.p7):
            c2_xavier_fill(conv)

    def forward(self, c5: Tensor) -> list[Tensor]:
        """(B, in, H, W) -> [(B, out, H / 2, W / 2), (B, out, H / 4, W / 4)]."""
        p6 = self.p6(c5)
        return [p6, self.p7(F.relu(p6))]


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet with a pyramid; its last level, usually p6, is pooled."""
    bottom_up, in_features = build_resnet_backbone(cfg, input_shape), cfg.MODEL.FPN.IN_FEATURES
    coarsest = bottom_up.output_shape().get(in_features[-1]) if len(in_features) else None
    level = "p5" if coarsest is None else f"p{int(math.log2(coarsest.stride))}"
    return FPN(
        bottom_up=bottom_up,
        in_features=in_features,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(level),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
