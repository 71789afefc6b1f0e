"""ResNets: against torchvision's, and what their arguments promise."""

import pytest
import torch
import torchvision
from torch import nn

from detectron2.config import CfgNode, get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import Backbone, ResNet, build_backbone, build_resnet_backbone, make_stage
from detectron2.modeling.backbone import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import (
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    DeformBottleneckBlock,
)
from tests.detectron2.modeling.resnets import default_stages


def small_config(**resnets) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    node = {"STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 4, "NORM": "BN"}
    node["OUT_FEATURES"] = ["res2", "res3", "res4", "res5"]
    for key, value in (node | resnets).items():
        cfg.MODEL.RESNETS[key] = value
    return cfg


def randomize_norms(module: nn.Module) -> None:
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
            nn.init.uniform_(norm.running_mean, -0.5, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)


@pytest.mark.parametrize("depth", [18, 50])
def test_classifier_equals_torchvision(depth):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=7).eval()
    randomize_norms(theirs)
    ours = ResNet(BasicStem(), default_stages(depth), num_classes=7).eval()
    # Both build their shortcut first or last in a block: pair the modules by name instead.
    renamed = {}
    for name, value in theirs.state_dict().items():
        parts = name.split(".")
        if parts[0].startswith("layer"):
            parts[0] = f"res{int(parts[0][-1]) + 1}"
            if parts[2] == "downsample":
                parts[2:4] = ["shortcut"] if parts[3] == "0" else ["shortcut", "norm"]
            elif parts[2].startswith("bn"):
                parts[2:3] = [f"conv{parts[2][-1]}", "norm"]
        elif parts[0] == "conv1":
            parts[0] = "stem.conv1"
        elif parts[0] == "bn1":
            parts[0] = "stem.conv1.norm"
        else:
            parts[0] = "linear"
        renamed[".".join(parts)] = value
    ours.load_state_dict(renamed)
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(x)["linear"], theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_output_shapes_are_as_declared(depth):
    backbone = build_resnet_backbone(small_config(DEPTH=depth), ShapeSpec(channels=3)).eval()
    assert isinstance(backbone, Backbone)
    with torch.no_grad():
        outputs = backbone(torch.randn(1, 3, 64, 96))
    assert list(outputs) == ["res2", "res3", "res4", "res5"]
    for i, (name, shape) in enumerate(backbone.output_shape().items()):
        assert (shape.channels, shape.stride) == (16 * 2**i, 4 * 2**i)
        assert outputs[name].shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)
    assert backbone.size_divisibility == 0


def test_basic_blocks_may_start_from_any_width():
    cfg = small_config(DEPTH=18, STEM_OUT_CHANNELS=6, RES2_OUT_CHANNELS=10)
    stages = build_resnet_backbone(cfg, ShapeSpec(channels=1)).output_shape()
    assert [shape.channels for shape in stages.values()] == [10, 20, 40, 80]


@pytest.mark.parametrize("in_1x1", [True, False])
def test_stride_is_where_the_config_says(in_1x1):
    cfg = small_config(STRIDE_IN_1X1=in_1x1)
    block = build_resnet_backbone(cfg, ShapeSpec(channels=3)).res3[0]
    assert block.conv1.stride == ((2, 2) if in_1x1 else (1, 1))
    assert block.conv2.stride == ((1, 1) if in_1x1 else (2, 2))
    assert block.shortcut.stride == (2, 2)


def test_dilated_res5_keeps_the_size_of_res4():
    backbone = build_resnet_backbone(small_config(RES5_DILATION=2), ShapeSpec(channels=3)).eval()
    shapes = backbone.output_shape()
    assert shapes["res4"].stride == shapes["res5"].stride == 16
    outputs = backbone(torch.randn(1, 3, 64, 64))
    assert outputs["res5"].shape[-2:] == outputs["res4"].shape[-2:]


@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "GN", "SyncBN"])
def test_norms(norm):
    cfg = small_config(
        DEPTH=18, STEM_OUT_CHANNELS=32, RES2_OUT_CHANNELS=32, OUT_FEATURES=["res2"], NORM=norm
    )
    backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    assert backbone(torch.randn(1, 3, 32, 32))["res2"].shape == (1, 32, 8, 8)


def test_stages_that_nothing_needs_are_left_out():
    cfg = small_config(DEPTH=18, OUT_FEATURES=["stem", "res3"])
    backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    assert backbone.stage_names == ("res2", "res3")
    assert not hasattr(backbone, "res4")
    assert list(backbone(torch.randn(1, 3, 32, 32))) == ["stem", "res3"]


@pytest.mark.parametrize("freeze_at", [0, 1, 2, 3])
def test_frozen_stages_do_not_train(freeze_at):
    cfg = small_config(DEPTH=18)
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    parts = [backbone.stem, backbone.res2, backbone.res3, backbone.res4]
    for i, part in enumerate(parts):
        frozen = i < freeze_at
        assert all(p.requires_grad != frozen for p in part.parameters())
        kinds = {type(m) for m in part.modules()} & {nn.BatchNorm2d, FrozenBatchNorm2d}
        assert kinds == {FrozenBatchNorm2d if frozen else nn.BatchNorm2d}


def test_deformable_blocks_start_as_plain_ones():
    torch.manual_seed(0)
    options = {"bottleneck_channels": 4, "stride": 2, "norm": "BN"}
    plain = BottleneckBlock(6, 16, **options).eval()
    deformable = DeformBottleneckBlock(6, 16, **options).eval()
    weights = plain.state_dict()
    result = deformable.load_state_dict(weights, strict=False)
    assert sorted(result.missing_keys) == ["conv2_offset.bias", "conv2_offset.weight"]
    x = torch.randn(2, 6, 12, 12)
    torch.testing.assert_close(deformable(x), plain(x), rtol=1e-4, atol=1e-5)


def test_modulated_deformable_stages_run():
    cfg = small_config(DEFORM_ON_PER_STAGE=[False, True, True, True], DEFORM_MODULATED=True)
    cfg.MODEL.RESNETS.DEFORM_NUM_GROUPS = 2
    backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    assert isinstance(backbone.res2[0], BottleneckBlock)
    assert isinstance(backbone.res3[0], DeformBottleneckBlock)
    assert backbone.res3[0].conv2_offset.out_channels == 27 * 2
    assert backbone(torch.randn(1, 3, 32, 32))["res5"].shape == (1, 128, 1, 1)


def test_make_stage_gives_values_per_block():
    blocks = make_stage(
        BottleneckBlock,
        3,
        bottleneck_channels=4,
        in_channels=8,
        out_channels=16,
        stride_per_block=[2, 1, 1],
        dilation_per_block=[1, 1, 2],
    )
    assert [block.stride for block in blocks] == [2, 1, 1]
    assert [block.in_channels for block in blocks] == [8, 16, 16]
    assert [block.conv2.dilation for block in blocks] == [(1, 1), (1, 1), (2, 2)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride_per_block": [2]}, "1 values for 2 blocks"),
        ({"stride_per_block": [2, 1], "stride": 2}, "not both"),
    ],
)
def test_make_stage_rejects_unclear_values(options, message):
    with pytest.raises(ValueError, match=message):
        make_stage(BasicBlock, 2, in_channels=4, out_channels=4, **options)


@pytest.mark.parametrize(
    ("resnets", "message"),
    [
        ({"DEPTH": 20}, "depth 20"),
        ({"RES5_DILATION": 3}, "RES5_DILATION=3"),
        ({"DEPTH": 18, "RES5_DILATION": 2}, "RES5_DILATION=2 needs bottleneck"),
        ({"DEPTH": 34, "NUM_GROUPS": 4}, "NUM_GROUPS=4 needs bottleneck"),
        ({"OUT_FEATURES": ["res6"]}, r"\['res6'\].*offers \['stem', 'res2'"),
        ({"OUT_FEATURES": []}, "at least one"),
    ],
)
def test_impossible_configs_are_rejected(resnets, message):
    with pytest.raises(ValueError, match=message):
        build_resnet_backbone(small_config(**resnets), ShapeSpec(channels=3))


def test_registered_function_must_build_a_backbone():
    @BACKBONE_REGISTRY.register()
    def build_no_backbone_for_this_test(cfg, input_shape):
        return nn.Conv2d(input_shape.channels, 1, 1)

    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_no_backbone_for_this_test"
    with pytest.raises(ValueError, match="built a Conv2d"):
        build_backbone(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_vgg"
    with pytest.raises(KeyError, match="'build_vgg' is not registered.*build_resnet_backbone"):
        build_backbone(cfg)
