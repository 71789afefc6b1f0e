"""Training samples of MaskRefineNet, each a function of the seed and its position alone.

Position p is the p-th sample that training draws, over all epochs, ranks and workers; so a resumed
run sees what an uninterrupted one would.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from weaklabels.image_root import image_path
from weaklabels.masks import center_of_mass, decode_mask
from weaklabels.pictures import read_image

from .crops import crop_box, network_input
from .noise import add_noise
from .pairs import Pair
from .recipe import Recipe
from .training_crops import NO_POINT, TrainingCrop, scaled_size

SCALES = (0.5, 1.5)  # of the crop, before the center of the network's size is cut out
GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class Augmentation:
    """How training samples vary.

    box_scale: the prior's box is scaled by a factor drawn from [1, box_scale].
    color_jitter: brightness, contrast and saturation change by up to this fraction.
    noise: share of samples whose prior gets structured noise.
    """

    box_scale: float = 2.0
    color_jitter: float = 0.0
    noise: float = 0.0


class PairDataset(Dataset):
    """Maps a position to a sample.

    inputs: (4, S, S) float32, normalized RGB image and prior.
    point: (2,) int64, (x, y), the center of mass of the target in the crop.
    class_id: () int64 class index.
    target: (S, S) int64, 1 on the instance.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        image_root: str | Path,
        *,
        size: int,
        augmentation: Augmentation,
        recipe: Recipe,
        seed: int,
    ):
        if not pairs:
            raise ValueError("no prediction matches a ground-truth instance: nothing to train on")
        self.pairs, self.image_root, self.size = list(pairs), Path(image_root), size
        self.augmentation, self.recipe, self.seed = augmentation, recipe, seed
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)
        self._targets: dict[int, list[tuple[int, dict[str, Any]]]] = {}
        for pair in self.pairs:
            rows = self._targets.setdefault(pair.image.image_id, [])
            if pair.target_index not in {index for index, _ in rows}:
                rows.append((pair.target_index, pair.target))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        pair = self.pairs[self._index(position)]
        rng = np.random.default_rng([self.seed, position])
        image_size = (pair.image.height, pair.image.width)
        image = read_image(image_path(self.image_root, pair.image.file_name), image_size)
        prior, target, neighbour = (
            np.zeros(image_size, dtype=np.uint8) if rle is None else decode_mask(rle, *image_size)
            for rle in (pair.prior, pair.target, self._neighbour(pair, rng))
        )
        box = crop_box(prior, pair.point_xy, rng.uniform(1, self.augmentation.box_scale))
        rule, resampling = self.recipe.crop_resize, self.recipe.resampling
        scaled = scaled_size((box.height, box.width), self.size, rng.uniform(*SCALES), rule)
        crop = TrainingCrop(box, scaled, self.size, rule, resampling)
        window = crop.image(image)
        prior, target, neighbour = map(crop.mask, (prior, target, neighbour))
        window = jitter(window, self.augmentation.color_jitter, rng)
        if rng.random() < self.augmentation.noise:
            prior = add_noise(prior, neighbour, rng)
        mirrored = rng.random() < 0.5
        point = self._point(target, pair, crop, mirrored)
        if mirrored:
            window, prior, target = (array[:, ::-1] for array in (window, prior, target))
        return {
            "inputs": torch.from_numpy(network_input(window, prior)),
            "point": torch.tensor(point),
            "class_id": torch.tensor(pair.class_index),
            "target": torch.from_numpy(target.astype(np.int64)),
        }

    def file_name(self, position: int) -> str:
        """The image of the sample at a position."""
        return self.pairs[self._index(position)].image.file_name

    def _index(self, position: int) -> int:
        """Which pair stands at a position: every epoch is a permutation of its own."""
        epoch, place = divmod(position, len(self.pairs))
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch, len(self.pairs)])
            self._epoch, self._order = epoch, rng.permutation(len(self.pairs))
        return int(self._order[place])

    def _neighbour(self, pair: Pair, rng: np.random.Generator) -> dict[str, Any] | None:
        """Another instance of the image, at random."""
        rows = self._targets[pair.image.image_id]
        others = [rle for index, rle in rows if index != pair.target_index]
        return others[rng.integers(len(others))] if others and self.augmentation.noise else None

    def _point(
        self, target: np.ndarray, pair: Pair, crop: TrainingCrop, mirrored: bool
    ) -> tuple[int, int]:
        """The training point, as `training_point` of the recipe says.

        Args:
            target: (S, S) mask in the crop, not yet mirrored.
        """
        last = self.size - 1
        center = center_of_mass(target)
        if self.recipe.training_point == "crop":
            if center is None:
                return NO_POINT
            return int(last - center[0] if mirrored else center[0]), int(center[1])
        x, y = crop.point(pair.point_xy) if center is None else map(int, center)
        return (last - x if mirrored else x), y


def jitter(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast and saturation of an (H, W, 3) float32 image in 0..255."""
    if strength == 0:
        return image
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, size=3)
    image = image * np.float32(brightness)
    mean = np.float32((image @ GREY).mean())
    image = mean + (image - mean) * np.float32(contrast)
    grey = (image @ GREY)[..., None]
    return np.clip(grey + (image - grey) * np.float32(saturation), 0, 255)


class PositionSampler(Sampler[int]):
    """The positions of one rank, from an iteration on: its part of each batch, in order."""

    def __init__(self, first: int, last: int, batch_size: int, *, rank: int, world_size: int):
        if batch_size % world_size:
            raise ValueError(
                f"a batch of {batch_size} cannot be divided among {world_size} processes: make "
                f"--batch-size a multiple of {world_size}"
            )
        self.first, self.last, self.batch_size = first, last, batch_size
        self.rank, self.share = rank, batch_size // world_size

    def __iter__(self) -> Iterator[int]:
        for iteration in range(self.first, self.last):
            start = iteration * self.batch_size + self.rank * self.share
            yield from range(start, start + self.share)

    def __len__(self) -> int:
        return (self.last - self.first) * self.share


def set_up_worker(worker: int) -> None:
    """Each loader process uses one core; without this they fight over all of them."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
