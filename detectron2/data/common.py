"""Dataset wrappers: mapping, compact storage, streams, grouping by aspect ratio."""

import contextlib
import copy
import itertools
import logging
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.utils.data as torchdata

from detectron2.utils.serialize import PicklableWrapper

__all__ = [
    "AspectRatioGroupedDataset",
    "DatasetFromList",
    "MapDataset",
    "ToIterableDataset",
    "set_default_dataset_from_list_serialize_method",
]

_MAX_RETRIES = 1000  # a mapper that refuses that many samples in a row refuses all of them
_WARN_RETRIES = 3


class MapDataset(torchdata.Dataset):
    """Apply a function to each element of a map-style or iterable dataset.

    If the function returns None, a map-style dataset gives a randomly chosen other element, and an
    iterable one skips the element.
    """

    def __new__(cls, dataset: Any, map_func: Callable[[Any], Any]) -> Any:
        if isinstance(dataset, torchdata.IterableDataset):
            return _MapIterableDataset(dataset, map_func)
        return super().__new__(cls)

    def __init__(self, dataset: Any, map_func: Callable[[Any], Any]):
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)  # lambdas must reach the workers

    def __getnewargs__(self) -> tuple[Any, Callable]:
        return self._dataset, self._map_func

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> Any:
        index = int(idx)
        substitutes = random.Random(index)  # the same, whatever was read before
        for retry in range(1, _MAX_RETRIES + 1):
            result = self._map_func(self._dataset[index])
            if result is not None:
                return result
            if retry == _WARN_RETRIES:
                logging.getLogger(__name__).warning(
                    "The mapper refused sample %d and %d substitutes", idx, retry - 1
                )
            index = substitutes.randrange(len(self._dataset))
        raise ValueError(
            f"the mapper returned None for sample {idx} and for {_MAX_RETRIES - 1} substitutes; "
            "check the dataset and the mapper"
        )


class _MapIterableDataset(torchdata.IterableDataset):
    """`MapDataset` over an iterable dataset."""

    def __init__(self, dataset: Iterable, map_func: Callable[[Any], Any]):
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Any]:
        for item in map(self._map_func, self._dataset):
            if item is not None:
                yield item


class DatasetFromList(torchdata.Dataset):
    """A list as a dataset, by default packed into one buffer that worker processes share.

    A list of Python objects would be copied by each forked worker, page by page, since reading an
    object updates its reference count.
    """

    def __init__(
        self, lst: list, copy: bool = True, serialize: bool | Callable[[list], Sequence] = True
    ):
        """
        Args:
            copy: without `serialize`, return deep copies of the elements.
            serialize: pack the elements, so that each access gives a fresh object. A function that
                makes a sequence from the list packs in its own way; True takes the default.
        """
        self._copy = copy
        self._serialize = bool(serialize)
        pack = _default_pack if serialize is True else serialize
        self._lst = pack(lst) if pack else lst

    def __len__(self) -> int:
        return len(self._lst)

    def __getitem__(self, idx: int) -> Any:
        item = self._lst[idx]
        return copy.deepcopy(item) if self._copy and not self._serialize else item


class _PackedList:
    """Picklable objects, one after another in a uint8 tensor."""

    def __init__(self, items: Iterable[Any]):
        buffer = bytearray()  # grows in place: no second copy at the end
        ends = [0]
        for item in items:
            buffer += pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL)
            ends.append(len(buffer))
        self._ends = torch.tensor(ends, dtype=torch.int64)
        no_data = torch.zeros(0, dtype=torch.uint8)
        self._bytes = torch.frombuffer(buffer, dtype=torch.uint8) if buffer else no_data
        logging.getLogger(__name__).info(
            "Packed %d dataset elements into %.2f MiB", len(self), len(buffer) / 2**20
        )

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, idx: int) -> Any:
        if not -len(self) <= idx < len(self):
            raise IndexError(f"index {idx} of a dataset of {len(self)} elements")
        start, end = self._ends[idx % len(self) :][:2].tolist()
        return pickle.loads(memoryview(self._bytes.numpy()[start:end]))


_default_pack: Callable[[list], Sequence] = _PackedList


@contextlib.contextmanager
def set_default_dataset_from_list_serialize_method(
    new: Callable[[list], Sequence],
) -> Iterator[None]:
    """Let `DatasetFromList(..., serialize=True)` pack with `new` inside the context.

    Args:
        new: makes, from a list, a sequence of its elements.
    """
    global _default_pack
    previous, _default_pack = _default_pack, new
    try:
        yield
    finally:
        _default_pack = previous


class ToIterableDataset(torchdata.IterableDataset):
    """The elements of a map-style dataset in the order of a sampler, as a stream."""

    def __init__(
        self, dataset: torchdata.Dataset, sampler: Iterable[int], shard_sampler: bool = True
    ):
        """
        Args:
            shard_sampler: give each worker of a DataLoader its shard of the sampler's indices;
                False if the sampler does so itself.
        """
        if isinstance(dataset, torchdata.IterableDataset):
            raise ValueError("ToIterableDataset takes a map-style dataset, got an iterable one")
        self.dataset = dataset
        self.sampler = sampler
        self.shard_sampler = shard_sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        indices: Iterable[int] = self.sampler
        worker = torchdata.get_worker_info()
        if self.shard_sampler and worker is not None:
            indices = itertools.islice(indices, worker.id, None, worker.num_workers)
        for index in indices:
            yield self.dataset[index]


class AspectRatioGroupedDataset(torchdata.IterableDataset):
    """Batches of images that are all wider than high, or all not.

    Takes a stream of dicts with "width" and "height". An image waits until its kind fills a batch;
    incomplete batches at the end are dropped.
    """

    def __init__(self, dataset: Iterable[dict], batch_size: int):
        self.dataset = dataset
        self.batch_size = batch_size
        self._buckets: list[list[dict]] = [[], []]

    def __len__(self) -> int:
        """Number of batches, or one more if both kinds leave an incomplete batch."""
        return len(self.dataset) // self.batch_size

    def __iter__(self) -> Iterator[list[dict]]:
        for item in self.dataset:
            bucket = self._buckets[0 if item["width"] > item["height"] else 1]
            bucket.append(item)
            if len(bucket) == self.batch_size:
                batch = bucket[:]
                bucket.clear()  # first, since the consumer may stop here and start again
                yield batch
