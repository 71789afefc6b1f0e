"""A model of two layers and the loop pieces around it, shared by the trainer tests."""

import pytest
import torch
from torch import nn


class ToyModel(nn.Module):
    """Regression on (N, 3) inputs; the loss of a batch is a mean of squares."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 1)

    def forward(self, x):
        y = self.second(torch.tanh(self.first(x)))
        return {"loss_fit": (y - x.sum(1, keepdim=True)).square().mean(), "loss_size": y.mean() * 0}


def endless_batches(seed=0):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.rand(2, 3, generator=generator)


@pytest.fixture
def toy_model():
    torch.manual_seed(0)
    return ToyModel()


@pytest.fixture
def batches():
    return endless_batches
