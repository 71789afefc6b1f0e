"""Batches whose elements belong to one group."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from torch.utils.data import BatchSampler, Sampler

__all__ = ["GroupedBatchSampler"]


class GroupedBatchSampler(BatchSampler):
    """Collect the indices of another sampler into full batches of one group each.

    An index waits until its group fills a batch; what is left over at the end is dropped.
    """

    def __init__(self, sampler: Sampler[int], group_ids: Sequence[int], batch_size: int):
        """
        Args:
            group_ids: the group of each element of the dataset.
        """
        if not isinstance(sampler, Sampler):
            raise ValueError(f"sampler must be a torch Sampler, got {type(sampler).__name__}")
        self.sampler = sampler
        self.group_ids = [int(group) for group in group_ids]
        self.batch_size = batch_size
        self._waiting: dict[int, list[int]] = defaultdict(list)

    def __iter__(self) -> Iterator[list[int]]:
        for index in self.sampler:
            group = self._waiting[self.group_ids[index]]
            group.append(index)
            if len(group) == self.batch_size:
                batch = group[:]
                group.clear()
                yield batch

    def __len__(self) -> int:
        raise TypeError("the number of batches of a GroupedBatchSampler is not known beforehand")
