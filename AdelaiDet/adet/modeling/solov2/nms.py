"""Suppress duplicate cells and duplicate masks."""

import torch
import torch.nn.functional as F
from torch import Tensor

NMS_KERNELS = ("gaussian", "linear")
# Masks are compact: few of them reach into any one strip of the image. For groups smaller than
# LARGE_GROUP, one product over the whole image is faster (measured on a CPU).
STRIP_PIXELS = 1024
LARGE_GROUP = 64


def point_nms(scores: Tensor) -> Tensor:
    """Keep the scores (B, C, S, S) that are the largest among themselves and the cells to the left,
    above, and above left; zero the others."""
    pooled = F.max_pool2d(scores, kernel_size=2, stride=1, padding=1)[..., :-1, :-1]
    return scores * (pooled == scores)


def mask_iou_matrix(masks: Tensor, groups: Tensor) -> Tensor:
    """IoU of every pair of masks of the same group: (N, N) float32, 0 for other pairs.

    Two empty masks give 0. Only masks that can overlap are multiplied: masks of one group and, in a
    large group, masks with pixels in the same strip of the image.

    Args:
        masks: (N, HW) 0 or 1.  groups: (N,) int64.
    """
    masks = masks.float()
    strips = masks.split(STRIP_PIXELS, dim=1)
    strip_areas = torch.stack([strip.sum(dim=1) for strip in strips])  # (strips, N)
    intersections = masks.new_zeros(len(masks), len(masks))
    for group in groups.unique():
        members = torch.nonzero(groups == group).flatten()
        if len(members) < LARGE_GROUP:
            add_products(intersections, masks, members)
            continue
        for strip, inside in zip(strips, strip_areas > 0, strict=True):
            add_products(intersections, strip, members[inside[members]])
    areas = strip_areas.sum(dim=0)
    unions = areas[:, None] + areas[None, :] - intersections
    return intersections / unions.clamp(min=1)


def add_products(total: Tensor, masks: Tensor, rows: Tensor) -> None:
    """Add the dot products between some rows of masks (N, P) to their entries of `total` (N, N)."""
    own = masks[rows]
    # In float32 also under autocast: half precision does not hold the number of shared pixels.
    with torch.autocast(masks.device.type, enabled=False):
        total[rows[:, None], rows] += own @ own.T


def matrix_nms(
    masks: Tensor, groups: Tensor, scores: Tensor, *, kernel: str = "gaussian", sigma: float = 2.0
) -> Tensor:
    """Scores (N,) after Matrix NMS: decayed by overlap with better masks of the same group.

    Args:
        masks: (N, HW) 0 or 1, best score first.  groups: (N,) int64.  scores: (N,).
        kernel: decay by "gaussian", exp(-sigma * iou^2), or "linear", 1 - iou.
    """
    return scores * matrix_decay(masks, groups, kernel=kernel, sigma=sigma)[0]


def matrix_decay(
    masks: Tensor, groups: Tensor, *, kernel: str, sigma: float
) -> tuple[Tensor, Tensor]:
    """The factors (N,) of Matrix NMS and, for each mask, the one that decays it most.

    Returns:
        (N,) factors in [0, 1], and (N,) int64 rows of `masks`, -1 where the factor is 1.
    """
    if kernel not in NMS_KERNELS:
        raise ValueError(f"Matrix NMS kernel {kernel!r}; expected one of {NMS_KERNELS}")
    if len(masks) == 0:
        return masks.new_zeros(0), groups.new_zeros(0)
    ious = mask_iou_matrix(masks, groups).triu(diagonal=1)  # [i, j]: i is better than j
    # How much mask i is itself suppressed: a suppressed mask suppresses others less.
    worst = ious.amax(dim=0)[:, None]
    if kernel == "gaussian":
        decay = torch.exp(-sigma * (ious**2 - worst**2))
    else:
        decay = (1 - ious) / (1 - worst).clamp(min=torch.finfo(ious.dtype).tiny)
    factors, rows = decay.min(dim=0)
    return factors, torch.where(factors < 1, rows, -1)


def mask_nms(masks: Tensor, groups: Tensor, *, threshold: float) -> Tensor:
    """Greedy NMS: which masks (N,) bool stay when each one kept removes the later ones of its
    group that overlap it by an IoU over `threshold`.

    Args:
        masks: (N, HW) 0 or 1, best score first.  groups: (N,) int64.
    """
    return mask_suppressors(masks, groups, threshold=threshold) < 0


def mask_suppressors(masks: Tensor, groups: Tensor, *, threshold: float) -> Tensor:
    """For each mask, the row (N,) int64 of the kept one that removes it in greedy NMS; -1: kept."""
    overlaps = (mask_iou_matrix(masks, groups) > threshold).triu(diagonal=1).cpu().numpy()
    removed_by = torch.full((len(masks),), -1).numpy()
    for i, row in enumerate(overlaps):  # N sequential steps, each on a row of bits
        if removed_by[i] < 0:
            removed_by[row & (removed_by < 0)] = i
    return torch.from_numpy(removed_by).to(masks.device)
