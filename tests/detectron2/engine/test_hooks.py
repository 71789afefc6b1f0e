import logging
import math
import random

import numpy as np
import pytest
import torch
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch import nn

from detectron2.engine import SimpleTrainer, hooks
from detectron2.utils.events import EventWriter, get_event_storage


def make_trainer(model, batches, lr=0.1):
    return SimpleTrainer(model, batches(), torch.optim.SGD(model.parameters(), lr))


@pytest.mark.parametrize(
    "max_iter, period, when",
    [(30, 15, [14, 30]), (31, 15, [14, 29, 31]), (20, 0, [20])],
)
def test_eval_hook_runs_each_period_and_at_the_end(toy_model, batches, max_iter, period, when):
    trainer = make_trainer(toy_model, batches)
    seen = []

    def evaluate():
        seen.append(trainer.iter)
        return {"segm": {"AP": 3.0}}

    trainer.register_hooks([hooks.EvalHook(period, evaluate)])
    trainer.train(0, max_iter)
    assert seen == when
    assert trainer.storage.latest()["segm/AP"] == (3.0, max_iter)


def test_eval_hook_refuses_results_that_are_no_numbers(toy_model, batches):
    trainer = make_trainer(toy_model, batches)
    trainer.register_hooks([hooks.EvalHook(0, lambda: {"segm": {"AP": "high"}})])
    with pytest.raises(ValueError, match="segm/AP: 'high'"):
        trainer.train(0, 1)


@pytest.mark.parametrize(
    "mode, metrics, saved_at",
    [
        ("max", [0.3, 0.4, 0.35, 0.5], [9, 19, 40]),
        ("min", [1.0, 0.8, 0.9, 0.9], [9, 19]),
        ("min", [math.nan, 0.8, 0.9, 0.9], [19]),
        ("max", [math.nan, math.inf, math.nan, math.nan], []),
    ],
)
def test_best_checkpointer_saves_on_improvement(
    toy_model, batches, tmp_path, mode, metrics, saved_at
):
    trainer = make_trainer(toy_model, batches)
    checkpointer = Checkpointer(toy_model, str(tmp_path))
    saved = []
    original = checkpointer.save
    checkpointer.save = lambda name, **extra: (saved.append(extra["iteration"]), original(name))
    values = iter(metrics)
    trainer.register_hooks(
        [
            hooks.EvalHook(10, lambda: {"metric": next(values)}),
            hooks.BestCheckpointer(10, checkpointer, "metric", mode=mode),
        ]
    )
    trainer.train(0, 40)
    assert saved == saved_at
    assert (tmp_path / "model_best.pth").exists() == bool(saved_at)


def test_best_checkpointer_remembers_its_best(toy_model, batches, tmp_path):
    hook = hooks.BestCheckpointer(1, Checkpointer(toy_model, str(tmp_path)), "metric")
    assert hook.state_dict() == {}
    hook.load_state_dict({"best_metric": 0.5, "best_iter": 7})
    trainer = make_trainer(toy_model, batches)
    trainer.register_hooks([hooks.EvalHook(1, lambda: {"metric": 0.4}), hook])
    trainer.train(0, 2)
    assert hook.state_dict() == {"best_metric": 0.5, "best_iter": 7}
    assert not (tmp_path / "model_best.pth").exists()


def test_best_checkpointer_warns_without_the_metric(toy_model, batches, tmp_path, caplog):
    trainer = make_trainer(toy_model, batches)
    checkpointer = Checkpointer(toy_model, str(tmp_path))
    trainer.register_hooks([hooks.BestCheckpointer(1, checkpointer, "segm/AP")])
    trainer.train(0, 1)
    assert "segm/AP" in caplog.text
    with pytest.raises(ValueError, match="'max' or 'min'"):
        hooks.BestCheckpointer(1, checkpointer, "segm/AP", mode="best")


def test_lr_scheduler_records_and_steps(toy_model, batches):
    trainer = make_trainer(toy_model, batches, lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 2, gamma=0.5)
    trainer.register_hooks([hooks.LRScheduler(scheduler=scheduler)])
    trainer.train(0, 6)
    rates = [rate for rate, _ in trainer.storage.history("lr").values()]
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025, 0.025])


def test_lr_scheduler_takes_a_param_scheduler(toy_model, batches):
    trainer = make_trainer(toy_model, batches, lr=0.1)
    multiplier = MultiStepParamScheduler([1.0, 0.1], milestones=[2], num_updates=4)
    trainer.register_hooks([hooks.LRScheduler(scheduler=multiplier)])
    trainer.train(0, 4)
    rates = [rate for rate, _ in trainer.storage.history("lr").values()]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01])


def test_lr_scheduler_shows_the_largest_group_or_the_commonest_rate():
    def group(count, lr):
        return {"params": [nn.Parameter(torch.zeros(1)) for _ in range(count)], "lr": lr}

    def best(*groups):
        return hooks.LRScheduler.get_best_param_group_id(torch.optim.SGD(list(groups), lr=1.0))

    assert best(group(1, 0.3), group(3, 0.1), group(2, 0.2)) == 1
    assert best(group(1, 0.3), group(1, 0.1), group(1, 0.1)) == 1


def test_periodic_checkpointer_saves_each_period_and_the_end(toy_model, batches, tmp_path):
    trainer = make_trainer(toy_model, batches)
    checkpointer = Checkpointer(toy_model, str(tmp_path))
    trainer.register_hooks([hooks.PeriodicCheckpointer(checkpointer, 3)])
    trainer.train(0, 7)
    names = {path.name for path in tmp_path.glob("*.pth")}
    assert names == {"model_0000002.pth", "model_0000005.pth", "model_final.pth"}


def test_callback_hook_gets_the_trainer(toy_model, batches):
    seen = []
    trainer = make_trainer(toy_model, batches)
    trainer.register_hooks(
        [
            hooks.CallbackHook(
                before_train=lambda t: seen.append("start"),
                after_step=lambda t: seen.append(t.iter),
            )
        ]
    )
    trainer.train(0, 2)
    assert seen == ["start", 0, 1]


def test_iteration_timer_records_after_the_warm_up(toy_model, batches, caplog):
    trainer = make_trainer(toy_model, batches)
    trainer.register_hooks([hooks.IterationTimer(warmup_iter=3)])
    with caplog.at_level(logging.INFO):
        trainer.train(0, 10)
    assert [i for _, i in trainer.storage.history("time").values()] == list(range(3, 10))
    assert "Timed 7 iterations" in caplog.text


def test_iteration_seed_does_not_depend_on_history(toy_model, batches):
    def numbers(start):
        drawn = {}
        trainer = make_trainer(toy_model, batches)

        def draw(t):
            drawn[t.iter] = (torch.rand(1).item(), np.random.rand(), random.random())

        trainer.register_hooks([hooks.IterationSeed(5), hooks.CallbackHook(after_step=draw)])
        trainer.train(start, 6)
        return drawn

    whole, resumed = numbers(0), numbers(3)
    assert resumed == {i: whole[i] for i in (3, 4, 5)}
    assert len(set(whole.values())) == 6


def test_precise_bn_gives_the_true_mean(batches):
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    batch_list = [batch for _, batch in zip(range(4), batches(), strict=False)]
    hook = hooks.PreciseBN(0, model, batch_list, num_iter=4)
    hook.update_stats()
    torch.testing.assert_close(model[0].running_mean, torch.cat(batch_list).mean(0))
    first = model[0].running_var.clone()
    hook.update_stats()  # starts at the first batch again
    torch.testing.assert_close(model[0].running_var, first, rtol=0, atol=0)


def test_precise_bn_is_off_without_batch_norm(toy_model, caplog):
    with caplog.at_level(logging.INFO):
        hooks.PreciseBN(1, toy_model, [], num_iter=4).update_stats()
    assert "PreciseBN is off" in caplog.text


def test_periodic_writer_refuses_other_things():
    with pytest.raises(TypeError, match="EventWriter"):
        hooks.PeriodicWriter([print])


class CountingWriter(EventWriter):
    def __init__(self):
        self.iterations, self.closed = [], False

    def write(self):
        self.iterations.append(get_event_storage().iter)

    def close(self):
        self.closed = True


@pytest.mark.parametrize("max_seconds, when", [(1000, [3, 5, 6]), (0, [0, 1, 2, 3, 4, 5, 6])])
def test_periodic_writer_writes_each_period_and_when_late(toy_model, batches, max_seconds, when):
    writer = CountingWriter()
    trainer = make_trainer(toy_model, batches)
    trainer.register_hooks([hooks.PeriodicWriter([writer], 4, max_seconds)])
    trainer.train(0, 6)
    assert writer.iterations == when
    assert writer.closed
