"""The released files of PointWSSIS: their ids, where they lie here, and whether one is whole."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from detectron2.modeling import build_model
from maskrefinenet.checkpoint import read_torch_file
from maskrefinenet.model import MaskRefineNet
from wsis.config import load_config

TABLE = Path(__file__).with_name("released.tsv")
DRIVE_URL = "https://drive.google.com/uc?id="
DRIVE_FOLDER_URL = "https://drive.google.com/drive/folders/"
SPLIT_FOLDER = "1g_Vzih2k-bfzu_Bt-PPsespwAh6yHFuh"  # the authors' split of every subset
CONFIGS = {
    "teacher": "PointWSSIS/R101_teacher.yaml",
    "student": "PointWSSIS/R101_student.yaml",
}
FILE_NAMES = {  # in the folder of a subset
    "teacher": "teacher.pth",
    "maskrefinenet": "maskrefinenet.pth",
    "pseudo_labels": "pseudo_labels.json",
    "student": "student.pth",
    "split_s": "instances_train2017_{subset}_s.json",
    "split_w": "instances_train2017_{subset}_w.json",
}
SPLIT = ("split_s", "split_w")
LABELS = ("pseudo_labels", *SPLIT)
NUM_CLASSES = 80
DISTRIBUTED_PREFIX = "module."
KEYS_SHOWN = 5  # of a list of differing keys


@dataclass(frozen=True)
class Release:
    """One subset's row: Google Drive ids by kind of file, and the reported COCO test-dev AP.

    The files of the split have no ids here: they lie in SPLIT_FOLDER under their names.
    """

    subset: str
    ids: dict[str, str]
    test_dev_ap: float


def read_releases() -> dict[str, Release]:
    with open(TABLE, newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    return {
        row["subset"]: Release(
            row["subset"],
            {kind: row[kind] for kind in FILE_NAMES if kind not in SPLIT},
            float(row["test_dev_AP"]),
        )
        for row in rows
    }


def released_path(folder: Path, subset: str, kind: str) -> Path:
    """Where a downloaded file lies: folder/10p/teacher.pth and so on."""
    return folder / subset / FILE_NAMES[kind].format(subset=subset)


def browser_url(release: Release, kind: str) -> str:
    """Where a person finds a file on Google Drive."""
    return DRIVE_FOLDER_URL + SPLIT_FOLDER if kind in SPLIT else DRIVE_URL + release.ids[kind]


def expected_shapes(kind: str) -> dict[str, tuple[int, ...]]:
    """State-dict keys and shapes of the network that a checkpoint of this kind is for."""
    with torch.device("meta"):
        if kind == "maskrefinenet":
            model = MaskRefineNet(num_classes=NUM_CLASSES)
        else:
            model = build_model(load_config(CONFIGS[kind], ("MODEL.DEVICE", "meta")))
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def verify(path: Path, kind: str) -> str:
    """What the file holds, in a few words.

    Raises:
        ValueError: it does not open, or is not what its name says; the message says how it differs.
    """
    if kind in LABELS:
        return verify_labels(path)
    checkpoint = read_torch_file(path)
    name = "model_state" if kind == "maskrefinenet" else "model"
    if not isinstance(checkpoint, dict) or name not in checkpoint:
        raise ValueError(f"{path}: has no {name!r} entry, so it is no released {kind} checkpoint")
    state = without_prefix(checkpoint[name])
    got = {key: tuple(value.shape) for key, value in state.items()}
    wanted = expected_shapes(kind)
    differences = {
        "missing": sorted(wanted.keys() - got.keys()),
        "unexpected": sorted(got.keys() - wanted.keys()),
        "of another shape": sorted(k for k in got.keys() & wanted.keys() if got[k] != wanted[k]),
    }
    wrong = [
        f"{len(keys)} {what} ({', '.join(keys[:KEYS_SHOWN])}{', …' * (len(keys) > KEYS_SHOWN)})"
        for what, keys in differences.items()
        if keys
    ]
    if wrong:
        raise ValueError(f"{path}: keys do not fit the {kind}: {'; '.join(wrong)}")
    return f"{len(got)} tensors, every key and shape as the {kind} has them"


def without_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict without the prefix of DistributedDataParallel, as the loaders read it."""
    if all(key.startswith(DISTRIBUTED_PREFIX) for key in state):
        return {key.removeprefix(DISTRIBUTED_PREFIX): value for key, value in state.items()}
    return state


def verify_labels(path: Path) -> str:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: does not open as json ({error})") from error
    missing = [key for key in ("images", "annotations", "categories") if key not in content]
    if missing:
        raise ValueError(f"{path}: lacks {missing}, so it is no COCO label file")
    return f"{len(content['annotations'])} annotations in {len(content['images'])} images"
