"""Refine a file of prediction records with any refiner: stream, share, resume, merge."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from detectron2.utils import comm
from maskrefinenet.predictions import read_predictions
from maskrefinenet.refiner import DEFAULT_BATCH_SIZE
from weaklabels.coco import Annotations, load_annotations
from weaklabels.files import file_sha256
from weaklabels.model_folder import weights_file
from weaklabels.records import Record
from weaklabels.shards import RecordShards, ShardWriter
from weaksam.segmenters.spec import DEFAULT_SEGMENTER
from wsis.launcher import SHARED_WORK_TIMEOUT, Job, device_of, launch
from wsis.sharded import Share, write_sharded

from .maskrefinenet import MaskRefineNetRefiner
from .protocol import KEPT_PRIOR, Refiner
from .sam import SamRefiner

MASKREFINENET, SAM = "maskrefinenet", "sam"


@dataclass(frozen=True)
class RefineSettings:
    """One refinement.

    records: prediction records (.jsonl), COCO results (.json), or Detectron2's pickled list (.pth).
    weights: a checkpoint of MaskRefineNet; None for "sam".
    annotations: COCO file that names the images of .json and .pth records and, for weights that do
        not know them, the categories.
    batch_size: instances that go through the network at once.
    workers: threads beside the network in each process.
    segmenter: of "sam", its name, see weaksam.segmenters.spec; None is `tiny`.
    download: let transformers fetch the segmenter.
    """

    records: Path
    weights: Path | None
    image_root: Path
    output: Path
    annotations: Path | None = None
    refiner: str = MASKREFINENET
    batch_size: int = DEFAULT_BATCH_SIZE
    workers: int = 2
    segmenter: str | None = None
    download: bool = False

    def __post_init__(self) -> None:
        if self.refiner not in REFINERS:
            raise ValueError(f"refiner {self.refiner!r}; expected one of {', '.join(REFINERS)}")
        if self.refiner != SAM and self.weights is None:
            raise ValueError(f"--refiner {self.refiner} needs --weights, its checkpoint")
        if self.refiner == SAM and self.weights is not None:
            raise ValueError(
                f"--weights {self.weights}: --refiner sam takes its network from --segmenter, such "
                "as segment_anything:vit_h:FILE; leave --weights out"
            )
        if self.refiner != SAM and (self.segmenter is not None or self.download):
            raise ValueError("--segmenter and --download are for --refiner sam: leave them out")
        if self.output.suffix != ".jsonl":
            raise ValueError(f"--output {self.output}: refined records are written as .jsonl")
        if self.workers < 1:
            raise ValueError(f"--workers {self.workers}; at least 1 is needed")


def _load_maskrefinenet(settings: RefineSettings, device: torch.device) -> Refiner:
    return MaskRefineNetRefiner.load(settings.weights, device, settings.batch_size)


def _load_sam(settings: RefineSettings, device: torch.device) -> Refiner:
    spec = settings.segmenter or DEFAULT_SEGMENTER
    return SamRefiner.load(spec, device, settings.batch_size, settings.download)


# Name of a refiner -> its loader.
REFINERS = {MASKREFINENET: _load_maskrefinenet, SAM: _load_sam}


@dataclass
class RefineReport:
    """What came of a refinement.

    images, instances, kept_priors: of the merged file.
    unreadable: one message for each image that is missing in it.
    network_seconds, wall_seconds: of the first process in this run.
    """

    images: int
    instances: int
    kept_priors: int
    unreadable: list[str]
    network_seconds: float
    wall_seconds: float


def refine(settings: RefineSettings, job: Job) -> RefineReport | None:
    """Refine in all processes of a job.

    Returns:
        the report; None on other machines than the first.

    Raises:
        ValueError: an input cannot be used.
    """
    return launch(job, refine_share, settings, job, timeout=SHARED_WORK_TIMEOUT)


def refine_share(settings: RefineSettings, job: Job) -> RefineReport | None:
    """Refine the share of this process, and in the first process merge all of them."""
    if not settings.records.is_file():
        raise FileNotFoundError(f"--records {settings.records}: no such file")
    device = device_of(job)
    annotations = load_annotations(settings.annotations) if settings.annotations else None
    refiner = REFINERS[settings.refiner](settings, device)
    # The first process alone compares the settings with those of the parts.
    made_from = _made_from(settings, refiner, device) if comm.is_main_process() else {}
    shards = RecordShards(settings.output, made_from, lists_unmatched=False)
    kept, start = [0], time.perf_counter()
    work = _Work(settings, annotations, refiner)

    def count_kept(record: Record) -> None:
        kept[0] += sum(KEPT_PRIOR in row for row in record["instances"])

    report = write_sharded(shards, work, count_kept)
    if report is None:
        return None
    return RefineReport(
        images=report.merged.images,
        instances=report.merged.instances,
        kept_priors=kept[0],
        unreadable=report.failures,
        network_seconds=work.network_seconds,
        wall_seconds=time.perf_counter() - start,
    )


def _made_from(settings: RefineSettings, refiner: Refiner, device: torch.device) -> dict[str, Any]:
    """All that the records depend on."""
    annotations, weights = settings.annotations, settings.weights
    network = {"network": refiner.identity} if refiner.identity else {}
    if weights is not None:
        network["weights_sha256"] = file_sha256(weights_file(str(weights)))
    return network | {
        "refiner": settings.refiner,
        "records_sha256": file_sha256(settings.records),
        "annotations_sha256": None if annotations is None else file_sha256(annotations),
        "batch_size": settings.batch_size,
        "device": device.type,
    }


class _Work:
    """The share of one process; it counts the seconds in the network."""

    def __init__(self, settings: RefineSettings, annotations: Annotations | None, refiner: Refiner):
        self.settings, self.annotations, self.refiner = settings, annotations, refiner
        self.network_seconds = 0.0

    def __call__(self, finished: set[int], writer: ShardWriter) -> Share:
        """Refine every size-th group that is not finished."""
        share, settings = Share([]), self.settings
        category_ids = None if self.annotations is None else self.annotations.category_ids
        with tqdm(
            desc="refine",
            unit=" images",
            total=_count(settings.records),
            disable=not comm.is_main_process(),
        ) as bar:
            todo = self._groups(finished, share.image_ids, bar)
            for group in self.refiner.refine_groups(
                todo, settings.image_root, workers=settings.workers, category_ids=category_ids
            ):
                for record in group.records:
                    if record["image_id"] not in finished:
                        writer.append(record)
                share.failures.extend(group.unreadable)
                self.network_seconds += group.network_seconds
                bar.update(len(group.records) + len(group.unreadable))
        return share

    def _groups(
        self, finished: set[int], image_ids: list[int], bar: tqdm
    ) -> Iterator[list[Record]]:
        """The groups of this process; the ids of all images are noted in `image_ids`."""
        records = read_predictions(self.settings.records, self.annotations)
        for number, group in enumerate(self.refiner.groups(records)):
            image_ids.extend(record["image_id"] for record in group)
            is_mine = number % comm.get_world_size() == comm.get_rank()
            if is_mine and any(record["image_id"] not in finished for record in group):
                yield group
            else:
                bar.update(len(group))


def _count(path: Path) -> int | None:
    """The number of images, where that is cheap to know."""
    if path.suffix != ".jsonl":
        return None
    with open(path, "rb") as lines:
        return sum(1 for _ in lines)
