import copy

import numpy as np
import pytest
import torch

from maskrefinenet import FastMaskRefineNet, MaskRefineNet
from maskrefinenet.losses import dice_loss
from maskrefinenet.model import ENCODERS

STRIDE = 13  # of the recorded outputs


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def test_keys_and_shapes_are_the_reference_s(reference_network, golden_folder):
    rows = (golden_folder / "keys_maskrefinenet.tsv").read_text().splitlines()
    want = [tuple(row.split("\t")[:2]) for row in rows]
    state = reference_network.state_dict()
    got = [(key, ",".join(map(str, value.shape))) for key, value in state.items()]
    assert got == want


@pytest.mark.slow
def test_outputs_match_the_reference(reference_network, golden):
    with torch.no_grad():
        small = reference_network(noise(11, 2, 85, 128, 128))
        large = reference_network(noise(12, 1, 85, 256, 256))
    np.testing.assert_allclose(small.flatten()[::STRIDE], golden["eval_y1"], atol=1e-4)
    np.testing.assert_allclose(large.flatten()[::STRIDE], golden["eval_y2"], atol=1e-4)


@pytest.mark.slow
def test_a_training_step_matches_the_reference(reference_network, golden):
    """The recorded loss sums over batch and rows only ("columns"), not over all pixels."""
    network = copy.deepcopy(reference_network).train()
    logits = network(noise(11, 2, 85, 128, 128))
    np.testing.assert_allclose(logits.detach().flatten()[::STRIDE], golden["train_y1"], atol=5e-4)
    target = torch.from_numpy(np.random.RandomState(13).rand(2, 128, 128) > 0.6)
    loss = dice_loss(logits, target, "columns")
    assert loss.item() == pytest.approx(golden["train_dice1"].item(), rel=1e-5)
    loss.backward()
    norms = {name: value.grad.norm().item() for name, value in network.named_parameters()}
    names = [name.decode() for name in golden["train_grad_names"]]
    got, want = np.array([norms[name] for name in names]), golden["train_grad_norm"]
    np.testing.assert_allclose(got, want, rtol=0.02)
    np.testing.assert_allclose(
        network.aspp.convs[1][1].running_mean,
        golden["train_aspp.convs.1.1.running_mean_after"],
        atol=1e-5,
    )


def test_class_k_reads_channel_k_plus_one():
    """The reference trains class k on channel k and refines it on channel k + 1."""
    network = MaskRefineNet(3, encoder="resnet18")
    assert network.point_channel(torch.tensor([0, 1, 2])).tolist() == [1, 2, 3]
    x, points = torch.zeros(1, 4, 64, 64), torch.tensor([[30, 30]])
    dense = network.dense_input(x, points, torch.tensor([1]))
    assert dense.flatten(2).any(dim=2)[0].nonzero().tolist() == [[5]]  # after 3 image channels
    FastMaskRefineNet(network.eval())(x, points, torch.tensor([1])).square().sum().backward()
    touched = network.layer0[0].weight.grad.abs().sum(dim=(0, 2, 3)) > 0
    assert touched.tolist() == [False, False, False, False, False, True, False, False]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_returns_logits_of_the_input_size(encoder):
    network = MaskRefineNet(2, encoder=encoder).eval()
    with torch.no_grad():
        output = network(torch.zeros(1, 7, 33, 40))
    assert output.shape == (1, 2, 33, 40)


def test_unusable_arguments_are_named():
    with pytest.raises(ValueError, match="vgg16.*resnet18"):
        MaskRefineNet(encoder="vgg16")
    with pytest.raises(ValueError, match="num_classes=0"):
        MaskRefineNet(0)


def test_dice_is_the_mean_over_classes_of_the_batch_s_dice(golden):
    logits, target = (torch.from_numpy(golden[f"dice_{name}"]) for name in ("logits", "target"))
    probabilities, losses = logits.softmax(dim=1).numpy(), []
    for index in (0, 1):
        overlap = total = 0.0
        for p, t in zip(probabilities[:, index].ravel(), target.ravel().tolist(), strict=True):
            overlap += p * (t == index)
            total += p + (t == index)
        losses.append(2 * overlap / (total + 1e-7))
    assert dice_loss(logits, target).item() == pytest.approx(1 - np.mean(losses), abs=1e-6)


def test_dice_per_column_is_the_reference_s(golden):
    """Its sums leave the columns apart, which its description ("batch and pixels") does not say."""
    logits, target = (torch.from_numpy(golden[f"dice_{name}"]) for name in ("logits", "target"))
    loss = dice_loss(logits, target, "columns").item()
    assert loss == pytest.approx(golden["dice_value"].item(), abs=1e-6)
    nothing = dice_loss(logits, torch.zeros_like(target), "columns").item()
    assert nothing == pytest.approx(golden["dice_value_allzero"].item(), abs=1e-6)
