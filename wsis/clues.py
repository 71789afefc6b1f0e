"""From tags to clue points over files: train a classifier, find its points in all processes."""

from dataclasses import dataclass, field
from pathlib import Path

from detectron2.utils import comm
from weaklabels.examine import refuse_unreadable
from weaklabels.locks import job_lock, output_lock
from weaksam.clues import (
    PointSettings,
    TaggedDataset,
    TrainSettings,
    extract_points,
    read_points,
    train_classifier,
)
from weaksam.clues.boxes import BoxSettings, extract_boxes
from weaksam.clues.load import classifier_for
from weaksam.clues.networks import NetworkSettings, build_network, schedule_of
from weaksam.clues.train import TrainResult
from wsis.launcher import SHARED_WORK_TIMEOUT, Job, device_of, launch


@dataclass(frozen=True)
class ClassifierSettings:
    """One training of a classifier.

    tags, image_root: the images that it learns from.  output: folder, see `train_classifier`.
    val_tags, val_image_root: images by whose class AP an epoch is chosen; None: the last epoch.
    """

    tags: Path
    image_root: Path
    output: Path
    network: NetworkSettings = field(default_factory=NetworkSettings)
    schedule: TrainSettings = field(default_factory=lambda: schedule_of("weaktr"))
    val_tags: Path | None = None
    val_image_root: Path | None = None

    def __post_init__(self) -> None:
        if (self.val_tags is None) != (self.val_image_root is None):
            raise ValueError("validation needs both a tag file and a folder of images, or neither")


def train_tag_classifier(settings: ClassifierSettings, job: Job) -> TrainResult:
    """Train in one process, on the job's GPU or the CPU; the same call goes on after a kill.

    Raises:
        ValueError: an input cannot be used, or the job has more than one process.
    """
    if job.num_machines > 1 or max(job.num_gpus, job.num_processes) > 1:
        raise ValueError(f"{job}: a classifier trains in one process; give one GPU or none")
    device = str(device_of(job))
    train = TaggedDataset.load(settings.tags, settings.image_root)
    refuse_unreadable(
        str(settings.tags),
        [(Path(e["file_name"]), (e["height"], e["width"])) for e in train.dicts],
    )
    val = None
    if settings.val_tags is not None:
        val = TaggedDataset.load(settings.val_tags, settings.val_image_root)
    schedule = settings.schedule
    size = schedule.augmentation.size
    model = build_network(settings.network, train.num_classes, size, schedule.seed)
    with output_lock(settings.output):
        return train_classifier(model, train, settings.output, schedule, val=val, device=device)


@dataclass(frozen=True)
class ClueSettings:
    """One search for points. weights: a classifier, see `classifier_for`.  output: folder."""

    weights: Path
    tags: Path
    image_root: Path
    output: Path
    points: PointSettings = field(default_factory=PointSettings)


@dataclass(frozen=True)
class ClueReport:
    """What was found. files, points, without: by source; the last ones, images without a point."""

    images: int
    files: dict[str, Path]
    points: dict[str, int]
    without: dict[str, int]


def find_points(settings: ClueSettings, job: Job) -> ClueReport | None:
    """Write OUTPUT/points_SOURCE.npz in all processes of a job; see `extract_points`.

    Returns:
        the report; None on other machines than the first.

    Raises:
        ValueError: an input cannot be used.
    """
    return launch(job, find_share, settings, job, timeout=SHARED_WORK_TIMEOUT)


@dataclass(frozen=True)
class ClueBoxSettings:
    """One box for each class of an image. weights: see `classifier_for`.  output: COCO results."""

    weights: Path
    tags: Path
    image_root: Path
    output: Path
    boxes: BoxSettings = field(default_factory=BoxSettings)


def find_boxes(settings: ClueBoxSettings, job: Job) -> None:
    """Write COCO results in all processes of a job; see `extract_boxes`.

    Raises:
        ValueError: an input cannot be used.
    """
    launch(job, find_share_of_boxes, settings, job, timeout=SHARED_WORK_TIMEOUT)


def find_share_of_boxes(settings: ClueBoxSettings, job: Job) -> None:
    """Find the boxes of this process's images, and in the first process write the file."""
    dataset = TaggedDataset.load(settings.tags, settings.image_root)
    classifier = classifier_for(settings.weights, dataset.tags)
    device = str(device_of(job))
    with job_lock(settings.output, comm.is_main_process(), comm.all_gather):
        extract_boxes(classifier, dataset, settings.output, settings.boxes, device=device)


def find_share(settings: ClueSettings, job: Job) -> ClueReport | None:
    """Find the points of this process's images, and in the first process write the files."""
    dataset = TaggedDataset.load(settings.tags, settings.image_root)
    classifier = classifier_for(settings.weights, dataset.tags)
    device = str(device_of(job))
    with job_lock(settings.output, comm.is_main_process(), comm.all_gather):
        files = extract_points(classifier, dataset, settings.output, settings.points, device=device)
    if not comm.is_main_process():
        return None
    counts = {s: [len(p) for p in read_points(path).points] for s, path in files.items()}
    return ClueReport(
        images=len(dataset),
        files=files,
        points={source: sum(found) for source, found in counts.items()},
        without={source: found.count(0) for source, found in counts.items()},
    )
