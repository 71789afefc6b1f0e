"""Match predicted boxes or anchors to ground truth by a table of match qualities."""

import torch
from torch import Tensor

from detectron2.layers import nonzero_tuple

LABELS = (-1, 0, 1)  # ignored, background, foreground
TOP_PER_GROUND_TRUTH = 3  # WeakSAM's detector; SPEC_WEAKSAM 6.2


class Matcher:
    """Match each prediction to the ground truth that fits best, and label it by the quality."""

    def __init__(
        self, thresholds: list[float], labels: list[int], allow_low_quality_matches: bool = False
    ):
        """
        Args:
            thresholds: qualities, above 0 and rising, that divide the predictions into strata.
            labels: -1 (ignored), 0 (background) or 1 (foreground) for each stratum, from the
                lowest; one more than thresholds. A quality equal to a threshold is above it.
            allow_low_quality_matches: also give label 1 to the best predictions for each ground
                truth, at any quality above 0.
        """
        thresholds = list(thresholds)
        if not thresholds or thresholds[0] <= 0 or thresholds != sorted(thresholds):
            raise ValueError(f"thresholds must be above 0 and rising, got {thresholds}")
        if len(labels) != len(thresholds) + 1 or any(label not in LABELS for label in labels):
            raise ValueError(
                f"{len(thresholds)} thresholds {thresholds} need {len(thresholds) + 1} labels out "
                f"of {LABELS}, got {list(labels)}"
            )
        self.thresholds = thresholds
        self.labels = list(labels)
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            match_quality_matrix: (M, N) for M ground truths and N predictions, such as pairwise
                IoU; at least 0.

        Returns:
            (N,) int64 index of the ground truth of each prediction, and (N,) int8 labels. Without
            ground truth, all indices are 0 and all labels those of the lowest stratum.
        """
        if match_quality_matrix.dim() != 2:
            raise ValueError(
                "match qualities must have shape (ground truths, predictions), got "
                f"{tuple(match_quality_matrix.shape)}"
            )
        if not (match_quality_matrix >= 0).all():
            raise ValueError("match qualities must be numbers of at least 0; some are not")
        if len(match_quality_matrix) > 0:
            qualities, matches = match_quality_matrix.max(dim=0)
        else:
            qualities = match_quality_matrix.new_zeros(match_quality_matrix.shape[1])
            matches = qualities.long()
        # Stratum i lies between thresholds i - 1 (included) and i.
        strata = torch.bucketize(qualities, qualities.new_tensor(self.thresholds), right=True)
        match_labels = torch.tensor(self.labels, dtype=torch.int8, device=strata.device)[strata]
        if self.allow_low_quality_matches and match_quality_matrix.numel() > 0:
            self.set_low_quality_matches_(match_labels, match_quality_matrix)
        return matches, match_labels

    def set_low_quality_matches_(self, match_labels: Tensor, match_quality_matrix: Tensor) -> None:
        """Give label 1, in place, to the predictions (ties included) that fit a ground truth best.

        Their match does not change: it may be another ground truth, which fits them better. A
        ground truth with quality 0 everywhere labels none.
        """
        best = match_quality_matrix.amax(dim=1, keepdim=True)
        is_best = (match_quality_matrix == best) & (best > 0)
        match_labels[nonzero_tuple(is_best)[1]] = 1


class TopKMatcher(Matcher):
    """As `Matcher`, but each ground truth can only be matched by the few that fit it best.

    The others are in the lowest stratum, whatever their quality. Of equal qualities the first ones
    count.
    """

    def __init__(self, thresholds: list[float], labels: list[int], top: int = TOP_PER_GROUND_TRUTH):
        super().__init__(thresholds, labels)
        self.top = top

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        best = match_quality_matrix.argsort(dim=-1, descending=True, stable=True)[..., : self.top]
        kept = torch.zeros_like(match_quality_matrix)
        return super().__call__(kept.scatter(-1, best, match_quality_matrix.gather(-1, best)))


MATCHERS = {"iou": Matcher, "topk": TopKMatcher}
