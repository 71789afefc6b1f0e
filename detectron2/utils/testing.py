"""Random inputs for unit tests of detectors."""

import torch
from torch import Tensor

__all__ = ["random_boxes"]


def random_boxes(
    num_boxes: int, max_coord: float = 100, device: torch.device | str = "cpu"
) -> Tensor:
    """(num_boxes, 4) boxes x0, y0, x1, y1 with sides of at least 1, within [1, max_coord].

    `max_coord` should be above 2. The numbers come from torch's global generator.
    """
    # Corner and size each take half of the range; sides below 1 would be numerically delicate.
    halves = (torch.rand(num_boxes, 4, device=device) * (max_coord / 2)).clamp(min=1.0)
    return torch.cat([halves[:, :2], halves[:, :2] + halves[:, 2:]], dim=1)
