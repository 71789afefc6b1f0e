"""What refines masks: a refiner takes an image's masks, points and classes, and redraws the masks.

A refiner has to say only what it makes of one image. One that gains from several images at once,
such as a network that runs on batches of crops, overrides `groups` and `refine_groups`, too.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from weaklabels.image_root import image_path
from weaklabels.masks import decode_mask, encode_mask, mask_fields, segmentation_rle
from weaklabels.pictures import read_image
from weaklabels.records import Record, instance_point

KEPT_PRIOR = "kept_prior"  # marks an instance whose mask is its prior one
IMAGES_READ_AHEAD = 8  # for each worker


@dataclass(frozen=True)
class RefinedGroup:
    """The refined records of a group.

    unreadable: one message for each image that could not be read and has no record.
    network_seconds: of the wall time, what the network took.
    """

    records: list[Record] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    network_seconds: float = 0.0


class Refiner(Protocol):
    """Redraws the masks of instances whose points are known.

    category_ids: dataset ids in the order of the class indices; None: the refiner does not know
        them, or makes no difference between classes.
    identity: names its network, so that results of others are not mixed with its own; "" where the
        checkpoint's bytes say it all.
    """

    category_ids: tuple[int, ...] | None
    identity: str = ""

    def refine(
        self, image_rgb: np.ndarray, masks: np.ndarray, points: np.ndarray, class_ids: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The refined masks of one image.

        Args:
            image_rgb: (H, W, 3) uint8.
            masks: (N, H, W) bool, the prior masks; they may be empty.
            points: (N, 2) float, the labeled points, (x, y) pixels.
            class_ids: (N,) int, places in `category_ids`.

        Returns:
            (N, H, W) bool; an empty mask where nothing was found, whose prior then stays.
            (N,) float scores, or None where the records keep their own.
        """
        ...

    def groups(self, records: Iterable[Record]) -> Iterator[list[Record]]:
        """Cut a stream of records into the units that processes share.

        What belongs together must follow from the records alone, so that results depend neither on
        the number of processes nor on where a run was interrupted.
        """
        for record in records:
            yield [record]

    def refine_groups(
        self,
        groups: Iterable[list[Record]],
        image_root: Path,
        *,
        workers: int,
        category_ids: tuple[int, ...] | None,
    ) -> Iterator[RefinedGroup]:
        """Refine groups of records in their order.

        Args:
            workers: threads that read images while the refiner runs.
            category_ids: where the refiner does not know them.
        """
        ids = self.category_ids or category_ids or ()
        classes = {category_id: index for index, category_id in enumerate(ids)}
        waiting: deque[tuple[list[Record], list[Future]]] = deque()
        with ThreadPoolExecutor(workers) as pool:
            for records in groups:
                futures = [pool.submit(_read, record, image_root) for record in records]
                waiting.append((records, futures))
                if len(waiting) > IMAGES_READ_AHEAD * workers:
                    yield _refine_group(self, *waiting.popleft(), classes)
            while waiting:
                yield _refine_group(self, *waiting.popleft(), classes)


def _read(record: Record, image_root: Path) -> np.ndarray | str:
    """The image of a record, or why it cannot be read; nothing is read where nothing is refined."""
    if not record["instances"]:
        return ""
    try:
        path = image_path(image_root, record["file_name"])
        return read_image(path, (record["height"], record["width"]))
    except (FileNotFoundError, ValueError) as error:
        return str(error)


def _refine_group(
    refiner: Refiner, records: list[Record], images: list[Future], classes: dict[int, int]
) -> RefinedGroup:
    result, seconds = RefinedGroup(), 0.0
    for record, future in zip(records, images, strict=True):
        image = future.result()
        if not record["instances"]:
            result.records.append(record)
        elif isinstance(image, str):
            result.unreadable.append(image)
        else:
            start = time.perf_counter()
            result.records.append(_refine_record(refiner, record, image, classes))
            seconds += time.perf_counter() - start
    return RefinedGroup(result.records, result.unreadable, seconds)


def _refine_record(
    refiner: Refiner, record: Record, image: np.ndarray, classes: dict[int, int]
) -> Record:
    rows = [dict(row) for row in record["instances"]]
    unknown = {row["category_id"] for row in rows} - classes.keys() if classes else set()
    if unknown:
        raise ValueError(
            f"image {record['image_id']}: category {min(unknown)} is none of the refiner's "
            f"{len(classes)}"
        )
    size = (record["height"], record["width"])
    for row in rows:
        row.setdefault("point", instance_point(row, *size))
    masks, scores = refiner.refine(
        image,
        np.stack([decode_mask(row["segmentation"], *size) for row in rows]).astype(bool),
        np.array([row["point"] for row in rows], dtype=np.float64),
        np.array([classes.get(row["category_id"], 0) for row in rows]),
    )
    for index, (row, mask) in enumerate(zip(rows, masks, strict=True)):
        row.pop(KEPT_PRIOR, None)
        if mask.any():
            row.update(mask_fields(encode_mask(mask)))
        else:
            row.update(mask_fields(segmentation_rle(row["segmentation"], *size)))
            row[KEPT_PRIOR] = True
        if scores is not None:
            row["score"] = float(scores[index])
    return {**record, "instances": rows}
