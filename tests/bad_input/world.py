"""A small dataset with labels, records, networks and exports: what every program reads."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from adet.config import get_cfg
from detectron2.modeling import build_model
from maskrefinenet import MaskRefineNet
from maskrefinenet.checkpoint import NetworkConfig, network_content
from weaklabels.masks import encode_mask, mask_fields
from wsis.cli.main import main

SIDE = 64  # pixels of every image
KEPT = "what an earlier run has written"
CATEGORIES = [{"id": 1, "name": "box"}, {"id": 5, "name": "disc"}]
CONFIG = f"""
MODEL:
  META_ARCHITECTURE: SOLOv2
  MASK_ON: true
  BACKBONE: {{NAME: build_resnet_fpn_backbone, FREEZE_AT: 0}}
  RESNETS:
    {{DEPTH: 18, OUT_FEATURES: [res2, res3, res4, res5], NORM: BN, STEM_OUT_CHANNELS: 8,
     RES2_OUT_CHANNELS: 8}}
  FPN: {{IN_FEATURES: [res2, res3, res4, res5], OUT_CHANNELS: 32}}
  SOLOV2:
    {{INSTANCE_IN_CHANNELS: 32, INSTANCE_CHANNELS: 32, NUM_INSTANCE_CONVS: 1, MASK_IN_CHANNELS: 32,
     MASK_CHANNELS: 32, NUM_KERNELS: 32, NUM_MASKS: 32, NUM_GRIDS: [12, 10, 8, 6, 4],
     NUM_CLASSES: 2, NMS_TYPE: mask}}
INPUT: {{MASK_FORMAT: bitmask, MIN_SIZE_TRAIN: [{SIDE}], MIN_SIZE_TEST: {SIDE}}}
DATALOADER: {{NUM_WORKERS: 0, ASPECT_RATIO_GROUPING: false}}
DATASETS: {{TRAIN: [], TEST: []}}
SOLVER: {{IMS_PER_BATCH: 2, MAX_ITER: 1, STEPS: [], BASE_LR: 0.001, WARMUP_ITERS: 0}}
SEED: 1
VERSION: 2
"""


def make_pristine(folder: Path) -> Path:
    """The files that all cases start from; each case gets a copy."""
    (folder / "images").mkdir(parents=True)
    (folder / "out").mkdir()
    rng = np.random.default_rng(0)
    images, annotations, records = [], [], []
    for number in range(1, 7):
        name = f"{number}.png"
        pixels = rng.integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
        rows = []
        for place in (0, 1):
            x, y = 4 + 24 * place, 6 + number
            mask = np.zeros((SIDE, SIDE), np.uint8)
            mask[y : y + 20, x : x + 16] = 1
            box = [x, y, x + 16, y, x + 16, y + 20, x, y + 20]
            category = CATEGORIES[place]["id"]
            fields = mask_fields(encode_mask(mask))
            annotation = {"id": 10 * number + place, "image_id": number, "category_id": category}
            annotation |= {"iscrowd": 0, "area": 320, "bbox": [x, y, 16, 20]}
            annotations.append(annotation | {"segmentation": [box]})
            rows.append({"category_id": category, "score": 0.5, "point": [x + 8, y + 10]} | fields)
        keys = ("file_name", "height", "width")
        record = {"image_id": number, **{key: images[-1][key] for key in keys}}
        records.append(record | {"instances": rows})
    strong, weak = {1, 2, 3}, {4, 5, 6}
    write_coco(folder / "train.json", images, annotations)
    write_coco(folder / "strong.json", *_of(strong, images, annotations))
    weak_images, weak_annotations = _of(weak, images, annotations)
    points = [
        {key: a[key] for key in ("id", "image_id", "category_id", "iscrowd")}
        | {"point": [a["bbox"][0] + 8, a["bbox"][1] + 10]}
        for a in weak_annotations
    ]
    write_coco(folder / "weak.json", weak_images, points)
    for name, ids in (("strong.jsonl", strong), ("weak.jsonl", weak)):
        lines = [json.dumps(r) + "\n" for r in records if r["image_id"] in ids]
        (folder / name).write_text("".join(lines))
    (folder / "tiny.yaml").write_text(CONFIG)
    _write_networks(folder)
    _write_exports(folder)
    for name in ("merged.json", "quality.json", "imported.json", "bdd.json", "voc.json"):
        (folder / "out" / name).write_text(KEPT)
    for kind in "sw":
        (folder / "out" / f"train_2i_{kind}.json").write_text(KEPT)
    return folder


def _of(ids: set[int], images: list, annotations: list) -> tuple[list, list]:
    return [i for i in images if i["id"] in ids], [a for a in annotations if a["image_id"] in ids]


def write_coco(path: Path, images: list, annotations: list) -> None:
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    path.write_text(json.dumps(content))


def _write_networks(folder: Path) -> None:
    cfg = get_cfg()
    cfg.merge_from_file(str(folder / "tiny.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "tiny.pth")
    refiner = MaskRefineNet(2, encoder="resnet18")
    config = NetworkConfig(2, encoder="resnet18", size=32)
    content = network_content(refiner.state_dict(), config, tuple(CATEGORIES))
    torch.save(content, folder / "refiner.pth")


def _write_exports(folder: Path) -> None:
    with open(folder / "points.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["image", "x", "y", "category"], ["4.png", 12, 20, "box"]])
    vertices = [[4, 6], [20, 6], [20, 26], [4, 26]]
    part = {"vertices": vertices, "types": "LLLL", "closed": True}
    label = {"id": "a1", "category": "car", "poly2d": [part]}
    (folder / "bdd.json").write_text(json.dumps([{"name": "1.png", "labels": [label]}]))
    voc = folder / "VOC2012"
    for name in ("JPEGImages", "SegmentationObject", "SegmentationClass"):
        (voc / name).mkdir(parents=True)
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_000001\n")
    Image.open(folder / "images" / "1.png").save(voc / "JPEGImages" / "2007_000001.jpg")
    indices = np.zeros((SIDE, SIDE), np.uint8)
    indices[10:20, 10:20] = 1
    for name in ("SegmentationObject", "SegmentationClass"):
        Image.fromarray(indices).save(voc / name / "2007_000001.png")


@dataclass(frozen=True)
class World:
    """One copy of the files. `name` is a dataset name that no other copy has."""

    folder: Path
    name: str

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def words(self, program: str) -> list[str]:
        """The command line of a program that succeeds on the unchanged files."""
        return [str(word) for word in PROGRAMS[program](self)]

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    def own(self, name: str) -> Path:
        """A checkpoint of this copy alone, which may be changed."""
        path = self.folder / name
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        return path

    def edit(self, name: str, change: Callable[[Any], Any]) -> None:
        """Change the content of a JSON file in place, or replace it by what `change` returns."""
        content = self.json(name)
        changed = change(content)
        (self.folder / name).write_text(json.dumps(content if changed is None else changed))

    def edit_record(self, name: str, change: Callable[[dict], Any], line: int = 1) -> None:
        """Change one record (the second one) of a .jsonl file."""
        path = self.folder / name
        lines = path.read_text().splitlines()
        record = json.loads(lines[line])
        changed = change(record)
        lines[line] = json.dumps(record if changed is None else changed)
        path.write_text("\n".join(lines) + "\n")

    def snapshot(self) -> dict[str, bytes]:
        """Content of every file but logs, which may grow."""
        return {
            str(path.relative_to(self.folder)): _content(path)
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path.name not in ("log.txt", "config.yaml")
        }


def _content(path: Path) -> bytes:
    """A file's bytes; of a checkpoint, which is large, its size and time."""
    if path.suffix != ".pth":
        return path.read_bytes()
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}".encode()


def _train(w: World, *more: Any) -> list:
    return [
        *("--config-file", w.folder / "tiny.yaml", "--num-gpus", 0, *more),
        *("OUTPUT_DIR", w.out / "train"),
    ]


PROGRAMS: dict[str, Callable[[World], list]] = {
    "split": lambda w: [
        *("--annotations", w.folder / "train.json", "--images", 2, "--output", w.out),
    ],
    "merge": lambda w: [
        *("--annotations", w.folder / "strong.json", "--records", w.folder / "weak.jsonl"),
        *("--weak-annotations", w.folder / "weak.json", "--output", w.out / "merged.json"),
    ],
    "evaluate-labels": lambda w: [
        *("--annotations", w.folder / "train.json", "--records", w.folder / "weak.jsonl"),
        *("--weak-annotations", w.folder / "weak.json", "--output", w.out / "quality.json"),
    ],
    "generate": lambda w: [
        *("--config-file", w.folder / "tiny.yaml", "--weights", w.folder / "tiny.pth"),
        *("--dataset", f"{w.name}={w.folder}/weak.json:{w.folder}/images", "--num-gpus", 0),
        *("--output", w.out / "weak.jsonl"),
    ],
    "refine": lambda w: [
        *("--weights", w.folder / "refiner.pth", "--records", w.folder / "weak.jsonl"),
        *("--image-root", w.folder / "images", "--output", w.out / "refined.jsonl"),
        *("--annotations", w.folder / "weak.json", "--num-gpus", 0),
    ],
    "train": lambda w: [
        *_train(w),
        *("DATASETS.TRAIN", f"('{w.name}={w.folder}/strong.json:{w.folder}/images',)"),
    ],
    "evaluate": lambda w: [
        *_train(w, "--eval-only"),
        *("DATASETS.TEST", f"('{w.name}={w.folder}/strong.json:{w.folder}/images',)"),
        *("MODEL.WEIGHTS", w.folder / "tiny.pth"),
    ],
    "train-refiner": lambda w: [
        *("--annotations", w.folder / "strong.json", "--records", w.folder / "strong.jsonl"),
        *("--image-root", w.folder / "images", "--output", w.out / "refiner", "--num-gpus", 0),
        *("--encoder", "resnet18", "--weights", "none", "--size", 32, "--iterations", 1),
        *("--batch-size", 2, "--workers", 0),
    ],
    "demo": lambda w: [
        *("--config-file", w.folder / "tiny.yaml", "--weights", w.folder / "tiny.pth"),
        *("--input", w.folder / "images" / "1.png", "--point", "12,20,box"),
        *("--classes", "box,disc", "--num-gpus", 0, "--output", w.out / "demo"),
    ],
    "import-points": lambda w: [
        *(w.folder / "points.csv", "--format", "csv", "--image-root", w.folder / "images"),
        *("--categories", w.folder / "strong.json", "--output", w.out / "imported.json"),
    ],
    "convert-bdd100k": lambda w: [
        *("--polygons", w.folder / "bdd.json", "--image-root", w.folder / "images"),
        *("--output", w.out / "bdd.json"),
    ],
    "voc-to-coco": lambda w: [
        *("--voc", w.folder / "VOC2012", "--split", "val", "--output", w.out / "voc.json"),
    ],
}
COMMANDS = {"evaluate": "train"}  # whose name is not that of the program


def run(program: str, words: list[str]) -> int:
    """Run a program in this process; the exit code."""
    try:
        return main([COMMANDS.get(program, program), *words])
    except SystemExit as error:  # argparse
        return error.code


def copy_world(pristine: Path, folder: Path) -> World:
    shutil.copytree(pristine, folder, ignore=shutil.ignore_patterns("*.pth"))
    for path in pristine.glob("*.pth"):  # 50 MB: linked, see `World.own`
        os.link(path, folder / path.name)
    return World(folder, f"bad_{abs(hash(str(folder))) % 10**12}")
