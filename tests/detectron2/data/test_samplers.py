import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detectron2.data.samplers import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng


def take(sampler, n):
    return list(itertools.islice(sampler, n))


def as_rank(monkeypatch, rank, world_size):
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)


def test_each_pass_is_a_new_permutation():
    first, second = np.array(take(TrainingSampler(20, seed=4), 40)).reshape(2, 20).tolist()
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert take(TrainingSampler(3, shuffle=False), 7) == [0, 1, 2, 0, 1, 2, 0]


def test_the_seed_is_drawn_when_the_sampler_is_made():
    seed_all_rng(42)
    sampler = TrainingSampler(30)
    expected = take(sampler, 65)
    seed_all_rng(42)
    again = TrainingSampler(30)
    seed_all_rng(999)
    assert take(again, 65) == expected


def test_ranks_together_give_the_stream_of_one_process(monkeypatch):
    makers = [
        lambda: TrainingSampler(7, seed=1),
        lambda: RandomSubsetTrainingSampler(20, 0.5, seed_shuffle=1, seed_subset=2),
        lambda: RepeatFactorTrainingSampler(torch.tensor([1.5, 1.0, 2.25]), seed=1),
    ]
    for make in makers:
        whole = take(make(), 30)
        parts = []
        for rank in range(3):
            with monkeypatch.context() as patch:
                as_rank(patch, rank, 3)
                parts.append(take(make(), 10))
        assert [i for triple in zip(*parts, strict=True) for i in triple] == whole


@pytest.mark.parametrize("size, error", [(0, ValueError), (-1, ValueError), (2.0, TypeError)])
def test_sizes_that_make_no_sense_are_refused(size, error):
    with pytest.raises(error, match="size"):
        TrainingSampler(size)


def test_a_random_subset_stays_the_same():
    sampler = RandomSubsetTrainingSampler(100, 0.3, seed_shuffle=1, seed_subset=2)
    first, second = np.array(take(sampler, 60)).reshape(2, 30).tolist()
    assert len(set(first)) == 30 and sorted(first) == sorted(second) and first != second
    other = RandomSubsetTrainingSampler(100, 0.3, seed_shuffle=1, seed_subset=3)
    assert set(take(other, 30)) != set(first)
    with pytest.raises(ValueError, match="subset_ratio=1.5"):
        RandomSubsetTrainingSampler(100, 1.5)


def test_repeat_factors_follow_the_rarest_category():
    images = [[0, 1], [0], [], [0, 0]]
    dicts = [{"annotations": [{"category_id": c} for c in categories]} for categories in images]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dicts, 1.0)
    expected = [math.sqrt(4 / 1), math.sqrt(4 / 3), 1.0, math.sqrt(4 / 3)]
    torch.testing.assert_close(factors, torch.tensor(expected))


def test_images_are_repeated_as_often_as_their_factor_says():
    factors = torch.tensor([1.0, 2.5, 3.0])
    drawn = np.bincount(take(RepeatFactorTrainingSampler(factors, seed=0), 6500))
    np.testing.assert_allclose(drawn / drawn[0], factors, atol=0.1)
    unshuffled = RepeatFactorTrainingSampler(torch.tensor([2.0, 1.0]), shuffle=False)
    assert take(unshuffled, 6) == [0, 0, 1, 0, 0, 1]


@given(size=st.integers(0, 50), world_size=st.integers(1, 9))
def test_inference_covers_each_index_once(size, world_size):
    parts = [InferenceSampler._get_local_indices(size, world_size, r) for r in range(world_size)]
    assert [i for part in parts for i in part] == list(range(size))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1 and lengths == sorted(lengths, reverse=True)


def test_inference_sampler_is_finite():
    sampler = InferenceSampler(5)
    assert len(sampler) == 5 and list(sampler) == [0, 1, 2, 3, 4]
