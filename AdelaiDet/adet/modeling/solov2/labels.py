"""Read the labels that a prompt gives the network from an input record.

Points and sizes are in pixels of the unpadded network input.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from detectron2.structures import Instances

from .targets import centers_of_mass, instance_bitmasks


@dataclass(frozen=True)
class Needs:
    """The labels that a prompt reads; one that reads none runs without `instances`."""

    classes: bool = False
    points: bool = False
    sizes: bool = False

    @property
    def anything(self) -> bool:
        """Whether the prompt reads labels at all."""
        return self.classes or self.points or self.sizes


@dataclass(frozen=True)
class InstanceLabels:
    """Labels of one image's P instances.

    classes: (P,) int64.
    points_xy: (P, 2) float64, NaN where unknown; None for prompts without points.
    sizes_wh: (P, 2) box sizes; None for prompts without sizes.
    """

    classes: Tensor
    points_xy: Tensor | None = None
    sizes_wh: Tensor | None = None

    @classmethod
    def empty(cls, device: torch.device) -> "InstanceLabels":
        """No instance, for every prompt."""
        pairs = torch.zeros(0, 2, dtype=torch.float64, device=device)
        return cls(torch.zeros(0, dtype=torch.int64, device=device), pairs, pairs.float())


def read_labels(record: dict, prompt: str, needs: Needs, device: torch.device) -> InstanceLabels:
    """Labels of one input record, from its `instances` (fields gt_*).

    Points are `gt_points`; where there are none, the masks' centers of mass.

    Args:
        prompt: the prompt's name, for error messages.
        needs: what to read.
    """
    name = record.get("file_name", "an image")
    if "instances" not in record:
        raise ValueError(
            f"MODEL.SOLOV2.PROMPT={prompt!r} needs labels, but {name} came without 'instances': "
            "load the data with DatasetMapper(..., keep_annotations=True), or set PROMPT to 'none'"
        )
    instances: Instances = record["instances"]
    if not instances.get_fields() or len(instances) == 0:
        return InstanceLabels.empty(device)
    if not instances.has("gt_classes"):
        raise ValueError(f"MODEL.SOLOV2.PROMPT={prompt!r} needs gt_classes; {name} has none")
    points = sizes = None
    if needs.points:
        points = instance_points(instances, prompt, name).to(device)
    if needs.sizes:
        if not instances.has("gt_boxes"):
            raise ValueError(
                f"MODEL.SOLOV2.PROMPT={prompt!r} needs gt_boxes for the sizes of instances; {name} "
                "has none. Where only points are known, set PROMPT to one that needs no sizes"
            )
        boxes = instances.gt_boxes.tensor.to(device)
        sizes = boxes[:, 2:] - boxes[:, :2]
    return InstanceLabels(instances.gt_classes.to(device), points, sizes)


def instance_points(instances: Instances, prompt: str, name: str) -> Tensor:
    """Points (P, 2) float64 x and y of instances; NaN for an empty mask without a point."""
    if instances.has("gt_points"):
        return instances.gt_points.double()
    if not instances.has("gt_masks"):
        raise ValueError(
            f"MODEL.SOLOV2.PROMPT={prompt!r} needs gt_points, or gt_masks to compute their "
            f"centers; {name} has neither"
        )
    centers, areas = centers_of_mass(instance_bitmasks(instances))
    return centers.double().masked_fill((areas == 0)[:, None], torch.nan)


def usable_points(labels: InstanceLabels, image_size_hw: tuple[int, int]) -> tuple[Tensor, dict]:
    """Indices (P,) of the instances whose point lies in the image, and the reasons of the others.

    The far borders of the image count as inside: flipping a point at 0 puts it there.
    """
    height, width = image_size_hw
    size = labels.points_xy.new_tensor([width, height])
    known = ~labels.points_xy.isnan().any(dim=1)
    inside = ((labels.points_xy >= 0) & (labels.points_xy <= size)).all(dim=1)
    refused = {i: "no_point" for i in torch.nonzero(~known).flatten().tolist()}
    refused |= {i: "outside" for i in torch.nonzero(known & ~inside).flatten().tolist()}
    return torch.nonzero(inside).flatten(), refused
