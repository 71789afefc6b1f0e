"""Read labeled points from what annotation tools export: one reader per format.

Every reader yields `LabeledPoint`s in pixels of the image, in the order of the export, and keeps
what else it met in `Findings`. Sources: the tools' own documentation of their formats.
"""

import math
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from defusedxml import ElementTree

from weaklabels.coco import by_id, checked_categories
from weaklabels.csv_tables import read_table
from weaklabels.files import ZIP_ERRORS, missing_keys, objects, read_json
from weaklabels.masks import is_finite_number
from weaklabels.voc import XML_ERRORS

CSV_COLUMNS = ("image", "x", "y", "category")
PERCENT = 100.0
MAX_DIGITS = 9  # of an image's side
MAX_XML_BYTES = 4 << 30  # of an unpacked annotations.xml; a point takes about 200


@dataclass(frozen=True)
class LabeledPoint:
    """One instance's point. images: names under which the image may lie, the likeliest first.

    x, y: pixels of the original image. where: the record, as an error message names it.
    size_hw: the image size that the export states, if it does.
    """

    images: tuple[str, ...]
    category: str
    x: float
    y: float
    where: str
    size_hw: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.category, str) or not self.category:
            raise ValueError(f"{self.where}: has no label")
        if not all(isinstance(name, str) for name in self.images):
            raise ValueError(f"{self.where}: {self.images[0]!r} is no name of an image")


@dataclass
class Findings:
    """What an export holds beside valid points.

    passed_over: how many things of each kind are no points.  skipped: a message for each invalid
    record, where skip_invalid lists these instead of stopping at the first.
    """

    skip_invalid: bool
    passed_over: Counter = field(default_factory=Counter)
    skipped: list[str] = field(default_factory=list)

    @contextmanager
    def record(self) -> Iterator[None]:
        """The block handles one record; its ValueError says what is wrong with that record."""
        try:
            yield
        except ValueError as error:
            if not self.skip_invalid:
                hint = "; --skip-invalid lists such records and goes on"
                raise ValueError(f"{error}{hint}") from error
            self.skipped.append(str(error))


def number(value: Any, where: str, what: str) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{where}: {what} is {value!r}, not a finite number")
    return found


def stated_size(height: Any, width: Any, where: str) -> tuple[int, int] | None:
    """(height, width) as the export states them; None where it leaves one out."""
    if height is None or width is None:
        return None
    return int(number(height, where, "the height")), int(number(width, where, "the width"))


def json_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.rglob("*.json"))
    if not files:
        raise FileNotFoundError(f"{path}: holds no .json file")
    return files


def read_csv(path: Path, findings: Findings) -> Iterator[LabeledPoint]:
    """Rows of a table with the header image,x,y,category; further columns are left alone."""
    for where, row in read_table(path, CSV_COLUMNS):
        with findings.record():
            absent = [name for name in CSV_COLUMNS if not row[name]]
            if absent:
                raise ValueError(f"{where}: no value for {absent}")
            x, y = (number(row[name], where, name) for name in "xy")
            yield LabeledPoint((row["image"],), row["category"], x, y, where)


def read_labelme(path: Path, findings: Findings) -> Iterator[LabeledPoint]:
    """Point shapes of LabelMe files; the first point of a group stands for its instance."""
    for file in json_files(path):
        content = read_json(file)
        if not isinstance(content, dict) or "shapes" not in content:
            raise ValueError(f"{file}: has no 'shapes', so it is no LabelMe file")
        named = content.get("imagePath") or file.with_suffix(".jpg").name
        if not isinstance(named, str):
            raise ValueError(f"{file}: imagePath is {named!r}, not a name; correct it")
        name = PureWindowsPath(named)
        images = (name.as_posix(), name.name)
        groups = set()
        for index, shape in enumerate(objects(content["shapes"], f"{file}: 'shapes'")):
            where = f"{file}: shape {index}"
            if shape.get("shape_type") != "point":
                findings.passed_over[f"shapes of type {shape.get('shape_type')}"] += 1
                continue
            group = repr((shape.get("label"), shape.get("group_id")))  # whatever they are
            if shape.get("group_id") is not None and group in groups:
                findings.passed_over["further points of one group"] += 1
                continue
            groups.add(group)
            with findings.record():
                match shape.get("points"):
                    case [[x, y]]:
                        x, y = (number(value, where, "a coordinate") for value in (x, y))
                    case _:
                        raise ValueError(f"{where}: a point shape holds one [x, y]")
                size_hw = stated_size(content.get("imageHeight"), content.get("imageWidth"), where)
                yield LabeledPoint(images, shape.get("label"), x, y, where, size_hw)


def cvat_root(path: Path) -> Any:
    try:
        is_zip = zipfile.is_zipfile(path)
    except ZIP_ERRORS as error:
        raise ValueError(f"{path}: a damaged zip ({error}); export it again") from error
    text = _member_of_zip(path) if is_zip else path.read_bytes()
    try:
        return ElementTree.fromstring(text)
    except XML_ERRORS as error:
        raise ValueError(f"{path}: not an XML file ({error}); export it again") from error


def _member_of_zip(path: Path) -> bytes:
    """The annotations.xml of a zip; ValueError where it has none, several, or is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = [i for i in archive.infolist() if Path(i.filename).name == "annotations.xml"]
            if len(found) == 1 and found[0].file_size <= MAX_XML_BYTES:
                return archive.read(found[0])
    except ZIP_ERRORS as error:
        raise ValueError(f"{path}: a damaged or encrypted zip ({error}); export again") from error
    if len(found) != 1:
        raise ValueError(f"{path}: holds {len(found)} annotations.xml, expected one")
    raise ValueError(
        f"{path}: its annotations.xml states {found[0].file_size} bytes, more than "
        f"{MAX_XML_BYTES}: export fewer images at a time"
    )


def read_cvat(path: Path, findings: Findings) -> Iterator[LabeledPoint]:
    """`points` of "CVAT for images 1.1", from annotations.xml or the zip around it."""
    root = cvat_root(path)
    if root.tag != "annotations":
        raise ValueError(f"{path}: the root element is <{root.tag}>, CVAT's is <annotations>")
    if root.find("track") is not None:
        raise ValueError(
            f"{path}: is 'CVAT for video' (it has <track>); export it as 'CVAT for images 1.1'"
        )
    for image in root.iter("image"):
        name = image.get("name", "")
        where = f"{path}: image {name!r}"
        sides = image.get("height", ""), image.get("width", "")
        if not all(side.isdecimal() and len(side) <= MAX_DIGITS for side in sides):
            raise ValueError(f"{where}: has no whole width and height")
        size_hw = int(sides[0]), int(sides[1])
        for shape in image:
            if shape.tag != "points":
                findings.passed_over[f"shapes of type {shape.tag}"] += 1
                continue
            for pair in shape.get("points", "").split(";"):
                with findings.record():
                    x, _, y = pair.partition(",")
                    x, y = number(x, where, "x of a point"), number(y, where, "y of a point")
                    images = (name, Path(name).name)
                    yield LabeledPoint(images, shape.get("label"), x, y, where, size_hw)


def labelstudio_names(task: dict[str, Any], where: str) -> tuple[str, ...]:
    """File names that Label Studio's image reference may stand for.

    An upload `/data/upload/1/1a2b3c4d-cat.jpg` was called `cat.jpg`; local files come as
    `/data/local-files/?d=folder/cat.jpg`; else it is a URL or a path.
    """
    data = task.get("data", {})
    if not isinstance(data, dict):
        raise ValueError(f"{where}: 'data' is no object, so nothing names the image")
    value = data.get("image") or (next(iter(data.values())) if len(data) == 1 else None)
    if not isinstance(value, str):
        raise ValueError(f"{where}: cannot tell which of {sorted(data)} in 'data' is the image")
    try:
        parts = urlsplit(value)
        local = parse_qs(parts.query).get("d")
    except ValueError as error:
        raise ValueError(f"{where}: {value!r} names no image ({error})") from error
    path = local[0] if local else unquote(parts.path)
    name = Path(path).name
    original = name.partition("-")[2]
    return tuple(dict.fromkeys(filter(None, (path.lstrip("/"), name, original))))


def labelstudio_point(task: dict[str, Any], result: dict[str, Any], where: str) -> LabeledPoint:
    """The point of one keypoint result of a task."""
    if result.get("image_rotation"):
        raise ValueError(f"{where}: the image is rotated in Label Studio; rotate the file")
    missing = missing_keys(result, ("original_height", "original_width", "value"))
    missing = missing or missing_keys(result["value"], ("x", "y"))
    if missing:
        raise ValueError(
            f"{where}: lacks {missing}, without which percents are no pixels; Label Studio's "
            "'JSON' export has them"
        )
    value = result["value"]
    height, width = (number(result[k], where, k) for k in ("original_height", "original_width"))
    x = number(value["x"], where, "x") * width / PERCENT
    y = number(value["y"], where, "y") * height / PERCENT
    labels = value.get("keypointlabels")
    label = labels[0] if isinstance(labels, list) and labels else None
    names = labelstudio_names(task, where)
    return LabeledPoint(names, label, x, y, where, (int(height), int(width)))


def read_labelstudio(path: Path, findings: Findings) -> Iterator[LabeledPoint]:
    """Keypoints of Label Studio's JSON export, whose coordinates are percent of the image size."""
    tasks = read_json(path)
    if not isinstance(tasks, list):
        raise ValueError(f"{path}: expected a list of tasks (Label Studio's 'JSON' export)")
    for task in objects(tasks, f"{path}: the list of tasks"):
        where = f"{path}: task {task.get('id')}"
        entries = task.get("annotations", task.get("completions", []))
        finished = [
            entry
            for entry in objects(entries, f"{where}: 'annotations'")
            if not entry.get("was_cancelled")
        ]
        findings.passed_over["further annotations of one task"] += max(0, len(finished) - 1)
        results = finished[0].get("result") if finished else []
        for index, result in enumerate(objects(results, f"{where}: 'result'")):
            if result.get("type") != "keypointlabels":
                findings.passed_over[f"results of type {result.get('type')}"] += 1
                continue
            with findings.record():
                yield labelstudio_point(task, result, f"{where}, result {index}")


def read_coco_keypoints(path: Path, findings: Findings) -> Iterator[LabeledPoint]:
    """The first visible keypoint of each annotation of a COCO keypoint file."""
    content = read_json(path)
    sections = ("images", "annotations", "categories")
    missing = missing_keys(content, sections)
    if missing:
        raise ValueError(f"{path}: lacks {missing}; a COCO keypoint file has {list(sections)}")
    images = by_id("image", content["images"], ("file_name",), path)
    categories = checked_categories(content["categories"], path)
    names = {number: category["name"] for number, category in categories.items()}
    for annotation in objects(content["annotations"], f"{path}: 'annotations'"):
        where = f"{path}: annotation id {annotation.get('id')}"
        with findings.record():
            for key, known in (("image_id", images), ("category_id", names)):
                if type(annotation.get(key)) is not int or annotation[key] not in known:
                    raise ValueError(f"{where}: unknown {key} {annotation.get(key)!r}")
            values = annotation.get("keypoints", [])
            numbers = isinstance(values, list) and all(map(is_finite_number, values))
            if not numbers or len(values) % 3:
                raise ValueError(f"{where}: its keypoints are not x, y, visibility, x, y, ...")
            visible = [values[i : i + 2] for i in range(0, len(values), 3) if values[i + 2] > 0]
            if not visible:
                findings.passed_over["annotations without a visible keypoint"] += 1
                continue
            x, y = (number(value, where, "a coordinate") for value in visible[0])
            image = images[annotation["image_id"]]
            size_hw = stated_size(image.get("height"), image.get("width"), where)
            category = names[annotation["category_id"]]
            yield LabeledPoint((image["file_name"],), category, x, y, where, size_hw)


READERS: dict[str, Callable[[Path, Findings], Iterator[LabeledPoint]]] = {
    "csv": read_csv,
    "labelme": read_labelme,
    "cvat": read_cvat,
    "labelstudio": read_labelstudio,
    "coco-keypoints": read_coco_keypoints,
}
