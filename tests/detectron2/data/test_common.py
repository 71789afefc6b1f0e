import pickle

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from detectron2.data import DatasetFromList, MapDataset, ToIterableDataset
from detectron2.data.common import (
    AspectRatioGroupedDataset,
    set_default_dataset_from_list_serialize_method,
)
from detectron2.data.samplers import TrainingSampler


class Stream(IterableDataset):
    def __iter__(self):
        yield from [1, 2, 3]


def double_but_two(x):
    return None if x == 2 else x * 2


@pytest.mark.parametrize("serialize", [True, False])
def test_a_list_is_read_back_element_by_element(serialize):
    elements = [{"name": "a", "size": (1, 2)}, {}, {"boxes": [[0.5, 1e300]]}]
    dataset = DatasetFromList(elements, serialize=serialize)
    assert len(dataset) == 3
    assert [dataset[i] for i in range(3)] == elements
    dataset[0]["name"] = "changed"
    assert dataset[0]["name"] == "a" and elements[0]["name"] == "a"
    with pytest.raises(IndexError):
        dataset[3]


def test_without_copying_the_elements_are_the_lists_own():
    elements = [{"name": "a"}]
    assert DatasetFromList(elements, copy=False, serialize=False)[0] is elements[0]


def test_a_packed_list_pickles_and_may_be_empty():
    dataset = pickle.loads(pickle.dumps(DatasetFromList([5, 6])))
    assert [dataset[0], dataset[1], dataset[-1]] == [5, 6, 6]
    assert len(DatasetFromList([])) == 0


def test_the_way_of_packing_a_list_can_be_chosen():
    class Doubled:
        def __init__(self, elements):
            self.elements = elements * 2

        def __len__(self):
            return len(self.elements)

        def __getitem__(self, index):
            return self.elements[index]

    assert len(DatasetFromList([5, 6], serialize=Doubled)) == 4
    with pytest.raises(KeyError), set_default_dataset_from_list_serialize_method(Doubled):
        dataset = DatasetFromList([5, 6])
        assert (len(dataset), dataset[3]) == (4, 6)
        assert len(DatasetFromList([5, 6], serialize=False)) == 2
        raise KeyError
    assert len(DatasetFromList([5, 6])) == 2


def test_mapping_replaces_refused_elements_of_a_map_style_dataset():
    dataset = MapDataset(DatasetFromList([1, 2, 3]), double_but_two)
    assert (dataset[0], dataset[2]) == (2, 6)
    assert dataset[1] in (2, 6)
    assert dataset[1] == dataset[1]  # whatever was read in between


def test_mapping_skips_refused_elements_of_a_stream():
    dataset = MapDataset(Stream(), double_but_two)
    assert isinstance(dataset, IterableDataset)
    assert list(dataset) == [2, 6]


def test_a_mapper_that_refuses_everything_is_an_error():
    with pytest.raises(ValueError, match="returned None for sample 0"):
        MapDataset([1, 2], lambda x: None)[0]


@pytest.mark.parametrize("source", [DatasetFromList([1, 2, 3]), Stream()])
def test_mapping_by_a_lambda_pickles(source):
    dataset = pickle.loads(pickle.dumps(MapDataset(source, lambda x: x * 2)))
    elements = dataset if isinstance(dataset, IterableDataset) else [dataset[i] for i in range(3)]
    assert list(elements) == [2, 4, 6]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_sampled_stream_is_the_sampler_s_order_for_any_number_of_workers(num_workers):
    sampler = TrainingSampler(10, seed=3)
    wanted = [i for i, _ in zip(sampler, range(25), strict=False)]
    stream = ToIterableDataset([f"e{i}" for i in range(10)], sampler)
    loader = DataLoader(stream, batch_size=None, num_workers=num_workers)
    got = [e for e, _ in zip(loader, range(25), strict=False)]
    assert got == [f"e{i}" for i in wanted]
    with pytest.raises(ValueError, match="map-style"):
        ToIterableDataset(Stream(), sampler)


def test_batches_hold_one_aspect_ratio_and_nothing_is_lost_when_the_consumer_stops():
    shapes = [(2, 1), (1, 2), (2, 1), (1, 1), (3, 1)]
    images = [{"width": w, "height": h, "id": i} for i, (w, h) in enumerate(shapes)]
    dataset = AspectRatioGroupedDataset(images, 2)
    assert [[x["id"] for x in batch] for batch in dataset] == [[0, 2], [1, 3]]
    assert len(dataset) == 2
    for _ in range(4):
        for batch in dataset:
            assert len({x["width"] > x["height"] for x in batch}) == 1
            break
    assert all(len(bucket) < 2 for bucket in dataset._buckets)


def test_forked_workers_read_the_packed_list():
    dataset = DatasetFromList([torch.full((2,), i) for i in range(6)])
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    assert [int(x[0]) for x in loader] == list(range(6))
