"""Turn BDD100K's instance labels into the COCO files that the registered splits read.

Crowds and ignored regions become crowds, which neither train nor count; classes other than the
eight are left out and counted.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils
from tqdm import tqdm

from weaklabels.files import missing_keys, objects, read_json
from weaklabels.image_root import image_path
from weaklabels.masks import make_annotation, segmentation_rle
from weaklabels.pictures import image_size_hw, open_image, passed_over, refuse_all_skipped

CLASSES = ("pedestrian", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
ALIASES = {"person": "pedestrian", "motor": "motorcycle", "bike": "bicycle"}  # some releases' words
CURVE_SAMPLES = 8  # straight pieces that one Bezier curve is drawn with
EXPECTED = "give BDD100K's instance segmentation labels (ins_seg_*.json)"  # what mends most errors
BIT_IGNORED, BIT_CROWD = 1, 2  # of the bitmask's attribute byte


def flatten_curves(vertices: list[list[float]], types: str, where: str) -> np.ndarray:
    """The outline with its cubic Bezier curves as straight pieces: (N, 2) float64 pixels, x and y.

    A run of `C` holds two control points and an end point for each curve; where the last end point
    is missing, it is the next `L` vertex, or the first vertex of the closed outline.
    """
    try:
        points = np.asarray(vertices, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: the vertices are not a list of [x, y] ({error})") from error
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(f"{where}: the vertices are not a list of [x, y] of finite numbers")
    if not re.fullmatch("L[LC]*", str(types)) or len(types) != len(points):
        raise ValueError(f"{where}: {len(points)} vertices do not fit the types {types!r}")
    outline, index = [], 0
    while index < len(types):
        if types[index] == "L":
            outline.append(points[index : index + 1])
            index += 1
            continue
        controls = types[index : index + 2]
        if controls != "CC":
            raise ValueError(f"{where}: the types {types!r} hold half a curve")
        start, control_1, control_2 = points[index - 1 : index + 2]
        end = points[(index + 2) % len(points)]
        t = np.linspace(0, 1, CURVE_SAMPLES + 1)[1:, None]
        curve = (1 - t) ** 3 * start + 3 * (1 - t) ** 2 * t * control_1
        outline.append(curve + 3 * (1 - t) * t**2 * control_2 + t**3 * end)
        index += 3
    return np.concatenate(outline)


def read_frames(path: Path) -> list[dict[str, Any]]:
    """The frames of a label file, each with a name."""
    content = read_json(path)
    frames = content.get("frames") if isinstance(content, dict) else content
    if not isinstance(frames, list):
        raise ValueError(f"{path}: no list of frames; {EXPECTED}")
    for number, frame in enumerate(frames):
        if missing_keys(frame, ("name",)) or not isinstance(frame["name"], str):
            raise ValueError(f"{path}: frame number {number} has no 'name'; {EXPECTED}")
    return frames


def read_outlines(label: dict[str, Any], where: str) -> list[np.ndarray]:
    """The outline of each part of a label, as `flatten_curves` gives it."""
    parts = label.get("poly2d")
    if not isinstance(parts, list):
        raise ValueError(
            f"{where}: has no 'poly2d', so this may be a release with boxes only; {EXPECTED}"
        )
    for part in parts:
        missing = missing_keys(part, ("vertices", "types"))
        if missing:
            raise ValueError(
                f"{where}: a part of 'poly2d' lacks {missing}; in the official files it has "
                f"'vertices', 'types' and 'closed': {EXPECTED}"
            )
    return [flatten_curves(part["vertices"], part["types"], where) for part in parts]


def read_polygons(
    path: Path, image_root: Path, left_out: Counter, skipped: list[str] | None = None
) -> Iterator[tuple[str, tuple[int, int], list[dict[str, Any]]]]:
    """(file name, size, annotations) of each frame of a polygon file."""
    for frame in tqdm(read_frames(path), "frames", unit="image"):
        where = f"{path}: frame {frame['name']!r}"
        size_hw = None
        with passed_over(skipped):
            size_hw = image_size_hw(_image_path(image_root, frame["name"], where), where)
        if size_hw is None:
            continue
        annotations = []
        labels = objects(frame.get("labels") or [], f"{where}: 'labels'")
        for number, label in enumerate(labels):
            name = label.get("category")
            place = f"{where}, label {label.get('id', f'number {number}')}"
            if not isinstance(name, str):
                raise ValueError(f"{place}: has no 'category'; {EXPECTED}")
            name = ALIASES.get(name, name)
            if name not in CLASSES:
                left_out[name] += 1
                continue
            parts = read_outlines(label, place)
            polygons = [part.reshape(-1).tolist() for part in parts if len(part) >= 3]
            if not polygons:
                left_out[f"{name} without an area"] += 1
                continue
            try:
                rle = segmentation_rle(polygons, *size_hw)
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from error
            attributes = label.get("attributes") or {}
            if not isinstance(attributes, dict):
                raise ValueError(f"{place}: 'attributes' is no object; {EXPECTED}")
            crowd = bool(attributes.get("crowd") or attributes.get("ignored"))
            annotation = make_annotation(CLASSES.index(name) + 1, rle, crowd)
            if not crowd:
                annotation["segmentation"] = polygons
            annotations.append(annotation)
        yield frame["name"], size_hw, annotations


def _image_path(image_root: Path, name: Any, where: str) -> Path:
    """The path of a frame's image; ValueError where its name leads out of the root."""
    try:
        return image_path(image_root, str(name))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def read_bitmask(path: Path, left_out: Counter) -> tuple[tuple[int, int], list[dict[str, Any]]]:
    """Size and annotations of one bitmask PNG: category, attributes and instance id per pixel."""
    with open(path, "rb") as file:
        image = open_image(file, path)
    if image.mode != "RGBA":
        raise ValueError(f"{path}: mode {image.mode}; expected BDD100K's bitmask, an RGBA PNG")
    category, attributes, high, low = np.moveaxis(np.asarray(image), 2, 0)
    instance = (high.astype(np.int64) << 8) + low
    annotations = []
    for instance_id in np.unique(instance[category > 0]):
        mask = (instance == instance_id) & (category > 0)
        values = np.unique(category[mask])
        if len(values) != 1:
            raise ValueError(f"{path}: instance {instance_id} has the categories {values.tolist()}")
        if values[0] > len(CLASSES):
            left_out[f"category id {values[0]}"] += 1
            continue
        crowd = bool(attributes[mask][0] & (BIT_IGNORED | BIT_CROWD))
        rle = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
        annotations.append(make_annotation(int(values[0]), rle, crowd))
    return category.shape, annotations


def read_bitmasks(
    folder: Path, image_root: Path, left_out: Counter, skipped: list[str] | None = None
) -> Iterator[tuple[str, tuple[int, int], list[dict[str, Any]]]]:
    """(file name, size, annotations) of each PNG of a folder."""
    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise FileNotFoundError(f"{folder}: holds no .png file")
    for path in tqdm(paths, "bitmasks", unit="image"):
        name, found = f"{path.stem}.jpg", None
        with passed_over(skipped):
            found = image_size_hw(image_root / name, str(path)), *read_bitmask(path, left_out)
        if found is None:
            continue
        image_hw, size_hw, annotations = found
        if image_hw != size_hw:
            raise ValueError(f"{path}: is {size_hw}, but {image_root / name} has another size")
        yield name, size_hw, annotations


def convert_bdd100k(
    image_root: Path,
    *,
    polygons: Path | None = None,
    bitmasks: Path | None = None,
    skipped: list[str] | None = None,
) -> tuple[dict[str, Any], Counter]:
    """Content of a COCO file, and how many labels of each kind were left out.

    Args:
        polygons: json with poly2d labels.  bitmasks: folder of RGBA PNGs.  One of the two.
        skipped: gets a message for each image or bitmask that cannot be read, which is left out;
            None: the first of them is an error.
    """
    if (polygons is None) == (bitmasks is None):
        raise ValueError("give either BDD100K's polygons or its bitmasks")
    left_out: Counter = Counter()
    if polygons is not None:
        frames = read_polygons(polygons, image_root, left_out, skipped)
    else:
        frames = read_bitmasks(bitmasks, image_root, left_out, skipped)
    images, annotations = [], []
    for name, (height, width), found in frames:
        ids = {"id": len(images) + 1}
        images.append(ids | {"file_name": name, "height": height, "width": width})
        for annotation in found:
            ids = {"id": len(annotations) + 1, "image_id": len(images)}
            annotations.append(ids | annotation)
    refuse_all_skipped(skipped or [], len(images))
    categories = [{"id": index, "name": name} for index, name in enumerate(CLASSES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}, left_out
