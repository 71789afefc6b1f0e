"""Datasets by name -> data loaders for training and testing."""

import functools
import itertools
import logging
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.utils.data as torchdata
from termcolor import colored

from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import create_wide_table, log_first_n

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
    "load_test_dataset",
    "print_instances_class_histogram",
    "trivial_batch_collator",
    "worker_init_reset_seed",
]

_NAME_LENGTH = 13  # of classes in tables
_SEED_BOUND = 2**31
_OWN_ORDER = "an iterable dataset has its own order: give sampler=None"

logger = logging.getLogger(__name__)


def filter_images_with_only_crowd_annotations(dataset_dicts: list[dict]) -> list[dict]:
    """The images with an annotation that is not a crowd; the others cannot be trained on."""
    kept = [
        image
        for image in dataset_dicts
        if not all(annotation.get("iscrowd", 0) for annotation in image["annotations"])
    ]
    logger.info("%d of %d images have annotations to train on", len(kept), len(dataset_dicts))
    return kept


def print_instances_class_histogram(dataset_dicts: list[dict], class_names: Sequence[str]) -> None:
    """Log a table of the number of instances (without crowds) of each class."""
    counts = Counter(
        annotation["category_id"]
        for image in dataset_dicts
        for annotation in image["annotations"]
        if not annotation.get("iscrowd", 0)
    )
    num_classes = len(class_names)
    unknown = sorted(counts.keys() - set(range(num_classes)))
    if unknown:
        raise ValueError(
            f"an annotation has category_id={unknown[0]}, but the dataset has {num_classes} "
            f"classes (0 to {num_classes - 1})"
        )
    names = [n if len(n) <= _NAME_LENGTH else n[: _NAME_LENGTH - 2] + ".." for n in class_names]
    rows = [(name, counts[index]) for index, name in enumerate(names)]
    table = create_wide_table([*rows, ("total", counts.total())], ("class", "#instances"))
    text = f"Instances of the {num_classes} classes:\n{colored(table, 'cyan')}"
    log_first_n(logging.INFO, text, key="message")


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
        filter_empty: leave out images with no annotations but crowds.
        proposal_files: precomputed proposals for each name; see `load_proposals_into_dataset`.
        check_consistency: require that all datasets have the same `thing_classes`.
    """
    names = register_inline_datasets([names] if isinstance(names, str) else names)
    if not names:
        raise ValueError("no dataset name given; set DATASETS.TRAIN or DATASETS.TEST")
    datasets = [DatasetCatalog.get(name) for name in names]
    if isinstance(datasets[0], torchdata.Dataset):
        return torchdata.ConcatDataset(datasets) if len(datasets) > 1 else datasets[0]
    for name, dicts in zip(names, datasets, strict=True):
        if not len(dicts):
            raise ValueError(f"dataset '{name}' has no images")
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
            f"no image of {', '.join(names)} has an annotation to train on (crowds do not count); "
            "set DATALOADER.FILTER_EMPTY_ANNOTATIONS False to use images without annotations"
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
        num_workers: additional processes that load data.
        collate_fn: makes the batch from a list of samples; None: the list itself.
        is_wide: for each element of a map-style dataset, whether it is wider than high. Grouping
            then loads no samples, so that a resumed run can skip ahead.
        seed: of the augmentations; see `stream.SeededDataset`. For a map-style dataset only.
    """
    world_size = comm.get_world_size()
    if total_batch_size <= 0 or total_batch_size % world_size != 0:
        raise ValueError(
            f"the batch size ({total_batch_size}) of all processes must be a positive multiple of "
            f"their number ({world_size}); in a config it is SOLVER.IMS_PER_BATCH"
        )
    batch_size = total_batch_size // world_size
    workers: dict[str, Any] = dict(num_workers=num_workers, worker_init_fn=worker_init_reset_seed)
    is_iterable = isinstance(dataset, torchdata.IterableDataset)
    if is_iterable and sampler is not None:
        raise ValueError(_OWN_ORDER)
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
    if dataset is None:
        files = cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None
        filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty, files)
    seed = cfg.SEED if cfg.SEED >= 0 else None
    if sampler is None and not isinstance(dataset, torchdata.IterableDataset):
        sampler = _build_sampler(cfg, dataset, seed)
    return dict(
        dataset=dataset,
        mapper=DatasetMapper(cfg, True) if mapper is None else mapper,
        sampler=sampler,
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        seed=seed,
    )


def _build_sampler(
    cfg: CfgNode, dataset: list | torchdata.Dataset, seed: int | None
) -> torchdata.Sampler:
    options = cfg.DATALOADER
    logger.info("Training sampler: %s", options.SAMPLER_TRAIN)
    match options.SAMPLER_TRAIN:
        case "TrainingSampler":
            return TrainingSampler(len(dataset), seed=seed)
        case "RepeatFactorTrainingSampler":
            factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
                dataset, options.REPEAT_THRESHOLD
            )
            return RepeatFactorTrainingSampler(factors, seed=seed)
        case "RandomSubsetTrainingSampler":
            return RandomSubsetTrainingSampler(
                len(dataset), options.RANDOM_SUBSET_RATIO, seed_shuffle=seed, seed_subset=seed
            )
    raise ValueError(
        f"DATALOADER.SAMPLER_TRAIN={options.SAMPLER_TRAIN!r}; expected 'TrainingSampler', "
        "'RepeatFactorTrainingSampler' or 'RandomSubsetTrainingSampler'"
    )


def _mapped_and_sampled(
    dataset: list | torchdata.Dataset,
    mapper: Callable[[Any], Any] | None,
    sampler: torchdata.Sampler | None,
    default_sampler: Callable[[int], torchdata.Sampler],
) -> tuple[torchdata.Dataset, torchdata.Sampler | None]:
    """The dataset with the mapper applied, and its sampler; None for an iterable dataset."""
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if mapper is not None:
        dataset = MapDataset(dataset, mapper)
    if not isinstance(dataset, torchdata.IterableDataset):
        return dataset, default_sampler(len(dataset)) if sampler is None else sampler
    if sampler is not None:
        raise ValueError(_OWN_ORDER)
    return dataset, None


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
            `build_batch_data_loader`; the seed is also that of the default sampler.
    """
    is_wide = None
    if aspect_ratio_grouping and isinstance(dataset, list) and all(map(_has_size, dataset)):
        is_wide = [element["width"] > element["height"] for element in dataset]
    default_sampler = functools.partial(TrainingSampler, seed=seed)
    return build_batch_data_loader(
        *_mapped_and_sampled(dataset, mapper, sampler, default_sampler),
        total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        is_wide=is_wide,
        seed=seed,
    )


def _has_size(element: Any) -> bool:
    return isinstance(element, dict) and "width" in element and "height" in element


def load_test_dataset(
    cfg: CfgNode, dataset_name: str | Sequence[str]
) -> list[dict] | torchdata.Dataset:
    """All images of some of DATASETS.TEST, with the proposals that the config names."""
    names = [dataset_name] if isinstance(dataset_name, str) else list(dataset_name)
    proposal_files = _test_proposal_files(cfg, names)
    # without a filter: detections in images without annotations are false positives
    return get_detection_dataset_dicts(names, filter_empty=False, proposal_files=proposal_files)


def _test_loader_from_config(
    cfg: CfgNode, dataset_name: str | Sequence[str], mapper: Callable[[dict], Any] | None = None
) -> dict[str, Any]:
    return {
        "dataset": load_test_dataset(cfg, dataset_name),
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
            f"DATASETS.TEST={known}, which must include {names}"
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
    """A loader of every element, once over all processes, in lists of `batch_size` per process.

    Also called as `build_detection_test_loader(cfg, dataset_name, mapper=None, ...)`. The last
    batch may be smaller.

    Args:
        dataset, mapper, collate_fn: see `build_detection_train_loader`.
        sampler: order of a map-style dataset; None: `InferenceSampler`.
    """
    dataset, sampler = _mapped_and_sampled(dataset, mapper, sampler, InferenceSampler)
    collate_fn = trivial_batch_collator if collate_fn is None else collate_fn
    options = dict(sampler=sampler, num_workers=num_workers, collate_fn=collate_fn)
    return torchdata.DataLoader(dataset, batch_size, **options)


def trivial_batch_collator(batch: list) -> list:
    """The batch as it is: a list of samples."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seed each worker differently, from the seed of its parent process."""
    seed_all_rng(torch.initial_seed() % _SEED_BOUND + worker_id)
