"""VGG-16 against torchvision's, and loading of its weights."""

import pytest
import torch
from torchvision.models import vgg16

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.backbone import VGG


def vgg_config():
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_vgg_backbone"
    cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = ["conv5"]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 2
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 4096
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    return cfg


def test_features_equal_torchvisions_up_to_the_last_pooling():
    torch.manual_seed(0)
    ours, theirs = VGG(out_features=["conv1", "conv3", "conv5"]).eval(), vgg16().features.eval()
    theirs.load_state_dict(ours.features.state_dict())
    x = torch.randn(1, 3, 48, 33)
    got = ours(x)
    torch.testing.assert_close(got["conv5"], theirs[:-1](x))
    torch.testing.assert_close(got["conv1"], theirs[:4](x))
    assert list(got) == ["conv1", "conv3", "conv5"]
    for name, shape in ours.output_shape().items():
        size = (48 // shape.stride, 33 // shape.stride)
        assert got[name].shape == (1, shape.channels, *size)
    assert ours.output_shape()["conv5"].stride == 16


def test_stages_are_frozen_and_left_out_as_asked():
    cfg = vgg_config()
    vgg = build_backbone(cfg)
    frozen = [name for name, p in vgg.named_parameters() if not p.requires_grad]
    # conv1 and conv2, as FREEZE_AT 2 says
    assert frozen == [f"features.{i}.{part}" for i in (0, 2, 5, 7) for part in ("weight", "bias")]
    cfg.MODEL.VGG.OUT_FEATURES = ["conv3"]
    assert "features.14.weight" in build_backbone(cfg).state_dict()
    assert "features.17.weight" not in build_backbone(cfg).state_dict()
    cfg.MODEL.VGG.OUT_FEATURES = ["conv6"]
    with pytest.raises(ValueError, match=r"\['conv6'\]"):
        build_backbone(cfg)


def test_torchvision_weights_fill_backbone_and_box_head(tmp_path):
    with torch.device("meta"):
        names = vgg16().state_dict()
    # one value each keeps the 500 MB out of the test
    torch.save(
        {n: torch.full((1,), float(i)).expand(v.shape) for i, (n, v) in enumerate(names.items())},
        tmp_path / "vgg16.pth",
    )
    with torch.device("meta"):
        model = build_model(vgg_config_on("meta"))
    model.to_empty(device="cpu")
    checkpointer = DetectionCheckpointer(model)
    checkpointer.load(str(tmp_path / "vgg16.pth"))
    value = {name: float(i) for i, name in enumerate(names)}
    got = model.state_dict()
    assert (got["backbone.features.28.weight"] == value["features.28.weight"]).all()
    assert (got["roi_heads.box_head.fc1.weight"] == value["classifier.0.weight"]).all()
    assert (got["roi_heads.box_head.fc2.bias"] == value["classifier.3.bias"]).all()
    missing = {name.split(".")[-2] for name in checkpointer.load_report.missing}
    assert missing == {"conv", "objectness_logits", "anchor_deltas", "cls_score", "bbox_pred"}
    assert not checkpointer.load_report.unexpected


def vgg_config_on(device):
    cfg = vgg_config()
    cfg.MODEL.DEVICE = device
    return cfg


def test_a_dilated_last_stage_keeps_the_numbers_and_the_values_at_even_places():
    torch.manual_seed(0)
    plain, dilated = VGG().eval(), VGG(last_dilation=2).eval()
    dilated.load_state_dict(plain.state_dict())
    assert dilated.output_shape()["conv5"].stride == 8
    # Pooling picks among four; where conv4 is constant over them, both see the same values.
    x = torch.randn(1, 512, 6, 5).relu().repeat_interleave(2, 2).repeat_interleave(2, 3)
    want, got = x, x
    for i in range(23, 30):
        want, got = plain.features[i](want), dilated.features[i](got)
    torch.testing.assert_close(got[:, :, ::2, ::2], want)


def test_width_norm_last_relu_and_ceil_mode():
    vgg = VGG(width=0.125, norm="BN", last_relu=False, ceil_mode=True, freeze_at=1)
    maps = vgg(torch.randn(2, 3, 33, 47))["conv5"]
    assert maps.shape == (2, 64, 3, 3)  # 33 -> 17 -> 9 -> 5 -> 3
    assert (maps < 0).any()
    frozen = [name for name, p in vgg.named_parameters() if not p.requires_grad]
    assert len(frozen) == 2 * 2 * 2  # weight and bias of two convolutions and two norms
    assert isinstance(vgg.features[1], torch.nn.BatchNorm2d)
    with pytest.raises(ValueError, match="last_dilation=3"):
        VGG(last_dilation=3)
