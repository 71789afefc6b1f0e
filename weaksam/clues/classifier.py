"""What every classifier of image tags offers to training and to the search for points."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, 0 to 255
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class ClueMaps:
    """Maps of a batch at the network's resolution, K classes asked for.

    logits: (B, C) of all classes.  coarse: (B, K, h, w), not negative.  fine: (B, K, h, w) or None.
    cross: class-to-patch attention (B, heads, layers, K, h, w), or None.
    """

    logits: Tensor
    coarse: Tensor
    fine: Tensor | None = None
    cross: Tensor | None = None


class Classifier(nn.Module):
    """A network from images, RGB (B, 3, H, W) float 0 to 255, to classes and where they are.

    sources: kinds of maps that `maps` gives.  label_threshold: see `predicted`.
    """

    sources: tuple[str, ...] = ("coarse",)
    label_threshold: float
    parameters_without_decay: tuple[str, ...] = ()

    def __init__(self, pixel_mean: Sequence[float], pixel_std: Sequence[float]):
        super().__init__()
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    @property
    @abstractmethod
    def num_classes(self) -> int: ...

    @abstractmethod
    def loss(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Losses by name, to be added up; `targets` (B, C) float are 0 or 1."""

    @abstractmethod
    def scores(self, images: Tensor) -> Tensor:
        """(B, C) logits."""

    @abstractmethod
    def maps(
        self, images: Tensor, layers: Sequence[int] = (), classes: Sequence[int] | None = None
    ) -> ClueMaps:
        """Where classes are."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, C) in 0 to 1, by which images are ranked for a class."""
        return logits.sigmoid()

    def predicted(self, logits: Tensor) -> Tensor:
        """(B, C) bool: the classes that images without tags are taken to show."""
        return logits > self.label_threshold

    def normalize(self, images: Tensor) -> Tensor:
        return (images - self.pixel_mean) / self.pixel_std
