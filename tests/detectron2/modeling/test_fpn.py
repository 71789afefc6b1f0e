"""Feature pyramids against their definition, written out."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, Backbone, build_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7


class Pools(Backbone):
    """Average pooling at strides 4, 8, 16, 32, with as many channels as the stride."""

    def __init__(self, strides=(4, 8, 16, 32)):
        super().__init__()
        self._out_features = [f"res{i}" for i in range(2, 2 + len(strides))]
        self._out_feature_strides = dict(zip(self._out_features, strides, strict=True))
        self._out_feature_channels = self._out_feature_strides

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {
            name: F.avg_pool2d(x, s).repeat(1, s, 1, 1)
            for name, s in self._out_feature_strides.items()
        }


@pytest.mark.parametrize("fuse_type", ["sum", "avg"])
@pytest.mark.parametrize("norm", ["", "GN"])
def test_pyramid_follows_its_definition(fuse_type, norm):
    torch.manual_seed(0)
    bottom_up = Pools()
    fpn = FPN(bottom_up, ["res3", "res4", "res5"], 32, norm=norm, fuse_type=fuse_type)
    x = torch.randn(2, 1, 64, 96)
    maps = bottom_up(x)
    want = {}
    coarser = None
    for level in (5, 4, 3):
        own = getattr(fpn, f"fpn_lateral{level}")(maps[f"res{level}"])
        if coarser is not None:
            repeated = coarser.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            own = (own + repeated) * (0.5 if fuse_type == "avg" else 1.0)
        coarser = own
        want[f"p{level}"] = getattr(fpn, f"fpn_output{level}")(own)
    got = fpn(x)
    assert list(got) == ["p3", "p4", "p5"]
    for name in got:
        torch.testing.assert_close(got[name], want[name])
    assert (fpn.fpn_lateral3.bias is None) == (norm == "GN")
    assert fpn.size_divisibility == 32


def test_max_pool_takes_every_second_value():
    fpn = FPN(Pools(), ["res4", "res5"], 8, top_block=LastLevelMaxPool())
    outputs = fpn(torch.randn(1, 1, 96, 64))
    assert torch.equal(outputs["p6"], outputs["p5"][:, :, ::2, ::2])
    assert fpn.output_shape()["p6"] == ShapeSpec(channels=8, stride=64)


def test_a_pyramid_without_res5_pools_its_own_coarsest_level():
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4"]
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    outputs = build_backbone(cfg)(torch.randn(1, 3, 64, 32))
    assert list(outputs) == ["p3", "p4", "p5"]
    assert torch.equal(outputs["p5"], outputs["p4"][:, :, ::2, ::2])


@pytest.mark.parametrize("in_feature", ["res5", "p5"])
def test_p6_and_p7_are_convolved(in_feature):
    channels = 32 if in_feature == "res5" else 8
    top = LastLevelP6P7(channels, 8, in_feature)
    fpn = FPN(Pools(), ["res4", "res5"], 8, top_block=top)
    x = torch.randn(1, 1, 128, 128)
    outputs = fpn(x)
    source = outputs["p5"] if in_feature == "p5" else Pools()(x)["res5"]
    torch.testing.assert_close(outputs["p6"], top.p6(source))
    torch.testing.assert_close(outputs["p7"], top.p7(top.p6(source).clamp(min=0)))
    assert list(fpn.output_shape()) == ["p4", "p5", "p6", "p7"]
    assert fpn.output_shape()["p7"].stride == 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fuse_type": "max"}, "fuse_type='max'.*'sum', 'avg'"),
        ({"in_features": ["res2", "res4"]}, r"strides \[4, 16\]"),
        ({"in_features": ["res9"]}, r"\['res9'\]: the backbone offers"),
        ({"in_features": []}, "at least one"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        FPN(**({"bottom_up": Pools(), "in_features": ["res5"], "out_channels": 8} | options))
