import logging

import pytest

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES


def test_a_dataset_is_loaded_when_asked_for():
    calls = []
    DatasetCatalog.register("some", lambda: calls.append(1) or [{"image_id": 5}])
    assert calls == []
    assert DatasetCatalog.get("some") == [{"image_id": 5}]
    assert "some" in DatasetCatalog.list()
    DatasetCatalog.remove("some")
    assert "some" not in DatasetCatalog


def test_a_name_is_registered_once_and_only_with_a_function():
    DatasetCatalog.register("some", list)
    with pytest.raises(AssertionError, match="'some' is already registered"):
        DatasetCatalog.register("some", list)
    with pytest.raises(AssertionError, match="takes a function"):
        DatasetCatalog.register("other", [])


def test_an_unknown_dataset_is_named_with_those_that_are_known():
    with pytest.raises(KeyError, match="'nowhere' is not registered.*coco_2017_val"):
        DatasetCatalog.get("nowhere")


def test_metadata_attributes_are_set_once():
    metadata = MetadataCatalog.get("some").set(thing_classes=["a", "b"], evaluator_type="coco")
    assert MetadataCatalog.get("some") is metadata and metadata.name == "some"
    metadata.thing_classes = ["a", "b"]  # the same value again
    with pytest.raises(AssertionError, match="'thing_classes'.*'some'.*different"):
        metadata.thing_classes = ["a"]
    assert metadata.get("nothing", 7) == 7
    copy = metadata.as_dict()
    copy["thing_classes"] = None
    assert metadata.thing_classes == ["a", "b"]


def test_a_missing_attribute_lists_those_there_are():
    MetadataCatalog.get("some").json_file = "x.json"
    with pytest.raises(AttributeError, match=r"'nothing'.*'some'.*\['name', 'json_file'\]"):
        MetadataCatalog.get("some").nothing  # noqa: B018
    with pytest.raises(AttributeError, match="metadata is empty"):
        Metadata().nothing  # noqa: B018


def test_old_names_of_attributes_lead_to_the_new_ones(caplog):
    metadata = MetadataCatalog.get("some")
    logging.getLogger("detectron2").propagate = True
    with caplog.at_level(logging.WARNING):
        metadata.class_names = ["a"]
    assert metadata.thing_classes == ["a"] and metadata.class_names == ["a"]
    assert "renamed to 'thing_classes'" in caplog.text


def test_builtin_datasets_of_the_method_are_registered():
    assert len(COCO_CATEGORIES) == 80
    for name in ("coco_2017_train", "coco_2017_val", "coco_2017_val_100", "coco_2014_minival"):
        assert len(MetadataCatalog.get(name).thing_classes) == 80
    ids = MetadataCatalog.get("coco_2017_train_5p_w").thing_dataset_id_to_contiguous_id
    assert (ids[1], ids[13], ids[90]) == (0, 11, 79)
    strong = MetadataCatalog.get("coco_2017_train_5p_sw_refined")
    assert strong.json_file.endswith("coco/annotations/instances_train2017_5p_sw_refined.json")
    assert strong.image_root.endswith("coco/train2017")
    bdd = MetadataCatalog.get("bdd100k_train_10p_s")
    assert bdd.json_file.endswith("BDD100K/annotations/bdd100k_ins_labels_train_10p_s.json")
    assert bdd.image_root.endswith("BDD100K/train")
    assert bdd.thing_classes[0] == "pedestrian" and bdd.thing_classes[7] == "bicycle"
    val = MetadataCatalog.get("bdd100k_val")
    assert val.json_file.endswith("bdd100k_ins_labels_val.json")
    assert val.image_root.endswith("BDD100K/val")
