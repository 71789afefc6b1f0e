"""Learning-rate schedules against their formulas and the reference's figures."""

import math

import numpy as np
import pytest
import torch
from fvcore.common.param_scheduler import (
    ConstantParamScheduler,
    CosineParamScheduler,
    MultiStepParamScheduler,
    StepWithFixedGammaParamScheduler,
)
from torch import nn

from detectron2.config import CfgNode, get_cfg
from detectron2.solver import LRMultiplier, WarmupParamScheduler, build_lr_scheduler


def make_optimizer(lr: float = 5.0) -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def rates(scheduler, steps: int) -> np.ndarray:
    """The rate before each of `steps` iterations, and after the last."""
    values = [scheduler.optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        scheduler.optimizer.step()  # torch warns where a schedule steps before its optimizer
        scheduler.step()
        values.append(scheduler.optimizer.param_groups[0]["lr"])
    return np.array(values)


def solver_config(**solver) -> CfgNode:
    cfg = get_cfg()
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


MULTI_STEP = [0.005, 1.004, 2.003, 3.002, 4.001] + [5.0] * 5 + [0.5] * 5 + [0.05] * 5 + [0.005] * 11


def test_multi_step_with_warmup():
    schedule = MultiStepParamScheduler(
        [1, 0.1, 0.01, 0.001], milestones=[10, 15, 20], num_updates=30
    )
    scheduler = LRMultiplier(
        make_optimizer(), WarmupParamScheduler(schedule, 0.001, 5 / 30), max_iter=30
    )
    np.testing.assert_allclose(rates(scheduler, 30), MULTI_STEP)


def test_constant_warmup():
    optimizer = make_optimizer()
    schedule = WarmupParamScheduler(CosineParamScheduler(1, 0.5), 0.1, 0.5, "constant")
    got = rates(LRMultiplier(optimizer, schedule, 10), 10)
    np.testing.assert_allclose(got[:5], 0.5)
    np.testing.assert_allclose(
        got[6:], [5 * (0.75 + 0.25 * math.cos(math.pi * i / 10)) for i in range(6, 11)]
    )


@pytest.mark.parametrize("end", [0.0, 0.5])
def test_cosine_from_config_ends_at_its_end(end):
    cfg = solver_config(
        LR_SCHEDULER_NAME="WarmupCosineLR",
        BASE_LR=5.0,
        BASE_LR_END=end,
        WARMUP_ITERS=10,
        WARMUP_FACTOR=0.1,
        MAX_ITER=100,
    )
    got = rates(build_lr_scheduler(cfg, make_optimizer(5.0)), 100)
    assert got[0] == pytest.approx(0.5)
    want = [end + (5 - end) * 0.5 * (1 + math.cos(math.pi * i / 100)) for i in range(11, 101)]
    np.testing.assert_allclose(got[11:], want, atol=1e-12)
    assert got[-1] == pytest.approx(end)


def test_rescaled_interval_keeps_the_whole_schedule():
    schedule = StepWithFixedGammaParamScheduler(
        base_value=1.0, gamma=0.1, num_decays=4, num_updates=30
    )
    multiplier = WarmupParamScheduler(schedule, 0.001, 5 / 30, rescale_interval=True)
    got = rates(LRMultiplier(make_optimizer(), multiplier, max_iter=30), 29)
    np.testing.assert_allclose(got[:5], [0.005, 1.004, 2.003, 3.002, 4.001])
    np.testing.assert_allclose(got[5:], np.repeat([5.0, 0.5, 0.05, 0.005, 0.0005], 5))


@pytest.mark.parametrize("max_iter", [30, 31, 7])
def test_fixed_gamma_from_config_equals_fvcore_and_reaches_the_end(max_iter):
    cfg = solver_config(
        LR_SCHEDULER_NAME="WarmupStepWithFixedGammaLR",
        BASE_LR=2.0,
        NUM_DECAYS=3,
        GAMMA=0.5,
        WARMUP_ITERS=0,
        MAX_ITER=max_iter,
    )
    got = rates(build_lr_scheduler(cfg, make_optimizer(2.0)), max_iter)
    schedule = StepWithFixedGammaParamScheduler(2.0, 3, 0.5, max_iter)
    np.testing.assert_allclose(got[:-1], [schedule(i / max_iter) for i in range(max_iter)])
    assert got[-1] == got[-2] == pytest.approx(2.0 * 0.5**3)


def test_teacher_schedule_of_the_reference():
    cfg = solver_config(
        BASE_LR=0.05,
        WARMUP_FACTOR=0.01,
        WARMUP_ITERS=3000,
        STEPS=(60000, 80000),
        MAX_ITER=90000,
    )
    scheduler = build_lr_scheduler(cfg, make_optimizer(0.05))
    # Computed with Detectron2 at ecb786cc.
    want = {0: 0.0005, 1: 0.0005165, 10: 0.000665, 500: 0.00875, 1500: 0.02525, 2999: 0.0499835}
    want |= {3000: 0.05, 3001: 0.05, 59999: 0.05, 60000: 0.005, 60001: 0.005, 79999: 0.005}
    want |= {80000: 0.0005, 89999: 0.0005}
    for iteration, rate in want.items():
        scheduler.last_epoch = iteration
        assert scheduler.get_lr() == [pytest.approx(rate, rel=1e-9)], iteration


def test_steps_after_the_end_are_ignored_with_a_warning(caplog):
    cfg = solver_config(STEPS=(2, 4, 8), MAX_ITER=4, WARMUP_ITERS=0, BASE_LR=1.0)
    scheduler = build_lr_scheduler(cfg, make_optimizer(1.0))
    assert "no effect" in caplog.text
    np.testing.assert_allclose(rates(scheduler, 4), [1.0, 1.0, 0.1, 0.1, 0.1])


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("method", ["linear", "constant"])
@pytest.mark.parametrize(
    "name", ["WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"]
)
def test_warmup_longer_than_the_training(name, method, rescale):
    cfg = solver_config(
        LR_SCHEDULER_NAME=name,
        WARMUP_METHOD=method,
        RESCALE_INTERVAL=rescale,
        MAX_ITER=4,
        STEPS=(),
        WARMUP_ITERS=1000,
        WARMUP_FACTOR=0.1,
    )
    got = rates(build_lr_scheduler(cfg, make_optimizer(1.0)), 4)
    assert np.isfinite(got).all() and got[0] == pytest.approx(0.1)


def test_state_is_small_and_resumes():
    def make():
        schedule = CosineParamScheduler(1, 0)
        return LRMultiplier(make_optimizer(), schedule, max_iter=10)

    first, second = make(), make()
    before = rates(first, 4)
    assert set(first.state_dict()) == {"base_lrs", "last_epoch"}
    second.load_state_dict(first.state_dict())
    after = rates(second, 6)[1:]
    np.testing.assert_allclose(np.concatenate([before, after]), rates(make(), 10))


def test_each_group_keeps_its_own_base_rate():
    first, second = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [first], "lr": 1.0}, {"params": [second]}], lr=4.0)
    LRMultiplier(optimizer, ConstantParamScheduler(0.5), max_iter=10)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 2.0]


def test_wrong_arguments_are_named():
    optimizer = make_optimizer()
    with pytest.raises(ValueError, match="multiplier is a float"):
        LRMultiplier(optimizer, 0.5, 10)
    with pytest.raises(ValueError, match="'burnin'.*'linear', 'constant'"):
        WarmupParamScheduler(CosineParamScheduler(1, 0), 0.1, 0.1, "burnin")
    with pytest.raises(ValueError, match="'Poly'.*WarmupCosineLR"):
        build_lr_scheduler(solver_config(LR_SCHEDULER_NAME="Poly"), optimizer)
    with pytest.raises(ValueError, match="STEPS=.*increase"):
        build_lr_scheduler(solver_config(STEPS=(20, 10), MAX_ITER=40), optimizer)
    with pytest.raises(ValueError, match="BASE_LR_END=2.0"):
        cfg = solver_config(LR_SCHEDULER_NAME="WarmupCosineLR", BASE_LR_END=2.0, BASE_LR=1.0)
        build_lr_scheduler(cfg, optimizer)
    with pytest.raises(ValueError, match="NUM_DECAYS=9"):
        cfg = solver_config(LR_SCHEDULER_NAME="WarmupStepWithFixedGammaLR", NUM_DECAYS=9)
        cfg.SOLVER.MAX_ITER = 5
        build_lr_scheduler(cfg, optimizer)
