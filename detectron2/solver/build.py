"""Optimizer and learning-rate schedule of a config."""

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
from detectron2.solver.gradient_clipping import (  # noqa: F401 (imported from here by users)
    GradientClipType,
    create_gradient_clipper,
    maybe_add_gradient_clipping,
)
from detectron2.solver.lr_scheduler import LRMultiplier, WarmupParamScheduler

# ADAM adds the weight decay to the gradient, ADAMW takes it from the weights.
OPTIMIZERS = {"SGD": torch.optim.SGD, "ADAM": torch.optim.Adam, "ADAMW": torch.optim.AdamW}
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
        weight_decay_embed=solver.WEIGHT_DECAY_EMBED,
    )
    factors = [*solver.LR_FACTORS]
    if solver.BACKBONE_MULTIPLIER != 1.0:
        factors.append(["backbone", solver.BACKBONE_MULTIPLIER])
    params = _with_lr_factors(model, params, factors)
    options = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    if solver.OPTIMIZER == "SGD":
        options |= {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}
    else:
        # One pass over all parameters. With AMP it would see scaled gradients, which clip wrongly.
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
    weight_decay_embed: float | None = None,
) -> list[ParamGroup]:
    """Parameter groups for an optimizer: each trainable parameter once, grouped by its options.

    An option that is None is left to the optimizer's default.

    Args:
        base_lr, weight_decay: for every parameter.
        weight_decay_norm: for the parameters of normalization layers.
        bias_lr_factor: factor on the learning rate of parameters named `bias`; needs `base_lr`.
        weight_decay_bias: for parameters named `bias`, those of normalization layers included.
        lr_factor_func: full name of a parameter -> factor on its rate; needs `base_lr`.
        overrides: options by the last part of a name, e.g. `{"embedding": {"lr": 0.01}}`.
        weight_decay_embed: for the parameters of `nn.Embedding`.
    """
    by_name = dict(overrides or {})
    bias_options = {"weight_decay": weight_decay_bias}
    if bias_lr_factor not in (None, 1.0):
        if base_lr is None:
            raise ValueError(f"bias_lr_factor={bias_lr_factor} needs base_lr")
        bias_options["lr"] = base_lr * bias_lr_factor
    if bias_options := _given(bias_options):
        if "bias" in by_name:
            raise ValueError(
                "options for 'bias' are in overrides and in bias_lr_factor or weight_decay_bias; "
                "give them in one place"
            )
        by_name["bias"] = bias_options
    if lr_factor_func is not None and base_lr is None:
        raise ValueError("lr_factor_func needs base_lr")

    in_norms = _parameters_of(model, NORM_MODULES)
    in_embeddings = _parameters_of(model, nn.Embedding)
    groups = []
    for full_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        options = {"lr": base_lr, "weight_decay": weight_decay}
        if parameter in in_norms and weight_decay_norm is not None:
            options["weight_decay"] = weight_decay_norm
        if parameter in in_embeddings and weight_decay_embed is not None:
            options["weight_decay"] = weight_decay_embed
        if lr_factor_func is not None:
            options["lr"] = base_lr * lr_factor_func(full_name)
        options |= by_name.get(full_name.rpartition(".")[2], {})
        groups.append({"params": [parameter], **_given(options)})
    return reduce_param_groups(groups)


def _parameters_of(model: nn.Module, kinds: type | tuple[type, ...]) -> set[nn.Parameter]:
    modules = [module for module in model.modules() if isinstance(module, kinds)]
    return {parameter for module in modules for parameter in module.parameters(recurse=False)}


def _with_lr_factors(
    model: nn.Module, groups: list[ParamGroup], factors: list[list[Any]]
) -> list[ParamGroup]:
    """Multiply the rates of parameters whose names contain a text; each text must occur."""
    if not factors:
        return groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    for text, _ in factors:
        if not any(text in name for name in names.values()):
            raise ValueError(f"SOLVER.LR_FACTORS: no parameter's name contains {text!r}")
    single = []
    for group in groups:
        for parameter in group["params"]:
            own = [factor for text, factor in factors if text in names[parameter]]
            single.append(group | {"params": [parameter], "lr": group["lr"] * math.prod(own)})
    return reduce_param_groups(single)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def reduce_param_groups(params: list[ParamGroup]) -> list[ParamGroup]:
    """As few groups as the options allow: an optimizer is faster on few large groups.

    If several groups name a parameter, their options are merged and the last value wins.
    Parameters keep their order, and groups the order of their first parameters.
    """
    options: dict[Any, dict[str, Any]] = {}
    for group in params:
        if "params" not in group:
            raise ValueError(f"a parameter group needs 'params'; got keys {sorted(group)}")
        own = {name: value for name, value in group.items() if name != "params"}
        for parameter in group["params"]:
            options.setdefault(parameter, {}).update(own)
    groups: dict[tuple, ParamGroup] = {}
    for parameter, own in options.items():
        key = tuple(sorted(own.items()))
        groups.setdefault(key, {"params": [], **own})["params"].append(parameter)
    return list(groups.values())


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
    """Schedule `cfg.SOLVER.LR_SCHEDULER_NAME` with warm-up; step it after every iteration."""
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
    """Multiply by `GAMMA` at each of `STEPS`."""
    steps = [step for step in solver.STEPS if step < solver.MAX_ITER]
    if len(steps) != len(solver.STEPS):
        logging.getLogger(__name__).warning(
            "SOLVER.STEPS=%s: steps at or after SOLVER.MAX_ITER=%d have no effect",
            tuple(solver.STEPS),
            solver.MAX_ITER,
        )
    if any(step <= previous for previous, step in pairwise([0, *steps])):
        raise ValueError(f"SOLVER.STEPS={tuple(solver.STEPS)}: must be positive and increase")
    return _decay_at(steps, solver)


def _step_with_fixed_gamma(solver: CfgNode) -> ParamScheduler:
    """Multiply by `GAMMA` at `NUM_DECAYS` equally spaced points."""
    parts = solver.NUM_DECAYS + 1
    if not 1 < parts <= solver.MAX_ITER:
        raise ValueError(
            f"SOLVER.NUM_DECAYS={solver.NUM_DECAYS}: expected 1 to SOLVER.MAX_ITER - 1 = "
            f"{solver.MAX_ITER - 1}"
        )
    # Not fvcore's StepWithFixedGammaParamScheduler: the last scheduler step of a training asks for
    # the value at 1.0, where that schedule has none.
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
