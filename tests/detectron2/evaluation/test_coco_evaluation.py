import json
import logging
import math
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detectron2.config import get_cfg
from detectron2.engine import launch
from detectron2.evaluation import COCOEvaluator, instances_to_coco_json
from detectron2.evaluation.fast_eval_api import COCOeval_opt
from detectron2.structures import Boxes, Instances

GOLDEN = Path(__file__).parents[2] / "golden"
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def to_instances(records, size_hw):
    """Golden result records of one image (category ids from 1) as a model's output."""
    instances = Instances(size_hw)
    masks = [mask_util.decode(record["segmentation"]) for record in records]
    boxes = [mask_util.toBbox(record["segmentation"]) for record in records]
    xywh = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    instances.pred_boxes = Boxes(np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1))
    instances.scores = torch.tensor([record["score"] for record in records])
    classes = [record["category_id"] - 1 for record in records]
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    stacked = np.array(masks, dtype=bool).reshape(-1, *size_hw)
    instances.pred_masks = torch.from_numpy(stacked)
    return instances


def feed(evaluator, gt, detections):
    """One batch an image, as a loader would give them."""
    evaluator.reset()
    for image in gt["images"]:
        records = [d for d in detections if d["image_id"] == image["id"]]
        output = {"instances": to_instances(records, (image["height"], image["width"]))}
        evaluator.process([{"image_id": image["id"]}], [output])
    return evaluator


def percent(stats):
    return {k: v * 100 if v >= 0 else math.nan for k, v in zip(METRICS, stats, strict=False)}


@pytest.mark.parametrize("fast", [True, False])
def test_golden_figures(register_json, golden_gt, golden_detections, golden_stats, fast):
    evaluator = COCOEvaluator(register_json(golden_gt), use_fast_impl=fast)
    results = feed(evaluator, golden_gt, golden_detections).evaluate()
    want = percent(golden_stats["segm"])
    got = {name: results["segm"][name] for name in METRICS}
    assert got == pytest.approx(want, abs=1e-6, nan_ok=True)
    # Sizes of boxes differ: the golden detections carry the masks' areas.
    want = percent(golden_stats["bbox"])
    for name in ("AP", "AP50", "AP75"):
        assert results["bbox"][name] == pytest.approx(want[name], abs=1e-6)


@pytest.mark.parametrize("evaluator_class", [COCOeval_opt, COCOeval])
def test_golden_precision_arrays(golden_gt, golden_detections, evaluator_class):
    golden = np.load(GOLDEN / "cocoeval_precision.npz")
    coco_eval = run_cocoeval(evaluator_class, golden_gt, golden_detections, "segm")
    np.testing.assert_allclose(coco_eval.eval["precision"], golden["precision"], atol=1e-6)
    np.testing.assert_allclose(coco_eval.eval["recall"], golden["recall"], atol=1e-6)


def run_cocoeval(evaluator_class, gt, detections, iou_type, **params):
    coco_gt = COCO()
    coco_gt.dataset = json.loads(json.dumps(gt))
    coco_gt.createIndex()
    coco_dt = coco_gt.loadRes(json.loads(json.dumps(detections)))
    coco_eval = evaluator_class(coco_gt, coco_dt, iou_type)
    for name, value in params.items():
        setattr(coco_eval.params, name, value)
    coco_eval.evaluate()
    coco_eval.accumulate()
    coco_eval.summarize()
    return coco_eval


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"maxDets": [1, 3, 5]},
        {"catIds": [2, 4]},
        {"imgIds": [1, 5, 7]},
        {"useCats": 0},
        {"areaRng": [[0, 1e10], [0, 500], [500, 2000], [2000, 1e10]]},
        {"iouThrs": np.array([0.3, 0.6])},
    ],
    ids=lambda params: next(iter(params), "default"),
)
def test_fast_evaluation_equals_pycocotools(golden_gt, golden_detections, iou_type, params):
    fast, plain = (
        run_cocoeval(evaluator_class, golden_gt, golden_detections, iou_type, **params)
        for evaluator_class in (COCOeval_opt, COCOeval)
    )
    for name in ("precision", "recall", "scores"):
        np.testing.assert_allclose(fast.eval[name], plain.eval[name], atol=1e-12)
    np.testing.assert_allclose(fast.stats, plain.stats, atol=1e-12)


def as_coco(**sections):
    coco = COCO()
    coco.dataset = json.loads(json.dumps(sections))
    coco.createIndex()
    return coco


@pytest.mark.parametrize("missing", ["ground truth", "detections", "both"])
def test_fast_evaluation_equals_pycocotools_on_nothing(golden_gt, golden_detections, missing):
    frame = {name: golden_gt[name] for name in ("images", "categories")}
    detections = [d | {"id": i, "iscrowd": 0} for i, d in enumerate(golden_detections, start=1)]
    for detection in detections:
        detection["area"] = float(mask_util.area(detection["segmentation"]))
    gt = golden_gt["annotations"] if missing == "detections" else []
    precisions = []
    for evaluator_class in (COCOeval_opt, COCOeval):
        found = detections if missing == "ground truth" else []
        coco_eval = evaluator_class(
            as_coco(**frame, annotations=gt), as_coco(**frame, annotations=found), "segm"
        )
        coco_eval.evaluate()
        coco_eval.accumulate()
        precisions.append(coco_eval.eval["precision"])
    np.testing.assert_array_equal(*precisions)


def evaluate_share(path):
    """In each process: evaluate this rank's images of the golden set; rank 0 writes the figures."""
    from detectron2.data import MetadataCatalog
    from detectron2.utils import comm

    gt = json.loads((GOLDEN / "cocoeval_gt.json").read_text())
    detections = json.loads((GOLDEN / "cocoeval_dets.json").read_text())
    MetadataCatalog.get("evaluation_share").json_file = str(GOLDEN / "cocoeval_gt.json")
    evaluator = COCOEvaluator("evaluation_share")
    share = gt | {"images": gt["images"][comm.get_rank() :: comm.get_world_size()]}
    results = feed(evaluator, share, detections).evaluate()
    if comm.is_main_process():
        path.write_text(json.dumps(results["segm"]))
    else:
        assert results == {}


@pytest.mark.slow
def test_processes_gather_their_predictions(tmp_path, golden_stats):
    launch(evaluate_share, 0, args=(tmp_path / "results.json",), num_processes=2)
    results = json.loads((tmp_path / "results.json").read_text())
    got = {name: results[name] for name in METRICS}
    assert got == pytest.approx(percent(golden_stats["segm"]), abs=1e-6, nan_ok=True)


def square_dataset(num_images=2, size=64):
    """One 20-pixel square of class "cat" (id 3) and "dog" (id 8) an image; "owl" never occurs."""
    images, annotations = [], []
    for image_id in range(1, num_images + 1):
        images.append({"id": image_id, "height": size, "width": size, "file_name": f"{image_id}"})
        for category_id, x in ((3, 2), (8, 40)):
            annotations.append(
                {
                    "id": len(annotations),  # from 0, which COCOeval alone would never match
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": [x, 10, 20, 20],
                    "segmentation": [[x, 10, x + 20, 10, x + 20, 30, x, 30]],
                }
            )
    categories = [{"id": i, "name": n} for i, n in ((8, "dog"), (3, "cat"), (5, "owl"))]
    return {"images": images, "annotations": annotations, "categories": categories}


def square_predictions(classes, lefts, scores=None, size=64):
    instances = Instances((size, size))
    masks = torch.zeros(len(classes), size, size, dtype=torch.bool)
    for mask, x in zip(masks, lefts, strict=True):
        mask[10:30, x : x + 20] = True
    instances.pred_masks = masks
    boxes = [[x, 10, x + 20, 30] for x in lefts]
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    instances.scores = torch.ones(len(classes)) if scores is None else torch.tensor(scores)
    return {"instances": instances}


@pytest.mark.parametrize("fast", [True, False])
def test_perfect_predictions_of_a_minimal_file(register_json, fast):
    """No `area`, no `iscrowd`, ids from 0; classes map in the order of their ids."""
    evaluator = COCOEvaluator(register_json(square_dataset()), use_fast_impl=fast)
    perfect = square_predictions([0, 2], [2, 40])  # contiguous: cat, owl, dog
    evaluator.process([{"image_id": 1}, {"image_id": 2}], [perfect, perfect])
    results = evaluator.evaluate()
    assert set(results) == {"bbox", "segm"}
    for task in results.values():
        assert task["AP"] == task["APs"] == task["AP-cat"] == task["AP-dog"] == 100.0
        assert math.isnan(task["APm"]) and math.isnan(task["AP-owl"])


def test_per_class_figures_follow_the_metadata_order(register_json):
    name = register_json(
        square_dataset(1),
        thing_classes=["dog", "cat", "owl"],
        thing_dataset_id_to_contiguous_id={8: 0, 3: 1, 5: 2},
    )
    evaluator = COCOEvaluator(name)
    evaluator.process([{"image_id": 1}], [square_predictions([0], [40])])
    results = evaluator.evaluate()["segm"]
    assert (results["AP-dog"], results["AP-cat"]) == (100.0, 0.0)


def test_false_positives_on_images_without_annotations_count(register_json):
    dataset = square_dataset(1)
    empty = {"id": 2, "height": 64, "width": 64, "file_name": "2"}
    dataset["images"].append(empty)
    evaluator = COCOEvaluator(register_json(dataset))
    inputs = [{"image_id": 1}, {"image_id": 2}]
    right, wrong = square_predictions([0], [2], [0.5]), square_predictions([0], [2], [0.9])
    evaluator.process(inputs, [right, wrong])
    assert evaluator.evaluate()["segm"]["AP-cat"] == pytest.approx(50, abs=0.1)
    assert evaluator.evaluate(img_ids=[1])["segm"]["AP-cat"] == 100.0


def test_at_most_max_dets_count(register_json):
    name = register_json(square_dataset(1))
    wrong_first = square_predictions([0, 0, 0], [40, 30, 2], [0.9, 0.8, 0.7])
    results = {}
    for limit in (2, [1, 10, 3], None):
        evaluator = COCOEvaluator(name, max_dets_per_image=limit)
        evaluator.process([{"image_id": 1}], [wrong_first])
        results[str(limit)] = evaluator.evaluate()["segm"]["AP-cat"]
    assert results["2"] == 0.0
    assert results["[1, 10, 3]"] == results["None"] > 30
    with pytest.raises(ValueError, match="max_dets_per_image=0"):
        COCOEvaluator(name, max_dets_per_image=0)


def test_results_are_written_and_name_the_mode(register_json, tmp_path, caplog):
    mode = "pseudo-label quality: prompt=point, scores forced to 1"
    folder = tmp_path / "inference"
    evaluator = COCOEvaluator(register_json(square_dataset(1)), output_dir=str(folder), mode=mode)
    output = square_predictions([2], [40])
    output["instances"].pred_points = torch.tensor([[50.5, 20.0]])
    evaluator.process([{"image_id": 1}], [output])
    with caplog.at_level(logging.INFO):
        evaluator.evaluate()
    assert f"for segm [{mode}]" in caplog.text
    assert f"Per-category segm AP [{mode}]" in caplog.text
    (record,) = json.loads((folder / "coco_instances_results.json").read_text())
    assert [path.name for path in folder.iterdir()] == ["coco_instances_results.json"]
    assert record["category_id"] == 8
    assert record["bbox"] == [40.0, 10.0, 20.0, 20.0]
    assert record["point"] == [50.5, 20.0]
    assert mask_util.area(record["segmentation"]) == 400


def test_empty_predictions_give_nan_for_each_task(register_json):
    evaluator = COCOEvaluator(register_json(square_dataset(1)))
    evaluator.process([{"image_id": 1}], [square_predictions([], [])])
    results = evaluator.evaluate()
    assert set(results) == {"bbox", "segm"}
    assert all(math.isnan(value) for task in results.values() for value in task.values())
    evaluator.reset()
    assert evaluator.evaluate() == {}


def test_tasks_can_be_chosen(register_json):
    name = register_json(square_dataset(1))
    evaluator = COCOEvaluator(name, tasks=("segm",))
    evaluator.process([{"image_id": 1}], [square_predictions([0], [2])])
    assert list(evaluator.evaluate()) == ["segm"]
    with pytest.raises(ValueError, match="keypoints"):
        COCOEvaluator(name, tasks=("keypoints",))


def test_boxes_alone_are_evaluated_as_boxes(register_json):
    evaluator = COCOEvaluator(register_json(square_dataset(1)))
    output = square_predictions([0], [2])
    output["instances"].remove("pred_masks")
    evaluator.process([{"image_id": 1}], [output])
    results = evaluator.evaluate()
    assert list(results) == ["bbox"] and results["bbox"]["AP-cat"] == 100.0


@pytest.mark.parametrize("category", [-1, 3])
def test_unknown_category_is_refused(register_json, category):
    evaluator = COCOEvaluator(register_json(square_dataset(1)))
    evaluator.process([{"image_id": 1}], [square_predictions([category], [2])])
    for error in (AssertionError, RuntimeError):  # Detectron2's, in v0.6 and later
        with pytest.raises(error, match=f"class {category}.*3 classes"):
            evaluator.evaluate()


def test_ground_truth_of_points_only_is_refused(register_json):
    dataset = square_dataset(1)
    dataset["annotations"] = [
        {"id": 7, "image_id": 1, "category_id": 3, "point": [12, 20]},
    ]
    evaluator = COCOEvaluator(register_json(dataset))
    evaluator.process([{"image_id": 1}], [square_predictions([0], [2])])
    with pytest.raises(ValueError, match="no 'bbox'.*id 7"):
        evaluator.evaluate()


def test_images_without_any_annotation_list_write_results_only(register_json, tmp_path, caplog):
    dataset = square_dataset(1)
    del dataset["annotations"]
    evaluator = COCOEvaluator(register_json(dataset), output_dir=str(tmp_path))
    evaluator.process([{"image_id": 1}], [square_predictions([0], [2])])
    with caplog.at_level(logging.INFO):
        assert evaluator.evaluate() == {}
    assert "has no annotations" in caplog.text
    assert (tmp_path / "coco_instances_results.json").exists()


def test_a_dataset_without_a_json_file_is_converted(tmp_path):
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.structures import BoxMode

    name = "evaluation_test_without_json"
    box = {"bbox": [2, 10, 20, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    record = {"file_name": "1.jpg", "image_id": 1, "height": 64, "width": 64, "annotations": [box]}
    DatasetCatalog.register(name, lambda: [record])
    try:
        MetadataCatalog.get(name).thing_classes = ["cat"]
        with pytest.raises(ValueError, match="output_dir"):
            COCOEvaluator(name)
        evaluator = COCOEvaluator(name, tasks=("bbox",), output_dir=str(tmp_path))
        evaluator.process([{"image_id": 1}], [square_predictions([0], [2])])
        assert evaluator.evaluate()["bbox"]["AP-cat"] == 100.0
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("fast", [True, False])
def test_image_ids_may_be_text(register_json, fast):
    dataset = square_dataset(1)
    dataset["images"][0]["id"] = "000005"
    for annotation in dataset["annotations"]:
        annotation["image_id"] = "000005"
    evaluator = COCOEvaluator(register_json(dataset), use_fast_impl=fast)
    evaluator.process([{"image_id": "000005"}], [square_predictions([0], [2])])
    assert evaluator.evaluate()["segm"]["AP-cat"] == pytest.approx(100)


def test_older_calls_are_understood(register_json, caplog):
    """A config in the place of the tasks, as before Detectron2 v0.2."""
    evaluator = COCOEvaluator(register_json(square_dataset(1)), get_cfg(), False)
    assert "takes tasks from the predictions" in caplog.text
    evaluator.process([{"image_id": 1}], [square_predictions([0], [2])])
    assert set(evaluator.evaluate()) == {"bbox", "segm"}
    with pytest.raises(ValueError, match="keypoints"):
        COCOEvaluator(register_json(square_dataset(1)), kpt_oks_sigmas=(0.1,))


def test_outputs_without_instances_are_refused(register_json):
    evaluator = COCOEvaluator(register_json(square_dataset(1)))
    with pytest.raises(ValueError, match=r"image 1: the model gave \['proposals'\]"):
        evaluator.process([{"image_id": 1}], [{"proposals": None}])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 4), st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**16))
def test_records_hold_the_masks(num, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    instances = Instances((height, width))
    instances.pred_masks = torch.rand(num, height, width, generator=generator) > 0.5
    instances.pred_boxes = Boxes(torch.rand(num, 4, generator=generator))
    instances.scores = torch.rand(num, generator=generator)
    instances.pred_classes = torch.arange(num)
    records = instances_to_coco_json(instances, 5)
    assert json.loads(json.dumps(records)) == records
    assert [record["category_id"] for record in records] == list(range(num))
    for record, mask, box in zip(records, instances.pred_masks, instances.pred_boxes, strict=True):
        assert record["image_id"] == 5
        np.testing.assert_array_equal(mask_util.decode(record["segmentation"]), mask.numpy())
        want = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        assert record["bbox"] == pytest.approx([float(v) for v in want])


@pytest.mark.parametrize("fast", [True, False])
def test_further_thresholds_leave_the_standard_figures(
    register_json, golden_gt, golden_detections, fast
):
    name = register_json(golden_gt)
    plain = feed(COCOEvaluator(name), golden_gt, golden_detections).evaluate()
    evaluator = COCOEvaluator(name, use_fast_impl=fast, extra_iou_thresholds=(0.25, 0.7))
    results = feed(evaluator, golden_gt, golden_detections).evaluate()
    for task, metrics in plain.items():
        assert set(results[task]) - set(metrics) == {"AP25", "AP70"}
        got = {key: results[task][key] for key in metrics}
        assert got == pytest.approx(metrics, nan_ok=True)
    thresholds = np.array([0.25, 0.7])
    reference = run_cocoeval(COCOeval, golden_gt, golden_detections, "segm", iouThrs=thresholds)
    precision = reference.eval["precision"][..., 0, -1]  # of all areas
    want = [100 * of_threshold[of_threshold > -1].mean() for of_threshold in precision]
    assert [results["segm"]["AP25"], results["segm"]["AP70"]] == pytest.approx(want)


def test_thresholds_outside_the_range_are_refused(register_json, golden_gt):
    with pytest.raises(ValueError, match=r"\[25\] not in \(0, 1\]"):
        COCOEvaluator(register_json(golden_gt), extra_iou_thresholds=(25, 0.7))
