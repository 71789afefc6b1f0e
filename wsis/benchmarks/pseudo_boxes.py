"""Time the adaptive rule against the reference's loops, in one run.

    python -m wsis.benchmarks.pseudo_boxes

The twin goes through the images, then their detections, then all pairs of these, as SPEC_WEAKSAM 5
describes the reference.
"""

import sys
from collections.abc import Sequence

import numpy as np

from weaklabels.tags import TaggedImage, Tags
from weaksam.detections import Detections
from weaksam.pseudo_boxes import AdaptiveRule, select_boxes
from wsis.benchmarks.maskrefinenet import Row, best_times, print_rows

SPEED_UP = 20.0  # to reach
CLASSES, SIDE = 20, 500

Detection = tuple[int, float, list[float]]  # class, score, box x, y, width, height


def plain_adaptive(
    detections: Sequence[Detection], tags: set[int], keep: float, contain: float
) -> list[tuple[int, float, float, list[float]]]:
    """(class, score, normalized score, box) of one image, whose scores fall within each class.

    Two boxes that contain each other are both dropped.
    """
    tagged = [found for found in detections if found[0] in tags]
    high: dict[int, float] = {}
    low: dict[int, float] = {}
    for index, score, _ in tagged:
        high[index] = max(high.get(index, score), score)
        low[index] = min(low.get(index, score), score)
    close, seen = [], set()
    for index, score, box in tagged:
        normalized = score / (high[index] - low[index] + 1e-8)
        if index not in seen or normalized >= keep:
            close.append((index, score, normalized, box))
        seen.add(index)
    removed = set()
    for i, (index, _, _, (x, y, w, h)) in enumerate(close):
        for j, (other, _, _, (u, v, s, t)) in enumerate(close):
            if i != j and index == other:
                wide = min(x + w, u + s) - max(x, u)
                tall = min(y + h, v + t) - max(y, v)
                if max(wide, 0) * max(tall, 0) / (w * h + 1e-6) >= contain:
                    removed.add(i)
    return [found for i, found in enumerate(close) if i not in removed]


def random_detections(rng: np.random.Generator, images: int, boxes: int) -> tuple[Detections, Tags]:
    """Detections of images that show one to three classes, most of these classes."""
    shown = [sorted(rng.choice(CLASSES, rng.integers(1, 4), replace=False)) for _ in range(images)]
    tags = Tags(
        tuple(
            TaggedImage(i + 1, f"{i + 1}.jpg", SIDE, SIDE, tuple(int(c) + 1 for c in own))
            for i, own in enumerate(shown)
        ),
        tuple((c + 1, f"class {c}") for c in range(CLASSES)),
    )
    classes = [
        np.where(rng.random(boxes) < 0.8, rng.choice(own, boxes), rng.integers(0, CLASSES, boxes))
        for own in shown
    ]
    corners = rng.uniform(0, SIDE - 10, (images * boxes, 2))
    sides = np.minimum(rng.uniform(10, 200, (images * boxes, 2)), SIDE - corners)
    scores = rng.beta(0.5, 3, (images, boxes))
    scores = -np.sort(-scores, axis=1)
    return Detections(
        np.repeat(np.arange(images), boxes),
        np.concatenate(classes),
        np.hstack([corners, sides]),
        scores.ravel(),
    ), tags


def plain_selection(
    detections: Detections, tags: Tags, rule: AdaptiveRule
) -> list[tuple[int, int, float, float, list[float]]]:
    """(image, class, score, normalized score, box) by the loops, in the order of `select_boxes`."""
    own: list[list[Detection]] = [[] for _ in tags.images]
    index_of = tags.index_of
    columns = (detections.images, detections.classes, detections.scores, detections.boxes)
    for image, index, score, box in zip(*(c.tolist() for c in columns), strict=True):
        own[image].append((index, score, box))
    return [
        (row, *kept)
        for row, image in enumerate(tags.images)
        for kept in sorted(
            plain_adaptive(
                own[row], {index_of[c] for c in image.category_ids}, rule.keep, rule.contain
            ),
            key=lambda kept: (kept[0], -kept[1]),
        )
    ]


def measure(*, images: int = 5000, boxes: int = 100, repeats: int = 3) -> list[Row]:
    """The table; on one thread, as neither side has more."""
    detections, tags = random_detections(np.random.default_rng(0), images, boxes)
    rule = AdaptiveRule(tie="reference")
    found = select_boxes(detections, tags, rule)
    kept = found.detections
    columns = (kept.images, kept.classes, kept.scores, found.normalized, kept.boxes)
    ours = list(zip(*(c.tolist() for c in columns), strict=True))
    same = "the same boxes" if ours == plain_selection(detections, tags, rule) else "OTHER BOXES"
    slow, fast = best_times(
        repeats,
        lambda: plain_selection(detections, tags, rule),
        lambda: select_boxes(detections, tags, rule),
    )
    return [
        Row(
            f"adaptive rule, {images} images x {boxes} boxes, {len(ours)} kept, {same}",
            f"{slow:.2f} s",
            f"{fast:.2f} s",
            slow / fast,
            f">= {SPEED_UP:g}",
            slow / fast >= SPEED_UP and same == "the same boxes",
        )
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a figure misses its target."""
    return print_rows(measure())


if __name__ == "__main__":
    sys.exit(main())
