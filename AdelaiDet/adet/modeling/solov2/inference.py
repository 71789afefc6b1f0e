"""From candidate kernels to instance masks of the original image.

A candidate is a dynamic kernel with a class and a score. Its mask is the sigmoid of the kernel's
product with the mask feature. Candidates are dropped if their mask is too small, too uncertain or
a duplicate; only the masks of the remaining ones are enlarged to the image's size.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detectron2.structures import BitMasks, Instances

from .grids import MASK_STRIDE, PyramidGrids
from .nms import NMS_KERNELS, mask_suppressors, matrix_decay

NMS_TYPES = ("matrix", "mask")
# Mask pixels handled at a time, to bound memory. A quarter of it took a third longer on a CPU.
CHUNK_PIXELS_CPU = 2**24
CHUNK_PIXELS_GPU = 2**26

# Why a prompted instance has no mask, in the order in which candidates are dropped.
REASONS = (
    "no_point",  # it has neither a point nor a mask with pixels
    "outside",  # the point lies outside the image
    "size",  # no level's FPN_SCALE_RANGES holds the instance's box
    "score_0",  # no level made a mask with a score above 0
    "score_thr",  # score not above SCORE_THR
    "area",  # mask not larger than its level's stride
    "nms_pre",  # not among the NMS_PRE best
    "nms",  # suppressed by a better mask
    "max_per_img",  # not among the MAX_PER_IMG best
    "empty",  # no pixel left at the original image's size
)


@dataclass(frozen=True)
class InferenceSettings:
    """Thresholds of `MODEL.SOLOV2` (names there in capitals).

    prompt_nms: for prompts with points. True: NMS between all masks of a class, whatever their
        points. False: no NMS between points; each point keeps the best of its own masks.
    """

    score_thr: float = 0.1
    mask_thr: float = 0.5
    update_thr: float = 0.05
    nms_pre: int = 500
    max_per_img: int = 100
    nms_type: str = "matrix"
    nms_kernel: str = "gaussian"
    nms_sigma: float = 2.0
    prompt_nms: bool = True
    eval_pseudo_label: bool = False

    def __post_init__(self) -> None:
        if self.nms_type not in NMS_TYPES:
            raise ValueError(
                f"MODEL.SOLOV2.NMS_TYPE={self.nms_type!r}; expected one of {NMS_TYPES}"
            )
        if self.nms_kernel not in NMS_KERNELS:
            raise ValueError(
                f"MODEL.SOLOV2.NMS_KERNEL={self.nms_kernel!r}; expected one of {NMS_KERNELS}"
            )


@dataclass(frozen=True)
class Candidates:
    """N candidates of one image.

    kernels: (N, K).  classes: (N,) int64.  scores: (N,).  cells: (N,) int64, flat.
    prompts: (N,) int64, the input instance that each candidate belongs to, or None.
    refused: reason by input instance, for those that have no candidate.
    """

    kernels: Tensor
    classes: Tensor
    scores: Tensor
    cells: Tensor
    prompts: Tensor | None = None
    refused: dict[int, str] | None = None

    def __len__(self) -> int:
        return len(self.scores)


def mask_probabilities(kernels: Tensor, feature: Tensor, out: Tensor | None = None) -> Tensor:
    """Masks (N, HW) of kernels (N, K) on a mask feature (K, HW), in [0, 1]."""
    # In float32 also under autocast, which refuses `out` and would round areas.
    with torch.autocast(feature.device.type, enabled=False):
        return torch.mm(kernels, feature, out=out).sigmoid_()


def chunk_rows(num_pixels: int, device: torch.device) -> int:
    """How many masks of `num_pixels` to handle at a time."""
    limit = CHUNK_PIXELS_CPU if device.type == "cpu" else CHUNK_PIXELS_GPU
    return max(1, limit // num_pixels)


def areas_and_maskness(kernels: Tensor, feature: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Area of each kernel's mask and mean probability inside it (0 where empty), both (N,) float32.

    Masks are made and dropped in chunks, so that memory does not grow with N.

    Args:
        kernels: (N, K).  feature: (K, HW).
    """
    areas, sums = [], []
    rows = chunk_rows(feature.shape[1], feature.device)
    buffer = feature.new_empty(min(rows, len(kernels)), feature.shape[1])
    for chunk in kernels.split(rows):
        probabilities = mask_probabilities(chunk, feature, out=buffer[: len(chunk)])
        inside = F.threshold_(probabilities, threshold, 0.0)
        sums.append(inside.sum(dim=1))
        areas.append(inside.gt_(0).sum(dim=1))  # ones add up exactly in float32
    area = torch.cat(areas)
    return area, torch.cat(sums) / area.clamp(min=1)


def segment(
    candidates: Candidates,
    feature: Tensor,
    image_size_hw: tuple[int, int],
    output_size_hw: tuple[int, int],
    grids: PyramidGrids,
    settings: InferenceSettings,
) -> tuple[Instances, list[dict]]:
    """Instances of one image, best score first, and the input instances that got none.

    Args:
        feature: (K, Hf, Wf), the mask feature of the padded input.
        image_size_hw: of the unpadded input.  output_size_hw: of the original image.

    Returns:
        Instances with `pred_masks` (N, H, W) bool, `pred_boxes`, `pred_classes`, `scores`, and
        (with point prompts) `prompt_indices` (N,) int64; and
        [{"instance": input instance, "reason": one of REASONS}, ...], for the reason "nms" also
        "other": the input instance whose mask suppressed this one's best.
    """
    pixels = feature.flatten(1)
    outcomes = torch.full((len(candidates),), -1, device=feature.device)
    alive = torch.arange(len(candidates), device=feature.device)

    def narrow(keep: Tensor, reason: str) -> Tensor:
        outcomes[alive[~keep]] = REASONS.index(reason)
        return alive[keep]

    alive = narrow(candidates.scores > settings.score_thr, "score_thr")
    area, maskness = rate_cells(candidates, alive, pixels, settings)
    scores = candidates.scores.clone()
    scores[alive] *= maskness
    alive = narrow(area > grids.strides_of(candidates.cells[alive]), "area")
    alive = alive[torch.sort(scores[alive], descending=True, stable=True).indices]
    alive = narrow(torch.arange(len(alive), device=alive.device) < settings.nms_pre, "nms_pre")

    probabilities = mask_probabilities(candidates.kernels[alive], pixels)
    updated, removed_by = suppress(probabilities, candidates, alive, scores[alive], settings)
    narrow(updated > 0, "nms")
    others = others_of(candidates, alive, updated, removed_by)
    # Rows of `probabilities` to keep, best first. Indexing rows avoids copies of large arrays.
    rows = torch.sort(updated, descending=True, stable=True).indices[: int((updated > 0).sum())]
    outcomes[alive[rows[settings.max_per_img :]]] = REASONS.index("max_per_img")
    rows = rows[: settings.max_per_img]
    alive, updated = alive[rows], updated[rows]

    masks = enlarge(
        probabilities[rows].unflatten(1, feature.shape[1:]), image_size_hw, output_size_hw, settings
    )
    if candidates.prompts is not None:  # report an instance whose mask is empty
        filled = masks.flatten(1).any(dim=1)
        alive, masks, updated = narrow(filled, "empty"), masks[filled], updated[filled]
    results = Instances(output_size_hw)
    results.pred_masks = masks
    results.pred_boxes = BitMasks(masks).get_bounding_boxes()
    results.pred_classes = candidates.classes[alive]
    results.scores = torch.ones_like(updated) if settings.eval_pseudo_label else updated
    if candidates.prompts is not None:
        results.prompt_indices = candidates.prompts[alive]
    return results, unmatched_prompts(candidates, outcomes, others)


def rate_cells(
    candidates: Candidates, alive: Tensor, pixels: Tensor, settings: InferenceSettings
) -> tuple[Tensor, Tensor]:
    """Mask area and maskness of the candidates `alive` (M,): two of (M,).

    Candidates of one cell (several classes or prompts) share its kernel, and so one mask.
    """
    cells, which = candidates.cells[alive].unique(return_inverse=True)
    kernels = candidates.kernels.new_empty(len(cells), candidates.kernels.shape[1])
    kernels[which] = candidates.kernels[alive]
    area, maskness = areas_and_maskness(kernels, pixels, settings.mask_thr)
    return area[which], maskness[which]


def suppress(
    probabilities: Tensor,
    candidates: Candidates,
    alive: Tensor,
    scores: Tensor,
    settings: InferenceSettings,
) -> tuple[Tensor, Tensor]:
    """Scores (N,) after NMS between masks (N, HW), best first; 0 where one is dropped.

    Returns:
        the scores, and for each mask the row (N,) int64 of the one that suppresses it most, -1
        where none does.
    """
    if candidates.prompts is not None and not settings.prompt_nms:
        removed_by = better_of_same(candidates.prompts[alive])
        return scores * (removed_by < 0), removed_by
    masks = (probabilities > settings.mask_thr).float()
    groups = candidates.classes[alive]
    if settings.nms_type == "mask":
        removed_by = mask_suppressors(masks, groups, threshold=settings.mask_thr)
        return scores * (removed_by < 0), removed_by
    decay, removed_by = matrix_decay(
        masks, groups, kernel=settings.nms_kernel, sigma=settings.nms_sigma
    )
    scores = scores * decay
    return scores * (scores >= settings.update_thr), removed_by


def better_of_same(groups: Tensor) -> Tensor:
    """For each row of `groups` (N,) the first row (N,) of its group; -1 where it is that row."""
    rows = torch.arange(len(groups), device=groups.device)
    names, members = groups.unique(return_inverse=True)
    first = rows.new_full((len(names),), len(groups)).scatter_reduce(0, members, rows, "amin")
    return torch.where(first[members] < rows, first[members], -1)


def others_of(
    candidates: Candidates, alive: Tensor, scores: Tensor, removed_by: Tensor
) -> dict[int, int]:
    """For the input instances that lost a mask to NMS, the instance whose mask suppressed it.

    Of several lost masks of an instance the best one counts: better masks are others' only.

    Args:
        alive: (N,) candidates, best first.  scores: (N,), 0 where dropped.
        removed_by: (N,) rows of `alive`, or -1.
    """
    if candidates.prompts is None:
        return {}
    owners = candidates.prompts[alive].tolist()
    others: dict[int, int] = {}
    for row in torch.nonzero((scores <= 0) & (removed_by >= 0)).flatten().tolist():
        others.setdefault(owners[row], owners[removed_by[row]])
    return others


def enlarge(
    probabilities: Tensor,
    image_size_hw: tuple[int, int],
    output_size_hw: tuple[int, int],
    settings: InferenceSettings,
) -> Tensor:
    """Masks (N, H, W) bool of the original image from probabilities (N, Hf, Wf) at stride 4.

    They are enlarged by 4, cropped to the unpadded input, resized to the output and thresholded;
    in chunks, since the enlarged probabilities take the most memory of all inference.
    """
    size = [MASK_STRIDE * n for n in probabilities.shape[-2:]]
    height, width = image_size_hw
    masks = torch.zeros(
        len(probabilities), *output_size_hw, dtype=torch.bool, device=probabilities.device
    )
    if len(masks) == 0:
        return masks
    num_pixels = max(size[0] * size[1], output_size_hw[0] * output_size_hw[1])
    rows = chunk_rows(num_pixels, probabilities.device)
    for chunk, output in zip(probabilities.split(rows), masks.split(rows), strict=True):
        large = F.interpolate(chunk[None], size=size, mode="bilinear", align_corners=False)
        large = large[..., :height, :width]
        if output_size_hw != image_size_hw:
            large = F.interpolate(large, output_size_hw, mode="bilinear", align_corners=False)
        torch.gt(large[0], settings.mask_thr, out=output)
    return masks


def unmatched_prompts(
    candidates: Candidates, outcomes: Tensor, others: dict[int, int]
) -> list[dict]:
    """[{"instance", "reason"}] of the input instances without a mask, in their order.

    The reason is where the candidate that passed the most steps was dropped. With the reason "nms"
    comes "other", the instance whose mask was better, where there is one.

    Args:
        outcomes: (N,) int64, index into REASONS, -1 for a candidate that made a mask.
        others: see `others_of`.
    """
    reasons = dict(candidates.refused or {})
    if candidates.prompts is not None:
        furthest: dict[int, int] = {}
        for prompt, outcome in zip(candidates.prompts.tolist(), outcomes.tolist(), strict=True):
            outcome = len(REASONS) if outcome < 0 else outcome
            furthest[prompt] = max(outcome, furthest.get(prompt, outcome))
        reasons |= {
            p: REASONS[outcome] for p, outcome in furthest.items() if outcome < len(REASONS)
        }
    unmatched = []
    for i in sorted(reasons):
        item: dict = {"instance": i, "reason": reasons[i]}
        if reasons[i] == "nms" and i in others:
            item["other"] = others[i]
        unmatched.append(item)
    return unmatched
