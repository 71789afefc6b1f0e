"""Box AP by Pascal VOC's rule, and CorLoc, from a model's `Instances`.

The rule: going down the scores, a detection is judged by the object of its class and image that it
overlaps most. Overlap above the threshold makes it correct if the object was not found before, and
wrong if it was; an object marked difficult counts neither way. Boxes are 1-based pixel indices,
both ends inclusive, so a box is xmax - xmin + 1 wide.
"""

import logging
import os
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

import detectron2.utils.comm as comm
from detectron2.data import MetadataCatalog
from detectron2.evaluation.evaluator import DatasetEvaluator
from detectron2.utils.file_io import PathManager

__all__ = ["PascalVOCDetectionEvaluator", "parse_rec", "voc_ap", "voc_eval"]

YEARS = (2007, 2012)
IOU_PERCENTS = range(50, 100, 5)
CORLOC_THRESHOLD = 0.5
_NUM_FIELDS = 6  # of a line of results: image, score, four corners


class PascalVOCDetectionEvaluator(DatasetEvaluator):
    """AP of boxes at 0.5, 0.75 and over 0.50, 0.55, ..., 0.95, as VOC 2007 or 2012 defines it.

    Every image of the split counts. A class of which the split has no object (but difficult ones)
    has no AP and does not enter the mean. With several processes each takes its share of images,
    and the main one computes the figures.
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
            corloc: give CorLoc as well.
            mode: what made the predictions, shown with the figures where they are no plain
                detector's.
        """
        self.mode = mode
        self._logger = logging.getLogger(__name__)
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
        annotations = PathManager.get_local_path(os.path.join(metadata.dirname, "Annotations/"))
        self._annotation_template = os.path.join(annotations, "{}.xml")
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
            outputs: dicts with `instances` (`pred_boxes`, `scores`, `pred_classes`), in the frame
                of the original image.
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

        "CorLoc" is among them if it was asked for. NaN where the split has no object to find.
        """
        gathered = comm.gather(dict(self._predictions), dst=0)
        if not comm.is_main_process():
            return {}
        judged = self._judge(gathered)
        rows = [
            [100 * voc_ap(*one.curve(p / 100), self._use_07_metric) for p in IOU_PERCENTS]
            for one in judged.values()
        ]
        aps = np.array([row if one.num_positive else [np.nan] * len(row)
                        for row, one in zip(rows, judged.values(), strict=True)])
        columns = {
            "AP": _row_means(aps),
            "AP50": aps[:, IOU_PERCENTS.index(50)],
            "AP75": aps[:, IOU_PERCENTS.index(75)],
        }
        return columns
