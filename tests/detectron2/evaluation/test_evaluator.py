import logging

import pytest
import torch
from torch import nn

from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_context,
    inference_on_dataset,
)


class SumEvaluator(DatasetEvaluator):
    def __init__(self, name):
        self.name = name

    def reset(self):
        self.total = 0.0

    def process(self, inputs, outputs):
        assert not outputs.requires_grad
        self.total += float(outputs.sum())

    def evaluate(self):
        return {self.name: {"sum": self.total}}


class ModeModel(nn.Module):
    """1 for each input in eval mode, else -1."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.scale * (-1 if self.training else 1) * torch.ones(len(x))


@pytest.mark.parametrize("training", [True, False])
def test_inference_runs_in_eval_mode_and_restores_the_mode(training):
    model = ModeModel().train(training)
    results = inference_on_dataset(model, [[1, 2], [3]], SumEvaluator("a"))
    assert results == {"a": {"sum": 3.0}}
    assert model.training == training


def test_inference_with_several_evaluators_or_none():
    data = [[1]] * 7
    results = inference_on_dataset(ModeModel(), data, [SumEvaluator("a"), SumEvaluator("b")])
    assert results == {"a": {"sum": 7.0}, "b": {"sum": 7.0}}
    assert inference_on_dataset(ModeModel(), data, None) == {}
    assert inference_on_dataset(ModeModel(), [], SumEvaluator("a")) == {"a": {"sum": 0.0}}


def test_inference_takes_any_callable():
    assert inference_on_dataset(torch.tensor, [[2.0]], SumEvaluator("a")) == {"a": {"sum": 2.0}}


def test_inference_logs_progress(caplog):
    with caplog.at_level(logging.INFO):
        inference_on_dataset(ModeModel(), [[1]] * 3, None)
    assert "3 of 3 batches" in caplog.text
    assert "ETA=" in caplog.text


def test_evaluators_of_the_same_name_are_refused():
    evaluators = DatasetEvaluators([SumEvaluator("a"), SumEvaluator("a")])
    evaluators.reset()
    with pytest.raises(ValueError, match="'a'"):
        evaluators.evaluate()


def test_inference_context_restores_after_an_error():
    model = ModeModel()
    with pytest.raises(KeyError), inference_context(model):
        assert not model.training
        raise KeyError
    assert model.training
