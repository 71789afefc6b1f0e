"""Prompts: what an image's labels tell the network before it segments.

- `none`: nothing; every cell and class with a score makes a candidate.
- `cls_image`: which classes the image holds; other classes' scores are dropped.
- `cls`: class, place and size of each instance; only the scores of its cells and class are left.
- `point`: class and point of each instance; on every level the cell under the point makes a mask
  and the level with the best score wins.
- `point_with_size`: class, point and size of each instance; the cells that would learn it in
  training make its masks, whatever their scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detectron2.structures import Instances

from .grids import PyramidGrids, covered_cells, exact_cells
from .heads import SOLOv2InsHead, convolve_at
from .inference import Candidates, InferenceSettings, areas_and_maskness
from .nms import point_nms
from .targets import centers_of_mass, instance_bitmasks

PROMPTS = ("none", "cls", "cls_image", "point", "point_with_size")
SIZED_PROMPTS = ("cls", "point_with_size")


@dataclass(frozen=True)
class ImagePrompts:
    """Labels of one image's P instances.

    classes: (P,) int64.
    points_xy: (P, 2) float64, pixels of the unpadded network input, NaN where unknown; None for
        prompts without points.
    sizes_wh: (P, 2) box sizes in the same pixels; None for prompts without sizes.
    """

    classes: Tensor
    points_xy: Tensor | None = None
    sizes_wh: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """What candidates are made from: one network run on B images.

    grid_features: (B, C, S, S) a level.  mask_features: (B, K, Hf, Wf).
    image_sizes_hw: unpadded input sizes.  frame_hw: the padded one.
    """

    grid_features: Sequence[Tensor]
    mask_features: Tensor
    image_sizes_hw: Sequence[tuple[int, int]]
    frame_hw: tuple[int, int]


def read_prompts(record: dict, prompt: str, device: torch.device) -> ImagePrompts:
    """Prompts of one input record, from its `instances` (fields gt_*, in the network's frame).

    `gt_points` are the points; where there are none, the masks' centres of mass.
    """
    name = record.get("file_name", "an image")
    if "instances" not in record:
        raise ValueError(
            f"MODEL.SOLOV2.PROMPT={prompt!r} needs labels, but {name} came without 'instances': "
            "load the data with DatasetMapper(..., keep_annotations=True), or set PROMPT to 'none'"
        )
    instances: Instances = record["instances"]
    if not instances.get_fields() or len(instances) == 0:
        pairs = torch.zeros(0, 2, dtype=torch.float64, device=device)
        return ImagePrompts(torch.zeros(0, dtype=torch.int64, device=device), pairs, pairs.float())
    if not instances.has("gt_classes"):
        raise ValueError(f"MODEL.SOLOV2.PROMPT={prompt!r} needs gt_classes; {name} has none")
    classes = instances.gt_classes.to(device)
    if prompt == "cls_image":
        return ImagePrompts(classes)
    points = instance_points(instances, prompt, name).to(device)
    if prompt not in SIZED_PROMPTS:
        return ImagePrompts(classes, points)
    if not instances.has("gt_boxes"):
        raise ValueError(
            f"MODEL.SOLOV2.PROMPT={prompt!r} needs gt_boxes for the instances' sizes; {name} has "
            "none. Points alone serve the prompts 'point' and 'cls_image'"
        )
    boxes = instances.gt_boxes.tensor.to(device)
    return ImagePrompts(classes, points, boxes[:, 2:] - boxes[:, :2])


def instance_points(instances: Instances, prompt: str, name: str) -> Tensor:
    """Points (P, 2) float64 x and y of instances; NaN for an empty mask without a point."""
    if instances.has("gt_points"):
        return instances.gt_points.double()
    if not instances.has("gt_masks"):
        raise ValueError(
            f"MODEL.SOLOV2.PROMPT={prompt!r} needs gt_points, or gt_masks to take their centres; "
            f"{name} has neither"
        )
    centers, areas = centers_of_mass(instance_bitmasks(instances))
    return centers.double().masked_fill((areas == 0)[:, None], torch.nan)


def usable_points(prompts: ImagePrompts, image_size_hw: tuple[int, int]) -> tuple[Tensor, dict]:
    """Indices (P,) of the prompts whose point lies in the image, and the others' reasons.

    The image's far borders count as inside: flipping a point at 0 puts it there.
    """
    height, width = image_size_hw
    size = prompts.points_xy.new_tensor([width, height])
    known = ~prompts.points_xy.isnan().any(dim=1)
    inside = ((prompts.points_xy >= 0) & (prompts.points_xy <= size)).all(dim=1)
    refused = {i: "no_point" for i in torch.nonzero(~known).flatten().tolist()}
    refused |= {i: "outside" for i in torch.nonzero(known & ~inside).flatten().tolist()}
    return torch.nonzero(inside).flatten(), refused


def flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """Maps (B, C, S, S) of all levels as rows of cells: (B, sum of S * S, C)."""
    return torch.cat([x.flatten(2) for x in maps], dim=2).transpose(1, 2)


def predict_at(
    conv: torch.nn.Conv2d, towers: Sequence[Tensor], images: Tensor, cells: Tensor, grids
) -> Tensor:
    """A prediction convolution at cells (Q,), flat over all levels, of images (Q,): (Q, C)."""
    levels = grids.levels_of(cells)
    output = towers[0].new_zeros(len(cells), conv.out_channels)
    for level, (tower, offset) in enumerate(zip(towers, grids.offsets, strict=True)):
        chosen = levels == level
        output[chosen] = convolve_at(conv, tower, images[chosen], cells[chosen] - offset).to(output)
    return output


def unprompted_candidates(
    head: SOLOv2InsHead,
    batch: Batch,
    grids: PyramidGrids,
    settings: InferenceSettings,
    prompts: Sequence[ImagePrompts] | None = None,
) -> list[Candidates]:
    """Every cell and class whose score is a local best above SCORE_THR.

    Args:
        prompts: with them, only classes that they name (`cls_image`).
    """
    towers = head.category_towers(batch.grid_features)
    scores = flatten_levels([point_nms(head.cate_pred(x).sigmoid()) for x in towers])
    kernels = flatten_levels([head.kernel_pred(x) for x in head.kernel_towers(batch.grid_features)])
    output = []
    for i in range(len(scores)):
        chosen = scores[i] > settings.score_thr  # (cells, classes)
        if prompts is not None:
            named = torch.zeros(head.num_classes, dtype=torch.bool, device=scores.device)
            named[prompts[i].classes] = True
            chosen &= named
        cells, classes = torch.nonzero(chosen, as_tuple=True)
        output.append(Candidates(kernels[i][cells], classes, scores[i][cells, classes], cells))
    return output


def sized_candidates(
    head: SOLOv2InsHead,
    batch: Batch,
    grids: PyramidGrids,
    prompts: Sequence[ImagePrompts],
    *,
    use_scores: bool,
) -> list[Candidates]:
    """The cells that would learn each instance in training, as candidates of its class.

    Args:
        use_scores: keep the network's scores (`cls`), else all are 1 (`point_with_size`) and the
            category branch is not run.
    """
    queries = []  # per image: cells, instances, reasons of the others
    for size, image_prompts in zip(batch.image_sizes_hw, prompts, strict=True):
        usable, refused = usable_points(image_prompts, size)
        points, sizes = image_prompts.points_xy[usable], image_prompts.sizes_wh[usable].double()
        cells, owners = covered_cells(points, sizes, batch.frame_hw, grids, exact=True)
        owners = usable[owners]
        sizeless = set(usable.tolist()) - set(owners.tolist())
        queries.append((cells, owners, refused | dict.fromkeys(sizeless, "size")))
    counts = [len(cells) for cells, _, _ in queries]
    all_cells = torch.cat([cells for cells, _, _ in queries])
    images = torch.arange(len(counts), device=all_cells.device).repeat_interleave(
        torch.tensor(counts, device=all_cells.device)
    )
    towers = head.kernel_towers(batch.grid_features)
    kernels = predict_at(head.kernel_pred, towers, images, all_cells, grids).split(counts)
    if use_scores:
        towers = head.category_towers(batch.grid_features)
        scores = flatten_levels([point_nms(head.cate_pred(x).sigmoid()) for x in towers])
    output = []
    for i, (cells, owners, refused) in enumerate(queries):
        classes = prompts[i].classes[owners]
        score = scores[i][cells, classes] if use_scores else torch.ones_like(kernels[i][:, 0])
        output.append(Candidates(kernels[i], classes, score, cells, owners, refused))
    return output


def point_candidates(
    head: SOLOv2InsHead,
    batch: Batch,
    grids: PyramidGrids,
    settings: InferenceSettings,
    prompts: Sequence[ImagePrompts],
) -> list[Candidates]:
    """For each point the cell under it on the level whose mask and class score are best.

    A level's score is the mask's mean probability inside it times the cell's class probability;
    the winning candidate's own score is 1. Points never share a query, even in one cell.
    """
    usable, refused, cells = [], [], []
    for size, image_prompts in zip(batch.image_sizes_hw, prompts, strict=True):
        indices, reasons = usable_points(image_prompts, size)
        usable.append(indices)
        refused.append(reasons)
        cells.append(point_cells(image_prompts.points_xy[indices], batch.frame_hw, grids))
    flat = torch.cat(cells).flatten()  # (points of all images * levels,)
    counts = [len(indices) * len(grids) for indices in usable]
    images = torch.arange(len(counts), device=flat.device).repeat_interleave(
        torch.tensor(counts, device=flat.device)
    )
    classes = torch.cat([p.classes[u] for p, u in zip(prompts, usable, strict=True)])
    towers = head.kernel_towers(batch.grid_features)
    kernels = predict_at(head.kernel_pred, towers, images, flat, grids)
    towers = head.category_towers(batch.grid_features)
    logits = predict_at(head.cate_pred, towers, images, flat, grids)
    wanted = classes.repeat_interleave(len(grids))[:, None]
    class_scores = logits.gather(1, wanted).sigmoid()[:, 0].split(counts)
    output = []
    for i, image_kernels in enumerate(kernels.split(counts)):
        # All points x levels of the image in one product with its mask feature.
        _, maskness = areas_and_maskness(
            image_kernels, batch.mask_features[i].flatten(1), settings.mask_thr
        )
        level_scores = (maskness * class_scores[i]).unflatten(0, (-1, len(grids)))  # (P, L)
        best = level_scores.argmax(dim=1) if len(level_scores) else usable[i]
        rows = torch.arange(len(best), device=best.device)
        found = level_scores[rows, best] > 0
        image_refused = refused[i] | dict.fromkeys(usable[i][~found].tolist(), "score_0")
        rows, best, owners = rows[found], best[found], usable[i][found]
        chosen = image_kernels.unflatten(0, (-1, len(grids)))[rows, best]
        output.append(
            Candidates(
                chosen,
                prompts[i].classes[owners],
                torch.ones_like(chosen[:, 0]),
                cells[i][rows, best],
                owners,
                image_refused,
            )
        )
    return output


def point_cells(points_xy: Tensor, frame_hw: tuple[int, int], grids: PyramidGrids) -> Tensor:
    """Flat number of the cell that holds each point, on each level: (P, L) int64."""
    levels = []
    for grid, offset in zip(grids.num_grids, grids.offsets, strict=True):
        column = exact_cells(points_xy[:, 0], frame_hw[1], grid).clamp(0, grid - 1)
        row = exact_cells(points_xy[:, 1], frame_hw[0], grid).clamp(0, grid - 1)
        levels.append(offset + row * grid + column)
    return torch.stack(levels, dim=1)
