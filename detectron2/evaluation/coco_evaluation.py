"""Box and mask AP by COCO's definition, from a model's `Instances`."""

import contextlib
import copy
import io
import itertools
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import detectron2.utils.comm as comm
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation.evaluator import DatasetEvaluator
from detectron2.evaluation.fast_eval_api import COCOeval_opt
from detectron2.structures import BoxMode, Instances
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table, create_wide_table
from weaklabels.files import atomic_text

__all__ = ["COCOEvaluator", "instances_to_coco_json"]

RESULTS_FILE = "coco_instances_results.json"
TASKS = ("bbox", "segm")
# Name: IoU threshold (None: mean over 0.50, 0.55, ..., 0.95) and area range of COCOeval.
METRICS = {
    "AP": (None, "all"),
    "AP50": (0.5, "all"),
    "AP75": (0.75, "all"),
    "APs": (None, "small"),
    "APm": (None, "medium"),
    "APl": (None, "large"),
}
COCO_IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
DEFAULT_MAX_DETS = 100


class UnknownCategoryError(RuntimeError, AssertionError):
    """A prediction has a class that the dataset lacks; Detectron2 v0.6 has an AssertionError."""


class COCOEvaluator(DatasetEvaluator):
    """COCO's AP for boxes and masks, over all classes and sizes and for each class.

    Every image of the dataset counts, also those without annotations. With several processes, the
    main one computes the figures from the predictions of all.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | Sequence[int] | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas: Sequence[float] = (),
        mode: str | None = None,
        extra_iou_thresholds: Sequence[float] = (),
    ) -> None:
        """
        Args:
            dataset_name: a registered dataset. If its metadata has no `json_file`, it is converted
                to COCO's format in `output_dir` first.
            tasks: "bbox", "segm" or both; None: what the predictions hold.
            distributed: gather predictions from all processes; False: each evaluates its own.
            output_dir: folder for `coco_instances_results.json`; None: writes nothing.
            max_dets_per_image: how many detections per image count (COCO: 100); of several limits,
                the largest.
            use_fast_impl: evaluate in C++; False: with pycocotools. Both give the same figures.
            kpt_oks_sigmas: must be empty, since keypoints are not evaluated here.
            mode: what made the predictions if not a plain detector, shown with the figures, e.g.
                "prompt=point, scores forced to 1: pseudo-label quality, not detector AP".
            extra_iou_thresholds: further IoU thresholds for AP, e.g. 0.25 for "AP25".
        """
        self.mode = mode
        self._logger = logging.getLogger(__name__)
        if kpt_oks_sigmas:
            raise ValueError("kpt_oks_sigmas: keypoints are not evaluated here")
        if isinstance(tasks, CfgNode):
            self._logger.warning("COCOEvaluator takes tasks from the predictions, not a config")
            tasks = None
        self._distributed = distributed
        self._output_dir = output_dir
        self._use_fast_impl = use_fast_impl
        self._max_dets_per_image = _max_dets(max_dets_per_image)
        self._metrics = METRICS | _metrics_at(extra_iou_thresholds)
        unknown = set(tasks or ()) - set(TASKS)
        if unknown:
            raise ValueError(f"tasks={tuple(tasks)}: unknown {sorted(unknown)}; allowed {TASKS}")
        self._tasks = None if tasks is None else tuple(tasks)
        self._metadata = MetadataCatalog.get(dataset_name)
        if getattr(self._metadata, "json_file", None) is None:
            if output_dir is None:
                raise ValueError(
                    f"dataset {dataset_name!r} has no json_file in its metadata: give output_dir "
                    "to convert it to COCO's format there"
                )
            json_file = os.path.join(output_dir, f"{dataset_name}_coco_format.json")
            convert_to_coco_json(dataset_name, json_file)
            self._metadata.json_file = json_file
        self._coco_api = _load_ground_truth(PathManager.get_local_path(self._metadata.json_file))
        # Files such as COCO's test-dev have images only.
        self._do_evaluation = "annotations" in self._coco_api.dataset
        self._predictions: list[dict[str, Any]] = []

    def reset(self) -> None:
        self._predictions = []

    def process(self, inputs: Iterable[dict[str, Any]], outputs: Iterable[dict[str, Any]]) -> None:
        """Take one batch.

        Args:
            inputs: the model's input dicts, with `image_id`.
            outputs: its output dicts, with `instances` in the frame of the original image.
        """
        for image, output in zip(inputs, outputs, strict=True):
            if "instances" not in output:
                raise ValueError(
                    f"image {image['image_id']!r}: the model gave {sorted(output)}; COCOEvaluator "
                    "needs 'instances'"
                )
            instances = output["instances"].to(torch.device("cpu"))
            self._predictions.append(
                {
                    "image_id": image["image_id"],
                    "instances": instances_to_coco_json(instances, image["image_id"]),
                    # Kept apart: without any instance the records do not tell.
                    "has_masks": instances.has("pred_masks"),
                }
            )

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict[str, Any]:
        """`{"bbox": {"AP": …}, "segm": {…}}` in percent on the main process, empty elsewhere.

        A figure is NaN if there is nothing to measure: a class or size without ground truth, or no
        prediction at all.

        Args:
            img_ids: the images to evaluate on; None: all.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = list(itertools.chain(*comm.gather(predictions, dst=0)))
            if not comm.is_main_process():
                return {}
        if not predictions:
            self._logger.warning("No image was processed: there is nothing to evaluate")
            return {}
        has_masks = any(prediction["has_masks"] for prediction in predictions)
        tasks = self._tasks or (TASKS if has_masks else TASKS[:1])
        records = itertools.chain(*(prediction["instances"] for prediction in predictions))
        coco_results = self._with_dataset_categories(records)
        if self._output_dir:
            self._write(coco_results)
        if not self._do_evaluation:
            message = "%s has no annotations: no AP. Protocol: COCO's server measures %s"
            self._logger.info(message, self._metadata.json_file, RESULTS_FILE)
            return {}
        results = OrderedDict()
        for task in tasks:
            coco_eval = None
            if coco_results:
                coco_eval = _evaluate_predictions_on_coco(
                    self._coco_api,
                    *(coco_results, task),
                    use_fast_impl=self._use_fast_impl,
                    img_ids=img_ids,
                    max_dets_per_image=self._max_dets_per_image,
                    iou_thresholds=[t for t, _ in self._metrics.values() if t is not None],
                )
            results[task] = self._derive_coco_results(coco_eval, task)
        return copy.deepcopy(results)

    def _category_ids(self) -> list[int]:
        """Dataset ids in the order of the contiguous ids that models predict."""
        in_file = sorted(self._coco_api.getCatIds())
        mapping = getattr(self._metadata, "thing_dataset_id_to_contiguous_id", None)
        if mapping is None:
            return in_file
        if sorted(mapping) != in_file:
            raise ValueError(
                f"{self._metadata.json_file} has the category ids {in_file}, but the metadata of "
                f"dataset {self._metadata.name!r} maps {sorted(mapping)}"
            )
        return sorted(mapping, key=mapping.get)

    def _class_names(self) -> list[str]:
        names = getattr(self._metadata, "thing_classes", None)
        ids = self._category_ids()
        if names is None:
            return [self._coco_api.cats[index]["name"] for index in ids]
        if len(names) != len(ids):
            raise ValueError(
                f"dataset {self._metadata.name!r} has {len(names)} class names for {len(ids)} "
                f"categories of {self._metadata.json_file}"
            )
        return list(names)

    def _with_dataset_categories(
        self, coco_results: Iterable[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Copies of records with contiguous category ids replaced by the dataset's own."""
        ids = self._category_ids()
        converted = []
        for result in coco_results:
            category = result["category_id"]
            if not 0 <= category < len(ids):
                raise UnknownCategoryError(
                    f"a prediction has class {category}, but dataset {self._metadata.name!r} has "
                    f"{len(ids)} classes (0 to {len(ids) - 1}); check the number of classes in the "
                    "config"
                )
            converted.append(result | {"category_id": ids[category]})
        return converted

    def _write(self, coco_results: list[dict[str, Any]]) -> None:
        PathManager.mkdirs(self._output_dir)
        path = os.path.join(self._output_dir, RESULTS_FILE)
        with atomic_text(path) as file:
            json.dump(coco_results, file)
        self._logger.info("%d results saved to %s", len(coco_results), path)

    def _derive_coco_results(self, coco_eval: Any, task: str) -> dict[str, float]:
        """Figures of one task in percent, also logged as tables; NaN for what was not measured."""
        suffix = "" if self.mode is None else f" [{self.mode}]"
        if coco_eval is None:
            self._logger.warning("The model predicted nothing: all figures of %s are NaN", task)
            results = dict.fromkeys(self._metrics, float("nan"))
            self._log_metrics(task, suffix, results)
            return results
        # (IoU thresholds, recalls, classes in the order of their dataset ids, areas, 1)
        precision = coco_eval.eval["precision"]
        params = coco_eval.params
        results = {}
        for name, (threshold, area) in self._metrics.items():
            wanted = COCO_IOU_THRESHOLDS if threshold is None else threshold
            rows = _is_among(params.iouThrs, wanted)
            results[name] = _mean_percent(precision[rows][..., params.areaRngLbl.index(area), -1])
        self._log_metrics(task, suffix, results)
        columns = {category: column for column, category in enumerate(params.catIds)}
        rows = _is_among(params.iouThrs, COCO_IOU_THRESHOLDS)
        per_class = {
            name: _mean_percent(precision[rows, :, columns[category], 0, -1])
            for name, category in zip(self._class_names(), self._category_ids(), strict=True)
        }
        table = create_wide_table(per_class.items(), ("category", "AP"))
        self._logger.info("Per-category %s AP%s:\n%s", task, suffix, table)
        return results | {f"AP-{name}": value for name, value in per_class.items()}

    def _log_metrics(self, task: str, suffix: str, results: dict[str, float]) -> None:
        table = create_small_table(results)
        self._logger.info("Evaluation results for %s%s:\n%s", task, suffix, table)
        ious = ", ".join(f"{name} at {iou:g}" for name, (iou, _) in self._metrics.items() if iou)
        protocol = (
            f"{self._max_dets_per_image} detections an image; AP at IoU 0.50:0.05:0.95, {ious}"
        )
        self._logger.info("Protocol: COCO's %s AP, mean over classes, %s", task, protocol)
        if any(np.isnan(value) for value in results.values()):
            self._logger.info(
                "NaN: nothing to measure (no prediction at all, or no ground truth of that size)"
            )


def instances_to_coco_json(instances: Instances, img_id: int) -> list[dict[str, Any]]:
    """Predictions of one image as COCO result records.

    Args:
        instances: on the CPU, in the frame of the original image: `pred_boxes`, `scores`,
            `pred_classes` and optionally `pred_masks` (N, H, W) and `pred_points` (N, 2) x, y.

    Returns:
        one dict per instance: `image_id`, `category_id` (as in `pred_classes`), `bbox` [x, y, w,
        h], `score`, and optionally `segmentation` (RLE with `counts` as str) and `point` [x, y].
    """
    if len(instances) == 0:
        return []
    boxes = instances.pred_boxes.tensor
    fields: dict[str, list[Any]] = {
        "category_id": instances.pred_classes.tolist(),
        "bbox": BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist(),
        "score": instances.scores.tolist(),
    }
    if instances.has("pred_masks"):
        fields["segmentation"] = _encode_masks(instances.pred_masks)
    if instances.has("pred_points"):
        fields["point"] = instances.pred_points.tolist()
    return [
        {"image_id": img_id} | dict(zip(fields, values, strict=True))
        for values in zip(*fields.values(), strict=True)
    ]


def _encode_masks(masks: torch.Tensor) -> list[dict[str, Any]]:
    """(N, H, W) binary masks -> RLE dicts, in one call."""
    # COCO's encoder reads (H, W, N) in column order.
    rles = mask_util.encode(np.asfortranarray(masks.numpy().astype(np.uint8).transpose(1, 2, 0)))
    for rle in rles:
        rle["counts"] = rle["counts"].decode("ascii")  # bytes do not go into JSON
    return rles


def _mean_percent(precision: np.ndarray) -> float:
    """Mean of what COCOeval measured (-1 marks the rest) in percent, NaN if nothing."""
    measured = precision[precision > -1]
    return float(measured.mean() * 100) if measured.size else float("nan")


def _metrics_at(thresholds: Sequence[float]) -> dict[str, tuple[float, str]]:
    wrong = [threshold for threshold in thresholds if not 0 < threshold <= 1]
    if wrong:
        raise ValueError(f"extra_iou_thresholds={tuple(thresholds)}: {wrong} not in (0, 1]")
    return {f"AP{100 * threshold:.6g}": (threshold, "all") for threshold in thresholds}


def _is_among(values: np.ndarray, wanted: np.ndarray | float) -> np.ndarray:
    """(N,) bool: whether each value is one of `wanted`, up to rounding."""
    return np.isclose(values[:, None], wanted).any(axis=1)


def _max_dets(limit: int | Sequence[int] | None) -> int:
    limit = DEFAULT_MAX_DETS if limit is None else limit
    limit = limit if isinstance(limit, int) else max(limit)
    if limit < 1:
        raise ValueError(f"max_dets_per_image={limit}; expected at least 1")
    return limit


def _load_ground_truth(json_file: str) -> COCO:
    """The file as a COCO object, with the optional fields that pycocotools needs."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco_api = COCO(json_file)
    annotations = coco_api.dataset.get("annotations", [])
    # COCOeval marks unmatched detections by id 0, so an annotation of that id would never match.
    renumber = any(annotation["id"] == 0 for annotation in annotations)
    for number, annotation in enumerate(annotations, start=1):
        annotation.setdefault("iscrowd", 0)
        if renumber:
            annotation["id"] = number
        if "area" not in annotation and "segmentation" in annotation:
            annotation["area"] = float(mask_util.area(coco_api.annToRLE(annotation)))
        elif "area" not in annotation and "bbox" in annotation:
            annotation["area"] = float(annotation["bbox"][2] * annotation["bbox"][3])
    if renumber:
        with contextlib.redirect_stdout(io.StringIO()):
            coco_api.createIndex()
    return coco_api


def _check_ground_truth(coco_gt: COCO, task: str) -> None:
    field = {"bbox": "bbox", "segm": "segmentation"}[task]
    missing = [a["id"] for a in coco_gt.dataset["annotations"] if field not in a]
    if missing:
        raise ValueError(
            f"{len(missing)} annotations of the ground truth have no {field!r} (the first has id "
            f"{missing[0]}): {task} AP cannot be measured. Evaluate on a file with all of them"
        )


def _evaluate_predictions_on_coco(
    coco_gt: COCO,
    coco_results: list[dict[str, Any]],
    iou_type: str,
    *,
    use_fast_impl: bool,
    img_ids: Sequence[int] | None,
    max_dets_per_image: int,
    iou_thresholds: Sequence[float] = (),
) -> Any:
    """The COCOeval object of one task, accumulated; `coco_results` has at least one record."""
    _check_ground_truth(coco_gt, iou_type)
    # Copies: loadRes writes into the records. With boxes, pycocotools would take their areas for
    # those of the masks.
    dropped = {"bbox"} if iou_type == "segm" else set()
    records = [{k: v for k, v in r.items() if k not in dropped} for r in coco_results]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco_dt = coco_gt.loadRes(records)
        # Detectron2's format allows text for image ids, the C++ code does not.
        fast = use_fast_impl and all(isinstance(number, int) for number in coco_gt.imgs)
        coco_eval = (COCOeval_opt if fast else COCOeval)(coco_gt, coco_dt, iou_type)
        coco_eval.params.maxDets = [max_dets_per_image]
        new = [t for t in iou_thresholds if not np.isclose(t, COCO_IOU_THRESHOLDS).any()]
        coco_eval.params.iouThrs = np.sort([*COCO_IOU_THRESHOLDS, *new])
        if img_ids is not None:
            coco_eval.params.imgIds = list(img_ids)
        coco_eval.evaluate()
        coco_eval.accumulate()
    return coco_eval
