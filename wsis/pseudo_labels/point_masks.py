"""Records straight from points: each point of a label file prompts a segmenter.

No teacher is trained; the class is the point's own. Images are made one by one, so that a killed
run goes on, and what comes out does not depend on the number of processes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from detectron2.utils import comm
from weaklabels.coco import Annotations, ImageInfo, load_annotations
from weaklabels.files import file_sha256
from weaklabels.image_root import image_path
from weaklabels.pictures import read_image
from weaklabels.points import centroid, checked_point, mask_point
from weaklabels.records import Record, mask_instances
from weaklabels.shards import RecordShards, ShardWriter
from weaksam.image_shards import one_thread
from weaksam.segmenters.protocol import Segmenter
from weaksam.segmenters.spec import DEFAULT_SEGMENTER, load_segmenter
from wsis.launcher import SHARED_WORK_TIMEOUT, Job, device_of, launch
from wsis.sharded import Share, write_sharded

from .generate import GenerateReport

EMPTY = "empty"  # why a point has no mask


@dataclass(frozen=True)
class PointMaskSettings:
    """One file of records.

    annotations: COCO file; of an annotation with a `point` nothing else but its class is read, of
        others the mask's center of mass is the point.
    segmenter: its name, see weaksam.segmenters.spec.  download: let transformers fetch a model.
    """

    annotations: Path
    image_root: Path
    output: Path
    segmenter: str = DEFAULT_SEGMENTER
    download: bool = False

    def __post_init__(self) -> None:
        if self.output.suffix != ".jsonl":
            raise ValueError(f"--output {self.output}: records are written as .jsonl")


def segment_points(settings: PointMaskSettings, job: Job) -> GenerateReport | None:
    """Write the records in all processes of a job; None on other machines than the first.

    Raises:
        ValueError: an input cannot be used.
    """
    return launch(job, segment_share, settings, job, timeout=SHARED_WORK_TIMEOUT)


def segment_share(settings: PointMaskSettings, job: Job) -> GenerateReport | None:
    """Make the records of this process's images, and in the first process merge all of them."""
    annotations = load_annotations(settings.annotations)
    segmenter = load_segmenter(settings.segmenter, str(device_of(job)), settings.download)
    require_clicks(segmenter)
    made_from = {
        "annotations_sha256": file_sha256(settings.annotations),
        "segmenter": segmenter.identity,
        "device": device_of(job).type,
    }
    work = _Work(annotations, settings.image_root, segmenter)
    with one_thread():  # sums depend on how many threads share them
        report = write_sharded(RecordShards(settings.output, made_from), work)
    if report is None:
        return None
    names = {category["id"]: category["name"] for category in annotations.categories}
    unmatched = {
        (names[category_id], reason): count
        for (category_id, reason), count in sorted(report.merged.unmatched.items())
    }
    return GenerateReport(report.merged.images, unmatched, report.failures)


def require_clicks(segmenter: Segmenter) -> None:
    """ValueError where a segmenter takes no points."""
    if "points" not in segmenter.prompts:
        raise ValueError(
            f"segmenter {segmenter.identity} takes {' and '.join(sorted(segmenter.prompts))} only; "
            "masks of points need one that takes clicks: tiny, segment_anything or transformers"
        )


def labeled_points(annotations: Annotations, image: ImageInfo) -> tuple[np.ndarray, list[int]]:
    """Points (N, 2) of an image, those on its border moved to pixel centers, and categories (N,).

    Raises:
        ValueError: naming file and annotation, for a point outside the image, or no point at all.
    """
    points, categories = [], []
    for annotation in annotations.instances[image.image_id]:
        if annotation.get("iscrowd"):
            continue
        where = f"{annotations.path}: annotation id {annotation['id']}"
        try:
            if annotation.get("point") is not None:
                points.append(checked_point(annotation["point"], image.height, image.width))
            elif annotation.get("segmentation"):
                rng = np.random.default_rng(0)  # centers do not draw from it
                mask = annotation["segmentation"]
                points.append(mask_point(mask, image.height, image.width, centroid, rng))
            else:
                raise ValueError("no point and no mask to take its center")
        except ValueError as error:
            raise ValueError(f"{where}: {error}; correct or remove it") from error
        categories.append(annotation["category_id"])
    xy = np.array(points, np.float64).reshape(-1, 2)
    return np.clip(xy, 0, (image.width - 1, image.height - 1)), categories


@dataclass(frozen=True)
class _Work:
    """The share of one process."""

    annotations: Annotations
    image_root: Path
    segmenter: Segmenter

    def __call__(self, finished: set[int], writer: ShardWriter) -> Share:
        """Write the records of this process that are missing."""
        images = list(self.annotations.images.values())
        share = Share([image.image_id for image in images])
        missing = [image for image in images if image.image_id not in finished]
        mine = missing[comm.get_rank() :: comm.get_world_size()]
        for image in tqdm(mine, "images", unit="image", disable=not comm.is_main_process()):
            xy, categories = labeled_points(self.annotations, image)
            try:
                record = self._record(image, xy, categories)
            except (FileNotFoundError, ValueError) as error:
                share.failures.append(str(error))
                continue
            writer.append(record)
        return share

    def _record(self, image: ImageInfo, xy: np.ndarray, categories: list[int]) -> Record:
        record: dict[str, Any] = {
            **{"image_id": image.image_id, "file_name": image.file_name},
            **{"height": image.height, "width": image.width, "instances": [], "unmatched": []},
        }
        if not len(xy):
            return record
        size_hw = (image.height, image.width)
        self.segmenter.set_image(read_image(image_path(self.image_root, image.file_name), size_hw))
        found: dict[int, tuple[np.ndarray, float]] = {}
        for batch in self.segmenter.points(xy):
            masks, scores = batch.best()
            rows = zip(batch.prompts.tolist(), masks.cpu().numpy(), scores.tolist(), strict=True)
            found |= {row: (mask, score) for row, mask, score in rows if mask.any()}
        for row, (point, category_id) in enumerate(zip(xy.tolist(), categories, strict=True)):
            if row in found:
                mask, score = found[row]
                record["instances"] += mask_instances(mask[None], [category_id], [score], [point])
            else:
                lost = {"category_id": category_id, "point": point, "reason": EMPTY}
                record["unmatched"].append(lost)
        return record
