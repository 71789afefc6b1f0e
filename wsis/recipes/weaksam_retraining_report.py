"""The tables of WeakSAM's quick start behind MIST: pseudo boxes, retrained detectors, masks."""

from collections.abc import Callable, Sequence
from pathlib import Path

from weaklabels.files import read_json
from wsis.recipes.weaksam_quickstart_retraining import RetrainedRun

BOX_HEADERS = ("pseudo boxes of MIST", "boxes an image", "precision", "recall", "F1")
DETECTOR_HEADERS = ("detector that learned from boxes", "AP50 on test images")
MASK_HEADERS = ("segmenter", "mask AP25", "AP50", "AP70", "AP75")
MASK_PROTOCOL = (
    "mask AP: COCO's segm AP at one IoU each, 100 masks an image, mean over classes, on the test "
    "images"
)


def box_figures(run: RetrainedRun) -> dict[str, list[float]]:
    """Boxes an image, precision, recall and F1 in percent; 0 where a rule kept no box."""
    figures = {}
    for title, path in run.boxes.items():
        report = read_json(path)
        shares = (report[name] for name in ("precision", "recall", "f1"))
        figures[title] = [report["boxes_per_image"], *(100 * (share or 0.0) for share in shares)]
    return figures


def detector_figures(run: RetrainedRun, ap50: Callable[[Path], float]) -> dict[str, list[float]]:
    """AP50 of each detector. ap50: measures COCO results on the test images."""
    return {title: [ap50(path)] for title, path in run.detectors.items()}


def mask_figures(run: RetrainedRun) -> dict[str, list[float]]:
    """AP25, AP50, AP70 and AP75 of the segmenters' masks."""
    figures = {}
    for title, path in run.masks.items():
        results = read_json(path)["results"]["segm"]
        figures[title] = [results[name] for name in ("AP25", "AP50", "AP70", "AP75")]
    return figures


def notes(runs: Sequence[RetrainedRun]) -> list[str]:
    """What has to be known to read the tables."""
    return [
        f"each of these networks begins with the classifier's backbone and sees "
        f"{runs[0].images_seen} images; protocol of pseudo boxes: IoU of 0.5, see "
        "`wsis evaluate-detections --boxes`",
        MASK_PROTOCOL,
    ]
