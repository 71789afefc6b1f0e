"""Start a run of PointWSSIS from what its authors released.

The files are downloaded into a folder, or found there, and copied to where the stages look, which
take them as given. A file of the user is never replaced.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from weaklabels.files import atomic_bytes, file_sha256
from wsis.download import fetch, missing_file
from wsis.recipes.plan import Plan
from wsis.released import DRIVE_URL, SPLIT, Release, read_releases, released_path
from wsis.runner import PipelineError, Run
from wsis.runner.markers import GIVEN, read_marker, read_note

# What may be asked for, and the files of it. The authors' teacher and refiner have seen the masks
# of the authors' strong images, so their split comes along.
ENTRIES = {
    "split": SPLIT,
    "teacher": (*SPLIT, "teacher"),
    "refiner": (*SPLIT, "maskrefinenet"),
    "pseudo-labels": ("pseudo_labels",),
    "student": ("student",),
}
STAGE_OF = {
    **dict.fromkeys(SPLIT, "split"),
    **{"teacher": "teacher", "maskrefinenet": "refiner"},
    **{"pseudo_labels": "merge", "student": "student"},
}
PREFIX = "released"
SHOWN_ERROR = 160  # characters
DEFAULT_ROOT = Path("checkpoints")


@dataclass(frozen=True)
class ReleasedFile:
    """One file: where it is downloaded to, the stage that would make it, and where that writes."""

    kind: str
    source: Path
    stage: str
    target: Path


def parse_start(text: str, *, with_refiner: bool) -> tuple[str, ...]:
    """The entries that "released" or "released:ENTRY,ENTRY" asks for.

    Raises:
        PipelineError: it is neither, or asks for files that do not fit the stages.
    """
    prefix, colon, rest = text.partition(":")
    usual = ("teacher", "refiner") if with_refiner else ("teacher",)
    words = tuple(rest.split(",")) if colon else usual
    if prefix != PREFIX or not set(words) <= ENTRIES.keys():
        raise PipelineError(
            f"--start-from {text}: expected {PREFIX}, or {PREFIX}: and some of "
            f"{', '.join(ENTRIES)}, such as {PREFIX}:teacher,refiner"
        )
    if with_refiner and "teacher" in words and "refiner" not in words:
        raise PipelineError(
            f"--start-from {text}: a refiner learns from two early checkpoints of its teacher, "
            "which were not released: add refiner, or run --without-refiner"
        )
    if not with_refiner and {"refiner", "pseudo-labels"} & set(words):
        raise PipelineError(
            f"--start-from {text}: the released pseudo labels are refined, so neither they nor the "
            "refiner fit --without-refiner"
        )
    return words


def released_files(plan: Plan, entries: Sequence[str], root: Path) -> list[ReleasedFile]:
    """The files of the entries; `root` has one folder a subset.

    Raises:
        PipelineError: the dataset is not COCO, on whose images they depend.
    """
    if not plan.source.is_reference:
        raise PipelineError("--start-from: the released files are those of --dataset coco")
    targets = {
        "split_s": plan.strong,
        "split_w": plan.weak,
        "teacher": plan.teacher,
        "maskrefinenet": plan.refiner,
        "pseudo_labels": plan.merged,
        "student": plan.student,
    }
    kinds = dict.fromkeys(kind for entry in entries for kind in ENTRIES[entry])
    return [
        ReleasedFile(kind, released_path(root, plan.subset, kind), STAGE_OF[kind], targets[kind])
        for kind in kinds
    ]


def lay_out(
    run: Run, files: Sequence[ReleasedFile], subset: str, base_url: str = DRIVE_URL
) -> None:
    """Fetch the files that are missing, and copy each to where its stage looks.

    Raises:
        PipelineError: a file cannot be had, or something else stands in its place.
    """
    for file in files:
        refuse_own_results(run, file)
    missing = [file for file in files if not (file.source.exists() or is_given(file))]
    download_all(read_releases()[subset], missing, base_url)
    for file in files:
        if file.source.exists():
            place(file)


def refuse_own_results(run: Run, file: ReleasedFile) -> None:
    """PipelineError where this run has begun to make the file itself: it would go on with that."""
    marker = read_marker(run.output / "stages" / f"{file.stage}.json")
    if marker and marker.state != GIVEN and str(file.target) not in marker.files:
        raise PipelineError(
            f"--start-from: the run in {run.output} has its own results of stage {file.stage!r}: "
            f"run --set-aside {file.stage} first, which keeps them under another name, or set "
            "OUTPUT_DIR to another folder"
        )


def is_given(file: ReleasedFile) -> bool:
    """Whether the file is in its place: it needs no download."""
    made_by_a_run = file.target.exists() and read_note(file.target)
    return file.target.exists() and not made_by_a_run


def download_all(release: Release, files: Sequence[ReleasedFile], base_url: str) -> None:
    """Fetch every file, or say which of them the user has to put where."""
    problems = []
    for file in files:
        print(f"{file.source}: to be downloaded", flush=True)
        try:
            summary = fetch(release, file.kind, file.source.parents[1], base_url)
            print(f"{file.source}: {summary}", flush=True)
        except (OSError, ValueError) as error:
            remedy = missing_file(file.source, release, file.kind)
            problems.append(f"\n  {remedy}\n    ({shorten(str(error), SHOWN_ERROR)})")
    if problems:
        raise PipelineError(
            f"--start-from: {len(problems)} of {len(files)} released files could not be "
            f"downloaded. Run the command again, or put them there by hand:{''.join(problems)}"
        )


def place(file: ReleasedFile) -> None:
    """Copy a file to its target; nothing to do where it stands there.

    Raises:
        PipelineError: another file stands there.
    """
    target = file.target
    if target.exists():
        if file_sha256(str(target)) == file_sha256(str(file.source)):
            return
        raise PipelineError(
            f"{target} is another file than {file.source} and is left alone: move it away (with "
            f"what stage {file.stage!r} and later ones have made of it), or set OUTPUT_DIR, for "
            "label files DETECTRON2_DATASETS, to another folder"
        )
    with open(file.source, "rb") as source, atomic_bytes(target) as copy:
        shutil.copyfileobj(source, copy)
    print(f"{target}: copied from {file.source}", flush=True)
