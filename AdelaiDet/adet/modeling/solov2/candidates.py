"""Choose candidates: the kernels to try on each image, by scores or by labels.

One function for each way to choose. Each takes the predictions of a batch, the labels of its
images, and the thresholds, and returns the candidates of each image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .grids import PyramidGrids, covered_cells, exact_cells
from .inference import Candidates, InferenceSettings, areas_and_maskness
from .labels import InstanceLabels, usable_points
from .predictions import Predictions


def unprompted_candidates(
    predictions: Predictions,
    labels: Sequence[InstanceLabels] | None,
    settings: InferenceSettings,
) -> list[Candidates]:
    """Every cell and class whose score is a local maximum above SCORE_THR.

    Args:
        labels: if given, only the classes that they name are considered.
    """
    scores, kernels = predictions.class_scores(), predictions.kernels()
    output = []
    for i in range(len(scores)):
        chosen = scores[i] > settings.score_thr  # (cells, classes)
        if labels is not None:
            named = torch.zeros(chosen.shape[1], dtype=torch.bool, device=chosen.device)
            named[labels[i].classes] = True
            chosen &= named
        cells, classes = torch.nonzero(chosen, as_tuple=True)
        output.append(Candidates(kernels[i][cells], classes, scores[i][cells, classes], cells))
    return output


def sized_candidates(
    predictions: Predictions, labels: Sequence[InstanceLabels], settings: InferenceSettings
) -> list[Candidates]:
    """The cells that would learn each instance in training, with score 1."""
    return _trained_cells(predictions, labels, scores=None)


def sized_candidates_with_scores(
    predictions: Predictions, labels: Sequence[InstanceLabels], settings: InferenceSettings
) -> list[Candidates]:
    """The cells that would learn each instance in training, with the network's class scores."""
    return _trained_cells(predictions, labels, scores=predictions.class_scores())


def _trained_cells(
    predictions: Predictions, labels: Sequence[InstanceLabels], scores: Tensor | None
) -> list[Candidates]:
    """Candidates on the cells that are positive in training; `scores` None: all scores are 1."""
    queries = []  # per image: cells, instances, reasons of the others
    for size, image_labels in zip(predictions.image_sizes_hw, labels, strict=True):
        usable, refused = usable_points(image_labels, size)
        points, sizes = image_labels.points_xy[usable], image_labels.sizes_wh[usable].double()
        cells, owners = covered_cells(
            points, sizes, predictions.frame_hw, predictions.grids, exact=True
        )
        owners = usable[owners]
        sizeless = set(usable.tolist()) - set(owners.tolist())
        queries.append((cells, owners, refused | dict.fromkeys(sizeless, "size")))
    kernels = predictions.kernels_at([cells for cells, _, _ in queries])
    output = []
    for i, (cells, owners, refused) in enumerate(queries):
        classes = labels[i].classes[owners]
        score = torch.ones_like(kernels[i][:, 0]) if scores is None else scores[i][cells, classes]
        output.append(Candidates(kernels[i], classes, score, cells, owners, refused))
    return output


def point_candidates(
    predictions: Predictions, labels: Sequence[InstanceLabels], settings: InferenceSettings
) -> list[Candidates]:
    """For each point the cell under it on the level that fits best.

    The score of a level is the mask's mean probability inside it times the cell's class
    probability; the candidate of the best level gets score 1. Points never share a query, even in
    one cell.
    """
    grids = predictions.grids
    usable, refused, cells = [], [], []
    for size, image_labels in zip(predictions.image_sizes_hw, labels, strict=True):
        indices, reasons = usable_points(image_labels, size)
        usable.append(indices)
        refused.append(reasons)
        points = image_labels.points_xy[indices]
        cells.append(point_cells(points, predictions.frame_hw, grids))  # (P, L)
    queries = [image_cells.flatten() for image_cells in cells]
    kernels = predictions.kernels_at(queries)
    logits = predictions.class_logits_at(queries)
    output = []
    for i, image_kernels in enumerate(kernels):
        classes = labels[i].classes[usable[i]]
        wanted = classes.repeat_interleave(len(grids))[:, None]
        class_scores = logits[i].gather(1, wanted).sigmoid()[:, 0]
        # All points x levels of the image in one product with its mask feature.
        _, maskness = areas_and_maskness(
            image_kernels, predictions.mask_features[i].flatten(1), settings.mask_thr
        )
        level_scores = (maskness * class_scores).unflatten(0, (-1, len(grids)))  # (P, L)
        best = level_scores.argmax(dim=1) if len(level_scores) else usable[i]
        rows = torch.arange(len(best), device=best.device)
        found = level_scores[rows, best] > 0
        image_refused = refused[i] | dict.fromkeys(usable[i][~found].tolist(), "score_0")
        rows, best, owners = rows[found], best[found], usable[i][found]
        chosen = image_kernels.unflatten(0, (-1, len(grids)))[rows, best]
        output.append(
            Candidates(
                chosen,
                classes[found],
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
