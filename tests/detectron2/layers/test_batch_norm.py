"""Norms: equal to torch's where they must be, constant where frozen, synchronous where asked."""

import socket

import pytest
import torch
from torch import distributed, multiprocessing, nn

from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm, get_norm

CHANNELS = 6


def random_batch_norm() -> nn.BatchNorm2d:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(CHANNELS, eps=1e-3).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.data.uniform_(0.5, 2)
    return norm


def test_a_new_frozen_norm_is_the_identity():
    x = torch.randn(2, CHANNELS, 3, 4)
    torch.testing.assert_close(FrozenBatchNorm2d(CHANNELS)(x), x)
    assert repr(FrozenBatchNorm2d(4)) == "FrozenBatchNorm2d(num_features=4, eps=1e-05)"


@pytest.mark.parametrize("requires_grad", [False, True])
def test_frozen_copy_computes_what_the_norm_computes(requires_grad):
    norm = random_batch_norm()
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(norm)
    x = torch.randn(2, CHANNELS, 3, 4, requires_grad=requires_grad)
    torch.testing.assert_close(frozen(x), norm(x))
    assert list(frozen.parameters()) == []
    norm.weight.data.zero_()
    assert frozen.weight.min() > 0  # a copy
    if requires_grad:
        frozen(x).sum().backward()
        scale = frozen.weight / (frozen.running_var + frozen.eps).sqrt()
        torch.testing.assert_close(x.grad, scale.view(1, -1, 1, 1).expand_as(x))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_frozen_norm_keeps_bfloat16(requires_grad):
    x = torch.randn(1, CHANNELS, 3, 3, dtype=torch.bfloat16, requires_grad=requires_grad)
    assert FrozenBatchNorm2d(CHANNELS)(x).dtype == torch.bfloat16


def test_conversion_reaches_nested_norms_and_leaves_the_rest():
    module = nn.Sequential(nn.Conv2d(3, CHANNELS, 1), nn.Sequential(random_batch_norm()))
    module.append(nn.BatchNorm2d(CHANNELS, affine=False))
    module.append(nn.GroupNorm(2, CHANNELS))
    assert FrozenBatchNorm2d.convert_frozen_batchnorm(module) is module
    assert isinstance(module[1][0], FrozenBatchNorm2d) and module[1][0].eps == 1e-3
    assert isinstance(module[2], FrozenBatchNorm2d)
    assert isinstance(module[3], nn.GroupNorm)
    assert isinstance(FrozenBatchNorm2d.convert_frozen_batchnorm(nn.SyncBatchNorm(2)), nn.Module)


def test_loading_by_version():
    state = {"weight": torch.full((2,), 3.0), "bias": torch.ones(2)}
    norm = FrozenBatchNorm2d(2)
    norm.running_mean += 5
    norm.load_state_dict(dict(state))  # Caffe2's models: scale and shift alone
    assert norm.running_mean.tolist() == [0, 0] and norm.running_var.tolist() == [1, 1]

    def load(version: int, extra: dict[str, torch.Tensor]) -> torch.Tensor:
        statistics = {"running_mean": torch.zeros(2), "running_var": torch.full((2,), 4.0)}
        full = nn.Module().state_dict()
        full.update({**state, **statistics, **extra})
        full._metadata = {"": {"version": version}}
        fresh = FrozenBatchNorm2d(2, eps=0.5)
        fresh.load_state_dict(full, strict=False)
        assert full["running_var"].tolist() == [4, 4]  # the caller's tensors stay
        return fresh.running_var

    assert load(3, {}).tolist() == [4, 4]
    assert load(2, {}).tolist() == [3.5, 3.5]
    counter = {"num_batches_tracked": torch.tensor(7)}
    assert load(2, counter).tolist() == [4, 4]  # torch.nn.BatchNorm2d, also version 2

    saved = FrozenBatchNorm2d.convert_frozen_batchnorm(random_batch_norm())
    loaded = FrozenBatchNorm2d(CHANNELS)
    loaded.load_state_dict(saved.state_dict())
    assert torch.equal(loaded.running_var, saved.running_var)


@pytest.mark.parametrize(
    "name,kind",
    [
        ("BN", nn.BatchNorm2d),
        ("SyncBN", nn.SyncBatchNorm),
        ("nnSyncBN", nn.SyncBatchNorm),
        ("FrozenBN", FrozenBatchNorm2d),
        ("GN", nn.GroupNorm),
        ("naiveSyncBN", NaiveSyncBatchNorm),
        ("naiveSyncBN_N", NaiveSyncBatchNorm),
        (nn.InstanceNorm2d, nn.InstanceNorm2d),
    ],
)
def test_norms_by_name(name, kind):
    assert type(get_norm(name, 64)) is kind


def test_no_norm_and_unknown_norm():
    assert get_norm("", 3) is None and get_norm(None, 3) is None
    assert get_norm("GN", 64).num_groups == 32
    with pytest.raises(KeyError, match="'batch'.*FrozenBN"):
        get_norm("batch", 3)
    with pytest.raises(ValueError, match="stats_mode='X'"):
        NaiveSyncBatchNorm(3, stats_mode="X")


def test_naive_sync_norm_of_one_process_is_batch_norm():
    torch.manual_seed(0)
    x = torch.randn(4, CHANNELS, 3, 3)
    naive, reference = NaiveSyncBatchNorm(CHANNELS), nn.BatchNorm2d(CHANNELS)
    torch.testing.assert_close(naive(x), reference(x))
    torch.testing.assert_close(naive.running_var, reference.running_var)


SYNC_CASES = [("", (2, 2)), ("N", (3, 1)), ("N", (4, 0))]  # mode, images in each process


def sync_norm_worker(rank: int, port: int, results) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    for case, (stats_mode, sizes) in enumerate(SYNC_CASES):
        x = whole_batch(sum(sizes)).split(sizes)[rank].clone().requires_grad_()
        norm = NaiveSyncBatchNorm(CHANNELS, stats_mode=stats_mode)
        output = norm(x)
        (output**2 * weights_like(sum(sizes)).split(sizes)[rank]).sum().backward()
        results[rank, case] = [t.detach().numpy() for t in (output, x.grad, norm.running_mean)]
    distributed.destroy_process_group()


def whole_batch(size: int) -> torch.Tensor:
    return torch.randn(size, CHANNELS, 3, 2, generator=torch.Generator().manual_seed(1))


def weights_like(size: int) -> torch.Tensor:
    return torch.rand(size, CHANNELS, 3, 2, generator=torch.Generator().manual_seed(2))


@pytest.mark.slow  # starts two processes
def test_two_processes_normalise_as_one_does():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with multiprocessing.Manager() as manager:
        shared = manager.dict()
        multiprocessing.spawn(sync_norm_worker, (port, shared), nprocs=2)
        results = dict(shared)

    close = {"atol": 1e-5, "rtol": 1e-4}
    for case, (_, sizes) in enumerate(SYNC_CASES):
        x = whole_batch(sum(sizes)).requires_grad_()
        norm = nn.BatchNorm2d(CHANNELS)
        expected = norm(x)
        (expected**2 * weights_like(sum(sizes))).sum().backward()
        parts = [[torch.from_numpy(a) for a in results[rank, case]] for rank in range(2)]
        outputs, gradients, means = zip(*parts, strict=True)
        torch.testing.assert_close(torch.cat(outputs), expected.detach(), **close)
        torch.testing.assert_close(torch.cat(gradients), x.grad, **close)
        for mean in means:
            torch.testing.assert_close(mean, norm.running_mean, **close)
