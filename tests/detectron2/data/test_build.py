import itertools
import logging
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset

from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    MetadataCatalog,
    ToIterableDataset,
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
    print_instances_class_histogram,
)
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.data.samplers import InferenceSampler, TrainingSampler
from detectron2.data.stream import set_start_batch
from detectron2.utils import comm

SIZES = [(40, 30), (20, 50), (30, 30), (41, 30)]
DICTS = [
    {"image_id": i, "width": SIZES[i % 4][0], "height": SIZES[i % 4][1], "annotations": []}
    for i in range(12)
]


def ids(batches, n):
    return [[d["image_id"] for d in batch] for batch in itertools.islice(batches, n)]


def with_noise(image):
    return image | {"noise": (np.random.rand(), torch.rand(()).item())}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_batches_come_in_the_sampler_s_order(num_workers):
    options = dict(mapper=None, total_batch_size=3, aspect_ratio_grouping=False)
    sampler = TrainingSampler(12, seed=1)
    loader = build_detection_train_loader(
        DICTS, sampler=sampler, num_workers=num_workers, **options
    )
    got = ids(loader, 9)
    assert sum(got, []) == list(itertools.islice(sampler, 27))


@pytest.mark.parametrize("kind", ["list", "dataset", "stream"])
def test_training_batches_hold_one_aspect_ratio(kind):
    dataset = DICTS if kind == "list" else DatasetFromList(DICTS)
    sampler = TrainingSampler(12, seed=1)
    if kind == "stream":
        dataset, sampler = ToIterableDataset(dataset, sampler), None
    loader = build_detection_train_loader(
        dataset, mapper=lambda d: d, sampler=sampler, total_batch_size=3
    )
    batches = ids(loader, 12)
    for batch in batches:
        assert len({SIZES[i % 4][0] > SIZES[i % 4][1] for i in batch}) == 1
    assert set(sum(batches, [])) == set(range(12))
    seeded = TrainingSampler(12, seed=1)
    first = next(
        iter(build_detection_train_loader(DICTS, mapper=None, sampler=seeded, total_batch_size=3))
    )
    assert [d["image_id"] for d in first] == batches[0]  # the same for all three


def test_with_a_seed_workers_and_interruptions_change_nothing():
    def loader(num_workers):
        return build_detection_train_loader(
            DICTS, mapper=with_noise, total_batch_size=4, num_workers=num_workers, seed=5
        )

    whole = list(itertools.islice(loader(0), 8))
    assert list(itertools.islice(loader(2), 8)) == whole
    resumed = loader(1)
    assert set_start_batch(resumed, 5)
    assert list(itertools.islice(resumed, 3)) == whole[5:]


def test_without_a_seed_workers_draw_different_numbers():
    loader = build_detection_train_loader(
        DICTS, mapper=with_noise, total_batch_size=1, num_workers=2, aspect_ratio_grouping=False
    )
    noise = [batch[0]["noise"] for batch in itertools.islice(loader, 8)]
    assert len(set(noise)) == 8


def test_a_batch_is_shared_by_the_processes(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    loader = build_detection_train_loader(DICTS, mapper=None, total_batch_size=6, seed=1)
    assert len(next(iter(loader))) == 3
    with pytest.raises(ValueError, match=r"size \(5\).*multiple.*\(2\).*SOLVER.IMS_PER_BATCH"):
        build_detection_train_loader(DICTS, mapper=None, total_batch_size=5, seed=1)


def test_loaders_for_training_work_for_inference_and_collate():
    dataset = DatasetFromList(list(range(96)))
    loader = build_batch_data_loader(dataset, InferenceSampler(96), 8, num_workers=2)
    assert sorted(sum(loader, [])) == list(range(96))
    summed = build_batch_data_loader(dataset, InferenceSampler(96), 8, collate_fn=sum)
    assert list(summed)[0] == sum(range(8))
    stream = ToIterableDataset(DatasetFromList(DICTS), InferenceSampler(12))
    grouped = build_batch_data_loader(stream, None, 3, aspect_ratio_grouping=True, collate_fn=len)
    assert list(grouped) == [3, 3, 3, 3]
    assert len(loader) == 12 and len(summed) == 12 and len(grouped) == 4


def test_training_loaders_have_the_length_of_their_sampler_if_that_has_one():
    for sampler in (InferenceSampler(12), TrainingSampler(12)):
        for grouping in (True, False):
            for dataset in (DICTS, ToIterableDataset(DatasetFromList(DICTS), sampler)):
                loader = build_detection_train_loader(
                    dataset,
                    mapper=None,
                    sampler=sampler if dataset is DICTS else None,
                    total_batch_size=3,
                    aspect_ratio_grouping=grouping,
                )
                if isinstance(sampler, InferenceSampler):
                    assert len(loader) == len(list(loader)) == 4
                else:
                    with pytest.raises(TypeError):
                        len(loader)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("is_stream", [False, True])
def test_the_test_loader_drops_nothing(num_workers, batch_size, is_stream):
    dataset, sampler = DatasetFromList(list(range(50))), InferenceSampler(50)
    if is_stream:
        dataset, sampler = ToIterableDataset(dataset, sampler), None
    loader = build_detection_test_loader(
        dataset,
        sampler=sampler,
        mapper=lambda x: x,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    batches = list(loader)
    assert Counter(sum(batches, [])) == Counter(range(50))
    assert max(map(len, batches)) == batch_size


def test_a_stream_takes_no_sampler():
    class Stream(IterableDataset):
        def __iter__(self):
            yield 1

    for build in (build_detection_test_loader, build_detection_train_loader):
        options = {} if build is build_detection_test_loader else {"total_batch_size": 2}
        with pytest.raises(ValueError, match="sampler=None"):
            build(Stream(), mapper=None, sampler=InferenceSampler(3), **options)


def register(name, annotation_lists, classes=("a", "b")):
    dicts = [
        {"file_name": f"{i}.png", "image_id": i, "width": 4, "height": 3, "annotations": a}
        for i, a in enumerate(annotation_lists)
    ]
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).thing_classes = list(classes)


ONE, CROWD = {"category_id": 1}, {"category_id": 0, "iscrowd": 1}


def test_datasets_are_joined_and_images_without_use_left_out():
    register("first", [[ONE], [], [CROWD]])
    register("second", [[CROWD, ONE]])
    assert len(get_detection_dataset_dicts(["first", "second"])) == 2
    assert len(get_detection_dataset_dicts("first", filter_empty=False)) == 3
    assert filter_images_with_only_crowd_annotations([{"annotations": [CROWD]}]) == []


def test_datasets_that_cannot_be_used_are_named():
    register("first", [[ONE]])
    register("other", [[ONE]], classes=("a", "c"))
    register("crowds", [[CROWD]])
    register("empty", [])
    with pytest.raises(ValueError, match="different 'thing_classes'"):
        get_detection_dataset_dicts(["first", "other"])
    assert len(get_detection_dataset_dicts(["first", "other"], check_consistency=False)) == 2
    with pytest.raises(ValueError, match="no image of crowds has"):
        get_detection_dataset_dicts("crowds")
    with pytest.raises(ValueError, match="dataset 'empty' has no images"):
        get_detection_dataset_dicts("empty")
    with pytest.raises(ValueError, match="DATASETS.TRAIN"):
        get_detection_dataset_dicts([])


def test_the_histogram_counts_instances_without_crowds(caplog):
    logging.getLogger("detectron2").propagate = True
    images = [{"annotations": [ONE, ONE, CROWD]}]
    with caplog.at_level(logging.INFO):
        print_instances_class_histogram(images, ["person", "a very long name"])
    table = caplog.text
    assert "a very long.." in table and "person" in table
    cells = [c.strip() for c in table.replace("\n", "|").split("|")]
    assert cells[cells.index("a very long..") + 1] == "2"
    assert cells[cells.index("person") + 1] == "0"
    assert cells[cells.index("total") + 1] == "2"
    with pytest.raises(ValueError, match="category_id=1, but the dataset has 1"):
        print_instances_class_histogram(images, ["person"])


@pytest.fixture
def cfg(coco_file, image_folder):
    box = {"bbox": [5, 5, 9, 9], "category_id": 3, "iscrowd": 0}
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (f"mine={coco_file([box, box])}:{image_folder}",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (30,), 30
    return cfg


def test_a_config_makes_both_loaders_for_an_inline_dataset(cfg):
    batch = next(iter(build_detection_train_loader(cfg)))
    assert len(batch) == 2 and all(len(d["instances"]) == 2 for d in batch)  # only image 1 is used
    test_batches = list(build_detection_test_loader(cfg, "mine"))
    assert [d["image_id"] for batch in test_batches for d in batch] == [1, 2]
    assert MetadataCatalog.get("mine").thing_classes == ["cat", "dog"]


@pytest.mark.parametrize(
    "name", ["TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"]
)
def test_a_config_names_the_sampler(cfg, name):
    cfg.DATALOADER.SAMPLER_TRAIN = name
    assert len(next(iter(build_detection_train_loader(cfg)))) == 2


def test_an_unknown_sampler_is_an_error(cfg):
    cfg.DATALOADER.SAMPLER_TRAIN = "Sorted"
    with pytest.raises(ValueError, match="SAMPLER_TRAIN='Sorted'"):
        build_detection_train_loader(cfg)
