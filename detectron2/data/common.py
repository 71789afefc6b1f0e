"""Dataset wrappers: mapping, compact storage, sampling as a stream, grouping by aspect ratio."""

import copy
import itertools
import logging
import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.utils.data as torchdata

from detectron2.utils.serialize import PicklableWrapper

__all__ = ["AspectRatioGroupedDataset", "DatasetFromList", "MapDataset", "ToIterableDataset"]

_MAX_RETRIES = 1000  # a mapper that refuses that many samples in a row refuses all of them
_WARN_RETRIES = 3


class MapDataset(torchdata.Dataset):
    """Apply a function to each element of a map-style or iterable dataset.

    Where the function returns None, a map-style dataset gives another, randomly chosen element
    instead, and an iterable one skips the element.
    """

    def __new__(cls, dataset: Any, map_func: Callable[[Any], Any]) -> Any:
        if isinstance(dataset, torchdata.IterableDataset):
            return _MapIterableDataset(dataset, map_func)
        return super().__new__(cls)

    def __init__(self, dataset: Any, map_func: Callable[[Any], Any]):
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)  # so that lambdas reach the workers

    def __getnewargs__(self) -> tuple[Any, Callable]:
        return self._dataset, self._map_func

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> Any:
        index = int(idx)
        substitutes = random.Random(index)  # the same ones whatever was read before
        for retry in range(1, _MAX_RETRIES + 1):
            result = self._map_func(self._dataset[index])
            if result is not None:
                return result
            if retry == _WARN_RETRIES:
                logging.getLogger(__name__).warning(
                    "The mapper refused sample %d and %d others drawn instead", idx, retry - 1
                )
            index = substitutes.randrange(len(self._dataset))
        raise ValueError(
            f"the mapper returned None for sample {idx} and {_MAX_RETRIES - 1} others drawn in its "
            "place; check the dataset and the mapper"
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
    """A list as a dataset, by default packed into one buffer.

    Workers forked from this process share the buffer's memory: unlike a list of Python objects, it
    has no reference counts whose updates would make each worker copy it page by page. Workers that
    are spawned share it, too, since torch passes tensors through shared memory.
    """

    def __init__(self, lst: list, copy: bool = True, serialize: bool = True):
        """
        Args:
            copy: without `serialize`, return deep copies of the elements, which may be changed.
            serialize: pickle the elements into one buffer; each access unpickles a fresh object.
        """
        self._copy = copy
        self._serialize = serialize
        self._lst = _PackedList(lst) if serialize else lst

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
            "Serialized dataset of %d elements takes %.2f MiB", len(self), len(buffer) / 2**20
        )

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, idx: int) -> Any:
        if not -len(self) <= idx < len(self):
            raise IndexError(f"index {idx} of a dataset of {len(self)} elements")
        start, end = self._ends[idx % len(self) :][:2].tolist()
        return pickle.loads(memoryview(self._bytes.numpy()[start:end]))


class ToIterableDataset(torchdata.IterableDataset):
    """The elements of a map-style dataset in the order of a sampler, as a stream."""

    def __init__(
        self, dataset: torchdata.Dataset, sampler: Iterable[int], shard_sampler: bool = True
    ):
        """
        Args:
            shard_sampler: let each worker of a DataLoader take its share of the sampler's indices;
                False if the sampler does so by itself.
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

    Takes a stream of dicts with "width" and "height"; an image waits until its kind fills a batch,
    and what has not filled one at the end is dropped.
    """

    def __init__(self, dataset: Iterable[dict], batch_size: int):
        self.dataset = dataset
        self.batch_size = batch_size
        self._buckets: list[list[dict]] = [[], []]

    def __iter__(self) -> Iterator[list[dict]]:
        for item in self.dataset:
            bucket = self._buckets[0 if item["width"] > item["height"] else 1]
            bucket.append(item)
            if len(bucket) == self.batch_size:
                batch = bucket[:]
                bucket.clear()  # before handing over: the consumer may stop here and start again
                yield batch
