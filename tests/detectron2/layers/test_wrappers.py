"""Convolutions, blocks and small functions."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detectron2.layers import (
    ASPP,
    CNNBlockBase,
    Conv2d,
    DepthwiseSeparableConv2d,
    FrozenBatchNorm2d,
    Linear,
    ShapeSpec,
    cat,
    cross_entropy,
    empty_input_loss_func_wrapper,
    get_norm,
    nonzero_tuple,
    shapes_to_tensor,
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
    l1 = empty_input_loss_func_wrapper(F.l1_loss)
    assert l1(torch.zeros(0), torch.zeros(0)).item() == 0


def test_shapes_to_tensor():
    assert shapes_to_tensor([3, 4]).tolist() == [3, 4]
    assert shapes_to_tensor(torch.zeros(2, 5).shape, device=torch.device("cpu")).tolist() == [2, 5]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
def test_shapes_to_tensor_follows_the_input_of_a_trace():
    traced = torch.jit.trace(lambda x: shapes_to_tensor(x.shape), torch.zeros(2, 3))
    assert traced(torch.zeros(5, 7)).tolist() == [5, 7]


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


def test_depthwise_separable_conv_is_two_convolutions():
    layer = DepthwiseSeparableConv2d(3, 10, norm1="BN", activation1=nn.PReLU()).eval()
    x = torch.rand(1, 3, 6, 6)
    middle = F.conv2d(x, layer.depthwise.weight, padding=1, groups=3)
    middle = layer.depthwise.activation(layer.depthwise.norm(middle))
    expected = F.conv2d(middle, layer.pointwise.weight, layer.pointwise.bias)
    torch.testing.assert_close(layer(x), expected)
    assert layer.depthwise.bias is None and layer.pointwise.bias.tolist() == [0] * 10


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("pool,norm", [(None, ""), ((4, 4), "BN")])
def test_aspp_keeps_the_map_size_and_its_activations_apart(separable, pool, norm):
    aspp = ASPP(
        *(3, 8, [2, 3, 4]),
        norm=norm,
        activation=nn.PReLU(),
        pool_kernel_size=pool,
        dropout=0.1,
        use_depthwise_separable_conv=separable,
    )
    output = aspp(torch.rand(2, 3, 8, 12))
    assert output.shape == (2, 8, 8, 12)
    output.sum().backward()
    assert all(p.grad is not None for p in aspp.parameters())
    assert aspp.convs[0].activation.weight is not aspp.project.activation.weight
    if pool:
        with pytest.raises(ValueError, match="multiple"):
            aspp(torch.rand(2, 3, 9, 12))


def test_aspp_takes_three_dilations():
    with pytest.raises(ValueError, match="3 dilations"):
        ASPP(3, 8, [1, 2], norm="", activation=nn.ReLU())
