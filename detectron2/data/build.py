"""Datasets by name -> data loaders for training and testing."""

import itertools
import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.utils.data as torchdata
from tabulate import tabulate
from termcolor import colored

from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import log_first_n

from .catalog import DatasetCatalog, MetadataCatalog
from .common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from .dataset_mapper import DatasetMapper
from .datasets.inline import register_inline_datasets
from .detection_utils import check_metadata_consistency
from .proposals import load_proposals_into_dataset
from .samplers import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from .stream import SeededDataset, StreamBatchSampler

__all__ = [
    "build_batch_data_loader",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "filter_images_with_only_crowd_annotations",
    "get_detection_dataset_dicts",
    "load_proposals_into_dataset",
    "print_instances_class_histogram",
    "trivial_batch_collator",
    "worker_init_reset_seed",
]

_HISTOGRAM_COLUMNS = 6  # three pairs of category and count
_SHORT_NAME_LENGTH = 13
_SEED_BOUND = 2**31

logger = logging.getLogger(__name__)


def filter_images_with_only_crowd_annotations(dataset_dicts: list[dict]) -> list[dict]:
    """The images that have an annotation which is no crowd; the others cannot be trained on."""
    kept = [
        image
        for image in dataset_dicts
        if any(annotation.get("iscrowd", 0) == 0 for annotation in image["annotations"])
    ]
    removed = len(dataset_dicts) - len(kept)
    logger.info("Removed %d images with no usable annotations. %d images left.", removed, len(kept))
    return kept


def print_instances_class_histogram(dataset_dicts: list[dict], class_names: Sequence[str]) -> None:
    """Log a table of how many instances (crowds not counted) each class has."""
    num_classes = len(class_names)
    classes = np.fromiter(
        (
            annotation["category_id"]
            for image in dataset_dicts
            for annotation in image["annotations"]
            if not annotation.get("iscrowd", 0)
        ),
        dtype=np.int64,
    )
    if len(classes) and not 0 <= classes.min() <= classes.max() < num_classes:
        wrong = classes.min() if classes.min() < 0 else classes.max()
        raise ValueError(
            f"Got an invalid category_id={wrong} for a dataset of {num_classes} classes: expected "
            f"0 to {num_classes - 1}"
        )
    counts = np.bincount(classes, minlength=num_classes).tolist()
    cells: list[Any] = []
    for name, count in zip(class_names, counts, strict=True):
        is_long = len(name) > _SHORT_NAME_LENGTH
        cells += [name[: _SHORT_NAME_LENGTH - 2] + ".." if is_long else name, count]
    if num_classes > 1:
        cells += [None] * (-len(cells) % _HISTOGRAM_COLUMNS)
        cells += ["total", sum(counts)]
    columns = min(_HISTOGRAM_COLUMNS, len(cells))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    headers = ["category", "#instances"] * (columns // 2)
    table = tabulate(rows, headers, tablefmt="pipe", numalign="left", stralign="center")
    text = "Distribution of instances among all %d categories:\n%s"
    log_first_n(logging.INFO, text % (num_classes, colored(table, "cyan")), key="message")


def get_detection_dataset_dicts(
    names: str | Sequence[str],
    filter_empty: bool = True,
    proposal_files: Sequence[str] | None = None,
    check_consistency: bool = True,
) -> list[dict] | torchdata.Dataset:
    """Load datasets by name and join them.

    Args:
        names: one or several names of `DatasetCatalog`; `name=annotations.json:image_folder`
            registers a COCO-format dataset first.
        filter_empty: leave out images without annotations or with crowds only.
        proposal_files: precomputed proposals for each name; see `load_proposals_into_dataset`.
        check_consistency: require that all have the same `thing_classes`.
    """
    names = register_inline_datasets([names] if isinstance(names, str) else names)
    if not names:
        raise ValueError("no dataset name given; set DATASETS.TRAIN or DATASETS.TEST")
    datasets = [DatasetCatalog.get(name) for name in names]
    if isinstance(datasets[0], torchdata.Dataset):
        return torchdata.ConcatDataset(datasets) if len(datasets) > 1 else datasets[0]
    for name, dicts in zip(names, datasets, strict=True):
        if not len(dicts):
            raise ValueError(f"Dataset '{name}' is empty!")
    if proposal_files is not None:
        if len(proposal_files) != len(names):
            raise ValueError(
                f"{len(names)} datasets {names} need as many proposal files, got "
                f"{list(proposal_files)}; set DATASETS.PROPOSAL_FILES_TRAIN and _TEST, one file "
                "for each of DATASETS.TRAIN and TEST"
            )
        for dicts, proposal_file in zip(datasets, proposal_files, strict=True):
            load_proposals_into_dataset(dicts, proposal_file)
    dataset_dicts = list(itertools.chain.from_iterable(datasets))
    if "annotations" in dataset_dicts[0]:
        if filter_empty:
            dataset_dicts = filter_images_with_only_crowd_annotations(dataset_dicts)
        if check_consistency and all(MetadataCatalog.get(n).get("thing_classes") for n in names):
            check_metadata_consistency("thing_classes", names)
            class_names = MetadataCatalog.get(names[0]).thing_classes
            print_instances_class_histogram(dataset_dicts, class_names)
    if not dataset_dicts:
        raise ValueError(
            f"No valid data found in {', '.join(names)}: no image has an annotation that is no "
            "crowd; set DATALOADER.FILTER_EMPTY_ANNOTATIONS False to use images without any"
        )
    return dataset_dicts


def build_batch_data_loader(
    dataset: torchdata.Dataset,
    sampler: torchdata.Sampler | None,
    total_batch_size: int,
    *,
    aspect_ratio_grouping: bool = False,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
    is_wide: Sequence[bool] | None = None,
    seed: int | None = None,
) -> torchdata.DataLoader | AspectRatioGroupedDataset | MapDataset:
    """Batches of mapped samples for training; an incomplete last batch is dropped.

    Args:
        dataset: map-style with a sampler, or iterable without one.
        total_batch_size: over all processes, of whose number it must be a multiple.
        aspect_ratio_grouping: make batches of images that are all wider than high, or all not; the
            samples must be dicts with "width" and "height".
        num_workers: processes that load data beside this one.
        collate_fn: makes the batch from a list of samples; None: the list itself.
        is_wide: for each element of a map-style dataset whether it is wider than high. With it,
            grouping needs no sample to be loaded, so that a resumed run can skip ahead.
        seed: of the augmentations; see `stream.SeededDataset`. For a map-style dataset only.
    """
    world_size = comm.get_world_size()
    if total_batch_size <= 0 or total_batch_size % world_size != 0:
        raise ValueError(
            f"Total batch size ({total_batch_size}) must be a positive multiple of the number of "
            f"processes ({world_size}); it is SOLVER.IMS_PER_BATCH in a config"
        )
    batch_size = total_batch_size // world_size
    workers: dict[str, Any] = dict(num_workers=num_workers, worker_init_fn=worker_init_reset_seed)
    is_iterable = isinstance(dataset, torchdata.IterableDataset)
    if is_iterable and sampler is not None:
        raise ValueError("an iterable dataset has its own order: give sampler=None")
    if not is_iterable and (is_wide is not None or not aspect_ratio_grouping):
        return torchdata.DataLoader(
            SeededDataset(dataset, seed),
            batch_sampler=StreamBatchSampler(
                sampler, batch_size, is_wide if aspect_ratio_grouping else None
            ),
            collate_fn=collate_fn or trivial_batch_collator,
            **workers,
        )
    stream = dataset if is_iterable else ToIterableDataset(dataset, sampler)
    if not aspect_ratio_grouping:
        return torchdata.DataLoader(
            stream,
            batch_size=batch_size,
            drop_last=True,
            collate_fn=collate_fn or trivial_batch_collator,
            **workers,
        )
    samples = torchdata.DataLoader(stream, collate_fn=operator.itemgetter(0), **workers)
    batches = AspectRatioGroupedDataset(samples, batch_size)
    return batches if collate_fn is None else MapDataset(batches, collate_fn)


def _train_loader_from_config(
    cfg: CfgNode,
    mapper: Callable[[dict], Any] | None = None,
    *,
    dataset: list | torchdata.Dataset | None = None,
    sampler: torchdata.Sampler | None = None,
) -> dict[str, Any]:
    seed = cfg.SEED if cfg.SEED >= 0 else None
    if dataset is None:
        dataset = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
    if sampler is None and not isinstance(dataset, torchdata.IterableDataset):
        sampler = _build_sampler(cfg, dataset, seed)
    return {
        "dataset": dataset,
        "sampler": sampler,
        "mapper": DatasetMapper(cfg, True) if mapper is None else mapper,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "seed": seed,
    }


def _build_sampler(
    cfg: CfgNode, dataset: list | torchdata.Dataset, seed: int | None
) -> torchdata.Sampler:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    logger.info("Using training sampler %s", name)
    if name == "TrainingSampler":
        return TrainingSampler(len(dataset), seed=seed)
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset, cfg.DATALOADER.REPEAT_THRESHOLD
        )
        return RepeatFactorTrainingSampler(factors, seed=seed)
    if name == "RandomSubsetTrainingSampler":
        ratio = cfg.DATALOADER.RANDOM_SUBSET_RATIO
        return RandomSubsetTrainingSampler(len(dataset), ratio, seed_shuffle=seed, seed_subset=seed)
    raise ValueError(
        f"DATALOADER.SAMPLER_TRAIN={name!r}; expected 'TrainingSampler', "
        "'RepeatFactorTrainingSampler' or 'RandomSubsetTrainingSampler'"
    )


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset: list | torchdata.Dataset,
    *,
    mapper: Callable[[Any], Any] | None,
    sampler: torchdata.Sampler | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
    seed: int | None = None,
) -> torchdata.DataLoader | AspectRatioGroupedDataset | MapDataset:
    """An endless loader of training batches, each a list of mapped dicts.

    Also called as `build_detection_train_loader(cfg, mapper=None, ...)`.

    Args:
        dataset: a list of dataset dicts, or a map-style or iterable dataset.
        mapper: makes a model's input from a dict; None: elements are used as they are.
        sampler: order of a map-style dataset; None: `TrainingSampler`.
        total_batch_size, aspect_ratio_grouping, num_workers, collate_fn, seed: see
            `build_batch_data_loader`; with a seed, it is the default sampler's, too.
    """
    is_wide = None
    if isinstance(dataset, list):
        if aspect_ratio_grouping and all(_has_size(element) for element in dataset):
            is_wide = [element["width"] > element["height"] for element in dataset]
        dataset = DatasetFromList(dataset, copy=False)
    if mapper is not None:
        dataset = MapDataset(dataset, mapper)
    if isinstance(dataset, torchdata.IterableDataset):
        if sampler is not None:
            raise ValueError("an iterable dataset has its own order: give sampler=None")
    elif sampler is None:
        sampler = TrainingSampler(len(dataset), seed=seed)
    return build_batch_data_loader(
        dataset,
        sampler,
        total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        is_wide=is_wide,
        seed=seed,
    )


def _has_size(element: Any) -> bool:
    return isinstance(element, dict) and "width" in element and "height" in element


def _test_loader_from_config(
    cfg: CfgNode, dataset_name: str | Sequence[str], mapper: Callable[[dict], Any] | None = None
) -> dict[str, Any]:
    # every image counts: detections in images without annotations are false positives
    names = [dataset_name] if isinstance(dataset_name, str) else list(dataset_name)
    dataset = get_detection_dataset_dicts(
        names, filter_empty=False, proposal_files=_test_proposal_files(cfg, names)
    )
    return {
        "dataset": dataset,
        "mapper": DatasetMapper(cfg, False) if mapper is None else mapper,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


def _test_proposal_files(cfg: CfgNode, names: list[str]) -> list[str] | None:
    """The file in DATASETS.PROPOSAL_FILES_TEST for each of some names in DATASETS.TEST."""
    if not cfg.MODEL.LOAD_PROPOSALS:
        return None
    known, files = cfg.DATASETS.TEST, cfg.DATASETS.PROPOSAL_FILES_TEST
    if len(files) != len(known) or not set(names) <= set(known):
        raise ValueError(
            f"MODEL.LOAD_PROPOSALS needs one of DATASETS.PROPOSAL_FILES_TEST={files} for each of "
            f"DATASETS.TEST={known}, and {names} to be among these"
        )
    return [files[list(known).index(name)] for name in names]


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset: list | torchdata.Dataset,
    *,
    mapper: Callable[[Any], Any] | None,
    sampler: torchdata.Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
) -> torchdata.DataLoader:
    """A loader that gives every element once over all processes, in lists of `batch_size`.

    Also called as `build_detection_test_loader(cfg, dataset_name, mapper=None, ...)`. The last
    batch may be smaller; no image is dropped, whether annotated or not.

    Args:
        dataset, mapper, collate_fn: see `build_detection_train_loader`.
        sampler: order of a map-style dataset; None: `InferenceSampler`.
        batch_size: of this process.
    """
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if mapper is not None:
        dataset = MapDataset(dataset, mapper)
    if isinstance(dataset, torchdata.IterableDataset):
        if sampler is not None:
            raise ValueError("an iterable dataset has its own order: give sampler=None")
    elif sampler is None:
        sampler = InferenceSampler(len(dataset))
    return torchdata.DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=False,
        num_workers=num_workers,
        collate_fn=collate_fn or trivial_batch_collator,
    )


def trivial_batch_collator(batch: list) -> list:
    """The batch as it is: a list of samples."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Give each worker its own random numbers, derived from those of its parent process."""
    seed_all_rng(torch.initial_seed() % _SEED_BOUND + worker_id)
