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

from .crops import CropBox, crop_box, network_input, resize_image, resize_mask
from .noise import add_noise
from .pairs import Pair

SCALES = (0.5, 1.5)  # of the crop, before the center of the network's size is cut out
NO_POINT = (-1, -1)
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
        seed: int,
    ):
        if not pairs:
            raise ValueError("no prediction matches a ground-truth instance: nothing to train on")
        self.pairs, self.image_root, self.size = list(pairs), Path(image_root), size
        self.augmentation, self.seed = augmentation, seed
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
        side = max(1, round(self.size * rng.uniform(*SCALES)))
        window = self._center(resize_image(box.of(image), (side, side)))
        prior, target, neighbour = (
            self._center(resize_mask(box.of(mask), (side, side)))
            for mask in (prior, target, neighbour)
        )
        window = jitter(window, self.augmentation.color_jitter, rng)
        if rng.random() < self.augmentation.noise:
            prior = add_noise(prior, neighbour, rng)
        point = self._point(target, pair, box, side)
        if rng.random() < 0.5:
            window, prior, target = (array[:, ::-1] for array in (window, prior, target))
            point = (self.size - 1 - point[0], point[1])
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

    def _center(self, array: np.ndarray) -> np.ndarray:
        """The center of a square array, cut or zero-padded to the network's size."""
        side = len(array)
        result = np.zeros((self.size, self.size, *array.shape[2:]), dtype=array.dtype)
        source, place = max(side - self.size, 0) // 2, max(self.size - side, 0) // 2
        length = min(side, self.size)
        result[place : place + length, place : place + length] = array[
            source : source + length, source : source + length
        ]
        return result

    def _point(self, target: np.ndarray, pair: Pair, box: CropBox, side: int) -> tuple[int, int]:
        """The target's center; where no pixel of it is left, its center in the whole image."""
        center = center_of_mass(target)
        if center is not None:
            return int(center[0]), int(center[1])
        offset = (self.size - side) // 2
        x = int((pair.point_xy[0] - box.x0) * side / box.width) + offset
        y = int((pair.point_xy[1] - box.y0) * side / box.height) + offset
        return (x, y) if 0 <= x < self.size and 0 <= y < self.size else NO_POINT


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
