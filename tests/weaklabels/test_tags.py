"""Image tags from each source, the file they are kept in, and what is refused."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.tags import load_tags_json
from weaklabels.tag_sources import tags_from_coco, tags_from_csv, tags_from_folders, tags_from_voc
from weaklabels.tags import (
    TaggedImage,
    Tags,
    is_evaluation_split,
    read_tags,
    require_every_class,
    write_tags,
)

VOC_MINI = Path(__file__).resolve().parents[2] / "../shared/data/voc_mini/VOCdevkit/VOC2007"
CLASSES = ("cat", "dog")


def save_image(path, height=6, width=8, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path, **options)


def voc_xml(objects):
    text = "<annotation><size><width>8</width><height>6</height><depth>3</depth></size>"
    for name, difficult, box in objects:
        corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        bndbox = "".join(f"<{key}>{value}</{key}>" for key, value in corners)
        text += f"<object><name>{name}</name><difficult>{difficult}</difficult>"
        text += f"<bndbox>{bndbox}</bndbox></object>"
    return text + "</annotation>"


@pytest.fixture
def voc(tmp_path):
    """Two images of a devkit: cat with a difficult dog; nothing but a difficult cat, and a dog."""
    root = tmp_path / "VOC2012"
    contents = {
        "2008_000002": [
            ("cat", 0, (1, 1, 3, 3)),
            ("dog", 1, (2, 2, 4, 4)),
            ("cat", 0, (4, 4, 5, 5)),
        ],
        "000005": [("dog", 0, (1, 2, 8, 6)), ("cat", 1, (1, 1, 2, 2))],
    }
    for name, objects in contents.items():
        path = root / "Annotations" / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(voc_xml(objects))
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("2008_000002\n000005\n")
    return root


def test_voc_ids_are_digits_and_difficult_objects_are_an_option(voc):
    plain = tags_from_voc(voc, "trainval", difficult=False, classes=CLASSES)
    assert {i.id: i.category_ids for i in plain.images} == {2008000002: (1,), 5: (2,)}
    every = tags_from_voc(voc, "trainval", difficult=True, classes=CLASSES)
    assert {i.id: i.category_ids for i in every.images} == {2008000002: (1, 2), 5: (1, 2)}
    assert (every.images[0].height, every.images[0].width) == (6, 8)
    assert not every.for_evaluation


def test_boxes_do_not_reach_the_tag_file(voc, tmp_path):
    write_tags(tmp_path / "a.json", tags_from_voc(voc, "trainval", difficult=True, classes=CLASSES))
    for path in (voc / "Annotations").iterdir():
        path.write_text(path.read_text().replace("<xmin>1<", "<xmin>0<"))
    write_tags(tmp_path / "b.json", tags_from_voc(voc, "trainval", difficult=True, classes=CLASSES))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_voc_object_outside_the_class_list_is_named(voc):
    with pytest.raises(ValueError, match=r"2008_000002.xml, object 2: 'dog' .*\(cat\)"):
        tags_from_voc(voc, "trainval", difficult=True, classes=("cat",))


def test_class_without_an_image_is_named_unless_allowed(voc):
    classes = (*CLASSES, "emu", "gnu")
    with pytest.raises(ValueError, match="tagged emu, gnu; take"):
        tags_from_voc(voc, "trainval", difficult=True, classes=classes)
    tags = tags_from_voc(voc, "trainval", difficult=True, classes=classes, allow_absent=True)
    assert tags.absent_classes() == ["emu", "gnu"]
    with pytest.raises(ValueError, match="emu, gnu"):
        require_every_class(tags)


def coco_json(tmp_path, annotations):
    path = tmp_path / "instances_val2014.json"
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 4, "width": 5} for n in (70, 9, 8)],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "iscrowd": crowd}
            for n, (image, category, crowd) in enumerate(annotations)
        ],
    }
    path.write_text(json.dumps(content))
    return path


def test_coco_keeps_its_ids_and_crowds_count_as_difficult(tmp_path):
    path = coco_json(tmp_path, [(9, 90, 0), (9, 3, 1), (9, 90, 0), (70, 3, 0)])
    tags = tags_from_coco(path, difficult=False)
    assert [(i.id, i.category_ids) for i in tags.images] == [(8, ()), (9, (90,)), (70, (3,))]
    assert tags.class_names == ["car", "toothbrush"]
    assert tags.split == "val2014" and tags.for_evaluation
    assert tags_from_coco(path, difficult=True).images[1].category_ids == (3, 90)


def test_tag_file_round_trip_lists_images_without_a_tag(tmp_path):
    tags = tags_from_coco(coco_json(tmp_path, [(9, 90, 0), (70, 3, 0)]), difficult=False)
    skipped = write_tags(tmp_path / "tags.json", tags)
    assert read_tags(tmp_path / "tags.json") == tags
    assert skipped.name == "tags.skipped.json"
    assert [entry["image_id"] for entry in json.loads(skipped.read_text())] == [8]
    assert "annotations" not in json.loads((tmp_path / "tags.json").read_text())


def test_dataset_dicts_have_contiguous_labels_and_no_annotations(tmp_path):
    tags = tags_from_coco(
        coco_json(tmp_path, [(9, 90, 0), (70, 3, 0), (70, 90, 0)]), difficult=True
    )
    write_tags(tmp_path / "tags.json", tags)
    dicts = load_tags_json(str(tmp_path / "tags.json"), "images", "tags_of_this_test")
    assert [(d["image_id"], d["image_labels"]) for d in dicts] == [(8, []), (9, [1]), (70, [0, 1])]
    assert dicts[1]["file_name"] == "images/9.jpg"
    assert not any("annotations" in d for d in dicts)
    metadata = MetadataCatalog.get("tags_of_this_test")
    assert metadata.thing_classes == ["car", "toothbrush"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 90: 1}


def test_csv_rows_and_repeated_images(tmp_path):
    for name in ("b.jpg", "a.png", "c.jpg"):
        save_image(tmp_path / "images" / name)
    path = tmp_path / "labels.csv"
    path.write_text("image,label\nb.jpg,dog; cat\na.png,cat\nc.jpg,\nb.jpg,cat;dog\n")
    tags = tags_from_csv(path, tmp_path / "images")
    found = [(i.id, i.file_name, i.category_ids) for i in tags.images]
    assert found == [(1, "a.png", (1,)), (2, "b.jpg", (1, 2)), (3, "c.jpg", ())]
    assert [image.id for image in tags.without_tags()] == [3]


@pytest.mark.parametrize(
    "text,message",
    [
        (
            "image,label\na.png,cat\na.png,dog\n",
            r"labels.csv:3: image a.png has the tags \['dog'\]",
        ),
        ("image,label\nz.png,cat\n", "labels.csv:2 names the image .*z.png, which is not there"),
        ("image,label\na.png,cow\n", r"labels.csv:2, image a.png: 'cow' is not in the class list"),
        ("image,label\na.png,cat,dog\n", "labels.csv:2: more values than columns"),
        ("image,label\n,cat\n", "labels.csv:2: the row names no image"),
        ("name,label\na.png,cat\n", r"the header lacks \['image'\]"),
        ("image,label\n", "no image; expected rows"),
        ("image,label\na.png,cat\n", "no image of the split is tagged dog"),
    ],
)
def test_csv_faults_are_named(tmp_path, text, message):
    save_image(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(
        ValueError if "not there" not in message else FileNotFoundError, match=message
    ):
        tags_from_csv(tmp_path / "labels.csv", tmp_path, classes=CLASSES)


def test_folders_and_images_that_lie_on_their_side(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(tmp_path / "dog" / "x.jpg", exif=exif)
    save_image(tmp_path / "cat" / "x.jpg")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    tags = tags_from_folders(tmp_path)
    found = [(i.file_name, i.height, i.width, i.category_ids) for i in tags.images]
    assert found == [("cat/x.jpg", 6, 8, (1,)), ("dog/x.jpg", 8, 6, (2,))]
    (tmp_path / "dog" / "x.jpg").write_bytes(b"no jpeg")
    with pytest.raises(ValueError, match="dog/x.jpg is not readable"):
        tags_from_folders(tmp_path)
    with pytest.raises(ValueError, match="'cat' is not in the class list"):
        tags_from_folders(tmp_path, classes=("dog",))


def image(number=1, categories=(1,), name="a.jpg"):
    return TaggedImage(number, name, 4, 5, tuple(categories))


@pytest.mark.parametrize(
    "images,categories,message",
    [
        ([image(categories=[7])], [(1, "cat")], r"image id 1 has the category_ids \[7\]"),
        ([image(categories=[1, 1])], [(1, "cat")], "must ascend"),
        ([image(), image(name="b.jpg")], [(1, "cat")], "image id 1 occurs twice"),
        ([image(), image(2)], [(1, "cat")], "file_name 'a.jpg' occurs twice"),
        ([image()], [(1, "cat"), (2, "cat")], "category name 'cat' occurs twice"),
        ([image()], [], "no categories"),
    ],
)
def test_inconsistent_tags_are_refused(images, categories, message):
    with pytest.raises(ValueError, match=message):
        Tags(tuple(images), tuple(categories))


@pytest.mark.parametrize(
    "change,message",
    [
        ({"annotations": []}, "has 'annotations'"),
        ({"images": 3}, "'images' is no list"),
        ({"categories": [{"id": 1}]}, r"category number 0 lacks \['name'\]"),
        ({"images": [{"id": 1, "file_name": "a", "height": 1, "width": 1}]}, "category_ids"),
        (
            {"images": [{"id": 1, "file_name": "a", "height": 0, "width": 1, "category_ids": [1]}]},
            "image id 1: height is 0",
        ),
    ],
)
def test_tag_file_faults_name_the_file(tmp_path, change, message):
    path = tmp_path / "tags.json"
    write_tags(path, Tags((image(),), ((1, "cat"),)))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message) as caught:
        read_tags(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "split,evaluation",
    [("trainval", False), ("train2014", False), (None, False), ("val2014", True)]
    + [("test", True), ("minival", True), ("train_aug", False), ("test-dev2017", True)],
)
def test_evaluation_splits(split, evaluation):
    assert is_evaluation_split(split) is evaluation


@pytest.mark.skipif(not VOC_MINI.is_dir(), reason="../shared/data/voc_mini is absent")
def test_real_voc_tags_agree_with_its_xml():
    tags = tags_from_voc(VOC_MINI, "trainval", difficult=True)
    assert len(tags.images) == 500 and not tags.without_tags()
    fewer = tags_from_voc(VOC_MINI, "trainval", difficult=False)
    for picture, plain in zip(tags.images, fewer.images, strict=True):
        path = VOC_MINI / "Annotations" / picture.file_name.replace(".jpg", ".xml")
        objects = ElementTree.parse(path).getroot().findall("object")
        every = {thing.findtext("name") for thing in objects}
        easy = {thing.findtext("name") for thing in objects if thing.findtext("difficult") == "0"}
        assert {tags.class_names[n - 1] for n in picture.category_ids} == every
        assert {tags.class_names[n - 1] for n in plain.category_ids} == easy
