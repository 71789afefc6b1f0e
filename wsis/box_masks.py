"""Masks of boxes, made in all processes of a job."""

from dataclasses import dataclass
from pathlib import Path

from detectron2.utils import comm
from weaklabels.locks import job_lock
from weaksam.box_masks import SINGLE, BoxMaskCounts, make_box_masks
from weaksam.segmenters.spec import load_segmenter
from wsis.launcher import SHARED_WORK_TIMEOUT, Job, device_of, launch


@dataclass(frozen=True)
class BoxMaskSettings:
    """One file of masks; see `make_box_masks`.

    segmenter: its name, see weaksam.segmenters.spec.  download: let transformers fetch a model.
    """

    boxes: Path
    image_root: Path
    output: Path
    segmenter: str = "tiny"
    pick: str = SINGLE
    download: bool = False


def segment_boxes(settings: BoxMaskSettings, job: Job) -> BoxMaskCounts | None:
    """Write the masks in all processes of a job; None on other machines than the first.

    Raises:
        ValueError: an input cannot be used.
    """
    return launch(job, segment_share, settings, job, timeout=SHARED_WORK_TIMEOUT)


def segment_share(settings: BoxMaskSettings, job: Job) -> BoxMaskCounts | None:
    """Make the masks of this process's images, and in the first process write the file."""
    segmenter = load_segmenter(settings.segmenter, str(device_of(job)), settings.download)
    with job_lock(settings.output, comm.is_main_process(), comm.all_gather):
        counts = make_box_masks(
            settings.boxes, settings.image_root, segmenter, settings.output, settings.pick
        )
    return counts if comm.is_main_process() else None
