"""Concrete DropBlock: a small network that learns which cells of pooled regions to hide.

It is trained against the detector: it gains where hiding hurts, so that the detector cannot rest on
the most telling part of an object (SPEC_WEAKSAM 4.1, 8.4).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST = 1e-10  # keeps logarithms of probabilities finite


class ConcreteDropBlock(nn.Module):
    """Hide blocks of cells in training: (R, C, S, S) -> the same shape; the identity in testing."""

    def __init__(
        self, channels: int, *, probability: float = 0.3, size: int = 3, temperature: float = 0.01
    ):
        """
        Args:
            channels: C of the pooled features.
            probability: largest share of cells around which a block is hidden, times size^2.
            size: side of a hidden block, cells; odd.
            temperature: of the relaxed choice whether to hide.
        """
        super().__init__()
        if size % 2 == 0 or not 0 < probability < 1:
            raise ValueError(
                f"DropBlock of size {size} and probability {probability}; expected an odd size and "
                "a probability between 0 and 1"
            )
        self.size, self.temperature = size, temperature
        self.largest = probability / size**2
        self.tower = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, 2, 3, padding=1, bias=False),
            nn.BatchNorm2d(2),
        )
        self.skip = nn.Conv2d(channels, 2, 1)

    def drop_probability(self, features: Tensor) -> Tensor:
        """(R, S, S): the probability that a block around the cell is hidden."""
        return (self.tower(features) + self.skip(features))[:, 0].sigmoid() * self.largest

    def forward(self, features: Tensor) -> Tensor:
        if not self.training or not len(features):
            return features
        drop = self.drop_probability(features.detach())
        logits = torch.stack([drop, 1 - drop], dim=1).add(SMALLEST).log()  # (R, 2, S, S)
        hidden = F.gumbel_softmax(logits, tau=self.temperature, hard=True, dim=1)[:, :1]
        blocks = F.max_pool2d(hidden, self.size, stride=1, padding=self.size // 2)
        mask = 1 - blocks  # (R, 1, S, S)
        return features * mask * (mask.numel() / mask.sum().clamp(min=1))
