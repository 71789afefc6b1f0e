"""Names of other projects and matching by endings."""

import pytest
import torch
import torchvision
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import (
    convert_c2_detectron_names,
    convert_torchvision_names,
    is_torchvision_resnet,
    rename_by_ending,
)
from detectron2.modeling import ResNet
from detectron2.modeling.backbone import BasicStem
from tests.detectron2.modeling.resnets import default_stages


@pytest.mark.parametrize("parallel", [False, True])
def test_weights_go_to_the_names_that_end_like_theirs(tmp_path, parallel):
    """A file without the outermost names, and a name in it that is the ending of another one."""
    net = nn.ModuleDict(
        {
            "backbone": nn.ModuleDict({"stem": nn.Conv2d(1, 2, 3)}),
            "head": nn.Linear(2, 4),
            "aux": nn.ModuleDict({"head": nn.Linear(2, 4)}),
        }
    )
    own = net.state_dict()
    sources = {"stem": "backbone.stem", "head": "head", "aux.head": "aux.head"}
    weights = {
        f"{source}.{kind}": torch.rand_like(own[f"{target}.{kind}"])
        for source, target in sources.items()
        for kind in ("weight", "bias")
    }
    path = str(tmp_path / "weights.pth")
    torch.save({"model": weights, "matching_heuristics": True}, path)
    checkpointer = DetectionCheckpointer(nn.DataParallel(net) if parallel else net)
    checkpointer.load(path)
    assert checkpointer.load_report.is_complete
    for source, target in sources.items():
        for kind in ("weight", "bias"):
            assert torch.equal(own[f"{target}.{kind}"], weights[f"{source}.{kind}"])


def test_endings_are_whole_parts():
    assert rename_by_ending(["layer.weight"], ["mylayer.weight"]) == {}
    assert rename_by_ending(["b.w", "a.b.w"], ["x.a.b.w", "x.c.b.w"]) == {
        "a.b.w": "x.a.b.w",
        "b.w": "x.c.b.w",
    }


def test_unclear_endings_are_an_error():
    with pytest.raises(ValueError, match="layer.weight in the checkpoint fits both a.layer.weight"):
        rename_by_ending(["layer.weight"], ["a.layer.weight", "b.layer.weight"])


C2_NAMES = {
    "conv1_w": "stem.conv1.weight",
    "conv1_b": "stem.conv1.bias",
    "conv1_bn_s": "stem.conv1.norm.weight",
    "res_conv1_bn_s": "stem.conv1.norm.weight",
    "res_conv1_bn_b": "stem.conv1.norm.bias",
    "res2_0_branch1_w": "res2.0.shortcut.weight",
    "res2_0_branch1_bn_s": "res2.0.shortcut.norm.weight",
    "res2_0_branch2a_w": "res2.0.conv1.weight",
    "res3_12_branch2b_bn_b": "res3.12.conv2.norm.bias",
    "res5_2_branch2c_bn_rm": "res5.2.conv3.norm.running_mean",
    "res5_2_branch2c_bn_riv": "res5.2.conv3.norm.running_var",
    "res5_2_branch2c_bn_running_mean": "res5.2.conv3.norm.running_mean",
    "res5_2_branch2c_bn_running_var": "res5.2.conv3.norm.running_var",
    "res5_2_branch2c_bn_gamma": "res5.2.conv3.norm.weight",
    "res5_2_branch2c_bn_beta": "res5.2.conv3.norm.bias",
    "res4_1_branch2a_gn_s": "res4.1.conv1.norm.weight",
    "res4_1_branch2a_gn_b": "res4.1.conv1.norm.bias",
    "pred_w": "linear.weight",
    "pred_b": "linear.bias",
}
C2_DETECTOR_NAMES = {
    "conv_rpn_w": "proposal_generator.rpn_head.conv.weight",
    "conv_rpn_fpn2_b": "proposal_generator.rpn_head.conv.bias",
    "rpn_bbox_pred_w": "proposal_generator.rpn_head.anchor_deltas.weight",
    "rpn_cls_logits_fpn2_w": "proposal_generator.rpn_head.objectness_logits.weight",
    "fc6_w": "box_head.fc1.weight",
    "fc7_b": "box_head.fc2.bias",
    "head_conv3_gn_s": "box_head.conv3.norm.weight",
    "fpn_inner_res5_2_sum_w": "fpn_lateral5.weight",
    "fpn_inner_res2_2_sum_lateral_b": "fpn_lateral2.bias",
    "fpn_inner_res4_5_sum_lateral_gn_s": "fpn_lateral4.norm.weight",
    "fpn_res3_3_sum_w": "fpn_output3.weight",
    "fpn_res3_3_sum_gn_b": "fpn_output3.norm.bias",
    "_[mask]_fcn1_w": "mask_head.mask_fcn1.weight",
    "conv5_mask_b": "mask_head.deconv.bias",
}


def test_caffe2_names():
    for old, new in C2_NAMES.items():
        assert list(convert_c2_detectron_names({old: torch.zeros(1)})[0]) == [new]
    weights = {name: torch.rand(1) for name in C2_DETECTOR_NAMES}
    converted, original = convert_c2_detectron_names(weights)
    assert original == {new: old for old, new in C2_DETECTOR_NAMES.items()}
    for new, old in original.items():
        assert torch.equal(converted[new], weights[old])


def test_caffe2_background_class_moves():
    weights = {
        "cls_score_w": torch.arange(3.0)[:, None],
        "bbox_pred_b": torch.arange(12.0),
        "mask_fcn_logits_w": torch.arange(3.0),
    }
    converted, _ = convert_c2_detectron_names(weights)
    assert converted["cls_score.weight"].flatten().tolist() == [1, 2, 0]
    assert converted["bbox_pred.bias"].tolist() == list(range(4, 12))
    assert converted["mask_head.predictor.weight"].tolist() == [1, 2]


def test_two_caffe2_names_for_one_tensor_are_an_error():
    with pytest.raises(ValueError, match=r"both mean stem\.conv1\.norm\.weight"):
        convert_c2_detectron_names({"conv1_bn_s": torch.ones(1), "res_conv1_bn_s": torch.ones(1)})


@pytest.mark.parametrize("depth", [18, 50])
def test_torchvision_names_are_ours_after_conversion(depth):
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=3).state_dict()
    assert is_torchvision_resnet(theirs)
    ours = ResNet(BasicStem(), default_stages(depth), num_classes=3).state_dict()
    assert not is_torchvision_resnet(ours)
    shapes = {k: v.shape for k, v in ours.items() if not k.endswith("num_batches_tracked")}
    assert {k: v.shape for k, v in convert_torchvision_names(theirs).items()} == shapes
