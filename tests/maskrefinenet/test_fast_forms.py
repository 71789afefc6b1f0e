"""The fast forms of MaskRefineNet against the plain network: values and gradients, in float64."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from maskrefinenet import FastMaskRefineNet, MaskRefineNet
from maskrefinenet.fast_forms import (
    aspp_without_idle_taps,
    convolve_then_enlarge,
    fold_batch_norms,
    sparse_stem,
)
from maskrefinenet.model import ASPP, Decoder

SMALL = {"encoder": "resnet18"}


def double_network(num_classes: int, **options) -> MaskRefineNet:
    """A seeded network whose logits are not near zero."""
    torch.manual_seed(0)
    network = MaskRefineNet(num_classes, **{**SMALL, **options}).double()
    nn.init.normal_(network.head.weight)
    return network


def random_inputs(seed: int, count: int, size_hw: tuple[int, int], num_classes: int) -> tuple:
    """Crops (N, 4, H, W), points that may lie a little outside them, class ids."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, *size_hw, dtype=torch.double, generator=generator)
    points = torch.stack(
        [torch.randint(-2, n + 2, (count,), generator=generator) for n in reversed(size_hw)], dim=1
    )
    return x, points, torch.randint(0, num_classes, (count,), generator=generator)


def with_gradients(output: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """The output, and the gradients of a fixed weighted sum of it."""
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), inputs)]


sizes = st.tuples(st.integers(1, 90), st.integers(1, 90))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), sizes)
def test_the_sparse_stem_is_the_stem_of_the_dense_input(seed, count, size_hw):
    x, points, channels = random_inputs(seed, count, size_hw, num_classes=6)
    x.requires_grad_()
    stem = nn.Conv2d(3 + 6 + 1, 8, 7, stride=2, padding=3, bias=seed % 2 == 0).double()
    dense = torch.zeros(count, 10, *size_hw, dtype=torch.double)
    ys, xs = torch.arange(size_hw[0])[:, None], torch.arange(size_hw[1])
    for i, ((px, py), channel) in enumerate(zip(points.tolist(), channels.tolist(), strict=True)):
        if 0 <= px < size_hw[1] and 0 <= py < size_hw[0]:
            plane = torch.exp(-(((xs - px) ** 2 + (ys - py) ** 2).float()) / 72)
            plane[((xs - px).abs() > 19) | ((ys - py).abs() > 19)] = 0
            dense[i, 3 + channel] = plane
    dense[:, :3], dense[:, 9] = x[:, :3], x[:, 3]
    leaves = (x, *stem.parameters())
    want = with_gradients(stem(dense), *leaves)
    got = with_gradients(sparse_stem(stem, x, points, channels), *leaves)
    # The Gaussians themselves are float32: exp(a) exp(b) and exp(a + b) differ by its rounding.
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.tuples(st.integers(1, 9), st.integers(1, 9)), sizes)
def test_a_decoder_may_convolve_before_it_enlarges(seed, deep_hw, skip_hw):
    torch.manual_seed(seed)
    decoder = Decoder(5 + 3, 4, 6).double()
    deep = torch.randn(2, 5, *deep_hw, dtype=torch.double, requires_grad=True)
    skip = torch.randn(2, 3, *skip_hw, dtype=torch.double, requires_grad=True)
    leaves = (deep, skip, *decoder.parameters())
    want = with_gradients(decoder(deep, skip), *leaves)
    torch.testing.assert_close(
        with_gradients(convolve_then_enlarge(decoder, deep, skip), *leaves), want
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.tuples(st.integers(1, 11), st.integers(1, 11)))
def test_taps_that_read_padding_alone_may_be_dropped(seed, size_hw):
    torch.manual_seed(seed)
    aspp = ASPP(3, 4).double()
    x = torch.randn(2, 3, *size_hw, dtype=torch.double, requires_grad=True)
    leaves = (x, *aspp.parameters())
    want = with_gradients(aspp(x), *leaves)
    torch.testing.assert_close(with_gradients(aspp_without_idle_taps(aspp, x), *leaves), want)


@pytest.mark.parametrize(
    ("size_hw", "training", "class_agnostic"), [((64, 64), False, True), ((37, 70), True, False)]
)
def test_the_whole_network_is_the_same_in_both_forms(size_hw, training, class_agnostic):
    network = double_network(5, class_agnostic=class_agnostic).train(training)
    twin = copy.deepcopy(network)
    x, points, class_ids = random_inputs(1, 2, size_hw, num_classes=5)
    points[0] = torch.tensor([-1, 5])
    want = twin(twin.dense_input(x, points, class_ids))
    got = FastMaskRefineNet(network)(x, points, class_ids)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    for output in (got, want):
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    for (name, p), q in zip(network.named_parameters(), twin.parameters(), strict=True):
        scale = q.grad.abs().max().item()
        torch.testing.assert_close(p.grad, q.grad, atol=1e-5 * scale, rtol=1e-4, msg=name)
    torch.testing.assert_close(dict(network.named_buffers()), dict(twin.named_buffers()))


@pytest.mark.parametrize("encoder", ["resnet18", "resnet50"])
def test_folded_batch_norms_change_no_value(encoder):
    network = double_network(3, encoder=encoder)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics and scales that do something
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    network.eval()
    folded = fold_batch_norms(copy.deepcopy(network))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    x, points, class_ids = random_inputs(2, 1, (33, 40), num_classes=3)
    with torch.no_grad():
        want = network(network.dense_input(x, points, class_ids))
        got = FastMaskRefineNet(folded)(x, points, class_ids)
    torch.testing.assert_close(got, want, atol=1e-4 * want.abs().max().item(), rtol=1e-5)


def test_instances_of_a_batch_do_not_meet():
    network = double_network(4).eval()
    x, points, class_ids = random_inputs(3, 3, (40, 50), num_classes=4)
    fast = FastMaskRefineNet(network)
    with torch.no_grad():
        together = fast(x, points, class_ids)
        alone = [fast(x[i : i + 1], points[i : i + 1], class_ids[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_the_fast_form_is_a_view_of_the_network():
    """Same parameters and buffers, same mode and device; a step through it trains the network."""
    network = double_network(2)
    fast = FastMaskRefineNet(network)
    assert [id(p) for p in fast.parameters()] == [id(p) for p in network.parameters()]
    assert not fast.eval().network.training and fast.train().network.training
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    fast(*random_inputs(0, 2, (32, 32), num_classes=2)).square().sum().backward()
    optimizer.step()
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert not torch.equal(after["layer0.0.weight"], before["layer0.0.weight"])
    assert after["layer0.1.num_batches_tracked"] == 1
