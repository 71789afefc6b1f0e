"""Normalization layers: frozen, synchronized, and chosen by name."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.utils.comm import get_world_size

GROUP_NORM_GROUPS = 32


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine parameters are constants (buffers).

    A new layer is the identity. It maps (N, C, H, W) to the same shape:
    (x - running_mean) / sqrt(running_var + eps) * weight + bias.
    """

    # Version 1: only `weight` and `bias`. Version 2: with the statistics, but eps was not added to
    # `running_var`. Version 3: eps is added, as in torch.nn.BatchNorm2d.
    _version = 3

    def __init__(self, num_features: int, eps: float = 1e-5):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features) - eps)

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            statistics = (self.running_mean, self.running_var)
            return F.batch_norm(x, *statistics, self.weight, self.bias, eps=self.eps)
        # F.batch_norm would compute gradients of all four constants; this form does not.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.to(x.dtype).view(1, -1, 1, 1) + shift.to(x.dtype).view(1, -1, 1, 1)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict, *args: Any
    ) -> None:
        version = local_metadata.get("version")
        mean_key, variance_key = prefix + "running_mean", prefix + "running_var"
        if version is None or version < 2:
            state_dict.setdefault(mean_key, torch.zeros_like(self.running_mean))
            state_dict.setdefault(variance_key, torch.ones_like(self.running_var))
        # torch.nn.BatchNorm2d, whose version is 2, counts batches and always added eps.
        from_batch_norm = prefix + "num_batches_tracked" in state_dict
        upgrade = version is not None and version < 3 and not from_batch_norm
        if upgrade and variance_key in state_dict:
            state_dict[variance_key] = state_dict[variance_key] - self.eps
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def __repr__(self) -> str:
        return f"FrozenBatchNorm2d(num_features={self.num_features}, eps={self.eps})"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Replace every BatchNorm2d and SyncBatchNorm in `module`, in place, by a frozen copy.

        Returns `module`, or its replacement if it is such a layer itself.
        """
        if not isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
            for name, child in module.named_children():
                frozen_child = cls.convert_frozen_batchnorm(child)
                if frozen_child is not child:
                    setattr(module, name, frozen_child)
            return module
        frozen = cls(module.num_features, module.eps)
        if module.affine:
            frozen.weight = module.weight.detach().clone()
            frozen.bias = module.bias.detach().clone()
        if module.track_running_stats:
            frozen.running_mean = module.running_mean.detach().clone()
            frozen.running_var = module.running_var.detach().clone()
        return frozen.train(module.training)


class NaiveSyncBatchNorm(nn.BatchNorm2d):
    """Batch norm with statistics over all processes, for any backend and any batch size.

    `torch.nn.SyncBatchNorm` is faster but runs on GPUs only. Outside of distributed training this
    is `torch.nn.BatchNorm2d`.
    """

    def __init__(self, *args: Any, stats_mode: str = "", **kwargs: Any):
        """
        Args:
            stats_mode: "" weights all processes equally; "N" weights each by its batch size, which
                may then be 0 in some of them.
        """
        super().__init__(*args, **kwargs)
        if stats_mode not in ("", "N"):
            raise ValueError(f"stats_mode={stats_mode!r}; expected '' or 'N'")
        self._stats_mode = stats_mode

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or get_world_size() == 1:
            return super().forward(input)
        x = input.float() if input.dtype == torch.float16 else input
        if len(x) == 0 and self._stats_mode == "":
            raise ValueError(
                "NaiveSyncBatchNorm got an empty batch; use stats_mode='N' (the norm "
                "'naiveSyncBN_N' in a config)"
            )
        mean, mean_of_square, momentum = self._statistics(x)
        variance = mean_of_square - mean * mean
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        with torch.no_grad():
            self.running_mean += momentum * (mean - self.running_mean)
            self.running_var += momentum * (variance - self.running_var)
        output = x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
        return output.to(input.dtype)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(C,) mean and mean square over all processes, and this step's momentum, a scalar."""
        batch_size, channels = x.shape[:2]
        if batch_size == 0:
            # The sum makes backward take part in this process's all-reduce.
            moments = x.new_zeros(2 * channels) + x.sum()
        else:
            moments = torch.cat([x.mean(dim=(0, 2, 3)), (x * x).mean(dim=(0, 2, 3))])
        weight = x.new_full((1,), batch_size if self._stats_mode == "N" else 1)
        sums = differentiable_all_reduce(torch.cat([moments * weight, weight]))
        total = sums[-1].detach()
        moments = sums[:-1] / total.clamp(min=1)
        # Without a sample in any process, the running statistics stay as they are.
        return *moments.split(channels), total.clamp(max=1) * self.momentum


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": partial(nn.GroupNorm, GROUP_NORM_GROUPS),
    "nnSyncBN": nn.SyncBatchNorm,
    "naiveSyncBN": NaiveSyncBatchNorm,
    "naiveSyncBN_N": partial(NaiveSyncBatchNorm, stats_mode="N"),
}


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """A new norm layer for `out_channels` channels.

    Args:
        norm: a name, a callable that takes the channel count, or None or "" for no norm.
    """
    if norm is None or norm == "":
        return None
    if isinstance(norm, str):
        if norm not in _NORMS:
            raise KeyError(f"unknown norm {norm!r}; expected '' or one of {sorted(_NORMS)}")
        norm = _NORMS[norm]
    return norm(out_channels)
