"""Pascal VOC's files as datasets: what comes out, and what wrong files are told."""

import pytest

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import load_voc_instances, register_pascal_voc
from detectron2.data.datasets.pascal_voc import CLASS_NAMES, read_image_set, read_voc_annotation
from detectron2.structures import BoxMode

SIZE = "<size><width>60</width><height>50</height><depth>3</depth></size>"
BOX = "<bndbox><xmax>20</xmax><xmin>3</xmin><ymax>30</ymax><ymin>4</ymin></bndbox>"
DOG = f"<object><name>dog</name><pose>Left</pose><difficult>1</difficult>{BOX}</object>"


def annotation(body):
    return f"<annotation><folder>VOC2012</folder>{body}</annotation>"


@pytest.fixture
def voc(tmp_path):
    """A function that writes a tree of annotations {image: xml} and a list of them."""

    def write(annotations, split="train"):
        folder = tmp_path / "VOC2012"
        (folder / "Annotations").mkdir(parents=True)
        (folder / "ImageSets" / "Main").mkdir(parents=True)
        for image, text in annotations.items():
            (folder / "Annotations" / f"{image}.xml").write_text(text)
        list_file = folder / "ImageSets" / "Main" / f"{split}.txt"
        list_file.write_text("".join(f"{image}\n" for image in annotations))
        return str(folder)

    return write


@pytest.fixture
def xml(tmp_path):
    def write(text):
        path = tmp_path / "000005.xml"
        path.write_text(text)
        return str(path)

    return write


def test_objects_become_instances(voc):
    part = f"<part><name>head</name>{BOX.replace('20', '9')}</part>"
    person = f"<object><name>person</name>{part}{BOX}</object>"
    dirname = voc({"2008_2": annotation(SIZE + DOG + person), "2008_1": annotation(SIZE)})
    records = load_voc_instances(dirname, "train", CLASS_NAMES)
    assert [record["image_id"] for record in records] == ["2008_2", "2008_1"]
    box = {"bbox": [2.0, 3.0, 20.0, 30.0], "bbox_mode": BoxMode.XYXY_ABS}
    assert records[0] == {
        "file_name": f"{dirname}/JPEGImages/2008_2.jpg",
        "image_id": "2008_2",
        "height": 50,
        "width": 60,
        "annotations": [{"category_id": 11} | box, {"category_id": 14} | box],
    }
    assert records[1]["annotations"] == []


def test_registered_splits_load_by_name(voc):
    dirname = voc({"1": annotation(SIZE + DOG)}, split="mine")
    register_pascal_voc("my_voc", dirname, "mine", 2007, ["cat", "dog"])
    metadata = MetadataCatalog.get("my_voc")
    assert (metadata.dirname, metadata.split, metadata.year) == (dirname, "mine", 2007)
    assert metadata.thing_classes == ["cat", "dog"]
    (record,) = get_detection_dataset_dicts("my_voc")
    assert record["annotations"][0]["category_id"] == 1


@pytest.mark.parametrize("year,splits", [(2007, "trainval train val test"), (2012, "trainval val")])
def test_builtin_names(year, splits):
    for split in splits.split():
        metadata = MetadataCatalog.get(f"voc_{year}_{split}")
        assert f"voc_{year}_{split}" in DatasetCatalog
        assert (metadata.year, metadata.split) == (year, split)
        assert metadata.dirname.endswith(f"VOC{year}")
        assert metadata.evaluator_type == "pascal_voc"
        assert len(metadata.thing_classes) == 20
    assert MetadataCatalog.get("voc_2012_instances_val").evaluator_type == "coco"


def test_marks_and_decimals_are_read(xml):
    box = BOX.replace(">3<", "> 3.25 <")
    marks = "<difficult>1</difficult><truncated>1</truncated><pose>Rear</pose>"
    plain = f"<object><name>cat</name>{BOX}</object>"
    path = xml(annotation(f"{SIZE}<object><name>cat</name>{marks}{box}</object>{plain}"))
    first, second = read_voc_annotation(path).objects
    assert first.bbox == (3.25, 4, 20, 30) and first.pose == "Rear"
    assert first.difficult and first.truncated
    assert not second.difficult and not second.truncated and second.pose == "Unspecified"


def test_another_class_is_named(voc):
    dirname = voc({"1": annotation(SIZE + DOG)})
    with pytest.raises(ValueError, match=r"1.xml', object 1: 'dog' is not among .*: cat, cow"):
        load_voc_instances(dirname, "train", ["cat", "cow"])


@pytest.mark.parametrize(
    "body,message",
    [
        (DOG, "has no <size>"),
        (SIZE.replace("60", "0"), "height 50 and width 0 are not whole"),
        (SIZE.replace("<width>60</width>", ""), "<size>: <width> is None; expected a number"),
        (SIZE + DOG + "<object><pose>Left</pose></object>", "object 2 has no <name>"),
        (SIZE + DOG.replace(BOX, ""), r"object 1 \(dog\) has no <bndbox>"),
        (SIZE + DOG.replace(">3<", ">three<"), r"object 1 \(dog\): <xmin> is 'three'"),
        (SIZE + DOG.replace(">3<", ">nan<"), "<xmin> is 'nan'; expected a number"),
        (SIZE + DOG.replace("<ymin>4</ymin>", ""), "<ymin> is None"),
        (SIZE + DOG.replace(">3<", ">21<"), r"box \[21.0, 4.0, 20.0, 30.0\]; expected xmin <="),
        (SIZE + DOG.replace(">1<", ">yes<"), "<difficult> is 'yes'; expected 0 or 1"),
    ],
)
def test_odd_files_are_refused(xml, body, message):
    with pytest.raises(ValueError, match=message) as error:
        read_voc_annotation(xml(annotation(body)))
    assert "000005.xml'" in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<annotation>" + SIZE,
        '<!DOCTYPE a [<!ENTITY b "60">]>' + annotation(SIZE.replace("60", "&b;")),
    ],
)
def test_what_is_no_plain_xml_is_refused(xml, text):
    with pytest.raises(ValueError, match="000005.xml' is not a Pascal VOC annotation file"):
        read_voc_annotation(xml(text))


def test_missing_files_say_what_to_download_and_where(voc, tmp_path):
    wanted = str(tmp_path / "VOC2007")
    with pytest.raises(FileNotFoundError) as error:
        load_voc_instances(wanted, "test", CLASS_NAMES)
    assert f"list of images '{wanted}/ImageSets/Main/test.txt'" in str(error.value)
    assert "VOCtest_06-Nov-2007.tar" in str(error.value)
    assert f"so that '{wanted}' has Annotations" in str(error.value)
    dirname = voc({"1": annotation(SIZE)})
    (tmp_path / "VOC2012" / "Annotations" / "1.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"Annotations/1.xml' .* VOCtrainval_11-May-2012"):
        load_voc_instances(dirname, "train", CLASS_NAMES)


@pytest.mark.parametrize(
    "text,message", [("a -1\nb  1\n", "got 'a -1'"), ("a\nb\na\n", "image 'a' occurs twice")]
)
def test_odd_lists_are_refused(tmp_path, text, message):
    path = tmp_path / "cat_train.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_image_set(str(path))


def test_a_list_may_have_one_image_and_empty_lines(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("\n2007_000032 \r\n\n")
    assert read_image_set(str(path)) == ["2007_000032"]
