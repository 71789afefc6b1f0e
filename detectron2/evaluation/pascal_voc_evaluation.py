"""Box AP by Pascal VOC's rule, and CorLoc, from a model's `Instances`.

The rule: in order of score, each detection is compared with the object of its class and image that
it overlaps most. If the overlap exceeds the threshold, the detection is correct for an object that
was not found before and wrong for one that was; difficult objects do not count. Boxes are 1-based
inclusive pixel indices, so a box is xmax - xmin + 1 wide.
"""

import logging
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

import detectron2.utils.comm as comm
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.pascal_voc import VOCObject, read_image_set, read_voc_annotation
from detectron2.evaluation.evaluator import DatasetEvaluator
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

__all__ = ["PascalVOCDetectionEvaluator", "voc_ap", "voc_eval"]

YEARS = (2007, 2012)
IOU_PERCENTS = range(50, 100, 5)
CORLOC_THRESHOLD = 0.5
_NUM_WORDS = 6  # of a line of results: image, score, four corners


class PascalVOCDetectionEvaluator(DatasetEvaluator):
    """AP of boxes at 0.5, 0.75 and over 0.50, 0.55, ..., 0.95, as VOC 2007 or 2012 defines it.

    Every image of the split counts. A class with no object (or only difficult ones) in the split
    has no AP and does not enter the mean. Of several processes, the main one computes the figures.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        use_07_metric: bool | None = None,
        corloc: bool = False,
        mode: str | None = None,
    ) -> None:
        """
        Args:
            dataset_name: one registered by `register_pascal_voc`.
            use_07_metric: average precision over 11 recalls, as for VOC 2007; False: the area under
                the curve; None: by the year of the dataset.
            corloc: also compute CorLoc.
            mode: what made the predictions if not a plain detector, shown with the figures.
        """
        self.mode = mode
        self._logger = logging.getLogger(__name__)
        self._dataset_name = dataset_name
        metadata = MetadataCatalog.get(dataset_name)
        missing = [key for key in ("dirname", "split", "year") if metadata.get(key) is None]
        if missing:
            raise ValueError(
                f"dataset {dataset_name!r} has no {missing} in its metadata: this evaluator needs "
                "one that register_pascal_voc registered"
            )
        if metadata.year not in YEARS:
            raise ValueError(f"dataset {dataset_name!r}: year={metadata.year!r}; allowed {YEARS}")
        self._use_07_metric = metadata.year == 2007 if use_07_metric is None else use_07_metric
        self._corloc = corloc
        self._class_names = list(metadata.thing_classes)
        folder = PathManager.get_local_path(os.path.join(metadata.dirname, "Annotations/"))
        self._annotation_template = os.path.join(folder, "{}.xml")
        self._image_set_path = os.path.join(
            metadata.dirname, "ImageSets", "Main", f"{metadata.split}.txt"
        )
        self._predictions: dict[int, list[str]] = defaultdict(list)

    def reset(self) -> None:
        self._predictions = defaultdict(list)

    def process(self, inputs: Iterable[dict[str, Any]], outputs: Iterable[dict[str, Any]]) -> None:
        """Take one batch.

        Args:
            inputs: dicts with `image_id`, VOC's name of the image.
            outputs: dicts with `instances`, in the frame of the original image.
        """
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to(torch.device("cpu"))
            boxes = instances.pred_boxes.tensor.numpy() + np.array([1, 1, 0, 0])
            scores, classes = instances.scores.tolist(), instances.pred_classes.tolist()
            for box, score, category in zip(boxes.tolist(), scores, classes, strict=True):
                if not 0 <= category < len(self._class_names):
                    raise ValueError(
                        f"image {image['image_id']}: a prediction has class {category}; the "
                        f"dataset has {len(self._class_names)}. Does the number of classes in the "
                        "config match it?"
                    )
                # Upstream parity: VOC's result format, whose rounding moves figures a little.
                corners = " ".join(f"{value:.1f}" for value in box)
                line = f"{image['image_id']} {score:.3f} {corners}"
                self._predictions[category].append(line)

    def evaluate(self) -> dict[str, Any]:
        """`{"bbox": {"AP": …, "AP50": …, "AP75": …}}` in percent on the main process, else empty.

        With "CorLoc" on request. A figure is NaN if the split has no object to find.
        """
        gathered = comm.gather(dict(self._predictions), dst=0)
        if not comm.is_main_process():
            return {}
        objects = _read_objects(self._annotation_template, self._image_set_path)
        figures = {}
        for category, name in enumerate(self._class_names):
            lines = [line for part in gathered for line in part.get(category, ())]
            where = f"predictions of class {name!r}"
            judged = _judge(_Detections.parse(lines, where), _of_class(objects, name), where)
            figures[name] = self._figures(judged)
        means = {
            key: _mean([of_class[key] for of_class in figures.values()])
            for key in ("AP", "AP50", "AP75", *(["CorLoc"] if self._corloc else []))
        }
        self._log(figures, means)
        return {"bbox": means}

    def _figures(self, judged: "_Judged") -> dict[str, float]:
        """AP, AP50, AP75 and on request CorLoc of one class, in percent."""
        aps = {
            percent: 100 * judged.average_precision(percent / 100, self._use_07_metric)
            for percent in IOU_PERCENTS
        }
        figures = {"AP": float(np.mean(list(aps.values()))), "AP50": aps[50], "AP75": aps[75]}
        if self._corloc:
            figures["CorLoc"] = 100 * judged.corloc(CORLOC_THRESHOLD)
        return figures

    def _log(self, figures: dict[str, dict[str, float]], means: dict[str, float]) -> None:
        rule = "11 recalls" if self._use_07_metric else "area under the curve"
        suffix = "" if self.mode is None else f" [{self.mode}]"
        rows = [[name, *of_class.values()] for name, of_class in figures.items()]
        table = tabulate(rows, headers=["class", *means], tablefmt="pipe", floatfmt=".3f")
        self._logger.info("Pascal VOC box AP by class (%s)%s:\n%s", rule, suffix, table)
        self._logger.info(
            "Evaluation results for bbox on %s%s:\n%s",
            *(self._dataset_name, suffix, create_small_table(means)),
        )


@dataclass(frozen=True)
class _Detections:
    """Detections of one class over all images: names, (D,) scores, (D, 4) boxes from 1."""

    images: list[str]
    scores: np.ndarray
    boxes: np.ndarray

    @classmethod
    def parse(cls, lines: Iterable[str], where: str) -> "_Detections":
        """Read VOC's result lines, `image score xmin ymin xmax ymax`."""
        images, values = [], []
        for number, line in enumerate(lines, start=1):
            words = line.split()
            if len(words) != _NUM_WORDS:
                raise ValueError(
                    f"{where}, line {number}: expected 'image score xmin ymin xmax ymax', got "
                    f"{line.strip()!r}"
                )
            images.append(words[0])
            values.append([float(word) for word in words[1:]])
        numbers = np.array(values, dtype=np.float64).reshape(-1, _NUM_WORDS - 1)
        return cls(images, numbers[:, 0], numbers[:, 1:])


@dataclass(frozen=True)
class _Judged:
    """D detections of one class, best score first, and the objects they overlap most.

    overlaps: (D,) IoU with that object, -inf if the image has none of the class.
    matches: (D,) int64 number of the object over all images.  difficult: (D,) bool, of the object.
    images: (D,) int64 number of the image.  num_positive: objects that are not difficult.
    num_images: images with an object of the class, difficult or not.
    """

    overlaps: np.ndarray
    matches: np.ndarray
    difficult: np.ndarray
    images: np.ndarray
    num_positive: int
    num_images: int

    def curve(self, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Recall and precision (D,) after each detection; recall is NaN without objects."""
        above = self.overlaps > threshold  # Upstream parity: VOC's own code takes equality, too
        countable = np.flatnonzero(above & ~self.difficult)
        _, first = np.unique(self.matches[countable], return_index=True)
        correct = np.zeros(len(above), dtype=bool)
        correct[countable[first]] = True
        wrong = ~correct & ~(above & self.difficult)
        num_correct, num_wrong = np.cumsum(correct), np.cumsum(wrong)
        recall = num_correct / (self.num_positive or np.nan)
        return recall, num_correct / np.maximum(num_correct + num_wrong, 1)

    def average_precision(self, threshold: float, use_07_metric: bool) -> float:
        """NaN if there is no object to find."""
        if self.num_positive == 0:
            return float("nan")
        return voc_ap(*self.curve(threshold), use_07_metric)

    def corloc(self, threshold: float) -> float:
        """Share of the images with the class whose best detection hits an object of it."""
        if self.num_images == 0:
            return float("nan")
        _, best = np.unique(self.images, return_index=True)
        return float((self.overlaps[best] > threshold).sum() / self.num_images)


def _judge(detections: _Detections, objects: dict[str, list[VOCObject]], where: str) -> _Judged:
    """Find the object of its image that each detection overlaps most.

    Args:
        objects: those of the class, by image; has every image of the split.
    """
    order = np.argsort(-detections.scores, kind="stable")
    boxes = detections.boxes[order]
    numbers = {image: number for number, image in enumerate(objects)}
    unknown = sorted(set(detections.images) - set(numbers))
    if unknown:
        raise ValueError(
            f"{where}: image {unknown[0]!r} and {len(unknown) - 1} others are not in the evaluated "
            "split"
        )
    images = np.array([numbers[name] for name in detections.images], dtype=np.int64)[order]
    overlaps, matches = np.full(len(order), -np.inf), np.zeros(len(order), dtype=np.int64)
    difficult = np.zeros(len(order), dtype=bool)
    first_object = 0
    rows_of = _rows_by_value(images)
    for number, of_image in enumerate(objects.values()):
        rows = rows_of.get(number)
        if of_image and rows is not None:
            ious = _pairwise_iou(boxes[rows], np.array([o.bbox for o in of_image]))
            best = ious.argmax(axis=1)
            overlaps[rows] = ious[np.arange(len(rows)), best]
            matches[rows] = first_object + best
            difficult[rows] = np.array([o.difficult for o in of_image])[best]
        first_object += len(of_image)
    return _Judged(
        *(overlaps, matches, difficult, images),
        num_positive=sum(not o.difficult for of_image in objects.values() for o in of_image),
        num_images=sum(bool(of_image) for of_image in objects.values()),
    )


def _rows_by_value(values: np.ndarray) -> dict[int, np.ndarray]:
    """The ascending indices of each value."""
    order = np.argsort(values, kind="stable")
    found, starts = np.unique(values[order], return_index=True)
    return dict(zip(found.tolist(), np.split(order, starts[1:]), strict=True)) if len(found) else {}


def _pairwise_iou(boxes1: np.ndarray, boxes2: np.ndarray) -> np.ndarray:
    """(N, 4) and (M, 4) boxes of inclusive pixel indices -> (N, M)."""
    low = np.maximum(boxes1[:, None, :2], boxes2[None, :, :2])
    high = np.minimum(boxes1[:, None, 2:], boxes2[None, :, 2:])
    shared = np.prod(np.maximum(high - low + 1, 0), axis=2)
    area1 = np.prod(boxes1[:, 2:] - boxes1[:, :2] + 1, axis=1)
    area2 = np.prod(boxes2[:, 2:] - boxes2[:, :2] + 1, axis=1)
    return shared / (area1[:, None] + area2[None] - shared)


def _read_objects(annotation_template: str, image_set_path: str) -> dict[str, list[VOCObject]]:
    """All objects of each image of a list."""
    return {
        image: list(read_voc_annotation(annotation_template.format(image)).objects)
        for image in read_image_set(image_set_path)
    }


def _of_class(objects: dict[str, list[VOCObject]], name: str) -> dict[str, list[VOCObject]]:
    return {image: [o for o in found if o.name == name] for image, found in objects.items()}


def _mean(values: list[float]) -> float:
    """Mean of the values that are not NaN; NaN if there is none."""
    measured = [value for value in values if not np.isnan(value)]
    return float(np.mean(measured)) if measured else float("nan")


def voc_ap(rec: np.ndarray, prec: np.ndarray, use_07_metric: bool = False) -> float:
    """Average precision, 0 to 1, of a curve of recall and precision, best score first.

    Args:
        use_07_metric: mean over the recalls 0, 0.1, ..., 1 of the best precision at that recall or
            more, as for VOC 2007; False: area under the monotone envelope of the curve.
    """
    rec, prec = np.asarray(rec, dtype=np.float64), np.asarray(prec, dtype=np.float64)
    if rec.size == 0:
        return 0.0
    if use_07_metric:
        # Upstream parity: the fourth of these is slightly above 0.3, so 3 of 10 do not reach it.
        levels = np.arange(0.0, 1.1, 0.1)
        best = [prec[rec >= level].max(initial=0.0) for level in levels]
        return float(np.mean(best))
    envelope = np.maximum.accumulate(prec[::-1])[::-1]
    return float(np.sum(np.diff(rec, prepend=0.0) * envelope))


def voc_eval(
    detpath: str,
    annopath: str,
    imagesetfile: str,
    classname: str,
    ovthresh: float = 0.5,
    use_07_metric: bool = False,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Recall and precision after each detection of one class, best score first, and their AP.

    All lie in [0, 1]. Recall and AP are NaN if the split has no object of the class.

    Args:
        detpath: result files, with {} for the class; lines `image score xmin ymin xmax ymax`.
        annopath: annotation files, with {} for the image.
        imagesetfile: list of the images.
        ovthresh: IoU that a correct detection must exceed.
        use_07_metric: see `voc_ap`.
    """
    path = detpath.format(classname)
    with PathManager.open(path, "r") as file:
        detections = _Detections.parse(file, f"'{path}'")
    objects = _of_class(_read_objects(annopath, imagesetfile), classname)
    judged = _judge(detections, objects, f"'{path}'")
    return *judged.curve(ovthresh), judged.average_precision(ovthresh, use_07_metric)
