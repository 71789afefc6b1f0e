"""Segment images with a trained SOLOv2, guided by points or on its own, and draw the result.

    python tools/demo.py --config-file configs/PointWSSIS/R101_teacher.yaml --input cat.jpg \\
        --point 210,160,cat --point 420,300,dog --refiner checkpoints/10p/maskrefinenet.pth \\
        MODEL.WEIGHTS checkpoints/10p/teacher.pth
    python tools/demo.py --config-file configs/PointWSSIS/R101_student.yaml --input *.jpg \\
        MODEL.WEIGHTS checkpoints/10p/student.pth

With points each of them asks for one mask of its class; without, the network finds the instances
itself. OUTPUT gets NAME_overlay.png for each image and predictions.jsonl, the prediction records.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from adet.config import get_cfg
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.detection_utils import read_image
from detectron2.structures import BitMasks, Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.logger import setup_logger
from detectron2.utils.visualizer import VisImage, Visualizer
from maskrefinenet import MaskRefiner
from weaklabels.coco import atomic_text, dumps
from wsis.pseudo_labels import make_record
from wsis.trained_model import load_trained

CONFIDENCE_WITHOUT_POINTS = 0.3
OVERLAY_SIDE = 800  # pixels; smaller images are enlarged to about this size
LABEL_OFFSET = 0.03  # of a label below its point, of the image height
PIXEL_CENTER = 0.5  # points are pixel indices; the canvas puts pixel i's centre at i + 0.5


@dataclass(frozen=True)
class Classes:
    """Names and data-set ids of the network's classes, in its order."""

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


def read_classes(args: argparse.Namespace, num_classes: int) -> Classes:
    """From --classes or --classes-json; without them COCO's, where the network has 80 classes."""
    if args.classes:
        names = tuple(name.strip() for name in args.classes.split(","))
        return Classes(names, tuple(range(1, len(names) + 1)))
    if args.classes_json:
        return read_classes_json(args.classes_json)
    if num_classes != len(COCO_CATEGORIES):
        raise ValueError(
            f"MODEL.SOLOV2.NUM_CLASSES is {num_classes}: say which classes these are, with "
            "--classes a,b,c or --classes-json FILE (a COCO annotation file, or a list of names)"
        )
    names, ids = zip(*((c["name"], c["id"]) for c in COCO_CATEGORIES), strict=True)
    return Classes(names, ids)


def read_classes_json(path: Path) -> Classes:
    """`categories` of a COCO file in order of their ids, or a list of names."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--classes-json {path}: not a json file ({error})") from error
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return Classes(tuple(content), tuple(range(1, len(content) + 1)))
    try:
        pairs = sorted((int(c["id"]), str(c["name"])) for c in content["categories"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"--classes-json {path}: expected a list of names, or an object whose 'categories' "
            "have 'id' and 'name'"
        ) from error
    return Classes(tuple(name for _, name in pairs), tuple(index for index, _ in pairs))


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


def read_inputs(args: argparse.Namespace, classes: Classes) -> list[dict[str, Any]]:
    """Dataset dicts of the images, all of them readable; the points are their annotations."""
    records = []
    for number, path in enumerate(args.input, start=1):
        height, width = read_image(str(path), "RGB").shape[:2]
        points = [parse_point(text, classes, (width, height)) for text in args.point]
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


def make_config(args: argparse.Namespace) -> CfgNode:
    """The config with the prompt that goes with the points; NUM_CLASSES is the config's own."""
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    if cfg.MODEL.META_ARCHITECTURE != "SOLOv2":
        raise ValueError(
            f"{args.config_file}: MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE!r}; "
            "only 'SOLOv2' takes points"
        )
    cfg.MODEL.SOLOV2.PROMPT = "point" if args.point else "none"
    if args.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    elif not torch.cuda.is_available():
        raise ValueError(f"--num-gpus {args.num_gpus}, but no CUDA device was found; 0 is the CPU")
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
    """Replace masks and boxes by refined ones; where no point is given, the centre of the mask."""
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
    """Masks, labels and points on the image; points without a mask are grey."""
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


def run(args: argparse.Namespace) -> None:
    """Read, predict, refine, draw and write; every input is read before the network is built."""
    cfg = make_config(args)
    classes = read_classes(args, cfg.MODEL.SOLOV2.NUM_CLASSES)
    cfg.MODEL.SOLOV2.NUM_CLASSES = len(classes.names)
    records = read_inputs(args, classes)
    model = load_trained(cfg)
    if args.refiner:
        refiner = MaskRefiner.load(args.refiner, device=cfg.MODEL.DEVICE)
        class_of = refiner_classes(args.refiner, refiner, classes)
    mapper = DatasetMapper(cfg, is_train=False, keep_annotations=True)
    args.output.mkdir(parents=True, exist_ok=True)
    overlays = overlay_paths(args.input, args.output)
    with atomic_text(args.output / "predictions.jsonl") as file:
        for record, overlay in zip(records, overlays, strict=True):
            instances, unmatched = predict(model, mapper, record, args.confidence)
            image = read_image(record["file_name"], "RGB")
            if args.refiner:
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
            print(f"{overlay}: {len(instances)} instances (prompt={cfg.MODEL.SOLOV2.PROMPT})")
    print(f"{args.output / 'predictions.jsonl'}: {len(records)} records")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--input", nargs="+", required=True, metavar="IMG")
    parser.add_argument(
        "--point",
        action="append",
        default=[],
        metavar="X,Y,CLASS",
        help="pixels from the top left corner, and a class by name or index; one image only",
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"))
    parser.add_argument("--refiner", type=Path, help="MaskRefineNet checkpoint to redraw the masks")
    parser.add_argument(
        "--confidence",
        type=float,
        help=f"least score to keep; default {CONFIDENCE_WITHOUT_POINTS} without points, 0 with",
    )
    names = parser.add_mutually_exclusive_group()
    names.add_argument("--classes", help="names in the network's order: a,b,c")
    names.add_argument("--classes-json", type=Path, help="COCO annotation file, or list of names")
    parser.add_argument(
        "--num-gpus",
        type=int,
        choices=(0, 1),
        default=int(torch.cuda.is_available()),
        help="0: CPU; default: 1 if there is one",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config, last")
    return parser


def split_opts(args: argparse.Namespace) -> None:
    """Move to `opts` the config keys and values that argparse takes for further images."""
    keys = get_cfg().keys()
    places = (
        place
        for place, word in enumerate(args.input)
        if word.split(".")[0] in keys and not Path(word).exists()
    )
    end = next(places, len(args.input))
    args.opts = [*args.input[end:], *args.opts]
    args.input = [Path(word) for word in args.input[:end]]


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    split_opts(args)
    if not args.input:
        parser.error("--input needs an image before KEY VALUE")
    if args.point and len(args.input) > 1:
        parser.error(f"--point is for one image, --input gives {len(args.input)}")
    if args.confidence is None:
        args.confidence = 0.0 if args.point else CONFIDENCE_WITHOUT_POINTS
    setup_logger(name="fvcore")
    try:
        run(args)
    except (OSError, ValueError, KeyError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
