"""Prompts: what the labels of an image tell the network before it segments.

`PROMPTS` is the one place that knows them by name. What else depends on prompts (checks of the
config, choices of programs, which labels a dataset keeps) reads their attributes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .candidates import (
    point_candidates,
    sized_candidates,
    sized_candidates_with_scores,
    unprompted_candidates,
)
from .inference import Candidates, InferenceSettings
from .labels import InstanceLabels, Needs, read_labels
from .predictions import Predictions

Choose = Callable[
    [Predictions, Sequence[InstanceLabels] | None, InferenceSettings], list[Candidates]
]


@dataclass(frozen=True)
class Prompt:
    """One way to guide the network by labels.

    name: value of `MODEL.SOLOV2.PROMPT`.
    description: one line, for help texts.
    needs: the labels that it reads.
    choose: the candidates of a batch, from its predictions and labels (None if it needs none).
    """

    name: str
    description: str
    needs: Needs
    choose: Choose

    @property
    def reads_labels(self) -> bool:
        """Whether the inputs need `instances`."""
        return self.needs.anything

    @property
    def points_only(self) -> bool:
        """Whether it reads labels, but no mask or box: those need not be loaded."""
        return self.needs.anything and not self.needs.sizes

    def read(self, records: Sequence[dict], device: torch.device) -> list[InstanceLabels] | None:
        """Labels of a batch of input records; None if the prompt reads none."""
        if not self.reads_labels:
            return None
        return [read_labels(record, self.name, self.needs, device) for record in records]


def _by_name(*prompts: Prompt) -> dict[str, Prompt]:
    return {prompt.name: prompt for prompt in prompts}


PROMPTS = _by_name(
    Prompt(
        "none",
        "no labels; each cell and class with a high score is a candidate",
        Needs(),
        unprompted_candidates,
    ),
    Prompt(
        "cls",
        "class, point and size of each instance; its cells keep the network's score of its class",
        Needs(classes=True, points=True, sizes=True),
        sized_candidates_with_scores,
    ),
    Prompt(
        "cls_image",
        "the classes of the image; scores of other classes are dropped",
        Needs(classes=True),
        unprompted_candidates,
    ),
    Prompt(
        "point",
        "class and point of each instance; the pyramid level that fits best makes its mask",
        Needs(classes=True, points=True),
        point_candidates,
    ),
    Prompt(
        "point_with_size",
        "class, point and size of each instance; the cells that training would assign to it make "
        "its masks, whatever their scores",
        Needs(classes=True, points=True, sizes=True),
        sized_candidates,
    ),
)


def get_prompt(name: str) -> Prompt:
    """The prompt of that name.

    Raises:
        ValueError: naming the prompts that exist.
    """
    if name not in PROMPTS:
        raise ValueError(f"MODEL.SOLOV2.PROMPT={name!r}; expected one of {tuple(PROMPTS)}")
    return PROMPTS[name]
