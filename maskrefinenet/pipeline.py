"""Stream prediction records through a refiner: decode, crop, network, paste, encode.

Records form groups by a rule that looks at the records alone, and a batch never crosses a group. A
result therefore depends neither on where a run was cut nor on how many processes share the work.
Threads prepare the next groups and finish the last ones while the network runs.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_utils

from weaklabels.image_root import image_path
from weaklabels.masks import encode_mask, mask_fields, segmentation_rle
from weaklabels.pictures import read_image
from weaklabels.records import Record, rle_point

from .refiner import Crop, MaskRefiner, paste

GROUP_IMAGES = 16
GROUP_INSTANCES = 64  # a group is closed once it has as many; at 256 x 256 that is 64 MB of input
GROUPS_IN_FLIGHT = 2  # prepared ahead of the network, and as many waiting to be finished
KEPT_PRIOR = "kept_prior"  # marks an instance whose mask is its prior one


@dataclass
class Group:
    """Consecutive records and, once prepared, their crops."""

    records: list[Record]
    crops: list[Crop] = field(default_factory=list)
    owners: list[tuple[int, int]] = field(default_factory=list)  # record and instance of each crop
    unreadable: dict[int, str] = field(default_factory=dict)  # by record: why


@dataclass(frozen=True)
class Refined:
    """Results of a group: its readable images' records, why the others failed, network time."""

    records: list[Record]
    unreadable: list[str]
    network_seconds: float


def make_groups(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Cut a stream of records into groups."""
    group: list[Record] = []
    instances = 0
    for record in records:
        group.append(record)
        instances += len(record["instances"])
        if len(group) == GROUP_IMAGES or instances >= GROUP_INSTANCES:
            yield group
            group, instances = [], 0
    if group:
        yield group


def refine_groups(
    groups: Iterable[list[Record]],
    refiner: MaskRefiner,
    image_root: str | Path,
    *,
    workers: int = 2,
    category_ids: tuple[int, ...] | None = None,
) -> Iterator[Refined]:
    """Refine groups of records in their order, `workers` threads helping the network.

    Args:
        category_ids: dataset ids in class order; the refiner's own by default.

    Raises:
        ValueError: where the classes are unknown or a record's category is not among them.
    """
    if workers < 1:
        raise ValueError(f"workers={workers}; at least 1 is needed")
    ids = category_ids or refiner.category_ids
    if ids is None and not refiner.model.class_agnostic:
        raise ValueError(
            "the checkpoint does not say which categories its classes are; give the COCO file "
            "whose categories they are with --annotations"
        )
    if ids is not None and not refiner.model.class_agnostic and len(ids) != refiner.num_classes:
        raise ValueError(f"{len(ids)} categories given, the network has {refiner.num_classes}")
    classes = {category: index for index, category in enumerate(ids or ())}
    prepared: deque[Future[Group]] = deque()
    finished: deque[Future[Refined]] = deque()
    with ThreadPoolExecutor(workers) as pool:

        def advance() -> None:
            group = prepared.popleft().result()
            start = time.perf_counter()
            foreground = _run_network(group.crops, refiner)
            seconds = time.perf_counter() - start
            finished.append(pool.submit(_finish, group, foreground, seconds))

        for records in groups:
            prepared.append(pool.submit(_prepare, records, refiner, Path(image_root), classes))
            if len(prepared) > GROUPS_IN_FLIGHT:
                advance()
            while finished and (finished[0].done() or len(finished) > GROUPS_IN_FLIGHT):
                yield finished.popleft().result()
        while prepared:
            advance()
            yield finished.popleft().result()
        while finished:
            yield finished.popleft().result()


def _prepare(
    records: list[Record], refiner: MaskRefiner, image_root: Path, classes: dict[int, int]
) -> Group:
    group = Group(records)
    for number, record in enumerate(records):
        if not record["instances"]:
            continue
        size = (record["height"], record["width"])
        try:
            image = read_image(image_path(image_root, record["file_name"]), size)
        except (FileNotFoundError, ValueError) as error:
            group.unreadable[number] = str(error)
            continue
        for index, instance in enumerate(record["instances"]):
            category = instance["category_id"]
            if category not in classes and not refiner.model.class_agnostic:
                raise ValueError(
                    f"image {record['image_id']} ({record['file_name']}): category {category!r} is "
                    f"none of the network's {len(classes)}; give records of the same dataset"
                )
            rle = segmentation_rle(instance["segmentation"], *size)
            point = tuple(instance.setdefault("point", rle_point(rle)))
            prior = mask_utils.decode(rle)
            group.crops.append(refiner.prepare(image, prior, point, classes.get(category, 0)))
            group.owners.append((number, index))
    return group


def _run_network(crops: list[Crop], refiner: MaskRefiner) -> list[np.ndarray]:
    """Foreground probabilities of every crop."""
    results: list[np.ndarray] = []
    for start in range(0, len(crops), refiner.batch_size):
        results += list(refiner.foreground(crops[start : start + refiner.batch_size]))
    return results


def _finish(group: Group, foreground: list[np.ndarray], seconds: float) -> Refined:
    results = [
        {**record, "instances": [dict(instance) for instance in record["instances"]]}
        for record in group.records
    ]
    for (number, index), crop, probabilities in zip(
        group.owners, group.crops, foreground, strict=True
    ):
        record = results[number]
        instance = record["instances"][index]
        mask = paste(probabilities, crop.box, (record["height"], record["width"]))
        if mask is None:
            instance[KEPT_PRIOR] = True
            size = (record["height"], record["width"])
            instance.update(mask_fields(segmentation_rle(instance["segmentation"], *size)))
        else:
            instance.pop(KEPT_PRIOR, None)
            instance.update(mask_fields(encode_mask(mask)))
    readable = [record for i, record in enumerate(results) if i not in group.unreadable]
    return Refined(readable, list(group.unreadable.values()), seconds)
