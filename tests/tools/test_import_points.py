"""Points from annotation tools: a small sample of each format gives the same weak file."""

import json
import re
import zipfile

import pytest
from PIL import Image

from tools.import_points import main

# name, x, y, category: what every sample says. Images are 40 wide and 20 high.
POINTS = [("a.jpg", 4.0, 5.0, "cat"), ("a.jpg", 30.5, 10.0, "dog"), ("b.jpg", 12.0, 19.0, "cat")]
SIZE = (40, 20)


def csv_sample(folder):
    rows = ["image,x,y,category", *(f"{n},{x},{y},{c}" for n, x, y, c in POINTS)]
    path = folder / "points.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def by_image():
    return {name: [p for p in POINTS if p[0] == name] for name in ("a.jpg", "b.jpg")}


def labelme_sample(folder):
    folder = folder / "labelme"
    folder.mkdir()
    for name, points in by_image().items():
        shapes = [
            {"label": c, "points": [[x, y]], "group_id": None, "shape_type": "point"}
            for _, x, y, c in points
        ]
        shapes.append({"label": "cat", "points": [[0, 0], [3, 3]], "shape_type": "rectangle"})
        content = {"version": "5", "shapes": shapes, "imagePath": f"..\\pictures\\{name}"}
        content |= {"imageData": None, "imageHeight": SIZE[1], "imageWidth": SIZE[0]}
        (folder / name).with_suffix(".json").write_text(json.dumps(content))
    return folder


def cvat_sample(folder):
    images = ""
    for index, (name, points) in enumerate(by_image().items()):
        shapes = "".join(
            f'<points label="{c}" source="manual" occluded="0" points="{x},{y}" z_order="0"/>'
            for _, x, y, c in points
        )
        images += f'<image id="{index}" name="{name}" width="40" height="20">{shapes}</image>'
    text = f"<annotations><version>1.1</version><meta/>{images}</annotations>"
    path = folder / "cvat.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("annotations.xml", text)
    return path


def labelstudio_sample(folder):
    tasks = []
    names = {"a.jpg": "/data/upload/3/0a1b2c3d-a.jpg", "b.jpg": "/data/local-files/?d=set/b.jpg"}
    for index, (name, points) in enumerate(by_image().items()):
        results = [
            {
                "type": "keypointlabels",
                "original_width": SIZE[0],
                "original_height": SIZE[1],
                "image_rotation": 0,
                "value": {"x": x / 0.4, "y": y / 0.2, "width": 0.3, "keypointlabels": [c]},
            }
            for _, x, y, c in points
        ]
        cancelled = {"result": results * 2, "was_cancelled": True}
        annotations = [cancelled, {"result": results, "was_cancelled": False}]
        tasks.append({"id": index, "data": {"photo": names[name]}, "annotations": annotations})
    path = folder / "labelstudio.json"
    path.write_text(json.dumps(tasks))
    return path


def keypoints_sample(folder):
    names = ("a.jpg", "b.jpg")
    images = [
        {"id": i, "file_name": name, "width": SIZE[0], "height": SIZE[1]}
        for i, name in enumerate(names)
    ]
    annotations = [
        {
            "id": i,
            "image_id": names.index(name),
            "category_id": ("cat", "dog").index(category),
            "keypoints": [1, 1, 0, x, y, 2],
        }
        for i, (name, x, y, category) in enumerate(POINTS)
    ]
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    path = folder / "keypoints.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return path


SAMPLES = {
    "csv": csv_sample,
    "labelme": labelme_sample,
    "cvat": cvat_sample,
    "labelstudio": labelstudio_sample,
    "coco-keypoints": keypoints_sample,
}


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", SIZE).save(root / name)
    return root


def run(tmp_path, images, kind, source, *options):
    output = tmp_path / "weak.json"
    words = [str(source), "--format", kind, "--image-root", str(images), "--output", str(output)]
    return main([*words, *options]), output


@pytest.mark.parametrize("kind", SAMPLES)
def test_every_format_gives_the_same_points(tmp_path, images, kind):
    code, output = run(tmp_path, images, kind, SAMPLES[kind](tmp_path))
    assert code == 0
    content = json.loads(output.read_text())
    assert content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    files = {image["id"]: image["file_name"] for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    got = [
        (files[a["image_id"]], *a["point"], names[a["category_id"]]) for a in content["annotations"]
    ]
    assert got == POINTS
    assert all((i["width"], i["height"]) == SIZE for i in content["images"])


def test_category_ids_come_from_the_strong_file(tmp_path, images):
    strong = tmp_path / "strong.json"
    categories = [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}]
    strong.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    code, output = run(tmp_path, images, "csv", csv_sample(tmp_path), "--categories", str(strong))
    content = json.loads(output.read_text())
    assert code == 0 and content["categories"] == categories
    assert [a["category_id"] for a in content["annotations"]] == [17, 18, 17]


@pytest.mark.parametrize(
    "row,message",
    [
        ("a.jpg,40,5,cat", r"points.csv:3: point \(40, 5\) lies outside"),
        ("a.jpg,nan,5,cat", "lies outside"),
        ("a.jpg,x,5,cat", "x is 'x', not a number"),
        ("c.jpg,1,1,cat", "no image 'c.jpg'"),
        ("a.jpg,1,1,cow", "category 'cow' is not one of"),
        ("a.jpg,1,1,", "no value for"),
    ],
)
def test_bad_rows_are_named(tmp_path, images, capsys, row, message):
    path = tmp_path / "points.csv"
    path.write_text(f"image,x,y,category\na.jpg,1,1,cat\n{row}\n")
    code, output = run(tmp_path, images, "csv", path, "--categories", "cat,dog")
    assert code == 1 and not output.exists()
    assert re.search(message, capsys.readouterr().err)


def test_skip_invalid_lists_what_it_leaves_out(tmp_path, images, capsys):
    path = tmp_path / "points.csv"
    path.write_text("image,x,y,category\na.jpg,1,1,cat\na.jpg,99,1,cat\nz.jpg,1,1,cat\n")
    code, output = run(tmp_path, images, "csv", path, "--skip-invalid")
    printed = capsys.readouterr().out
    assert code == 0 and len(json.loads(output.read_text())["annotations"]) == 1
    assert "points.csv:3" in printed and "points.csv:4" in printed and "2 skipped" in printed


def test_parts_of_one_labelme_group_are_one_instance(tmp_path, images, capsys):
    shape = {"label": "cat", "group_id": 7, "shape_type": "point"}
    shapes = [shape | {"points": [[3, 3]]}, shape | {"points": [[9, 9]]}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"shapes": shapes, "imagePath": "a.jpg"}))
    code, output = run(tmp_path, images, "labelme", path)
    assert code == 0
    assert [a["point"] for a in json.loads(output.read_text())["annotations"]] == [[3, 3]]
    assert "1 further points of one group" in capsys.readouterr().out


def test_several_points_of_one_cvat_element_are_instances_each(tmp_path, images):
    path = tmp_path / "annotations.xml"
    path.write_text(
        '<annotations><image id="0" name="a.jpg" width="40" height="20">'
        '<points label="cat" points="1,2;3,4"/><box label="cat"/></image></annotations>'
    )
    code, output = run(tmp_path, images, "cvat", path)
    assert code == 0
    assert [a["point"] for a in json.loads(output.read_text())["annotations"]] == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    "kind,name,text,message",
    [
        ("cvat", "a.xml", "<annotations><track/></annotations>", "CVAT for video"),
        ("cvat", "a.xml", "<html/>", "root element is <html>"),
        ("cvat", "a.xml", "no xml", "not an XML file"),
        ("csv", "a.csv", "file,x,y\n", "header lacks"),
        ("labelstudio", "a.json", "{}", "list of tasks"),
        ("labelme", "a.json", "[]", "no LabelMe file"),
        ("coco-keypoints", "a.json", "{}", "lacks"),
        ("labelme", "a.json", "{", "not a json file"),
    ],
)
def test_wrong_files_are_refused_by_name(tmp_path, images, capsys, kind, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    code, _ = run(tmp_path, images, kind, path)
    printed = capsys.readouterr().err
    assert code == 1 and message in printed and str(path) in printed


def test_stated_size_has_to_be_the_images(tmp_path, images, capsys):
    path = tmp_path / "annotations.xml"
    path.write_text(
        '<annotations><image id="0" name="a.jpg" width="80" height="20">'
        '<points label="cat" points="1,2"/></image></annotations>'
    )
    assert run(tmp_path, images, "cvat", path)[0] == 1
    assert "was the image resized" in capsys.readouterr().err
