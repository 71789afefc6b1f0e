"""A small SOLOv2 with random weights and a few images, for tools that need a trained network."""

import json
from pathlib import Path

import torch

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tests.programs import make_shapes
from wsis.config import load_config

CLASS_NAMES = ("disc", "square", "triangle", "star", "ring", "cross", "crescent")
CONFIG_FILE = Path(__file__).parents[2] / "configs" / "Quickstart" / "shapes_student.yaml"
# Untrained scores are about the prior probability, 0.01; smaller images are faster.
OPTIONS = (
    *("MODEL.SOLOV2.SCORE_THR", "0.005", "MODEL.SOLOV2.MAX_PER_IMG", "5"),
    *("INPUT.MIN_SIZE_TEST", "96"),
)


def small_config() -> CfgNode:
    return load_config(str(CONFIG_FILE), OPTIONS)


def make_weights(path: Path) -> Path:
    """A checkpoint of the small network: seeded random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = build_model(small_config())
        for layer in (model.ins_head.kernel_pred, model.ins_head.cate_pred):
            torch.nn.init.normal_(layer.weight, std=0.1)  # masks that differ from cell to cell
    torch.save({"model": model.state_dict()}, path)
    return path


def make_images(folder: Path, count: int = 4) -> tuple[Path, Path]:
    """Annotation file and image folder of a few shapes images of 96 pixels."""
    arguments = [str(folder), "--train", str(count), "--val", "1", "--size", "96"]
    assert make_shapes(arguments) == 0
    return folder / "annotations" / "instances_train.json", folder / "train"


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
