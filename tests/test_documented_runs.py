"""README and the docs, followed from top to bottom: each command runs, made small, on small data.

The commands run as they are written, in a folder that holds the files they name and links to the
repository's folders. SMALLER says what is added; ELSEWHERE lists those that other tests run.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils

from adet.config import get_cfg
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling import build_model
from tests.documentation import PAGES, SMALL_NETWORK, commands
from tests.programs import make_shapes
from weaklabels.masks import segmentation_rle
from wsis.runner import ROOT
from wsis.runner.commands import python_path

LINKED = ("configs", "scripts", "tools")
SHAPES = ("--train", "12", "--val", "2", "--size", "128")
REFINER = "--encoder resnet18 --weights none --size 32 --batch-size 2 --iterations 2 --workers 0"
SCENES = ("--train", "40", "--val", "2", "--size", "96")  # with every class
SMALLER = {  # beginning of a command: what is added to it
    "python tools/make_shapes.py datasets/shapes --train 2000": SCENES,
    "python tools/make_shapes.py": SHAPES,
    "python tools/split_coco.py": (),
    "python tools/evaluate_labels.py": (),
    "python tools/convert_bdd100k.py": (),
    "python tools/import_points.py": (),
    "python -m maskrefinenet train": REFINER.split(),
    "wsis refine": ("--num-gpus", "0"),
    "wsis point-masks": ("--num-gpus", "0"),
    "wsis box-masks": ("--num-gpus", "0"),
    "wsis merge": (),
    "wsis evaluate-labels": (),
    "wsis tags --coco": (),
    "wsis clues train --network resnet": "--epochs 1 --size 32 --num-gpus 0".split(),
    "wsis clues points --weights output/weak": ("--num-gpus", "0", "--scales", "1.0"),
    "wsis proposals grid": ("--num-gpus", "0"),
    "wsis proposals points --segmenter tiny": ("--num-gpus", "0", "--grid", "3"),
    "wsis proposals merge": (),
    "wsis proposals recall --proposals output/weak": (),
    "bash scripts/coco": ("--dry-run",),
    "bash scripts/bdd100k": ("--dry-run",),
    "bash scripts/pointwssis.sh": ("--dry-run",),
    "bash scripts/weaksam": ("--dry-run",),
    "bash scripts/gpu_check.sh": ("--device", "cpu", "--quick", "--only", "NMS"),
}
WITH_A_NETWORK = (
    "python tools/train_net.py",
    "python tools/demo.py",
    "python tools/generate_pseudo_labels.py",
)
ELSEWHERE = (  # beginnings of commands that are too long here; who runs them
    "NUM_GPUS=0",  # tests/wsis/test_pipeline_kill.py
    "bash scripts/quickstart.sh",  # .ci/run, in its short form
    "bash scripts/test.sh",  # .ci/run
    "python tools/quickstart.py",  # the same as scripts/quickstart.sh
    "python tools/make_figures.py",  # tests/wsis/test_make_figures.py
    "python tools/download_checkpoints.py",  # tests/wsis/test_download_checkpoints.py
    "python tools/reproduce.py",  # tests/wsis/test_reproduce.py
    "wsis tags --voc",  # tests/wsis/test_weak_commands.py has these with small data
    "wsis clues train --network lite0",
    "wsis clues train --network weaktr",
    "wsis clues points --weights output/voc",
    "wsis clues cluster",
    "wsis proposals points --segmenter segment_anything",
    "wsis proposals recall --proposals output/voc",
    "python -m wsis.benchmarks.refiner_recipes",  # tests/wsis/test_refiner_recipes.py
    "python -m wsis.benchmarks.mask_refiners",  # tests/wsis/test_mask_refiners.py
    # The quick start's smoke form in .ci/run has these, on the boxes of a detector.
    "wsis pseudo-boxes --detections found.json",
    "wsis train --config-file configs/Quickstart/weak_",
    "wsis box-masks --boxes output/weak/",
    "wsis package",  # tests/wsis/test_package.py
)
CVAT = """<annotations><version>1.1</version><image id="0" name="{}" width="{}" height="{}">
<points label="person" occluded="0" points="3,4" z_order="0"/></image></annotations>"""


def smaller(command: str) -> str | None:
    """The command with what makes it small; None where another file runs it."""
    if command.startswith(ELSEWHERE):
        return None
    command = re.sub(r"--num-gpus \d", "--num-gpus 0", command)
    command = re.sub(r"SOLVER.MAX_ITER \d+ ", "", command)  # the small network has its own
    for beginning, words in SMALLER.items():
        if command.startswith(beginning):
            return f"{command} {shlex.join(words)}"
    if command.startswith(WITH_A_NETWORK):
        pairs = [pair for pair in SMALL_NETWORK.items() if pair[0] not in command]
        return " ".join([command, *map(shlex.join, pairs)])
    raise AssertionError(f"say above how a test runs: {command}")


def make_data(folder: Path) -> dict[str, Any]:
    """Scenes in `folder`/train; returns their annotations under the names of COCO's classes."""
    assert make_shapes([str(folder), *SHAPES]) == 0
    content = json.loads((folder / "annotations" / "instances_train.json").read_text())
    return content | {"categories": COCO_CATEGORIES}


def of_one_class(content: dict[str, Any]) -> dict[str, Any]:
    annotations = [annotation | {"category_id": 1} for annotation in content["annotations"]]
    return content | {"annotations": annotations, "categories": [{"id": 1, "name": "nucleus"}]}


def without_image(content: dict[str, Any], image_id: int) -> dict[str, Any]:
    images = [image for image in content["images"] if image["id"] != image_id]
    annotations = [a for a in content["annotations"] if a["image_id"] != image_id]
    return content | {"images": images, "annotations": annotations}


def true_records(content: dict[str, Any]) -> str:
    """Prediction records that repeat the truth, one line an image."""
    lines = []
    for image in content["images"]:
        instances = []
        for annotation in content["annotations"]:
            if annotation["image_id"] != image["id"] or annotation["iscrowd"]:
                continue
            size = image["height"], image["width"]
            rle = segmentation_rle(annotation["segmentation"], *size)
            y, x = np.argwhere(mask_utils.decode(rle))[0].tolist()
            fields = {key: annotation[key] for key in ("category_id", "bbox", "area")}
            counts = {"size": list(size), "counts": rle["counts"].decode()}
            instances.append(fields | {"score": 1.0, "point": [x, y], "segmentation": counts})
        record = {key: image[key] for key in ("file_name", "height", "width")}
        record |= {"image_id": image["id"], "instances": instances}
        lines.append(json.dumps(record) + "\n")
    return "".join(lines)


def write_weights(path: Path, config_file: str) -> None:
    cfg = get_cfg()
    cfg.merge_from_file(str(ROOT / config_file))
    cfg.merge_from_list([word for pair in SMALL_NETWORK.items() for word in pair])
    torch.save({"model": build_model(cfg).state_dict()}, path)


def write_bdd100k(folder: Path, image: Path) -> None:
    (folder / "datasets/BDD100K/train").mkdir(parents=True)
    shutil.copy(image, folder / "datasets/BDD100K/train/a.jpg")
    square = {"vertices": [[4, 4], [14, 4], [14, 14], [4, 14]], "types": "LLLL", "closed": True}
    label = {"id": "7", "category": "car", "attributes": {}, "poly2d": [square]}
    frames = [{"name": "a.jpg", "labels": [label]}]
    (folder / "ins_seg_train.json").write_text(json.dumps(frames))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the files that the pages name, and the repository's folders."""
    folder = tmp_path_factory.mktemp("workplace")
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    coco, nuclei = folder / "datasets/coco", folder / "datasets/nuclei"
    content = make_data(coco)
    (folder / "coco").symlink_to(coco)
    (folder / "images").symlink_to(coco / "train")
    for split in ("train2017", "val2017"):
        (coco / split).symlink_to(coco / "train")
    names = [f"datasets/coco/annotations/instances_{split}2017.json" for split in ("train", "val")]
    names += [f"{name}.json" for name in ("ann", "annotations", "val", "all", "boxes")]
    names += [
        f"instances_{name}.json" for name in ("train2017_10p_s", "train2017_10p_w", "val_part")
    ]
    for name in names:
        (folder / name).write_text(json.dumps(content))
    for name in ("strong_1", "strong_2", "weak", "weak_val"):
        (folder / f"{name}.jsonl").write_text(true_records(content))
    single = of_one_class(make_data(nuclei))
    for split in ("train", "val"):
        (nuclei / f"annotations/instances_{split}.json").write_text(json.dumps(single))
    (nuclei / "val").rename(nuclei / "unused")
    (nuclei / "val").symlink_to(nuclei / "train")
    image = content["images"][0]
    path = coco / "train" / image["file_name"]
    cv2.imwrite(str(folder / "image.jpg"), cv2.resize(cv2.imread(str(path)), (160, 120)))
    write_bdd100k(folder, path)
    (folder / "strong.json").write_text(json.dumps(without_image(content, image["id"])))
    with zipfile.ZipFile(folder / "export.zip", "w") as archive:
        text = CVAT.format(image["file_name"], image["width"], image["height"])
        archive.writestr("annotations.xml", text)
    write_weights(folder / "model.pth", "configs/SOLOv2/R50_3x.yaml")
    write_weights(folder / "teacher.pth", "configs/PointWSSIS/R101_teacher.yaml")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_can_be_followed(page, workplace):
    given = {"OMP_NUM_THREADS": "1", "NUM_GPUS": "0", "VIRTUAL_ENV": sys.prefix}
    given |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment = {k: v for k, v in os.environ.items() if k != "DETECTRON2_DATASETS"} | given
    for command in filter(None, map(smaller, commands(page))):
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=workplace,
            env=environment | {"PYTHONPATH": python_path()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}"
