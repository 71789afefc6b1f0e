"""CAM classifiers: logits are means of maps, losses, and backbones of the registry."""

import numpy as np
import pytest
import torch

from weaksam.clues.cam import CAMConfig, lite0_config, normalized_softmax_loss, small_resnet_config
from weaksam.clues.checkpoint import load_classifier, save_classifier

RESNET = small_resnet_config(3)


def images(height=70, width=90, seed=0):
    return torch.rand(2, 3, height, width, generator=torch.manual_seed(seed)) * 255


def test_logits_are_means_of_the_maps_before_their_negative_part_is_cut():
    torch.manual_seed(0)
    model = RESNET.build().eval()
    torch.nn.init.normal_(model.classifier.weight)
    pictures = images()
    maps = model.class_maps(pictures)
    assert maps.shape == (2, 3, 5, 6)  # stride 16
    found = model.maps(pictures, classes=[2, 0])
    torch.testing.assert_close(found.logits, maps.mean(dim=(2, 3)))
    torch.testing.assert_close(model.scores(pictures), found.logits)
    torch.testing.assert_close(found.coarse, maps[:, [2, 0]].clamp(min=0))
    assert (maps < 0).any() and found.fine is None and found.cross is None
    with pytest.raises(ValueError, match="a CAM classifier has none"):
        model.maps(pictures, layers=(1,))


def test_softmax_loss_by_hand():
    logits = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0], [5.0, 1.0, 1.0]])
    targets = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    log = np.log(np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(axis=1, keepdims=True))
    want = -((log[0, 0] + log[0, 1]) / 2 + log[1, 2]) / 2  # the image without a tag is left out
    assert float(normalized_softmax_loss(logits, targets)) == pytest.approx(want, rel=1e-5)
    nothing = normalized_softmax_loss(logits.requires_grad_(), torch.zeros(3, 3))
    nothing.backward()
    assert nothing.item() == 0 and not logits.grad.any()


@pytest.mark.parametrize(
    "loss,classes", [("softmax", [[True, True, False]]), ("soft_margin", None)]
)
def test_classes_are_predicted_by_probability_or_logit(loss, classes):
    model = small_resnet_config(3, loss).build()
    logits = torch.tensor([[2.0, 2.0, -0.4]])
    assert model.predicted(logits).tolist() == (classes or [[True, True, True]])
    probabilities = model.probabilities(logits)
    assert (float(probabilities.sum()) == pytest.approx(1)) == (loss == "softmax")


def test_backbones_take_their_own_channel_order_and_padding():
    torch.manual_seed(0)
    fpn = CAMConfig(
        3,
        (
            *RESNET.overrides,
            *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
            *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
            *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
            *("MODEL.FPN.OUT_CHANNELS", 8),
        ),
        feature="p4",
    ).build()
    assert fpn.class_maps(images(70, 90)).shape == (2, 3, 5, 6)  # without the padding to 96 x 96
    assert fpn.bgr
    model = RESNET.build().eval()
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model.class_maps(torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1).expand(1, 3, 64, 64))
    torch.testing.assert_close(seen[0], torch.zeros(1, 3, 64, 64), atol=1e-5, rtol=0)


def test_unknown_features_losses_and_kinds_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"feature 'res9': the backbone gives \['res4'\]"):
        CAMConfig(3, RESNET.overrides, "res9").build()
    with pytest.raises(ValueError, match="loss='hinge'"):
        CAMConfig(3, loss="hinge")
    torch.save({"model": {}}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match="c.pth: no classifier of this package"):
        load_classifier(tmp_path / "c.pth")
    with pytest.raises(FileNotFoundError, match="absent.pth: no such classifier"):
        load_classifier(tmp_path / "absent.pth")


def test_a_saved_classifier_comes_back(tmp_path):
    torch.manual_seed(0)
    model = RESNET.build().eval()
    save_classifier(tmp_path / "c.pth", model, ["a", "b", "c"])
    loaded = load_classifier(tmp_path / "c.pth")
    assert loaded.classes == ("a", "b", "c")
    torch.testing.assert_close(loaded.model.eval().scores(images()), model.scores(images()))
    content = torch.load(tmp_path / "c.pth", weights_only=True)
    del content["model"]["classifier.bias"]
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(ValueError, match=r"c.pth: lacks \['classifier.bias'\]"):
        load_classifier(tmp_path / "c.pth")


def test_detectors_can_start_from_a_classifier(tmp_path):
    from detectron2.checkpoint import DetectionCheckpointer

    torch.manual_seed(0)
    model, other = RESNET.build(), RESNET.build()
    save_classifier(tmp_path / "c.pth", model, ["a", "b", "c"])
    detector = torch.nn.ModuleDict({"backbone": other.backbone})
    DetectionCheckpointer(detector).load(str(tmp_path / "c.pth"))
    for a, b in zip(model.backbone.parameters(), other.backbone.parameters(), strict=True):
        assert torch.equal(a, b)


def test_lite0_needs_its_own_kind_of_backbone():
    from weaksam.clues.lite0 import initialize_lite0

    with pytest.raises(ValueError, match="this backbone is a ResNet"):
        initialize_lite0(RESNET.build().backbone)
    assert lite0_config(20).feature == "block6"
