"""Write a trained network as a folder that others can load: weights, config, classes, license."""

import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from detectron2.config import CfgNode
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling import meta_architecture
from maskrefinenet.checkpoint import load_checkpoint
from maskrefinenet.model import MaskRefineNet
from weaklabels.coco import CocoFile
from weaklabels.files import file_sha256, write_json
from weaklabels.model_folder import CARD, CONFIG, WEIGHTS, Card, write_card
from wsis.config import load_config
from wsis.trained_model import load_trained
from wsis.versions import versions

# Values of the machine that made a network, which are of no use on another.
LOCAL_KEYS = {
    "MODEL.WEIGHTS": "",
    "MODEL.DEVICE": "cuda",
    "OUTPUT_DIR": "./output",
    "DATASETS.TRAIN": (),
    "DATASETS.TEST": (),
}


@dataclass(frozen=True)
class PackageSettings:
    """What to publish.

    config_file: of a network of the config system; None for a MaskRefineNet.
    overrides: KEY, VALUE, KEY, VALUE, ... on top of the config.
    annotations: COCO file whose categories are the classes; None: those that the checkpoint names,
        else COCO's.
    license: of the weights, an SPDX expression.
    """

    weights: Path
    output: Path
    license: str
    config_file: str | None = None
    overrides: tuple[str, ...] = ()
    annotations: Path | None = None
    description: str = ""


@dataclass(frozen=True)
class Model:
    """A network without its code: tensors by name, how to build it, its classes in order."""

    kind: str
    state: dict[str, torch.Tensor]
    config: dict[str, Any]
    categories: tuple[dict[str, Any], ...]


def package(settings: PackageSettings) -> Card:
    """Write the folder, which appears whole or not at all; returns its card.

    Raises:
        ValueError: the weights do not fit the config or the classes, or the license is none.
        FileExistsError: the folder is there.
    """
    folder = settings.output
    if folder.exists():
        raise FileExistsError(f"{folder} is there already: give another --output")
    model = read_refiner(settings) if settings.config_file is None else read_network(settings)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir(parents=True)
    # Tensors may share memory, which the format does not allow.
    state = {name: value.detach().clone().contiguous() for name, value in model.state.items()}
    save_file(state, partial / WEIGHTS, {"format": "pt"})
    write_json(partial / CONFIG, model.config, indent=1)
    card = Card(
        kind=model.kind,
        license=settings.license,
        categories=model.categories,
        description=settings.description,
        tensors=len(state),
        sha256=file_sha256(str(partial / WEIGHTS)),
        made_with=versions(),
    )
    write_card(partial, card)
    partial.rename(folder)
    return card


def read_refiner(settings: PackageSettings) -> Model:
    """A MaskRefineNet of ours or of the reference."""
    if settings.overrides:
        raise ValueError("KEY VALUE pairs need --config-file; a MaskRefineNet has none")
    checkpoint = load_checkpoint(settings.weights)
    model, config = checkpoint.build(), checkpoint.config
    given = checkpoint.categories if settings.annotations is None else None
    categories = given or categories_of(settings.annotations, config.num_classes)
    return Model(MaskRefineNet.__name__, model.state_dict(), asdict(config), short(categories))


def read_network(settings: PackageSettings) -> Model:
    """A network of a config, with every tensor from the weights."""
    cfg = load_config(settings.config_file, settings.overrides, num_gpus=0)
    architecture = meta_architecture(cfg)
    if settings.annotations:
        count = len(CocoFile(settings.annotations).category_ids)
        cfg.merge_from_list([architecture.num_classes_key, count])
    cfg.MODEL.WEIGHTS = str(settings.weights)
    state = load_trained(cfg).state_dict()
    categories = categories_of(settings.annotations, architecture.num_classes(cfg))
    return Model(cfg.MODEL.META_ARCHITECTURE, state, portable(cfg), categories)


def portable(cfg: CfgNode) -> dict[str, Any]:
    """The values of a config as JSON, without those of this machine."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([word for pair in LOCAL_KEYS.items() for word in pair])
    return yaml.safe_load(cfg.dump())


def categories_of(annotations: Path | None, num_classes: int) -> tuple[dict[str, Any], ...]:
    """The categories of a COCO file by id, or COCO's own.

    Raises:
        ValueError: their number is not the network's.
    """
    found = COCO_CATEGORIES if annotations is None else CocoFile(annotations).header["categories"]
    if len(found) != num_classes:
        raise ValueError(
            f"{annotations or 'COCO'} has {len(found)} classes, the network {num_classes}: give "
            "the COCO file that it was trained with, with --annotations"
        )
    return short(sorted(found, key=lambda category: category["id"]))


def short(categories: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Id and name of each category."""
    return tuple({"id": c["id"], "name": c["name"]} for c in categories)


def describe(folder: Path, card: Card) -> str:
    """What was written, and how to use it."""
    refine = f"wsis refine --weights {folder} ..."
    use = refine if card.kind == MaskRefineNet.__name__ else f"wsis demo --config-file {folder} ..."
    return (
        f"{folder}: {card.kind}, {card.tensors} tensors, {len(card.categories)} classes, "
        f"{card.license} ({WEIGHTS}, {CONFIG}, {CARD})\nUse it: {use}"
    )
