"""COCO mask AP of pseudo labels.

It is not the AP of a detector: true points told the labels where to look.
"""

import contextlib
import io

import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from weaklabels.statistics import ImageLabels

LEAST_MAX_LABELS = 100  # per image, as in COCO; more where an image has more pseudo labels


def label_ap(images: dict[int, ImageLabels], force_scores: bool) -> dict[str, float | None]:
    """COCO mask AP of pseudo labels, in percent; None where there is no instance to find.

    Size classes are by the area of the true mask. No pseudo label is dropped, however many an
    image has.

    Args:
        images: by image id.
        force_scores: count every score as 1.
    """
    categories = sorted({label.category_id for e in images.values() for label in e.truth})
    most = max((len(entry.pseudo) for entry in images.values()), default=0)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = _coco(images, categories, "truth", False)
        evaluation = COCOeval(truth, _coco(images, categories, "pseudo", force_scores), "segm")
        evaluation.params.maxDets = [max(LEAST_MAX_LABELS, most)]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]  # (IoU thresholds, recalls, classes, areas, 1)
    areas = evaluation.params.areaRngLbl
    thresholds = evaluation.params.iouThrs.round(2).tolist()
    picks = {"AP": precision[:, :, :, 0]}
    for threshold in (0.5, 0.75):
        picks[f"AP{threshold * 100:.0f}"] = precision[thresholds.index(threshold), :, :, 0]
    for name in ("small", "medium", "large"):
        picks[f"AP{name[0]}"] = precision[:, :, :, areas.index(name)]
    return {name: _mean_valid(values) for name, values in picks.items()}


def _mean_valid(values: np.ndarray) -> float | None:
    valid = values[values > -1]  # -1: no such instance
    return 100 * float(valid.mean()) if valid.size else None


def _coco(
    images: dict[int, ImageLabels], categories: list[int], kind: str, force_scores: bool
) -> COCO:
    annotations = []
    for image_id, entry in images.items():
        for label in getattr(entry, kind):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label.category_id,
                    "segmentation": label.rle,
                    "area": float(mask_utils.area(label.rle)),
                    "bbox": mask_utils.toBbox(label.rle).tolist(),
                    "iscrowd": int(label.crowd),
                    "score": 1.0 if force_scores else label.score,
                }
            )
    coco = COCO()
    coco.dataset = {
        "images": [entry.image for entry in images.values()],
        "annotations": annotations,
        "categories": [{"id": c} for c in categories],
    }
    coco.createIndex()
    return coco
