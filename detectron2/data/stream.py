"""Batches of an endless training stream, as functions of their position in it.

Position p of the stream always holds the same image with the same augmentation, independent of
worker, rank and what was loaded before. A resumed run therefore starts at its batch without loading
earlier ones, and N processes see the images that one process with the total batch would see.
"""

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from detectron2.utils import comm

__all__ = ["SeededDataset", "StreamBatchSampler", "StreamIndex", "derived_seed", "set_start_batch"]


class StreamIndex(NamedTuple):
    """One sample: `index` in the dataset, `position` in the stream of all ranks together."""

    index: int
    position: int


def derived_seed(seed: int, *path: int) -> int:
    """A 32-bit seed for one place, such as (rank, iteration), of a run that has `seed`."""
    # With the length, since numpy ignores zeros at the end of a sequence.
    return int(np.random.SeedSequence([seed, len(path), *path]).generate_state(1)[0])


class SeededDataset(Dataset):
    """`dataset` read through `StreamIndex`; with a seed, the generators are set for each sample.

    Augmentation draws from the global generators of numpy, `random` and torch: they are seeded from
    (seed, position) before the sample is made. With `seed` None they are not seeded.
    """

    def __init__(self, dataset: Dataset, seed: int | None) -> None:
        self._dataset = dataset
        self._seed = seed

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, sample: StreamIndex) -> Any:
        if self._seed is None:
            return self._dataset[sample.index]
        with _generators_seeded(derived_seed(self._seed, sample.position)):
            return self._dataset[sample.index]


@contextmanager
def _generators_seeded(seed: int) -> Iterator[None]:
    """Seed the global generators, and restore their states afterwards.

    Without workers, samples are made in the training process, whose own numbers must not depend on
    the number of workers.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # augmentation runs on the CPU
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class StreamBatchSampler(Sampler[list[StreamIndex]]):
    """Batches of one rank from the indices of an endless sampler.

    With `is_wide` (for each image of the dataset, whether it is wider than high) the images of a
    batch are all wide or all not: an image waits until its kind fills a batch.

    Attributes:
        start_batch: batches to skip at the start of an iteration, without loading anything.
    """

    def __init__(
        self, sampler: Iterable[int], batch_size: int, is_wide: Sequence[bool] | None = None
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}; expected at least 1")
        self._sampler = sampler
        self._batch_size = batch_size
        self._is_wide = is_wide
        self.start_batch = 0

    def __iter__(self) -> Iterator[list[StreamIndex]]:
        return itertools.islice(self._batches(), self.start_batch, None)

    def __len__(self) -> int:
        """Batches of a finite sampler, or one more if both kinds leave an incomplete batch."""
        return max(len(self._sampler) // self._batch_size - self.start_batch, 0)

    def _batches(self) -> Iterator[list[StreamIndex]]:
        # Samplers give rank r the elements r, r + world size, ... of one common stream.
        rank, world_size = comm.get_rank(), comm.get_world_size()
        waiting: dict[bool, list[StreamIndex]] = {False: [], True: []}
        for number, index in enumerate(self._sampler):
            kind = self._is_wide is not None and self._is_wide[index]
            waiting[kind].append(StreamIndex(int(index), rank + number * world_size))
            if len(waiting[kind]) == self._batch_size:
                yield waiting[kind]
                waiting[kind] = []


def set_start_batch(data_loader: Any, start_batch: int) -> bool:
    """Let the next iteration over `data_loader` begin at batch `start_batch`.

    Returns False, and does nothing, if the loader does not support it.
    """
    batch_sampler = getattr(data_loader, "batch_sampler", None)
    if not isinstance(batch_sampler, StreamBatchSampler):
        return False
    batch_sampler.start_batch = start_batch
    return True
