"""Measure RoI drop where a known share of the pseudo boxes is wrong.

    python -m wsis.benchmarks.planted_boxes --quickstart output/quickstart_weaksam [--seeds 3] \\
        [--shares 0.1 0.2 0.3]

Goes on from a finished `scripts/quickstart.sh --method weaksam`. A share of each seed's adaptive
boxes is moved to where there is no object, with its class, and a Faster R-CNN learns from the
result without and with RoI drop. Prints a table of AP50; the same command goes on after a kill.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weaklabels.files import read_json, write_json
from weaklabels.tags import read_tags
from weaksam.detection_quality import measure_detections
from weaksam.detections import read_detections
from weaksam.pseudo_box_quality import read_true_boxes
from wsis.benchmarks.refiner_recipes import markdown, spread
from wsis.errors import user_message
from wsis.recipes.weaksam import make_run
from wsis.recipes.weaksam_plan import WeakPlan
from wsis.recipes.weaksam_quickstart import Settings, make_plan
from wsis.recipes.weaksam_quickstart_retraining import ADAPTIVE, DETECTOR_CONFIG, network
from wsis.recipes.weaksam_retraining import labels_file, retrain_stage
from wsis.recipes.weaksam_training import results_of
from wsis.runner import run_stages

MOST_OVERLAP = 0.1  # IoU of a wrong box with any object
ATTEMPTS = 50  # places that are tried for a wrong box


def overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) IoU of a box (4,) with boxes (N, 4), all x, y, width, height."""
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[:2] + box[2:], others[:, :2] + others[:, 2:])
    common = (high - low).clip(min=0).prod(axis=1)
    return common / (box[2:].prod() + others[:, 2:].prod(axis=1) - common)


def plant(
    labels: dict[str, Any], truth: dict[str, Any], share: float, seed: int
) -> tuple[dict[str, Any], int]:
    """COCO labels of which a share of the boxes is moved off all objects, and how many were.

    Args:
        truth: COCO annotations of the same images.
    """
    objects: dict[int, list] = {}
    for annotation in truth["annotations"]:
        objects.setdefault(annotation["image_id"], []).append(annotation["bbox"])
    sizes = {image["id"]: (image["width"], image["height"]) for image in labels["images"]}
    rng = np.random.default_rng(seed)
    annotations, moved = list(labels["annotations"]), 0
    for row in rng.permutation(len(annotations)):
        if moved >= round(share * len(annotations)):
            break
        annotation = annotations[row]
        own = np.array(annotation["bbox"], float)
        room = np.maximum(np.array(sizes[annotation["image_id"]]) - own[2:], 0)
        others = np.array(objects.get(annotation["image_id"], []), float).reshape(-1, 4)
        for _ in range(ATTEMPTS):
            place = np.concatenate([rng.random(2) * room, own[2:]])
            if not len(others) or overlaps(place, others).max() < MOST_OVERLAP:
                annotations[row] = annotation | {"bbox": place.tolist()}
                moved += 1
                break
    return labels | {"annotations": annotations}, moved


def measure(args: argparse.Namespace) -> str:
    """Train what is not trained; the table of all seeds."""
    rows = []
    found = {(share, drop): [] for share in args.shares for drop in (False, True)}
    for seed in range(args.seeds):
        plan = make_plan(Settings(args.quickstart), seed)
        for share in args.shares:
            labels = planted_labels(plan, share, seed)
            for drop in (False, True):
                found[share, drop].append(trained_ap50(plan, labels, drop=drop))
    for share in args.shares:
        cells = [spread(found[share, drop]) for drop in (False, True)]
        rows.append([f"{share:.0%}", *cells])
    return markdown(["wrong boxes planted", "AP50", "with RoI drop"], rows)


def planted_labels(plan: WeakPlan, share: float, seed: int) -> Path:
    """The label file with this share of wrong boxes, made if it is not there."""
    output = labels_file(plan, f"planted_{round(100 * share)}")
    if not output.exists():
        labels = read_json(labels_file(plan, ADAPTIVE))
        truth = read_json(plan.source.train.truth["annotations"])
        content, moved = plant(labels, truth, share, seed)
        write_json(output, content)
        print(f"{output}: {moved} of {len(content['annotations'])} boxes are wrong on purpose")
    return output


def trained_ap50(plan: WeakPlan, labels: Path, *, drop: bool) -> float:
    """AP50 on the test images of a detector that learned from labels."""
    name = f"{labels.stem}_{'drop' if drop else 'plain'}"
    own = network(plan, DETECTOR_CONFIG, smoke=False, drop=drop)
    run_stages(make_run(plan, (retrain_stage(plan, name, own, labels, (plan.weights,)),)))
    tags = read_tags(plan.tags("test"))
    truth = read_true_boxes(plan.source.test.truth["annotations"], tags)
    detections = read_detections(results_of(own, plan.output / name), tags)
    return measure_detections(detections, tags, truth).AP50


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quickstart", type=Path, default=Path("output/quickstart_weaksam"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        text = measure(args)
    except (OSError, ValueError) as error:
        if (message := user_message(error)) is None:
            raise
        print(f"planted_boxes: {message}", file=sys.stderr)
        return 2
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
