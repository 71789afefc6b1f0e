"""Parameter groups, their reduction and gradient clipping."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from detectron2.solver import (
    GradientClipType,
    build_optimizer,
    get_default_optimizer_params,
    maybe_add_gradient_clipping,
    reduce_param_groups,
)

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.GroupNorm(2, 4)
        self.frozen = nn.Linear(2, 2)
        self.frozen.requires_grad_(False)
        self.tied = nn.Linear(4, 4)
        self.tied_again = self.tied
        self.scale = nn.Parameter(torch.ones(1))


def options_by_name(model: nn.Module, groups: list[dict]) -> dict[str, dict]:
    names = {id(p): name for name, p in model.named_parameters()}
    result = {}
    for group in groups:
        options = {k: v for k, v in group.items() if k != "params"}
        for parameter in group["params"]:
            assert names[id(parameter)] not in result, "each parameter once"
            result[names[id(parameter)]] = options
    return result


def test_default_groups():
    model = Net()
    got = options_by_name(
        model,
        get_default_optimizer_params(
            model,
            base_lr=0.1,
            weight_decay=1e-4,
            weight_decay_norm=0.0,
            bias_lr_factor=2.0,
            weight_decay_bias=1e-5,
        ),
    )
    plain, bias = {"lr": 0.1, "weight_decay": 1e-4}, {"lr": 0.2, "weight_decay": 1e-5}
    assert got == {
        "scale": plain,
        "conv.weight": plain,
        "conv.bias": bias,
        "norm.weight": {"lr": 0.1, "weight_decay": 0.0},
        "norm.bias": bias,
        "tied.weight": plain,
        "tied.bias": bias,
    }


def test_without_options_there_is_one_group():
    groups = get_default_optimizer_params(Net())
    assert len(groups) == 1 and set(groups[0]) == {"params"} and len(groups[0]["params"]) == 7


def test_overrides_and_factors():
    model = Net()
    overrides = {"scale": {"lr": 3.0, "momentum": 0.0}}
    groups = get_default_optimizer_params(
        model,
        base_lr=1.0,
        lr_factor_func=lambda name: 0.1 if name.startswith("conv.") else 1.0,
        overrides=overrides,
        weight_decay_bias=0.0,
    )
    got = options_by_name(model, groups)
    assert got["scale"] == {"lr": 3.0, "momentum": 0.0}
    assert got["conv.weight"] == {"lr": 0.1}
    assert got["conv.bias"] == {"lr": 0.1, "weight_decay": 0.0}
    assert got["tied.weight"] == {"lr": 1.0}
    assert overrides == {"scale": {"lr": 3.0, "momentum": 0.0}}, "the argument stays as it was"


def test_unclear_options_are_rejected():
    with pytest.raises(ValueError, match="bias_lr_factor=2.0 needs base_lr"):
        get_default_optimizer_params(Net(), bias_lr_factor=2.0)
    with pytest.raises(ValueError, match="lr_factor_func needs base_lr"):
        get_default_optimizer_params(Net(), lr_factor_func=lambda name: 1.0)
    with pytest.raises(ValueError, match="'bias'"):
        get_default_optimizer_params(
            Net(), weight_decay_bias=0.0, overrides={"bias": {"weight_decay": 1.0}}
        )


def test_groups_are_merged_by_parameter_and_joined_by_options():
    rates = {"lr": 0.5, "momentum": 0.9}
    groups = [
        {"params": ["conv", "norm", "bias"], **rates},
        {"params": ["norm"], "weight_decay": 0.0},
        {"params": ["bias", "scale"], "lr": 1.0},
        {"params": ["linear"], "momentum": 0.9, "lr": 0.5},
        {"params": ["head"], "lr": 1.0},
    ]
    assert reduce_param_groups(groups) == [
        {"params": ["conv", "linear"], **rates},
        {"params": ["norm"], **rates, "weight_decay": 0.0},
        {"params": ["bias"], "lr": 1.0, "momentum": 0.9},
        {"params": ["scale", "head"], "lr": 1.0},
    ]
    with pytest.raises(ValueError, match="needs 'params'"):
        reduce_param_groups([{"lr": 1.0}])


def test_backbone_options_equal_the_reference():
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.SOLVER.BASE_LR = 0.05
    model = nn.ModuleDict({"backbone": build_backbone(cfg)})
    optimizer = build_optimizer(cfg, model)
    got = options_by_name(model, optimizer.param_groups)
    rows = [
        row.decode().split("\t") for row in np.load(GOLDEN / "solov2_r50_fpn.npz")["train/optim"]
    ]
    assert set(got) == {name for name, *_ in rows}
    for name, *values in rows:
        options = [got[name][key] for key in ("lr", "weight_decay", "momentum")]
        assert options == [float(value) for value in values], name
    assert len(optimizer.param_groups) == 1


def test_adamw_takes_the_same_options():
    cfg = clipping_config("value")
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY = "ADAMW", 0.1, 0.01
    model = Net()
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    options = options_by_name(model, optimizer.param_groups)
    assert {(o["lr"], o["weight_decay"]) for n, o in options.items() if "norm" not in n} == {
        (0.1, 0.01)
    }
    assert options["norm.weight"]["weight_decay"] == cfg.SOLVER.WEIGHT_DECAY_NORM
    cfg.SOLVER.OPTIMIZER = "LAMB"
    with pytest.raises(ValueError, match=r"SOLVER.OPTIMIZER='LAMB'.*\['ADAM', 'ADAMW', 'SGD'\]"):
        build_optimizer(cfg, model)


def test_adam_adds_the_decay_to_the_gradient():
    cfg = get_cfg()
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY = "ADAM", 0.1, 0.5
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 2.0)
    optimizer = build_optimizer(cfg, model)
    model.weight.grad = torch.tensor([[-1.0]])  # with the decay, 0.5 * 2 - 1, no gradient is left
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[2.0]]))


def test_rates_are_multiplied_by_the_factors_of_a_name():
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR, cfg.SOLVER.BIAS_LR_FACTOR = 0.1, 2.0
    cfg.SOLVER.LR_FACTORS = [["conv", 10.0], ["weight", 0.5]]
    model = Net()
    options = options_by_name(model, build_optimizer(cfg, model).param_groups)
    for name, own in options.items():
        factor = {"bias": 2.0, "weight": 0.5}.get(name.rpartition(".")[2], 1.0)
        factor *= 10.0 if "conv" in name else 1.0
        assert own["lr"] == pytest.approx(0.1 * factor), name
    cfg.SOLVER.LR_FACTORS = [["refine", 10.0]]
    with pytest.raises(ValueError, match="'refine'"):
        build_optimizer(cfg, model)


def test_a_backbone_learns_slower_and_embeddings_do_not_decay():
    cfg = get_cfg()
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY = "ADAMW", 1e-4, 0.05
    cfg.SOLVER.BACKBONE_MULTIPLIER, cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.1, 0.0
    model = nn.ModuleDict({"backbone": Net(), "head": nn.Linear(2, 2), "query": nn.Embedding(3, 2)})
    options = options_by_name(model, build_optimizer(cfg, model).param_groups)
    for name, own in options.items():
        assert own["lr"] == pytest.approx(1e-5 if name.startswith("backbone") else 1e-4), name
        free = name == "query.weight" or "norm" in name
        assert own["weight_decay"] == (0.0 if free else 0.05), name
    cfg.SOLVER.WEIGHT_DECAY_EMBED = None
    options = options_by_name(model, build_optimizer(cfg, model).param_groups)
    assert options["query.weight"]["weight_decay"] == 0.05


def clipping_config(kind: str, value: float = 1.0, norm_type: float = 2.0):
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR = 1.0
    cfg.SOLVER.MOMENTUM = 0.0
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    clip = cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE, clip.NORM_TYPE = True, kind, value, norm_type
    return cfg


GRADIENTS = ([3.0, -4.0], [0.3, -0.4])
CLIPPED = {
    ("value", 2.0): ([1.0, -1.0], [0.3, -0.4]),
    ("norm", 2.0): ([0.6, -0.8], [0.3, -0.4]),
    ("norm", float("inf")): ([0.75, -1.0], [0.3, -0.4]),
    ("full_model", float("inf")): ([0.75, -1.0], [0.075, -0.1]),
}


def model_with_gradients() -> nn.ParameterList:
    model = nn.ParameterList([nn.Parameter(torch.zeros(2)) for _ in GRADIENTS])
    for parameter, gradient in zip(model, GRADIENTS, strict=True):
        parameter.grad = torch.tensor(gradient)
    return model


@pytest.mark.parametrize("kind, norm_type", CLIPPED)
def test_gradients_are_clipped_by_parameter_or_together(kind, norm_type):
    model = model_with_gradients()
    build_optimizer(clipping_config(kind, norm_type=norm_type), model).step()
    for parameter, want in zip(model, CLIPPED[kind, norm_type], strict=True):
        torch.testing.assert_close(-parameter.data, torch.tensor(want))


@pytest.mark.parametrize("optimizer", ["SGD", "ADAMW"])
def test_the_norm_of_the_whole_model_is_clipped(optimizer):
    cfg = clipping_config("full_model", value=0.5)
    cfg.SOLVER.OPTIMIZER = optimizer
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    for p in model.parameters():
        p.grad = torch.randn(p.shape)
    whole = torch.cat([p.grad.flatten() for p in model.parameters()])
    build_optimizer(cfg, model).step()
    got = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(got, whole * 0.5 / whole.norm())


def test_mixed_precision_clips_gradients_without_their_scale():
    cfg = clipping_config("full_model", value=0.5)
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.AMP.ENABLED = "ADAMW", True
    model = nn.Linear(3, 4)
    optimizer = build_optimizer(cfg, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loss = model(torch.ones(1, 3)).square().sum()
    want = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
    norm = torch.cat([w.flatten() for w in want]).norm()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    for parameter, own in zip(model.parameters(), want, strict=True):
        torch.testing.assert_close(parameter.grad, own * (0.5 / norm).clamp(max=1))
    assert norm > 0.5


@pytest.mark.parametrize("kind", ["value", "norm", "full_model"])
def test_parameters_without_a_gradient_are_left_alone(kind):
    model = model_with_gradients()
    model[0].grad = None
    before = model[0].detach().clone()
    build_optimizer(clipping_config(kind), model).step()
    assert torch.equal(model[0], before)


def test_an_optimizer_instance_clips_too():
    model = model_with_gradients()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    assert maybe_add_gradient_clipping(clipping_config("value"), optimizer) is optimizer
    assert isinstance(optimizer, torch.optim.SGD)
    optimizer.step()
    torch.testing.assert_close(-model[0].data, torch.tensor([1.0, -1.0]))


def test_gradients_of_a_closure_are_clipped():
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = maybe_add_gradient_clipping(clipping_config("value"), torch.optim.SGD)(
        [parameter], lr=1.0
    )

    def closure():
        optimizer.zero_grad()
        loss = (parameter * torch.tensor([3.0, -0.5])).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 0.0
    torch.testing.assert_close(-parameter.data, torch.tensor([1.0, -0.5]))


def test_no_clipping_leaves_the_class_alone():
    assert maybe_add_gradient_clipping(get_cfg(), torch.optim.SGD) is torch.optim.SGD


def test_clip_types():
    assert {kind.value for kind in GradientClipType} == {"value", "norm", "full_model"}
    with pytest.raises(ValueError, match=r"CLIP_TYPE='both'.*\['value', 'norm', 'full_model'\]"):
        build_optimizer(clipping_config("both"), Net())
