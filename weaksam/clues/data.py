"""Images and tags as training samples, each a function of the seed, the epoch and its index."""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from detectron2.data.datasets.tags import load_tags_json
from detectron2.data.detection_utils import check_image_size
from detectron2.data.image_utils import read_image
from weaklabels.tags import Tags, read_tags

from .classifier import IMAGENET_MEAN, IMAGENET_STD

AUGMENTATIONS = ("imagenet", "crop")
EVAL_RESIZE = 256 / 224  # Upstream parity: the short side before the central crop


@dataclass(frozen=True)
class TaggedDataset:
    """Images with tags: `dicts` are Detectron2's, with `image_labels`; see `load_tags_json`."""

    tags: Tags
    dicts: tuple[dict[str, Any], ...]

    @classmethod
    def load(cls, tags_file: str | Path, image_root: str | Path) -> "TaggedDataset":
        dicts = load_tags_json(str(tags_file), str(image_root))
        return cls(read_tags(tags_file), tuple(dicts))

    def __len__(self) -> int:
        return len(self.dicts)

    @property
    def num_classes(self) -> int:
        return len(self.tags.categories)

    def digest(self) -> str:
        """A name of the images and their tags."""
        listed = [[e["image_id"], Path(e["file_name"]).name, e["image_labels"]] for e in self.dicts]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]

    def targets(self) -> np.ndarray:
        """(N, C) uint8, 1 where the image shows the class."""
        found = np.zeros((len(self), self.num_classes), np.uint8)
        for row, entry in zip(found, self.dicts, strict=True):
            row[entry["image_labels"]] = 1
        return found


def read_rgb(entry: dict[str, Any]) -> np.ndarray:
    """(H, W, 3) uint8 of a dataset dict, whose size it must have."""
    image = read_image(entry["file_name"], "RGB")
    check_image_size(dict(entry), image)
    return image


def to_tensor(image: Image.Image | np.ndarray) -> Tensor:
    """(3, H, W) float32, 0 to 255."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


@dataclass(frozen=True)
class Augmentation:
    """How training and evaluation images are made.

    kind: "imagenet", timm's recipe that WeakTr trains with, or "crop", a part of the image with a
        random flip. Evaluation takes the middle of the image for "imagenet", as upstream does, and
        all of it for "crop".
    size: side of the network's input, pixels.
    least_area: smallest part of the image that "crop" takes.
    """

    kind: str = "imagenet"
    size: int = 224
    least_area: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in AUGMENTATIONS:
            raise ValueError(f"augmentation {self.kind!r}; expected one of {AUGMENTATIONS}")

    def for_training(self) -> Callable[[Image.Image], Tensor]:
        if self.kind == "imagenet":
            return _timm_augmentation(self.size)
        steps = [
            v2.RandomResizedCrop(self.size, scale=(self.least_area, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
        ]
        return v2.Compose([*steps, to_tensor])

    def for_evaluation(self) -> Callable[[Image.Image], Tensor]:
        if self.kind == "imagenet":
            short = int(self.size * EVAL_RESIZE)
            resize = v2.Resize(short, interpolation=v2.InterpolationMode.BICUBIC)
            return v2.Compose([resize, v2.CenterCrop(self.size), to_tensor])
        return v2.Compose([v2.Resize((self.size, self.size)), to_tensor])


def _timm_augmentation(size: int) -> Callable[[Image.Image], Tensor]:
    """timm's training recipe of DeiT; random erasing is of normalised pixels, so undo that."""
    try:
        from timm.data import create_transform
    except ImportError as error:
        raise ValueError(
            'the augmentation "imagenet" is timm\'s, which is not installed: pip install timm; or '
            'take the augmentation "crop"'
        ) from error
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    transform = create_transform(
        input_size=size,
        is_training=True,
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
        mean=[value / 255 for value in IMAGENET_MEAN],
        std=[value / 255 for value in IMAGENET_STD],
    )
    return lambda image: transform(image) * std + mean


class Samples(Dataset):
    """(image (3, S, S) float32 RGB 0 to 255, target (C,) float32) of a dataset."""

    def __init__(
        self, dataset: TaggedDataset, transform: Callable[[Image.Image], Tensor], seed: int
    ):
        self.dataset, self.transform, self.seed = dataset, transform, seed
        self.epoch = 0
        self.targets = torch.from_numpy(dataset.targets()).float()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = Image.fromarray(read_rgb(self.dataset.dicts[index]))
        with seeded(self.seed, self.epoch, index):
            return self.transform(image), self.targets[index]


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Run with the generators of Python, numpy and torch (CPU) seeded, then put back as they were.

    Augmentations of timm and torchvision know no other generators.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.random.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
