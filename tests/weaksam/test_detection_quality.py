"""AP and CorLoc of boxes: a twin by loops, hand-made cases, VOC's files against COCO's."""

import json

import numpy as np
import pytest

from weaklabels.tags import TaggedImage, Tags
from weaksam.detection_quality import corloc, measure_detections, read_voc_truth
from weaksam.detections import Detections
from weaksam.proposals.chance import random_detections
from weaksam.proposals.files import ImageProposals, collect
from weaksam.proposals.images import ImageRecord
from weaksam.pseudo_box_quality import TrueBoxes

CLASSES = ((1, "dog"), (2, "cat"), (3, "cow"))


def make_tags(*classes):
    images = [TaggedImage(7 + i, f"{i}.jpg", 100, 100, ids) for i, ids in enumerate(classes)]
    return Tags(tuple(images), CLASSES)


def random_boxes(rng, count):
    return np.concatenate([rng.uniform(0, 60, (count, 2)), rng.uniform(8, 40, (count, 2))], axis=1)


def random_case(seed):
    rng = np.random.default_rng(seed)
    ids = [tuple(sorted({*rng.integers(1, 4, 2).tolist()})) for _ in range(6)]
    tags = make_tags(*ids)
    truth = {
        (place, number - 1): TrueBoxes(random_boxes(rng, 2), rng.random(2) < 0.8)
        for place, own in enumerate(ids)
        for number in own
    }
    count = 80
    boxes = random_boxes(rng, count)
    images, classes = rng.integers(0, 6, count), rng.integers(0, 3, count)
    for row in range(0, count, 2):  # every second one lies near an object
        near = truth.get((int(images[row]), int(classes[row])))
        if near is not None:
            boxes[row] = near.boxes[0] + rng.uniform(-3, 3, 4)
    return Detections(images, classes, boxes, rng.random(count)), truth, tags


def iou(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


@pytest.mark.parametrize("seed", range(5))
def test_corloc_follows_its_definition(seed):
    found, truth, tags = random_case(seed)
    shares = []
    for index, (number, _) in enumerate(CLASSES):
        places = [p for p, image in enumerate(tags.images) if number in image.category_ids]
        hits = 0
        for place in places:
            rows = [
                r
                for r in range(len(found))
                if (found.images[r], found.classes[r]) == (place, index)
            ]
            if rows:
                best = found.boxes[max(rows, key=lambda r: found.scores[r])]
                hits += any(iou(best, box) > 0.5 for box in truth[place, index].boxes)
        shares += [hits / len(places)] if places else []
    assert corloc(found, truth, tags) == pytest.approx(100 * np.mean(shares))


def test_figures_of_right_missing_and_ignored_boxes():
    tags = make_tags((1,), (1,))
    box = np.array([[10.0, 10, 40, 40]])
    truth = {(0, 0): TrueBoxes(box, np.array([True])), (1, 0): TrueBoxes(box, np.array([True]))}
    right = Detections(
        np.array([0, 1]), np.zeros(2, int), np.repeat(box, 2, 0), np.array([0.9, 0.8])
    )
    quality = measure_detections(right, tags, truth)
    assert (quality.AP, quality.AP50, quality.CorLoc) == pytest.approx((100, 100, 100))
    half = measure_detections(right.take(np.array([0])), tags, truth)
    assert half.AP50 == pytest.approx(100 * 51 / 101) and half.CorLoc == 50  # recalls 0 to 0.5
    truth[1, 0] = TrueBoxes(box, np.array([False]))  # difficult: neither to find nor an error
    ignored = measure_detections(right, tags, truth)
    assert ignored.AP50 == pytest.approx(100) and ignored.objects == 1
    assert measure_detections(right, make_tags((), ()), {}).AP is None


def test_vocs_boxes_are_half_open(tmp_path):
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("000007\n")
    parts = "".join(
        f"<{k}>{v}</{k}>"
        for k, v in zip(("xmin", "ymin", "xmax", "ymax"), (1, 3, 10, 12), strict=True)
    )
    text = "".join(
        f"<object><name>{name}</name><difficult>{flag}</difficult><bndbox>{parts}</bndbox></object>"
        for name, flag in (("dog", 0), ("dog", 1), ("cat", 0))
    )
    size = "<size><width>100</width><height>100</height><depth>3</depth></size>"
    (tmp_path / "Annotations" / "000007.xml").write_text(f"<annotation>{size}{text}</annotation>")
    truth = read_voc_truth(tmp_path, "test", make_tags((1, 2)))
    assert truth.keys() == {(0, 0), (0, 1)}
    assert truth[0, 0].boxes.tolist() == [[0, 2, 10, 10]] * 2
    assert truth[0, 0].counts.tolist() == [True, False]


def test_chance_scores_every_proposal_for_each_class():
    tags = make_tags((1,), ())
    records = [ImageRecord(str(i.id), i.file_name, (i.height, i.width)) for i in tags.images]
    boxes = np.array([[0, 0, 10, 20], [5, 5, 50, 60]])
    parts = [ImageProposals.of("random", boxes), ImageProposals.of("random", boxes[:1])]
    found = random_detections(collect(records, parts, {}), tags, seed=3)
    assert found.images.tolist() == [0] * 6 + [1] * 3
    assert found.classes.tolist() == [0, 1, 2] * 3
    assert found.boxes[3].tolist() == [5, 5, 45, 55]
    again = random_detections(collect(records, parts, {}), tags, seed=3)
    assert np.array_equal(found.scores, again.scores) and len(set(found.scores)) == 9


def test_the_command_writes_the_figures(tmp_path, capsys):
    from wsis.cli.main import program

    images = [{"id": 1, "file_name": "1.jpg", "height": 50, "width": 60}]
    categories = [{"id": 4, "name": "dog"}]
    tags = {"images": [images[0] | {"category_ids": [4]}], "categories": categories}
    truth = {"images": images, "categories": categories}
    truth["annotations"] = [
        {"id": 1, "image_id": 1, "category_id": 4, "bbox": [5, 5, 20, 20], "area": 400}
    ]
    found = [{"image_id": 1, "category_id": 4, "bbox": [5, 5, 20, 20], "score": 0.5}]
    for name, content in (("tags", tags), ("truth", truth), ("found", found)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    words = ["--detections", str(tmp_path / "found.json"), "--tags", str(tmp_path / "tags.json")]
    report = tmp_path / "report.json"
    truth_words = ["--annotations", str(tmp_path / "truth.json"), "--output", str(report)]
    assert program("evaluate-detections", words + truth_words) == 0
    assert json.loads(report.read_text())["CorLoc"] == 100
    assert program("evaluate-detections", words) == 2
    assert "--voc with --split" in capsys.readouterr().err
