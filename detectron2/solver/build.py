"""Optimizer and learning-rate schedule of a configuration."""

import logging
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from detectron2.config import CfgNode
from detectron2.solver.gradient_clipping import (
    GradientClipType,
    create_gradient_clipper,
    maybe_add_gradient_clipping,
)
from detectron2.solver.lr_scheduler import LRMultiplier, WarmupParamScheduler

__all__ = [
    "GradientClipType",
    "build_lr_scheduler",
    "build_optimizer",
    "create_gradient_clipper",
    "get_default_optimizer_params",
    "maybe_add_gradient_clipping",
    "reduce_param_groups",
]

OPTIMIZERS = {"SGD": torch.optim.SGD, "ADAMW": torch.optim.AdamW}
ParamGroup = dict[str, Any]  # "params": list of parameters, and options of the optimizer

NORM_MODULES = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """`cfg.SOLVER.OPTIMIZER` over the trainable parameters of `model`."""
    solver = cfg.SOLVER
    if solver.OPTIMIZER not in OPTIMIZERS:
        raise ValueError(
            f"SOLVER.OPTIMIZER={solver.OPTIMIZER!r}: expected one of {sorted(OPTIMIZERS)}"
        )
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    options = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    if solver.OPTIMIZER == "SGD":
        options |= {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}
    else:
        # One pass over all parameters; but it would take scaled gradients unclipped.
        options["fused"] = not solver.AMP.ENABLED
    optimizer = maybe_add_gradient_clipping(cfg, OPTIMIZERS[solver.OPTIMIZER])
    return optimizer(params, **options)


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
) -> list[ParamGroup]:
    """Parameter groups of an optimizer: trainable parameters, each once, by their options.

    What is None is left to the optimizer's own default.

    Args:
        base_lr, weight_decay: of every parameter.
        weight_decay_norm: of the parameters of normalisations.
        bias_lr_factor: multiplies the learning rate of parameters called `bias`; needs `base_lr`.
        weight_decay_bias: of parameters called `bias`, also those of normalisations.
        lr_factor_func: from a parameter's full name to a factor on its rate; needs `base_lr`.
        overrides: options by a parameter's own name, e.g. `{"embedding": {"lr": 0.01}}`.
    """
    overrides = dict(overrides or {})
    bias_options = {}
    if bias_lr_factor is not None and bias_lr_factor != 1.0:
        if base_lr is None:
            raise ValueError(f"bias_lr_factor={bias_lr_factor} needs base_lr")
        bias_options["lr"] = base_lr * bias_lr_factor
    if weight_decay_bias is not None:
        bias_options["weight_decay"] = weight_decay_bias
    if bias_options:
        if "bias" in overrides:
            raise ValueError(
                "overrides has options for 'bias', and so has bias_lr_factor or weight_decay_bias; "
                "give one of the two"
            )
        overrides["bias"] = bias_options
    if lr_factor_func is not None and base_lr is None:
        raise ValueError("lr_factor_func needs base_lr")

    defaults = {"lr": base_lr, "weight_decay": weight_decay}
    defaults = {name: value for name, value in defaults.items() if value is not None}
    groups = []
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            options = dict(defaults)
            if isinstance(module, NORM_MODULES) and weight_decay_norm is not None:
                options["weight_decay"] = weight_decay_norm
            if lr_factor_func is not None:
                options["lr"] *= lr_factor_func(f"{module_name}.{name}")
            options.update(overrides.get(name, {}))
            groups.append({"params": [parameter], **options})
    return reduce_param_groups(groups)


def _expand_param_groups(params: list[ParamGroup]) -> list[ParamGroup]:
    """One group for each parameter; where several groups name it, later options win."""
    groups: dict[Any, ParamGroup] = {}
    for group in params:
        if "params" not in group:
            raise ValueError(f"a parameter group needs 'params'; got keys {sorted(group)}")
        for parameter in group["params"]:
            groups.setdefault(parameter, {}).update({**group, "params": [parameter]})
    return list(groups.values())


def reduce_param_groups(params: list[ParamGroup]) -> list[ParamGroup]:
    """As few groups as the options allow: an optimizer is faster on few large groups.

    Parameters keep their order within a group, groups that of their first parameter.
    """
    groups: dict[tuple, ParamGroup] = {}
    for group in _expand_param_groups(params):
        options = {name: value for name, value in group.items() if name != "params"}
        key = tuple(sorted(options.items()))
        groups.setdefault(key, {"params": [], **options})["params"] += group["params"]
    return list(groups.values())


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
    """Schedule `cfg.SOLVER.LR_SCHEDULER_NAME` with its warm-up; step it after every iteration."""
    solver = cfg.SOLVER
    name = solver.LR_SCHEDULER_NAME
    if name not in SCHEDULES:
        raise ValueError(f"SOLVER.LR_SCHEDULER_NAME={name!r}: expected one of {sorted(SCHEDULES)}")
    schedule = WarmupParamScheduler(
        SCHEDULES[name](solver),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)


def _multi_step(solver: CfgNode) -> ParamScheduler:
    """Times `GAMMA` at each of `STEPS`."""
    steps = [step for step in solver.STEPS if step < solver.MAX_ITER]
    if len(steps) != len(solver.STEPS):
        logging.getLogger(__name__).warning(
            "SOLVER.STEPS=%s: those from SOLVER.MAX_ITER=%d on have no effect",
            tuple(solver.STEPS),
            solver.MAX_ITER,
        )
    if any(step <= previous for previous, step in pairwise([0, *steps])):
        raise ValueError(f"SOLVER.STEPS={tuple(solver.STEPS)}: must be positive and increase")
    return _decay_at(steps, solver)


def _step_with_fixed_gamma(solver: CfgNode) -> ParamScheduler:
    """Times `GAMMA` at `NUM_DECAYS` equal distances."""
    parts = solver.NUM_DECAYS + 1
    if not 1 < parts <= solver.MAX_ITER:
        raise ValueError(
            f"SOLVER.NUM_DECAYS={solver.NUM_DECAYS}: expected 1 to SOLVER.MAX_ITER - 1 = "
            f"{solver.MAX_ITER - 1}"
        )
    # fvcore's StepWithFixedGammaParamScheduler has no value at the very end of the training, which
    # a trainer's last step asks for; steps at the same places do.
    return _decay_at([math.ceil(i * solver.MAX_ITER / parts) for i in range(1, parts)], solver)


def _decay_at(steps: list[int], solver: CfgNode) -> ParamScheduler:
    return MultiStepParamScheduler(
        values=[solver.GAMMA**i for i in range(len(steps) + 1)],
        milestones=steps,
        num_updates=solver.MAX_ITER,
    )


def _cosine(solver: CfgNode) -> ParamScheduler:
    """Half a cosine from `BASE_LR` to `BASE_LR_END`."""
    if not 0.0 <= solver.BASE_LR_END <= solver.BASE_LR:
        raise ValueError(
            f"SOLVER.BASE_LR_END={solver.BASE_LR_END}: expected 0 to BASE_LR={solver.BASE_LR}"
        )
    return CosineParamScheduler(1, solver.BASE_LR_END / solver.BASE_LR)


SCHEDULES: dict[str, Callable[[CfgNode], ParamScheduler]] = {
    "WarmupMultiStepLR": _multi_step,
    "WarmupCosineLR": _cosine,
    "WarmupStepWithFixedGammaLR": _step_with_fixed_gamma,
}
