"""Match predicted boxes or anchors to ground truth by a table of match qualities."""

import torch
from torch import Tensor

from detectron2.layers import nonzero_tuple

__all__ = ["Matcher"]

LABELS = (-1, 0, 1)  # ignored, background, foreground


class Matcher:
    """Give each prediction the ground truth that fits it best, and a label by how well it fits."""

    def __init__(
        self, thresholds: list[float], labels: list[int], allow_low_quality_matches: bool = False
    ):
        """
        Args:
            thresholds: qualities, above 0 and rising, that divide the predictions into strata.
            labels: -1 (ignored), 0 (background) or 1 (foreground) of each stratum, from the lowest;
                one more than thresholds. Qualities that equal a threshold belong above it.
            allow_low_quality_matches: label 1 also the best predictions for each ground truth,
                however low their quality, as long as it is above 0.
        """
        thresholds = list(thresholds)
        if not thresholds or thresholds[0] <= 0 or thresholds != sorted(thresholds):
            raise ValueError(f"thresholds must be above 0 and rising, got {thresholds}")
        if len(labels) != len(thresholds) + 1 or any(label not in LABELS for label in labels):
            raise ValueError(
                f"{len(thresholds)} thresholds {thresholds} need {len(thresholds) + 1} labels out "
                f"of {LABELS}, got {list(labels)}"
            )
        self.thresholds = [-float("inf"), *thresholds, float("inf")]
        self.labels = list(labels)
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            match_quality_matrix: (M, N), for M ground truths and N predictions, such as pairwise
                IoU; at least 0.

        Returns:
            (N,) int64 index of the ground truth of each prediction, and (N,) int8 labels. Without
            ground truth indices are 0 and labels those of the lowest stratum.
        """
        if match_quality_matrix.dim() != 2:
            raise ValueError(
                "match qualities must have shape (ground truths, predictions), got "
                f"{tuple(match_quality_matrix.shape)}"
            )
        num_predictions = match_quality_matrix.shape[1]
        if match_quality_matrix.numel() == 0:
            return (
                match_quality_matrix.new_zeros(num_predictions, dtype=torch.int64),
                match_quality_matrix.new_full((num_predictions,), self.labels[0], dtype=torch.int8),
            )
        if not (match_quality_matrix >= 0).all():
            raise ValueError("match qualities must be numbers of at least 0; some are not")
        qualities, matches = match_quality_matrix.max(dim=0)
        match_labels = torch.ones_like(matches, dtype=torch.int8)
        for label, low, high in zip(
            self.labels, self.thresholds[:-1], self.thresholds[1:], strict=True
        ):
            match_labels[(qualities >= low) & (qualities < high)] = label
        if self.allow_low_quality_matches:
            self.set_low_quality_matches_(match_labels, match_quality_matrix)
        return matches, match_labels

    def set_low_quality_matches_(self, match_labels: Tensor, match_quality_matrix: Tensor) -> None:
        """Label 1, in place, the predictions (ties included) that fit a ground truth best.

        Their match stays the ground truth that fits them best, which may be another one. A ground
        truth that no prediction touches (quality 0 everywhere) labels none.
        """
        best = match_quality_matrix.amax(dim=1, keepdim=True)
        is_best = (match_quality_matrix == best) & (best > 0)
        match_labels[nonzero_tuple(is_best)[1]] = 1
