"""Read a classifier for the classes of a dataset, ours or a published WeakTr file."""

import argparse
from pathlib import Path

import torch

from detectron2.checkpoint.safe_files import read_torch_file
from weaklabels.tags import Tags

from .checkpoint import load_classifier
from .classifier import Classifier
from .weaktr_weights import read_weaktr


def classifier_for(path: str | Path, tags: Tags) -> Classifier:
    """The classifier of a file; its outputs are the classes of `tags`, in their order.

    Raises:
        ValueError: the file is of another kind or of other classes.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such classifier; train one, or give a WeakTr file")
    with torch.serialization.safe_globals([argparse.Namespace]):  # in published files
        content = read_torch_file(str(path))
    if not isinstance(content, dict) or "kind" not in content:
        return read_weaktr(path, [number for number, _ in tags.categories])
    loaded = load_classifier(path)
    if list(loaded.classes) != tags.class_names:
        raise ValueError(
            f"{path} was trained on the {len(loaded.classes)} classes "
            f"{_shortened(loaded.classes)}, {tags.file} has the {len(tags.categories)} "
            f"{_shortened(tags.class_names)}; take tags of the same class list"
        )
    return loaded.model


def _shortened(names: list[str] | tuple[str, ...], most: int = 5) -> str:
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])])
