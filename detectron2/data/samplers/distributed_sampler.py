"""Samplers that shard one stream of indices over the processes of a distributed job."""

import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from detectron2.utils import comm

__all__ = [
    "InferenceSampler",
    "RandomSubsetTrainingSampler",
    "RepeatFactorTrainingSampler",
    "TrainingSampler",
]

logger = logging.getLogger(__name__)


class _InfiniteSampler(Sampler[int]):
    """An endless stream of indices; of W processes, rank r takes the elements r, r + W, ..."""

    def __init__(self, shuffle: bool, seed: int | None):
        self._shuffle = shuffle
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            indices = self._epoch_indices(generator)
            if self._shuffle:
                indices = indices[torch.randperm(len(indices), generator=generator)]
            yield from indices.tolist()

    def _epoch_indices(self, generator: torch.Generator) -> torch.Tensor:
        """(M,) int64: the indices of one pass, before shuffling."""
        raise NotImplementedError(f"{type(self).__name__} must define _epoch_indices()")


def _check_size(size: int) -> None:
    if not isinstance(size, int):
        raise TypeError(f"size must be an int, the dataset's length; got {type(size).__name__}")
    if size <= 0:
        raise ValueError(f"size={size}; a training sampler needs at least one element")


class TrainingSampler(_InfiniteSampler):
    """All indices, pass after pass without end, each pass in a new random order."""

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None):
        """
        Args:
            size: length of the dataset.
            shuffle: False repeats range(size).
            seed: of the shuffling, equal in all processes; None: they agree on a random one.
        """
        _check_size(size)
        super().__init__(shuffle, seed)
        self._size = size

    def _epoch_indices(self, generator: torch.Generator) -> torch.Tensor:
        return torch.arange(self._size)


class RandomSubsetTrainingSampler(TrainingSampler):
    """`TrainingSampler` over a fixed random subset of the dataset."""

    def __init__(
        self,
        size: int,
        subset_ratio: float,
        shuffle: bool = True,
        seed_shuffle: int | None = None,
        seed_subset: int | None = None,
    ):
        """
        Args:
            subset_ratio: share of the dataset, in (0, 1].
            seed_shuffle, seed_subset: equal in all processes; None: they agree on a random one.
        """
        super().__init__(size, shuffle, seed_shuffle)
        if not 0.0 < subset_ratio <= 1.0:
            raise ValueError(f"subset_ratio={subset_ratio}; expected a number in (0, 1]")
        subset_size = int(size * subset_ratio)
        if subset_size == 0:
            raise ValueError(f"subset_ratio={subset_ratio} of {size} elements leaves none")
        generator = torch.Generator()
        generator.manual_seed(
            int(comm.shared_random_seed() if seed_subset is None else seed_subset)
        )
        self._subset = torch.randperm(size, generator=generator)[:subset_size]
        logger.info("Sampling from a random subset of %d of %d elements", subset_size, size)

    def _epoch_indices(self, generator: torch.Generator) -> torch.Tensor:
        return self._subset


class RepeatFactorTrainingSampler(_InfiniteSampler):
    """`TrainingSampler` with element i on average `repeat_factors[i]` times per pass.

    Factors are rounded up or down at random in each pass.
    """

    def __init__(
        self, repeat_factors: torch.Tensor, *, shuffle: bool = True, seed: int | None = None
    ):
        """
        Args:
            repeat_factors: (size,) float, one for each element of the dataset.
            seed: equal in all processes; None: they agree on a random one.
        """
        super().__init__(shuffle, seed)
        self._whole = torch.trunc(repeat_factors)
        self._fraction = repeat_factors - self._whole

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: list[dict], repeat_thresh: float
    ) -> torch.Tensor:
        """(size,) float32 factors that show rare categories more often (LVIS, arXiv 1908.03195).

        With f(c) the share of images that hold category c, r(c) = max(1, sqrt(thresh / f(c))), and
        an image's factor is the largest r(c) of its categories, 1 without any.
        """
        categories_of = [
            {annotation["category_id"] for annotation in image["annotations"]}
            for image in dataset_dicts
        ]
        images_with = Counter(itertools.chain.from_iterable(categories_of))
        repeat_of = {
            category: max(1.0, math.sqrt(repeat_thresh * len(dataset_dicts) / count))
            for category, count in images_with.items()
        }
        factors = [max((repeat_of[c] for c in present), default=1.0) for present in categories_of]
        return torch.tensor(factors, dtype=torch.float32)

    def _epoch_indices(self, generator: torch.Generator) -> torch.Tensor:
        round_up = torch.rand(len(self._fraction), generator=generator) < self._fraction
        repeats = (self._whole + round_up).long()
        return torch.repeat_interleave(torch.arange(len(repeats)), repeats)


class InferenceSampler(Sampler[int]):
    """Each index exactly once over all processes; each rank gets one contiguous range."""

    def __init__(self, size: int):
        self._size = size
        rank, world_size = comm.get_rank(), comm.get_world_size()
        self._local_indices = self._get_local_indices(size, world_size, rank)

    @staticmethod
    def _get_local_indices(total_size: int, world_size: int, rank: int) -> range:
        """The range of a rank; the first ranks get one more if the size is not a multiple."""
        base, longer = divmod(total_size, world_size)
        begin = rank * base + min(rank, longer)
        return range(begin, begin + base + (rank < longer))

    def __iter__(self) -> Iterator[int]:
        yield from self._local_indices

    def __len__(self) -> int:
        return len(self._local_indices)
