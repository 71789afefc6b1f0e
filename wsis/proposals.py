"""Proposals over files: make them in all processes of a job, and measure them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from weaklabels.files import write_json
from weaklabels.locks import job_lock
from weaksam.proposals.make import (
    Inputs,
    Method,
    PromptedProposals,
    ProposalCounts,
    make_proposals,
)
from weaksam.proposals.recall import (
    RecallSettings,
    measure_recall,
    truth_of_coco,
    truth_of_voc,
)
from wsis.launcher import SHARED_WORK_TIMEOUT, Job, device_of, launch


@dataclass(frozen=True)
class ProposalSettings:
    """One proposal file. method: its `device` is chosen by the job."""

    inputs: Inputs
    output: Path
    method: Method = field(default_factory=PromptedProposals)

    def __post_init__(self) -> None:
        if self.output.suffix != ".npz":
            raise ValueError(f"--output {self.output}: proposals are written as .npz")


def propose(settings: ProposalSettings, job: Job) -> ProposalCounts | None:
    """Write a proposal file in all processes of a job; see `make_proposals`.

    Returns:
        the counts; None on other machines than the first.

    Raises:
        ValueError: an input cannot be used.
    """
    return launch(job, propose_share, settings, job, timeout=SHARED_WORK_TIMEOUT)


def propose_share(settings: ProposalSettings, job: Job) -> ProposalCounts | None:
    """Make the proposals of this process's images, and in the first process write the file."""
    method = settings.method
    if isinstance(method, PromptedProposals):
        method = replace(method, device=str(device_of(job)))
    with job_lock(settings.output, comm.is_main_process(), comm.all_gather):
        counts = make_proposals(settings.inputs, method, settings.output)
    return counts if comm.is_main_process() else None


@dataclass(frozen=True)
class RecallReportSettings:
    """One measurement of proposals, for evaluation only.

    proposals: files by the name that the report gives them.  images: COCO-form file of the images.
    annotations: COCO file of the true boxes, or else voc and split: VOC2007 and a list of it.
    output: the report (.json), None to write none.
    """

    proposals: Mapping[str, Path]
    images: Path
    annotations: Path | None = None
    voc: Path | None = None
    split: str | None = None
    recall: RecallSettings = field(default_factory=RecallSettings)
    output: Path | None = None

    def __post_init__(self) -> None:
        if (self.annotations is None) == (self.voc is None) or (
            (self.voc is None) != (self.split is None)
        ):
            raise ValueError("true boxes: give --annotations, or --voc with --split")


def report_recall(settings: RecallReportSettings) -> dict[str, Any]:
    """The recall of proposals, see `measure_recall`; it is also written to the output."""
    if settings.annotations is not None:
        truth = truth_of_coco(settings.annotations)
    else:
        truth = truth_of_voc(settings.voc, settings.split)
    report = measure_recall(settings.proposals, settings.images, truth, settings.recall)
    if settings.output is not None:
        write_json(settings.output, report, indent=1)
    return report
