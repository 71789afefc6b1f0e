"""Pascal VOC's AP against a plain loop of the devkit's rule, and CorLoc by hand."""

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.evaluation.pascal_voc_evaluation import voc_ap, voc_eval
from detectron2.structures import Boxes, Instances

CLASSES = ("cat", "dog")
IMAGES = ("a", "b", "c")


def write_tree(folder, objects, images=IMAGES):
    """objects: {image: [(class, [xmin, ymin, xmax, ymax], difficult)]}, 1-based inclusive."""
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets" / "Main" / "test.txt").write_text("\n".join(images) + "\n")
    for image in images:
        body = "".join(
            f"<object><name>{name}</name><difficult>{int(difficult)}</difficult><bndbox>"
            + "".join(f"<{k}>{v}</{k}>" for k, v in zip(CORNERS, box, strict=True))
            + "</bndbox></object>"
            for name, box, difficult in objects.get(image, ())
        )
        size = "<size><width>60</width><height>50</height><depth>3</depth></size>"
        (folder / "Annotations" / f"{image}.xml").write_text(
            f"<annotation>{size}{body}</annotation>"
        )


CORNERS = ("xmin", "ymin", "xmax", "ymax")


@pytest.fixture
def register(tmp_path):
    names = []

    def make(objects, year=2012, class_names=CLASSES, images=IMAGES):
        name = f"voc_test_{len(names)}"
        write_tree(tmp_path / name, objects, images)
        register_pascal_voc(name, str(tmp_path / name), "test", year, class_names)
        names.append(name)
        return name

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def outputs_of(detections):
    """detections: {image: [(class index, score, box from 0)]} -> inputs and outputs of a model."""
    inputs, outputs = [], []
    for image, found in detections.items():
        instances = Instances((50, 60))
        boxes = torch.tensor([box for _, _, box in found], dtype=torch.float32).reshape(-1, 4)
        instances.pred_boxes = Boxes(boxes)
        instances.scores = torch.tensor([score for _, score, _ in found])
        instances.pred_classes = torch.tensor([c for c, _, _ in found], dtype=torch.int64)
        inputs.append({"image_id": image})
        outputs.append({"instances": instances})
    return inputs, outputs


def evaluate(name, detections, **options):
    evaluator = PascalVOCDetectionEvaluator(name, **options)
    evaluator.reset()
    evaluator.process(*outputs_of(detections))
    return evaluator.evaluate()["bbox"]


def twin_iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    size_a, size_b = ((c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b))
    return width * height / (size_a + size_b - width * height)


def twin_curve(detections, objects, threshold):
    """The devkit's loop. detections: (image, score, box); objects: {image: [(box, difficult)]}."""
    positives = sum(not difficult for found in objects.values() for _, difficult in found)
    taken, correct, wrong, recall, precision = set(), 0, 0, [], []
    for image, _, box in sorted(detections, key=lambda detection: -detection[1]):
        best, best_index = -math.inf, None
        for index, (other, _) in enumerate(objects.get(image, ())):
            overlap = twin_iou(box, other)
            if overlap > best:
                best, best_index = overlap, index
        if best > threshold:
            if not objects[image][best_index][1]:
                if (image, best_index) in taken:
                    wrong += 1
                else:
                    correct += 1
                    taken.add((image, best_index))
        else:
            wrong += 1
        recall.append(correct / positives if positives else math.nan)
        precision.append(correct / (correct + wrong) if correct + wrong else 0.0)
    return recall, precision


def twin_ap(recall, precision, use_07_metric):
    if use_07_metric:
        best = [
            max((p for r, p in zip(recall, precision, strict=True) if r >= i * 0.1), default=0)
            for i in range(11)
        ]
        return sum(best) / 11
    recall, precision = [0, *recall, 1], [0, *precision, 0]
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))


@st.composite
def boxes(draw):
    x, y = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    return [x, y, x + draw(st.integers(0, 6)), y + draw(st.integers(0, 6))]


images = st.sampled_from(IMAGES)
classes = st.sampled_from(CLASSES)
objects_strategy = st.lists(st.tuples(images, classes, boxes(), st.booleans()), max_size=8)
scores = st.sampled_from([0.125, 0.25, 0.5, 0.75])  # few, so that ties are common
detections_strategy = st.lists(st.tuples(images, scores, boxes()), max_size=20)


@settings(max_examples=150, deadline=None)
@given(objects_strategy, detections_strategy, st.sampled_from([0.3, 0.5, 0.75]), st.booleans())
def test_voc_eval_is_the_devkits_rule(objects, detections, threshold, use_07_metric):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        by_image = {i: [(c, b, d) for j, c, b, d in objects if j == i] for i in IMAGES}
        write_tree(folder, by_image)
        lines = [f"{i} {s} {' '.join(map(str, b))}\n" for i, s, b in detections]
        (folder / "det_cat.txt").write_text("".join(lines))
        recall, precision, ap = voc_eval(
            str(folder / "det_{}.txt"),
            str(folder / "Annotations" / "{}.xml"),
            str(folder / "ImageSets" / "Main" / "test.txt"),
            "cat",
            threshold,
            use_07_metric,
        )
    cats = {i: [(b, d) for c, b, d in found if c == "cat"] for i, found in by_image.items()}
    want_recall, want_precision = twin_curve(detections, cats, threshold)
    np.testing.assert_allclose(recall, want_recall)
    np.testing.assert_allclose(precision, want_precision)
    if any(not difficult for found in cats.values() for _, difficult in found):
        assert ap == pytest.approx(twin_ap(want_recall, want_precision, use_07_metric))
    else:
        assert math.isnan(ap)


curves = st.lists(st.booleans(), max_size=30).flatmap(
    lambda hits: st.tuples(st.just(hits), st.integers(max(sum(hits), 1), 40))
)


@given(curves, st.booleans())
def test_voc_ap_of_any_curve(curve, use_07_metric):
    hits, positives = curve
    recall = [sum(hits[: i + 1]) / positives for i in range(len(hits))]
    precision = [sum(hits[: i + 1]) / (i + 1) for i in range(len(hits))]
    got = voc_ap(np.array(recall), np.array(precision), use_07_metric)
    assert got == pytest.approx(twin_ap(recall, precision, use_07_metric))


def test_voc_ap_in_closed_form():
    # 1 hit, 1 miss, 1 hit of 4: precision 1 up to recall 1/4, 2/3 up to 1/2.
    recall, precision = np.array([0.25, 0.25, 0.5]), np.array([1, 1 / 2, 2 / 3])
    assert voc_ap(recall, precision) == pytest.approx(0.25 + 0.25 * 2 / 3)
    assert voc_ap(recall, precision, use_07_metric=True) == pytest.approx((3 + 3 * 2 / 3) / 11)


@pytest.mark.parametrize("year,use_07_metric", [(2007, True), (2012, False)])
def test_evaluator_takes_means_over_classes_and_thresholds(register, year, use_07_metric):
    rng = np.random.default_rng(0)

    def random_box():
        low = rng.integers(0, 30, 2)
        return [*low.tolist(), *(low + rng.integers(5, 20, 2)).tolist()]

    objects, detections = {}, {}
    for image in IMAGES:
        # as in the files: from 1
        truth = [(int(rng.integers(2)), random_box(), rng.random() < 0.2) for _ in range(6)]
        objects[image] = [(CLASSES[c], [b[0] + 1, b[1] + 1, *b[2:]], d) for c, b, d in truth]
        near = [(c, [v + int(rng.integers(-2, 3)) for v in b]) for c, b, _ in truth]
        far = [(int(rng.integers(2)), random_box()) for _ in range(4)]
        detections[image] = [(c, round(float(rng.random()), 3), b) for c, b in near + far]
    got = evaluate(register(objects, year), detections)

    want = np.zeros((2, 10))
    for category, name in enumerate(CLASSES):
        found = [
            (i, s, [b[0] + 1, b[1] + 1, *b[2:]])
            for i in IMAGES
            for c, s, b in detections[i]
            if c == category
        ]
        truth = {i: [(b, d) for c, b, d in objects[i] if c == name] for i in IMAGES}
        for column in range(10):
            curve = twin_curve(found, truth, (50 + 5 * column) / 100)
            want[category, column] = 100 * twin_ap(*curve, use_07_metric)
    assert list(got) == ["AP", "AP50", "AP75"]
    assert got["AP"] == pytest.approx(want.mean())
    assert got["AP50"] == pytest.approx(want[:, 0].mean())
    assert got["AP75"] == pytest.approx(want[:, 5].mean())
    assert 0 < got["AP"] < got["AP50"] < 100


def test_the_rule_can_be_chosen(register):
    objects = {"a": [("cat", [1, 1, 10, 10], False), ("cat", [21, 21, 30, 30], False)]}
    detections = {"a": [(0, 0.9, [0, 0, 10, 10])]}
    assert evaluate(register(objects, 2007), detections)["AP50"] == pytest.approx(100 * 6 / 11)
    figures = evaluate(register(objects, 2007), detections, use_07_metric=False)
    assert figures["AP50"] == pytest.approx(50)


def test_difficult_objects_count_neither_way(register):
    objects = {"a": [("cat", [1, 1, 10, 10], True), ("cat", [21, 21, 30, 30], False)]}
    hits = [(0, 0.9, [0, 0, 10, 10]), (0, 0.8, [0, 0, 10, 10]), (0, 0.7, [20, 20, 30, 30])]
    assert evaluate(register(objects), {"a": hits})["AP"] == pytest.approx(100)


def test_a_class_without_objects_is_left_out(register):
    objects = {"a": [("cat", [1, 1, 10, 10], False), ("dog", [1, 1, 10, 10], True)]}
    hits = {"a": [(0, 0.9, [0, 0, 10, 10]), (1, 0.9, [5, 5, 9, 9])]}
    assert evaluate(register(objects), hits)["AP"] == pytest.approx(100)
    empty = evaluate(register({}), hits)
    assert all(math.isnan(value) for value in empty.values())


def test_no_detections_give_zero(register):
    objects = {"a": [("cat", [1, 1, 10, 10], False)]}
    empty = {image: [] for image in IMAGES}
    assert evaluate(register(objects), empty, corloc=True) == {
        **{"AP": 0.0, "AP50": 0.0, "AP75": 0.0, "CorLoc": 0.0}
    }


def test_corloc_judges_the_best_box_of_each_image_with_the_class(register):
    cat = ("cat", [1, 1, 10, 10], False)
    objects = {
        "a": [cat, ("cat", [31, 31, 40, 40], True)],
        "b": [cat],
        "c": [cat, ("dog", [31, 31, 40, 40], False)],
    }
    detections = {
        "a": [(0, 0.6, [30, 30, 40, 40]), (0, 0.5, [20, 0, 25, 5])],  # hits the difficult one
        "b": [(0, 0.6, [20, 0, 25, 5]), (0, 0.5, [0, 0, 10, 10])],  # only the second hits
        "c": [(1, 0.9, [30, 30, 40, 40])],  # no cat at all
    }
    figures = evaluate(register(objects), detections, corloc=True)
    assert figures["CorLoc"] == pytest.approx(100 * (1 / 3 + 1) / 2)


def test_boxes_are_judged_with_inclusive_ends(register):
    # 1-based 1..2 x 1..1 against 1..3 x 1..1: 2/3, with exclusive ends 1/2 (of width 1 and 2)
    objects = {"a": [("cat", [1, 1, 3, 1], False)]}
    figures = evaluate(register(objects), {"a": [(0, 0.9, [0, 0, 2, 1])]})
    assert figures["AP50"] == pytest.approx(100) and figures["AP75"] == 0


def test_odd_predictions_are_refused(register):
    name = register({"a": [("cat", [1, 1, 10, 10], False)]})
    with pytest.raises(ValueError, match="image a: a prediction has class 2; the dataset has 2"):
        evaluate(name, {"a": [(2, 0.9, [0, 0, 10, 10])]})
    with pytest.raises(ValueError, match="class 'cat': image 'z' and 0 others are not in"):
        evaluate(name, {"z": [(0, 0.9, [0, 0, 10, 10])]})


def test_odd_datasets_are_refused(register):
    with pytest.raises(ValueError, match="year=2010; allowed"):
        PascalVOCDetectionEvaluator(register({}, year=2010))
    with pytest.raises(ValueError, match="has no .*'year'"):
        PascalVOCDetectionEvaluator("coco_2017_val")


def test_a_broken_result_file_is_named(tmp_path):
    write_tree(tmp_path, {})
    (tmp_path / "cat.txt").write_text("a 0.5 1 2 3\n")
    paths = (
        tmp_path / name for name in ("{}.txt", "Annotations/{}.xml", "ImageSets/Main/test.txt")
    )
    with pytest.raises(ValueError, match="cat.txt', line 1: expected"):
        voc_eval(*map(str, paths), "cat")
