"""Segment images with a trained SOLOv2, guided by points or on its own, and draw the result."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.detection_utils import read_image
from detectron2.modeling import meta_architecture
from detectron2.structures import BitMasks, Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.logger import setup_logger
from detectron2.utils.visualizer import VisImage, Visualizer
from maskrefinenet import MaskRefiner
from weaklabels.coco import checked_categories
from weaklabels.files import atomic_text, dumps, read_json
from weaklabels.model_folder import is_model_folder, read_card
from wsis.config import load_config
from wsis.pseudo_labels import make_record
from wsis.trained_model import load_trained

CONFIDENCE_WITHOUT_POINTS = 0.3
OVERLAY_SIDE = 800  # pixels; smaller images are enlarged to about this size
LABEL_OFFSET = 0.03  # of a label below its point, of the image height
PIXEL_CENTER = 0.5  # points are pixel indices; the canvas puts the center of pixel i at i + 0.5


@dataclass(frozen=True)
class DemoSettings:
    """One demonstration.

    config_file: a file or the name of a shipped config.
    images: they are read before the network is built.
    points: "x,y,class" in pixels, each asks for one mask; without any the network finds instances.
    overrides: KEY, VALUE, KEY, VALUE, ... on top of the config.
    weights: a trained network; None: MODEL.WEIGHTS of the config.
    refiner: MaskRefineNet checkpoint that redraws the masks.
    confidence: least score to keep; None: 0 with points, else CONFIDENCE_WITHOUT_POINTS.
    class_names, classes_json: the names of the classes, see `read_classes`.
    num_gpus: 1, or 0 for the CPU.
    """

    config_file: str
    images: tuple[Path, ...]
    output: Path
    points: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    weights: str | None = None
    refiner: Path | None = None
    confidence: float | None = None
    class_names: tuple[str, ...] = ()
    classes_json: Path | None = None
    num_gpus: int = 1

    def __post_init__(self) -> None:
        if not self.images:
            raise ValueError("--input needs an image before KEY VALUE")
        if self.points and len(self.images) > 1:
            raise ValueError(f"--point is for one image, --input gives {len(self.images)}")

    @property
    def prompt(self) -> str:
        """What the network is told."""
        return "point" if self.points else "none"

    @property
    def least_score(self) -> float:
        """The score below which nothing is kept."""
        if self.confidence is not None:
            return self.confidence
        return 0.0 if self.points else CONFIDENCE_WITHOUT_POINTS


@dataclass(frozen=True)
class Classes:
    """Names and dataset ids of the network's classes, in its order."""

    names: tuple[str, ...]
    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"class names have to be at least one, all different: {self.names}")

    def index(self, text: str) -> int:
        """The class given by name or, where no class is called so, by index.

        Raises:
            ValueError: there is no such class.
        """
        if text in self.names:
            return self.names.index(text)
        if text.isdecimal() and int(text) < len(self.names):
            return int(text)
        raise ValueError(
            f"unknown class {text!r}: give an index from 0 to {len(self.names) - 1}, or one of "
            f"{', '.join(self.names)}"
        )


def read_classes(settings: DemoSettings, weights: str, num_classes: int) -> Classes:
    """The classes that were given, else those of published weights, else COCO's 80."""
    if settings.class_names:
        names = settings.class_names
        return Classes(names, tuple(range(1, len(names) + 1)))
    if settings.classes_json:
        return read_classes_json(settings.classes_json)
    if is_model_folder(weights):
        names, ids = zip(
            *((c["name"], c["id"]) for c in read_card(weights).categories), strict=True
        )
        return Classes(names, ids)
    if num_classes != len(COCO_CATEGORIES):
        raise ValueError(
            f"the config has {num_classes} classes: say which classes these are, with "
            "--classes a,b,c or --classes-json FILE (a COCO annotation file, or a list of names)"
        )
    names, ids = zip(*((c["name"], c["id"]) for c in COCO_CATEGORIES), strict=True)
    return Classes(names, ids)


def read_classes_json(path: Path) -> Classes:
    """`categories` of a COCO file in order of their ids, or a list of names."""
    content = read_json(path)
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        pairs = list(enumerate(content, start=1))
    elif isinstance(content, dict) and "categories" in content:
        found = checked_categories(content["categories"], path)
        pairs = [(number, found[number]["name"]) for number in sorted(found)]
    else:
        raise ValueError(
            f"--classes-json {path}: expected a list of names, or an object whose 'categories' "
            "have 'id' and 'name'"
        )
    try:
        return Classes(tuple(name for _, name in pairs), tuple(index for index, _ in pairs))
    except ValueError as error:
        raise ValueError(f"--classes-json {path}: {error}") from error


def parse_point(text: str, classes: Classes, size_wh: tuple[int, int]) -> dict[str, Any]:
    """An annotation with `point` [x, y] in pixels and `category_id` (index) from `x,y,class`."""
    try:
        x_text, y_text, name = text.split(",", 2)
        x, y = float(x_text), float(y_text)
    except ValueError as error:
        raise ValueError(
            f"--point {text}: expected x,y,class with x and y in pixels, such as 210,160,cat"
        ) from error
    width, height = size_wh
    if not (0 <= x <= width and 0 <= y <= height):
        raise ValueError(f"--point {text}: outside the image, which is {width} x {height} pixels")
    return {"point": [x, y], "category_id": classes.index(name.strip())}


def read_inputs(settings: DemoSettings, classes: Classes) -> list[dict[str, Any]]:
    """Dataset dicts of the images, all of them readable; the points are their annotations."""
    records = []
    for number, path in enumerate(settings.images, start=1):
        height, width = read_image(str(path), "RGB").shape[:2]
        points = [parse_point(text, classes, (width, height)) for text in settings.points]
        records.append(
            {
                "file_name": str(path),
                "record_file_name": path.as_posix(),
                "image_id": number,
                "height": height,
                "width": width,
                "annotations": points,
            }
        )
    return records


def make_config(settings: DemoSettings) -> CfgNode:
    """The config with the prompt that goes with the points; NUM_CLASSES is the config's own."""
    cfg = load_config(settings.config_file, settings.overrides, num_gpus=settings.num_gpus)
    if settings.weights is not None:
        cfg.MODEL.WEIGHTS = settings.weights
    prompt_key = meta_architecture(cfg).prompt_key
    if prompt_key is None:
        raise ValueError(
            f"{settings.config_file}: {cfg.MODEL.META_ARCHITECTURE} takes no points; give a config "
            "of a network that does, such as PointWSSIS/R101_teacher.yaml"
        )
    cfg.merge_from_list([prompt_key, settings.prompt])
    return cfg


def refiner_classes(path: Path, refiner: MaskRefiner, classes: Classes) -> np.ndarray:
    """Index in the refiner of each of the network's classes: (C,) int64."""
    ids = refiner.category_ids
    if refiner.model.class_agnostic:
        return np.zeros(len(classes.ids), dtype=np.int64)
    if len(classes.ids) != refiner.num_classes or (ids is not None and set(classes.ids) - set(ids)):
        raise ValueError(
            f"--refiner {path} knows {refiner.num_classes} classes with the ids "
            f"{'unknown' if ids is None else list(ids)}; the network's are {list(classes.ids)}"
        )
    if ids is None:
        return np.arange(len(classes.ids))
    return np.array([ids.index(index) for index in classes.ids])


def refine(
    instances: Instances, image_rgb: np.ndarray, refiner: MaskRefiner, class_of: np.ndarray
) -> None:
    """Replace masks and boxes by refined ones; where no point is given, the center of the mask."""
    if not len(instances):
        return
    masks = instances.pred_masks.numpy()
    if instances.has("pred_points"):
        points = instances.pred_points.numpy()
    else:
        points = np.array([np.argwhere(mask).mean(axis=0)[::-1] for mask in masks])
    refined = refiner.refine(image_rgb, masks, points, class_of[instances.pred_classes.numpy()])
    instances.pred_masks = torch.from_numpy(refined)
    instances.pred_boxes = BitMasks(instances.pred_masks).get_bounding_boxes()


@torch.no_grad()
def predict(
    model: nn.Module, mapper: DatasetMapper, record: dict[str, Any], confidence: float
) -> tuple[Instances, list[dict[str, Any]]]:
    """Instances with a score of at least `confidence`, and the points that have none of them."""
    result = model([mapper(record)])[0]
    instances, unmatched = result["instances"].to("cpu"), list(result.get("unmatched", ()))
    keep = instances.scores >= confidence
    if instances.has("prompt_indices"):
        for index, score in zip(
            instances.prompt_indices[~keep].tolist(), instances.scores[~keep].tolist(), strict=True
        ):
            unmatched.append({"instance": index, "reason": f"score {score:.2f} < {confidence:g}"})
    return instances[keep], sorted(unmatched, key=lambda item: item["instance"])


def draw(
    image_rgb: np.ndarray, entries: Instances, lost: list[dict[str, Any]], classes: Classes
) -> VisImage:
    """Masks, labels and points on the image; points without a mask are gray."""
    palette = colormap(rgb=True, maximum=1)
    colors = [palette[i % len(palette)] for i in range(len(entries))]
    pairs = zip(entries.pred_classes.tolist(), entries.scores.tolist(), strict=True)
    labels = [f"{classes.names[index]} {score:.0%}" for index, score in pairs]
    picture = Visualizer(image_rgb, scale=max(1, round(OVERLAY_SIDE / max(image_rgb.shape[:2]))))
    prompted = entries.has("pred_points")
    # A prompted label belongs to its point; one that the network found, to its mask.
    picture.overlay_instances(
        masks=entries.pred_masks, labels=None if prompted else labels, assigned_colors=colors
    )
    points = entries.pred_points.tolist() if prompted else []
    marks = list(zip(points, colors, labels, strict=False))
    for annotation in lost:
        marks.append(
            (annotation["point"], "gray", f"{classes.names[annotation['category_id']]}: no mask")
        )
    for point, color, label in marks:  # above all masks
        x, y = (value + PIXEL_CENTER for value in point)
        picture.draw_point((x, y), color)
        picture.draw_text(label, (x, y + LABEL_OFFSET * image_rgb.shape[0]), color=color)
    return picture.get_output()


def overlay_paths(inputs: Sequence[Path], folder: Path) -> list[Path]:
    """One file an image; images of the same name in several folders get a number."""
    stems = [path.stem for path in inputs]
    return [
        folder / f"{stem}{f'_{number}' if stems.count(stem) > 1 else ''}_overlay.png"
        for number, stem in enumerate(stems, start=1)
    ]


def demonstrate(settings: DemoSettings) -> None:
    """Predict, refine and draw each image, and write predictions.jsonl; say what was found."""
    setup_logger(name="fvcore")
    cfg = make_config(settings)
    architecture = meta_architecture(cfg)
    classes = read_classes(settings, cfg.MODEL.WEIGHTS, architecture.num_classes(cfg))
    cfg.merge_from_list([architecture.num_classes_key, len(classes.names)])
    records = read_inputs(settings, classes)
    model = load_trained(cfg)
    if settings.refiner:
        refiner = MaskRefiner.load(settings.refiner, device=cfg.MODEL.DEVICE)
        class_of = refiner_classes(settings.refiner, refiner, classes)
    mapper = DatasetMapper(cfg, is_train=False, keep_annotations=True)
    predictions = settings.output / "predictions.jsonl"
    overlays = overlay_paths(settings.images, settings.output)
    with atomic_text(predictions) as file:
        for record, overlay in zip(records, overlays, strict=True):
            instances, unmatched = predict(model, mapper, record, settings.least_score)
            image = read_image(record["file_name"], "RGB")
            if settings.refiner:
                refine(instances, image, refiner, class_of)
            line = make_record(record, instances, unmatched, classes.ids, "drop")
            lost = [record["annotations"][item["instance"]] for item in unmatched]
            draw(image, instances, lost, classes).save(str(overlay))
            for item in line.pop("unmatched"):
                better = f" by the mask at {item['other_point']}" if "other_point" in item else ""
                print(
                    f"{record['file_name']}: no mask at {item['point']}: {item['reason']}{better}"
                )
            file.write(dumps(line) + "\n")
            print(f"{overlay}: {len(instances)} instances (prompt={settings.prompt})")
    print(f"{predictions}: {len(records)} records")
