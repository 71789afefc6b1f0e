"""Convolutions, blocks and small functions."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detectron2.layers import (
    CNNBlockBase,
    Conv2d,
    FrozenBatchNorm2d,
    Linear,
    ShapeSpec,
    cat,
    cross_entropy,
    get_norm,
    nonzero_tuple,
)


def test_conv_applies_norm_then_activation():
    torch.manual_seed(0)
    norm = get_norm("BN", 4)
    conv = Conv2d(3, 4, kernel_size=3, stride=2, bias=False, norm=norm, activation=F.relu)
    conv.eval()
    norm.bias.data.uniform_(-1, 1)
    x = torch.rand(2, 3, 9, 9)
    torch.testing.assert_close(conv(x), F.relu(norm(F.conv2d(x, conv.weight, stride=2))))
    assert {name for name, _ in conv.named_parameters()} == {"weight", "norm.weight", "norm.bias"}
    plain = Conv2d(3, 4, 1)
    torch.testing.assert_close(plain(x), F.conv2d(x, plain.weight, plain.bias))


def test_empty_batches_pass_with_gradients():
    layer = nn.Sequential(Conv2d(3, 4, 3, norm=nn.BatchNorm2d(4).eval()), nn.Flatten())
    layer.append(Linear(4, 5))
    output = layer(torch.zeros(0, 3, 3, 3))
    assert output.shape == (0, 5)
    output.sum().backward()
    assert all((p.grad == 0).all() for p in layer.parameters())


def test_cat_does_not_copy_one_tensor():
    x = torch.ones(2, 3)
    assert cat([x]) is x
    assert cat((x, x), dim=1).shape == (2, 6)
    with pytest.raises(ValueError, match="list or tuple"):
        cat(x)


def test_nonzero_tuple_indexes():
    x = torch.tensor([[0, 3], [4, 0]])
    assert [index.tolist() for index in nonzero_tuple(x)] == [[0, 1], [1, 0]]
    assert [index.tolist() for index in nonzero_tuple(torch.tensor(5))] == [[0]]


def test_losses_of_empty_targets_are_zero_and_differentiable():
    logits = torch.zeros(0, 3, requires_grad=True)
    loss = cross_entropy(logits, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and logits.grad.shape == (0, 3)
    logits, target = torch.rand(4, 3), torch.tensor([0, 2, 1, 0])
    assert torch.equal(cross_entropy(logits, target), F.cross_entropy(logits, target))
    total = cross_entropy(logits, target, reduction="sum", label_smoothing=0.1)
    assert torch.equal(total, F.cross_entropy(logits, target, reduction="sum", label_smoothing=0.1))


def test_shape_spec_is_a_tuple_of_what_is_known():
    spec = ShapeSpec(channels=8, stride=4)
    assert spec == (8, None, None, 4) and spec.stride == 4
    assert ShapeSpec() == (None,) * 4


def test_freezing_a_block():
    class Block(CNNBlockBase):
        def __init__(self):
            super().__init__(3, 4, stride=2)
            self.conv = Conv2d(3, 4, 1, norm=nn.BatchNorm2d(4))

    block = Block()
    assert block.freeze() is block
    assert (block.in_channels, block.out_channels, block.stride) == (3, 4, 2)
    assert isinstance(block.conv.norm, FrozenBatchNorm2d)
    assert not any(p.requires_grad for p in block.parameters())
