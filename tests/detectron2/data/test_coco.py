import json
import logging

import numpy as np
import pycocotools.mask as mask_util
import pytest

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import (
    convert_to_coco_dict,
    convert_to_coco_json,
    load_coco_json,
    register_coco_instances,
    register_inline_datasets,
)
from detectron2.structures import BoxMode

SQUARE = [[5, 5, 10, 5, 10, 10, 5, 10]]
BOX = {"bbox": [5, 5, 5, 5], "category_id": 3, "iscrowd": 0}


@pytest.fixture
def log(caplog):
    logging.getLogger("detectron2").propagate = True
    with caplog.at_level(logging.INFO):
        yield caplog


def test_images_come_in_order_of_ids_with_their_annotations(coco_file):
    path = coco_file([BOX | {"segmentation": SQUARE, "category_id": 7}, BOX])
    first, second = load_coco_json(path, "images", "some")
    assert (first["image_id"], first["file_name"]) == (1, "images/a.png")
    assert (first["width"], first["height"]) == (40, 30)
    assert first["annotations"] == [
        BOX | {"segmentation": SQUARE, "category_id": 1, "bbox_mode": BoxMode.XYWH_ABS},
        BOX | {"category_id": 0, "bbox_mode": BoxMode.XYWH_ABS},
    ]
    assert second["annotations"] == []
    metadata = MetadataCatalog.get("some")
    assert metadata.thing_classes == ["cat", "dog"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}


def test_without_a_name_category_ids_stay(coco_file):
    (annotation,) = load_coco_json(coco_file([BOX | {"category_id": 7, "note": "x"}]), "")[0][
        "annotations"
    ]
    assert annotation["category_id"] == 7 and "note" not in annotation and "id" not in annotation


def test_extra_keys_are_taken_over(coco_file):
    images = load_coco_json(coco_file([BOX]), "", extra_annotation_keys=["id", "note"])
    assert images[0]["annotations"][0]["id"] == 1


def test_images_without_an_annotations_list_load(coco_file):
    path = coco_file([])
    content = json.loads(open(path).read())
    del content["annotations"]
    open(path, "w").write(json.dumps(content))
    assert [image["annotations"] for image in load_coco_json(path, "", "some")] == [[], []]


def test_polygons_without_area_are_dropped_and_counted(coco_file, log):
    good, bad = SQUARE[0], [1, 1, 2, 2]
    annotations = [BOX | {"segmentation": [bad]}, BOX | {"segmentation": [bad, good, good[:-1]]}]
    loaded = load_coco_json(coco_file(annotations), "")[0]["annotations"]
    assert [a["segmentation"] for a in loaded] == [[good]]
    assert "left out 1 instances, none of whose polygons has three corners" in log.text


def test_uncompressed_rle_is_compressed(coco_file):
    mask = np.zeros((30, 40), dtype=np.uint8)
    mask[3:9, 4:11] = 1
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    rle = {"size": [30, 40], "counts": counts}
    loaded = load_coco_json(coco_file([BOX | {"segmentation": rle, "iscrowd": 1}]), "")
    np.testing.assert_array_equal(
        mask_util.decode(loaded[0]["annotations"][0]["segmentation"]), mask
    )


def test_a_point_needs_nothing_else(coco_file):
    path = coco_file([{"point": [12.5, 7], "category_id": 3}, BOX | {"point": [40, 30]}])
    point_only, with_box = load_coco_json(path, "", "some")[0]["annotations"]
    assert point_only == {"point": [12.5, 7.0], "category_id": 0}
    assert with_box["point"] == [40.0, 30.0] and with_box["bbox"] == BOX["bbox"]


WRONG = {
    "outside the image": {"point": [40.5, 3], "category_id": 3},
    "not finite": {"point": [float("nan"), 3], "category_id": 3},
    r"not \[x, y\]": {"point": [1, 2, 3], "category_id": 3},
    "not in 'categories'": BOX | {"category_id": 4},
    "empty 'bbox'": BOX | {"bbox": []},
    "none of": {"category_id": 3},
    "'ignore' is not supported": BOX | {"ignore": 1},
    "add up to its size: 30 x 40": BOX | {"segmentation": {"size": [30, 40], "counts": [3, 2]}},
    "RLE counts are cut off": BOX | {"segmentation": {"size": [30, 40], "counts": "zzzz"}},
    "RLE of size": BOX | {"segmentation": {"size": [3, 4], "counts": [12]}},
    "no mask": BOX | {"segmentation": {"size": [30, 40]}},
    "lies farther outside": BOX | {"segmentation": [[0, 0, 1e9, 0, 5, 5]]},
    "a coordinate that is not finite": BOX | {"segmentation": [[0, 0, float("inf"), 0, 5, 5]]},
    "a coordinate that is not a number": BOX | {"segmentation": [[0, 0, None, 0, 5, 5]]},
    "'bbox' is not a list of 4 finite numbers": BOX | {"bbox": [1, 2, float("nan"), 4]},
    "RLE counts are not runs": BOX | {"segmentation": {"size": [30, 40], "counts": [1201, -1]}},
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_annotations_are_named_or_skipped(coco_file, log, fault):
    path = coco_file([BOX, WRONG[fault]], name="wrong.json")
    with pytest.raises(ValueError, match=rf"wrong.json', annotation id 2 \(image id 1\).*{fault}"):
        load_coco_json(path, "", "some")
    kept = load_coco_json(path, "", "some", skip_invalid=True)[0]["annotations"]
    assert len(kept) == 1
    assert "skipped 1 annotations" in log.text and "ids 2" in log.text


def test_annotation_ids_must_be_unique_but_in_minival(coco_file, log):
    twice = [BOX, BOX | {"id": 1}]
    with pytest.raises(ValueError, match="wrong.json' has two annotations with id 1;"):
        load_coco_json(coco_file(twice, name="wrong.json"), "")
    skipped = load_coco_json(coco_file(twice), "", skip_invalid=True)
    assert len(skipped[0]["annotations"]) == 1 and "duplicate id" in log.text
    assert len(load_coco_json(coco_file(twice, "minival.json"), "")[0]["annotations"]) == 2


def test_annotations_of_unknown_images_are_counted(coco_file, log):
    assert len(load_coco_json(coco_file([BOX, BOX | {"image_id": 9}]), "")[0]["annotations"]) == 1
    assert "left out 1 of 2 annotations" in log.text


def test_files_that_cannot_be_read_are_named(tmp_path, coco_file):
    with pytest.raises(FileNotFoundError, match="nowhere.json.*DETECTRON2_DATASETS"):
        load_coco_json(str(tmp_path / "nowhere.json"), "")
    cut = tmp_path / "cut.json"
    cut.write_text('{"images": [')
    with pytest.raises(ValueError, match="cut.json: not a json file"):
        load_coco_json(str(cut), "")
    cut.write_text("[]")
    with pytest.raises(ValueError, match="not a COCO annotation file"):
        load_coco_json(str(cut), "")
    with pytest.raises(ValueError, match=r"lacks \['width'\]"):
        load_coco_json(coco_file([], images=[{"id": 1, "file_name": "a", "height": 3}]), "")
    absurd = {"id": 1, "file_name": "a", "height": 3, "width": 10**9}
    with pytest.raises(ValueError, match="image id 1: height 3 and width 1000000000"):
        load_coco_json(coco_file([], images=[absurd]), "")
    with pytest.raises(ValueError, match="no 'categories'"):
        load_coco_json(coco_file([], categories=[]), "", "some")


def test_other_categories_than_the_registered_ones_are_an_error(coco_file):
    MetadataCatalog.get("some").thing_classes = ["cat"]
    with pytest.raises(ValueError, match="'some' is known to have"):
        load_coco_json(coco_file([]), "", "some")


def test_category_ids_with_gaps_are_mentioned(coco_file, log):
    load_coco_json(coco_file([]), "", "some")
    assert "has category ids other than 1 to" in log.text


def test_registering_reads_the_file_when_asked(coco_file):
    path = coco_file([BOX])
    register_coco_instances("mine", {"thing_colors": [[0, 0, 0]] * 2}, path, "images")
    metadata = MetadataCatalog.get("mine")
    assert (metadata.json_file, metadata.image_root) == (path, "images")
    assert metadata.evaluator_type == "coco" and metadata.get("thing_classes") is None
    assert len(DatasetCatalog.get("mine")) == 2
    assert metadata.thing_classes == ["cat", "dog"]


def test_what_is_written_is_read_back(coco_file, tmp_path):
    rle = mask_util.encode(np.asfortranarray(np.eye(30, 40, dtype=np.uint8)))
    rle["counts"] = rle["counts"].decode()
    annotations = [
        BOX | {"segmentation": SQUARE, "category_id": 7},
        BOX | {"segmentation": rle, "iscrowd": 1, "point": [3.5, 4]},
        {"point": [12.5, 7.0], "category_id": 3, "iscrowd": 0},
    ]
    register_coco_instances("mine", {}, coco_file(annotations), "")
    loaded = DatasetCatalog.get("mine")
    output = tmp_path / "new" / "copy.json"
    convert_to_coco_json("mine", str(output))
    assert load_coco_json(str(output), "", "mine") == loaded
    content = json.loads(output.read_text())
    assert [a.get("area") for a in content["annotations"]] == [25.0, 30.0, None]
    assert {c["id"]: c["name"] for c in content["categories"]} == {3: "cat", 7: "dog"}
    assert [p.name for p in output.parent.iterdir()] == ["copy.json"]  # no temporary file

    output.write_text("kept")
    convert_to_coco_json("mine", str(output))
    assert output.read_text() == "kept"
    convert_to_coco_json("mine", str(output), allow_cached=False)
    assert json.loads(output.read_text())["images"] == content["images"]


def test_records_of_any_box_mode_and_numpy_values_are_written():
    mask = np.zeros((5, 5), dtype=np.uint8)
    mask[1:3, 2:5] = 1
    record = {"file_name": "x", "image_id": 0, "height": 5, "width": 5}
    record["annotations"] = [
        {
            "bbox": np.array([2, 1, 5, 3]),
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": 0,
            "segmentation": mask_util.encode(np.asfortranarray(mask)),
        },
        {"bbox": [3, 3, 2, 4, 30], "bbox_mode": BoxMode.XYWHA_ABS, "category_id": 0, "iscrowd": 1},
    ]
    DatasetCatalog.register("mine", lambda: [record])
    MetadataCatalog.get("mine").thing_classes = ["thing"]
    content = json.loads(json.dumps(convert_to_coco_dict("mine")))
    first, second = content["annotations"]
    assert first["bbox"] == [2, 1, 3, 2] and first["area"] == 6
    np.testing.assert_array_equal(mask_util.decode(first["segmentation"]), mask)
    assert second["bbox"] == [3, 3, 2, 4, 30] and second["area"] == 8 and second["iscrowd"] == 1


def test_inline_datasets_are_registered_once(coco_file, image_folder):
    path = coco_file([BOX])
    inline = f"mine={path}:{image_folder}"
    assert register_inline_datasets([inline, "coco_2017_val", inline]) == [
        *("mine", "coco_2017_val", "mine")
    ]
    assert DatasetCatalog.get("mine")[0]["file_name"] == f"{image_folder}/a.png"
    with pytest.raises(ValueError, match="'mine' is taken"):
        register_inline_datasets([f"mine={coco_file([], name='b.json')}:{image_folder}"])


def test_errors_of_inline_datasets_name_the_wrong_part(coco_file, image_folder):
    path = coco_file([])
    with pytest.raises(ValueError, match="name '' before '='"):
        register_inline_datasets([f"={path}:{image_folder}"])
    with pytest.raises(ValueError, match="ends in .json, then ':'"):
        register_inline_datasets([f"mine={path}"])
    with pytest.raises(FileNotFoundError, match="annotation file 'no.json'"):
        register_inline_datasets([f"mine=no.json:{image_folder}"])
    with pytest.raises(FileNotFoundError, match="image folder 'no'"):
        register_inline_datasets([f"mine={path}:no"])
