"""Masks from boxes: files against pycocotools, batches against one by one, resuming, bad input."""

import json

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

import weaksam.box_masks as module
from detectron2.data.datasets.coco import load_coco_json
from tests.weaksam.samples import BlockSegmenter, make_dataset
from weaksam.box_masks import BoxMaskCounts, box_masks, make_box_masks
from weaksam.segmenters.spec import load_segmenter
from weaksam.segmenters.tiny_scenes import draw_scene
from weaksam.segmenters.tiny_training import mask_box
from wsis.benchmarks.box_masks import batched, measure, one_by_one, random_boxes
from wsis.cli.main import main

pytestmark = pytest.mark.usefixtures("one_thread")
INFO = {"rule": {"name": "top1"}}


@pytest.fixture(scope="module")
def tiny():
    return load_segmenter("tiny", device="cpu")


def write_boxes(folder, *boxes_of_images, categories=(7, 9)):
    """A dataset whose image n has these boxes, (category, bbox); its file, its image folder."""
    path, root = make_dataset(folder, len(boxes_of_images))
    content = json.loads(path.read_text())
    entries = [
        {"image_id": n, "category_id": category, "bbox": list(box), "score": 0.5}
        for n, own in enumerate(boxes_of_images, start=1)
        for category, box in own
    ]
    content |= {
        "info": INFO,
        "categories": [{"id": number, "name": f"class {number}"} for number in categories],
        "annotations": [{"id": n} | entry for n, entry in enumerate(entries, start=1)],
    }
    boxes = folder / "boxes.json"
    boxes.write_text(json.dumps(content))
    return boxes, root


# BlockSegmenter: a square of 8 pixels around the box's middle; none left of column 4.
BOXES = [
    [(7, [10, 10, 20, 10]), (9, [0, 0, 6, 6]), (9, [30.5, 20, 9, 9])],
    [],
    [(7, [0, 0, 56, 48])],
]


def test_boxes_become_tight_masks_in_coco_form(tmp_path):
    boxes, root = write_boxes(tmp_path, *BOXES)
    output = tmp_path / "masks.json"
    counts = make_box_masks(boxes, root, BlockSegmenter(), output)
    assert counts == BoxMaskCounts(images=3, masks=3, empty=1)
    content = json.loads(output.read_text())
    assert content["info"]["rule"] == INFO["rule"]
    made = content["info"]["masks"]
    assert (made["segmenter"], made["pick"], made["empty"]) == ("blocks", "single", 1)
    assert [a["id"] for a in content["annotations"]] == [1, 2, 3]
    assert [a["category_id"] for a in content["annotations"]] == [7, 9, 7]
    api = COCO(str(output))
    for annotation in content["annotations"]:
        rle = annotation["segmentation"]
        assert isinstance(rle["counts"], str) and annotation["iscrowd"] == 0
        mask = mask_utils.decode(rle)
        np.testing.assert_array_equal(mask, api.annToMask(annotation))
        assert annotation["area"] == mask.sum() == mask_utils.area(rle)
        rows, columns = np.nonzero(mask)
        x, y, w, h = annotation["bbox"]
        assert (x, y, x + w, y + h) == (
            *(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1),
        )
        assert annotation["score"] == 0.5 and annotation["predicted_iou"] == pytest.approx(0.6)
    dicts = load_coco_json(str(output), str(root))
    assert [len(d["annotations"]) for d in dicts] == [2, 0, 1]
    assert not list(tmp_path.glob("*.shards"))


def test_the_best_of_three_is_the_one_of_the_highest_predicted_iou(tmp_path):
    boxes, root = write_boxes(tmp_path, *BOXES)
    make_box_masks(boxes, root, BlockSegmenter(), tmp_path / "best.json", "best_iou")
    content = json.loads((tmp_path / "best.json").read_text())
    for annotation in content["annotations"]:
        assert annotation["predicted_iou"] == pytest.approx(0.7)
    assert content["annotations"][0]["area"] == 17 * 17  # 8 to each side of the middle


def test_a_network_finds_the_objects_in_their_boxes(tiny):
    rng = np.random.default_rng(5)
    overlaps = []
    for _ in range(4):
        scene = draw_scene(rng, 96)
        objects = scene.labels[1]
        masks = [objects == n for n in np.unique(objects[objects > 0])]
        masks = [mask for mask in masks if mask.sum() > 60]
        boxes = np.array([mask_box(mask) for mask in masks], np.float64)
        for row, mask, _ in box_masks(tiny, scene.image, boxes):
            overlaps.append((mask & masks[row]).sum() / (mask | masks[row]).sum())
    assert len(overlaps) > 5 and np.mean(overlaps) > 0.6


@pytest.mark.parametrize("pick", ["single", "best_iou"])
def test_a_batch_gives_the_masks_of_single_boxes(tiny, pick):
    rng = np.random.default_rng(1)
    image = draw_scene(rng, 80).image
    boxes = random_boxes(rng, 21, image.shape[:2])
    together = {row: (mask, iou) for row, mask, iou in box_masks(tiny, image, boxes, pick)}
    assert sorted(together) == list(range(21))
    for row, box in enumerate(boxes):
        ((_, mask, iou),) = box_masks(tiny, image, box[None], pick)
        np.testing.assert_array_equal(together[row][0], mask)
        assert together[row][1] == pytest.approx(iou, abs=1e-4)


def test_grabcut_makes_masks_without_a_prediction_of_their_quality(tmp_path):
    boxes, root = write_boxes(tmp_path, [(7, [10, 10, 20, 15])], [(9, [0, 0, 56, 44])])
    output = tmp_path / "masks.json"
    make_box_masks(boxes, root, load_segmenter("grabcut"), output)
    content = json.loads(output.read_text())
    assert content["info"]["masks"]["segmenter"].startswith("grabcut")
    assert content["annotations"][-1]["area"] == 56 * 44  # nothing is around this box
    for annotation in content["annotations"]:
        assert "predicted_iou" not in annotation
    with pytest.raises(ValueError, match="grabcut gives one mask a box"):
        make_box_masks(boxes, root, load_segmenter("grabcut"), tmp_path / "b.json", "best_iou")


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    boxes, root = write_boxes(tmp_path, *BOXES, [(7, [20, 20, 9, 9])])
    whole, killed = tmp_path / "whole.json", tmp_path / "killed.json"
    make_box_masks(boxes, root, BlockSegmenter(), whole)
    made, original = [], module.box_masks

    def stop_at_the_second(*arguments):
        if made:
            raise KeyboardInterrupt
        made.append(1)
        return original(*arguments)

    monkeypatch.setattr(module, "box_masks", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        make_box_masks(boxes, root, BlockSegmenter(), killed)
    assert not killed.exists() and len(list(tmp_path.glob("killed.json.shards/*.json"))) == 3
    with pytest.raises(ValueError, match="shards holds masks made with other pick"):
        make_box_masks(boxes, root, BlockSegmenter(), killed, "best_iou")
    monkeypatch.setattr(module, "box_masks", original)
    segmenter = BlockSegmenter()
    counts = make_box_masks(boxes, root, segmenter, killed)
    assert segmenter.encoded == 2 and killed.read_bytes() == whole.read_bytes()
    assert make_box_masks(boxes, root, segmenter, killed) == counts  # nothing to do
    assert segmenter.encoded == 2


def test_what_was_made_from_others_is_not_replaced(tmp_path):
    boxes, root = write_boxes(tmp_path, *BOXES)
    output = tmp_path / "masks.json"
    make_box_masks(boxes, root, BlockSegmenter(), output)
    before = output.read_bytes()
    with pytest.raises(ValueError, match="masks.json was made with other pick; give another"):
        make_box_masks(boxes, root, BlockSegmenter(), output, "best_iou")
    with pytest.raises(ValueError, match="boxes.json was made with other boxes, segmenter, pick"):
        make_box_masks(boxes, root, BlockSegmenter(), boxes)
    assert output.read_bytes() == before


class ClicksOnly(BlockSegmenter):
    prompts = frozenset({"points"})
    identity = "clicks"


def test_wrong_input_is_named(tmp_path):
    output = tmp_path / "masks.json"
    boxes, root = write_boxes(tmp_path, [(7, [50, 10, 20, 10])])
    with pytest.raises(ValueError, match="boxes.json: annotation id 1: bbox .* outside its image"):
        make_box_masks(boxes, root, BlockSegmenter(), output)
    with pytest.raises(ValueError, match="segmenter clicks takes points only.*grabcut"):
        make_box_masks(boxes, root, ClicksOnly(), output)
    with pytest.raises(ValueError, match="pick='all'; expected one of"):
        make_box_masks(boxes, root, BlockSegmenter(), output, "all")
    content = json.loads(boxes.read_text())
    del content["annotations"][0]["bbox"]
    boxes.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="annotation id 1 has no bbox"):
        make_box_masks(boxes, root, BlockSegmenter(), output)
    content["annotations"][0] |= {"bbox": [0, 0, 9, 9]}
    content["images"][0]["height"] = 99
    boxes.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="000001.png is 40 x 56"):
        make_box_masks(boxes, root, BlockSegmenter(), output)
    assert not output.exists()


def test_crowds_are_left_out(tmp_path):
    boxes, root = write_boxes(tmp_path, *BOXES)
    content = json.loads(boxes.read_text())
    content["annotations"][0]["iscrowd"] = 1
    boxes.write_text(json.dumps(content))
    counts = make_box_masks(boxes, root, BlockSegmenter(), tmp_path / "masks.json")
    assert counts == BoxMaskCounts(images=3, masks=2, empty=1)


@pytest.mark.slow
def test_the_command_gives_the_same_bytes_for_any_number_of_processes(tmp_path, capsys):
    boxes, root = write_boxes(tmp_path, *BOXES)
    words = ["box-masks", "--boxes", str(boxes), "--image-root", str(root), "--num-gpus", "0"]
    words += ["--segmenter", "grabcut"]
    for processes in ("1", "2"):
        more = ["-o", str(tmp_path / f"{processes}.json"), "--num-processes", processes]
        assert main([*words, *more]) == 0
    assert "masks on 3 images" in capsys.readouterr().out
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()
    assert main([*words, "-o", str(tmp_path / "3.json"), "--segmenter", "clicks"]) == 2
    assert "segmenter 'clicks'; expected one of" in capsys.readouterr().err


def test_the_benchmark_compares_the_same_masks(tiny):
    (row,) = measure(side=64, boxes=5, repeats=1)
    assert "the same masks" in row.what
    rng = np.random.default_rng(2)
    image = draw_scene(rng, 64).image
    boxes = random_boxes(rng, 3, (64, 64))
    assert len(batched(tiny, image, boxes)) == len(one_by_one(tiny, image, boxes)) == 3
