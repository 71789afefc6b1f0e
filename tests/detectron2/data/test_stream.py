import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from detectron2.data.samplers import TrainingSampler
from detectron2.data.stream import (
    SeededDataset,
    StreamBatchSampler,
    StreamIndex,
    derived_seed,
    set_start_batch,
)
from detectron2.utils import comm


def take(iterable, number):
    return list(itertools.islice(iterable, number))


def test_batches_follow_the_sampler():
    batches = take(StreamBatchSampler(TrainingSampler(5, seed=1), 3), 4)
    samples = list(itertools.chain(*batches))
    assert [s.index for s in samples] == take(TrainingSampler(5, seed=1), 12)
    assert [s.position for s in samples] == list(range(12))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(0, 20), st.booleans(), st.lists(st.booleans(), min_size=1))
def test_starting_late_gives_the_same_batches(batch_size, start, grouped, is_wide):
    sampler = TrainingSampler(len(is_wide), seed=0)
    stream = StreamBatchSampler(sampler, batch_size, is_wide if grouped else None)
    whole = take(stream, start + 3)
    stream.start_batch = start
    assert take(stream, 3) == whole[start:]
    if grouped:
        assert all(len({is_wide[s.index] for s in batch}) == 1 for batch in whole)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_see_the_batches_of_one_process(monkeypatch, world_size):
    def batches(rank, world, batch_size):
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: world)
        return take(StreamBatchSampler(TrainingSampler(7, seed=2), batch_size), 5)

    whole = batches(0, 1, 8)
    ranks = [batches(rank, world_size, 8 // world_size) for rank in range(world_size)]
    for step, want in enumerate(whole):
        assert sorted(itertools.chain(*(rank[step] for rank in ranks))) == sorted(want)


class Draws:
    """A dataset whose elements are random numbers of all three generators."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return index, random.random(), np.random.rand(), torch.rand(1).item()


def test_samples_depend_on_seed_and_position_only():
    dataset = SeededDataset(Draws(), 5)
    first = dataset[StreamIndex(2, 9)]
    np.random.seed(0)
    dataset[StreamIndex(2, 10)]
    assert dataset[StreamIndex(2, 9)] == first
    assert dataset[StreamIndex(2, 10)] != first
    assert SeededDataset(Draws(), 6)[StreamIndex(2, 9)] != first
    assert len(dataset) == 4


def test_workers_give_the_samples_of_the_main_process():
    def batches(num_workers):
        loader = DataLoader(
            SeededDataset(Draws(), 5),
            batch_sampler=StreamBatchSampler(TrainingSampler(4, seed=0), 3),
            num_workers=num_workers,
            collate_fn=list,
        )
        assert set_start_batch(loader, 2)
        return take(loader, 3)

    assert batches(0) == batches(2)


def test_the_generators_of_the_caller_are_left_alone():
    def numbers(read):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        if read:
            SeededDataset(Draws(), 5)[StreamIndex(0, 0)]
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert numbers(True) == numbers(False)


def test_without_a_seed_the_generators_go_on():
    torch.manual_seed(0)
    dataset = SeededDataset(Draws(), None)
    assert dataset[StreamIndex(0, 0)] != dataset[StreamIndex(0, 0)]


def test_derived_seeds_differ_and_fit_numpy():
    seeds = {derived_seed(s, *path) for s in range(5) for path in [(0,), (1,), (0, 1), (1, 0)]}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_other_loaders_have_no_start_batch():
    assert not set_start_batch(DataLoader([1, 2]), 1)
    assert not set_start_batch([1, 2], 1)


def test_batch_size_must_be_positive():
    with pytest.raises(ValueError, match="batch_size=0"):
        StreamBatchSampler([0], 0)
