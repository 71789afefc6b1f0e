"""Points from annotation tools: a small sample of each format gives the same weak file."""

import json
import re
import zipfile

import pytest
from PIL import Image

from tests.programs import import_points as main
from tests.programs import merge_labels

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
        ("a.jpg,nan,5,cat", "x is .nan., not a finite number"),
        ("a.jpg,x,5,cat", "x is 'x', not a finite number"),
        ("c.jpg,1,1,cat", "no image 'c.jpg'"),
        ("a.jpg,1,1,cow", "category 'cow' is not one of"),
        ("a.jpg,1,1,", "no value for"),
    ],
)
def test_bad_rows_are_named(tmp_path, images, capsys, row, message):
    path = tmp_path / "points.csv"
    path.write_text(f"image,x,y,category\na.jpg,1,1,cat\n{row}\n")
    code, output = run(tmp_path, images, "csv", path, "--categories", "cat,dog")
    assert code == 2 and not output.exists()
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
    assert code == 2 and message in printed and str(path) in printed


def test_stated_size_has_to_be_the_images(tmp_path, images, capsys):
    path = tmp_path / "annotations.xml"
    path.write_text(
        '<annotations><image id="0" name="a.jpg" width="80" height="20">'
        '<points label="cat" points="1,2"/></image></annotations>'
    )
    assert run(tmp_path, images, "cvat", path)[0] == 2
    assert "was the image resized" in capsys.readouterr().err


def write_strong(tmp_path):
    """A strong file: old.jpg has a mask, a.jpg only a point, b.jpg nothing; ids have gaps."""
    names = {3: "old.jpg", 900: "./a.jpg", 20: "b.jpg"}
    images = [{"id": i, "file_name": n, "width": 40, "height": 20} for i, n in names.items()]
    corners = [[1, 1, 9, 1, 9, 9]]
    annotations = [
        {"id": 5000, "image_id": 3, "category_id": 1, "segmentation": corners},
        {"id": 12, "image_id": 900, "category_id": 2, "point": [1, 1], "segmentation": []},
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = tmp_path / "strong.json"
    path.write_text(json.dumps(content))
    return path, content


def test_ids_go_on_where_the_strong_file_ends(tmp_path, images):
    strong, _ = write_strong(tmp_path)
    code, output = run(tmp_path, images, "csv", csv_sample(tmp_path), "--categories", str(strong))
    content = json.loads(output.read_text())
    assert code == 0
    assert [i["id"] for i in content["images"]] == [901, 902]
    assert [a["image_id"] for a in content["annotations"]] == [901, 901, 902]
    assert [a["id"] for a in content["annotations"]] == [5001, 5002, 5003]


def test_imported_points_merge_with_the_strong_file(tmp_path, images):
    strong, _ = write_strong(tmp_path)
    _, weak = run(tmp_path, images, "csv", csv_sample(tmp_path), "--categories", str(strong))
    mask = {"size": [20, 40], "counts": [0, 800]}
    record = {"image_id": 902, "file_name": "b.jpg", "height": 20, "width": 40}
    record["instances"] = [{"category_id": 1, "score": 0.5, "segmentation": mask}]
    (tmp_path / "r.jsonl").write_text(json.dumps(record) + "\n")
    words = ["--strong-json", strong, "--weak-json", weak, "--records", tmp_path / "r.jsonl"]
    words.append("--allow-missing")  # image 901 has no record
    assert merge_labels([*map(str, words), "--output", str(tmp_path / "sw.json")]) == 0


def test_an_image_with_masks_gets_no_points(tmp_path, images, capsys):
    strong, content = write_strong(tmp_path)
    content["annotations"][1]["segmentation"] = [[1, 1, 9, 1, 9, 9]]  # a.jpg has a mask, too
    strong.write_text(json.dumps(content))
    words = (tmp_path, images, "csv", csv_sample(tmp_path), "--categories", str(strong))
    code, output = run(*words)
    error = capsys.readouterr().err
    assert code == 2 and not output.exists()
    assert "points.csv:2: image 'a.jpg' has masks in" in error
    assert str(strong) in error and "--skip-invalid" in error
    code, output = run(*words, "--skip-invalid")
    assert code == 0 and "2 skipped" in capsys.readouterr().out
    assert [i["file_name"] for i in json.loads(output.read_text())["images"]] == ["b.jpg"]


def labelme_file(folder, change):
    good = {"label": "cat", "shape_type": "point", "points": [[3, 3]]}
    path = folder / "a.json"
    content = {"imagePath": "a.jpg", "shapes": [good | change, good]}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return path


def labelstudio_file(folder, change):
    value = {"x": 5, "y": 5, "keypointlabels": ["cat"]}
    good = {"type": "keypointlabels", "original_width": 40, "original_height": 20, "value": value}
    bad = {key: value for key, value in (good | change).items() if value != "left out"}
    path = folder / "a.json"
    task = {"id": 8, "data": {"image": "a.jpg"}, "annotations": [{"result": [bad, good]}]}
    path.write_text(json.dumps([task]))
    return path


@pytest.mark.parametrize(
    "write,change,message",
    [
        (labelme_file, {"label": None}, "shape 0: has no label"),
        (labelme_file, {"label": ""}, "shape 0: has no label"),
        (labelme_file, {"points": None}, "shape 0: a point shape holds one"),
        (labelme_file, {"points": [["x", 3]]}, "shape 0: a coordinate is 'x', not a finite number"),
        (labelstudio_file, {"original_width": "left out"}, "task 8, result 0: lacks.*_width"),
        (labelstudio_file, {"original_height": None}, "task 8, result 0: original_height is None"),
        (labelstudio_file, {"value": None}, "task 8, result 0: lacks .'x', 'y'"),
        (labelstudio_file, {"value": {"x": 5, "y": 5}}, "task 8, result 0: has no label"),
        (labelstudio_file, {"image_rotation": 90}, "task 8, result 0: the image is rotated"),
    ],
)
def test_a_broken_record_is_named_or_listed(tmp_path, images, capsys, write, change, message):
    path = write(tmp_path, change)
    kind = write.__name__.removesuffix("_file")
    code, output = run(tmp_path, images, kind, path)
    error = capsys.readouterr().err
    assert code == 2 and not output.exists()
    assert re.search(f"{re.escape(str(path))}: {message}", error) and "--skip-invalid" in error
    code, output = run(tmp_path, images, kind, path, "--skip-invalid")
    assert code == 0 and re.search(message, capsys.readouterr().out)
    content = json.loads(output.read_text())
    assert len(content["annotations"]) == 1
    assert content["categories"] == [{"id": 1, "name": "cat"}]


@pytest.mark.parametrize("share", [0, 0.5])
def test_an_unreadable_image_is_named_or_listed(tmp_path, images, capsys, share):
    """No image at all, and one that is cut off."""
    whole = (images / "a.jpg").read_bytes()
    (images / "a.jpg").write_bytes(whole[: int(share * len(whole))] or b"no image")
    path = csv_sample(tmp_path)
    assert run(tmp_path, images, "csv", path)[0] == 2
    error = capsys.readouterr().err
    assert "points.csv:2: " in error and str(images / "a.jpg") in error
    code, output = run(tmp_path, images, "csv", path, "--skip-invalid")
    assert code == 0 and "2 skipped" in capsys.readouterr().out
    assert [i["file_name"] for i in json.loads(output.read_text())["images"]] == ["b.jpg"]


def test_nothing_but_broken_records_is_an_error(tmp_path, images, capsys):
    path = tmp_path / "points.csv"
    path.write_text("image,x,y,category\na.jpg,x,1,cat\n")
    assert run(tmp_path, images, "csv", path, "--skip-invalid")[0] == 2
    assert "points.csv:2: x is 'x'" in capsys.readouterr().err


@pytest.mark.parametrize("row", ["a.jpg,x,5,cat", "a.jpg,1,1,"])
def test_skip_invalid_covers_what_the_reader_refuses(tmp_path, images, capsys, row):
    path = tmp_path / "points.csv"
    path.write_text(f"image,x,y,category\n{row}\na.jpg,1,1,cat\n")
    code, output = run(tmp_path, images, "csv", path, "--skip-invalid")
    assert code == 0 and "skipped: " in capsys.readouterr().out
    assert len(json.loads(output.read_text())["annotations"]) == 1
