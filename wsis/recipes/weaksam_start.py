"""Start a run of WeakSAM at a later stage, from own files or from what its authors released.

Released classifiers, detectors and segmenters are copied to where the stages look, which take them
as given; released proposals and masks are read where they are. They lie on servers that need a
browser, so they are not downloaded: a missing file is named with its address and its place.
"""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wsis.recipes.plan import FINAL_MODEL
from wsis.recipes.start_from import PREFIX, ReleasedFile, place, refuse_own_results
from wsis.recipes.weaksam import group_stages
from wsis.recipes.weaksam_plan import STAGES, WeakPlan
from wsis.released import DRIVE_URL
from wsis.runner import PipelineError, Run, Stage

TABLE = Path(__file__).parents[1] / "released_weaksam.tsv"
BAIDU_URL = "https://pan.baidu.com/s/"
SUFFIXES = {"proposals": ".pkl", "labels_masks": ".json"}  # of other files: .pth
FOLDER = "weaksam"  # below the folder of released files

# What may be asked for, and the stage that a run then begins with.
ENTRIES = {
    "classifier": "classifier",
    "proposals": "proposals",
    "detector": "retrain",
    "masks": "segmenter",
    "segmenter": "segmenter",
}
USUAL = {"voc07": "proposals", "voc12": "masks", "coco14": "proposals"}
# The columns `dataset` and `method` of the table, by what they are chosen with.
CLASSIFIERS = {"voc07": "VOC12 train_aug", "voc12": "VOC12 train_aug", "coco14": "COCO14"}
SPLITS = {
    "voc07": {"train": "VOC07 trainval", "test": "VOC07 test"},
    "coco14": {"train": "COCO14 train", "test": "COCO14 val"},
}
FORMS = {"mist": "MIST form (dict pickle)", "oicr": "OICR form (list pickle)"}
DETECTORS = {"voc07": "VOC07", "coco14": "COCO14"}
RETRAINED = {"faster_rcnn": "Faster R-CNN from MIST", "dino": "DINO from MIST"}
MASKS = {"voc12": "VOC12 trainaug", "coco14": "COCO17 train"}
SEGMENTED = {"voc12": "VOC12", "coco14": "COCO17 val"}
SEGMENTERS = {"mask_rcnn": "Mask R-CNN", "mask2former": "Mask2Former"}


@dataclass(frozen=True)
class Choices:
    """The words of the command line that decide which released files fit.

    detector: of the weak one.  retrain, segmenter: of what learns from pseudo labels.
    """

    dataset: str
    detector: str
    retrain: str
    segmenter: str


@dataclass(frozen=True)
class Wanted:
    """A released file. role: what it is for in the run.  url: where a browser finds it."""

    role: str
    path: Path
    url: str


def read_table() -> dict[tuple[str, str, str], str]:
    """Addresses by kind of file, dataset and method."""
    with open(TABLE, newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    before = {"gdrive": DRIVE_URL, "baidu": BAIDU_URL, "url": ""}
    return {
        (row["what"], row["dataset"], row["method"]): before[row["source"]] + row["id_or_url"]
        for row in rows
    }


def parse_start(text: str, dataset: str) -> tuple[str, ...]:
    """The entries that "released" or "released:ENTRY,ENTRY" asks for, in the order of the stages.

    Raises:
        PipelineError: it is neither, or there is nothing for own data.
    """
    if dataset not in USUAL:
        raise PipelineError("--start-from: nothing was released for own data: leave it out")
    prefix, colon, rest = text.partition(":")
    words = rest.split(",") if colon else [USUAL[dataset]]
    if prefix != PREFIX or not set(words) <= ENTRIES.keys():
        raise PipelineError(
            f"--start-from {text}: expected {PREFIX}, or {PREFIX}: and some of "
            f"{', '.join(ENTRIES)}, such as {PREFIX}:classifier"
        )
    return tuple(sorted(set(words), key=list(ENTRIES).index))


def wanted_files(entries: Sequence[str], choices: Choices, root: Path) -> list[Wanted]:
    """The files of the entries, below the folder `root`.

    Raises:
        PipelineError: there is no such file for these choices.
    """
    dataset = choices.dataset
    rows = {
        "classifier": {"classifier": ("classifier", CLASSIFIERS[dataset], "WeakTr DeiT-S")},
        "proposals": {
            part: ("proposals", split, FORMS[choices.detector])
            for part, split in SPLITS.get(dataset, {}).items()
        },
        "detector": {
            "detector": ("detector", DETECTORS.get(dataset), RETRAINED.get(choices.retrain))
        },
        "masks": {"masks": ("labels_masks", MASKS.get(dataset), "WSIS")},
        "segmenter": {
            "segmenter": ("segmenter", SEGMENTED.get(dataset), SEGMENTERS.get(choices.segmenter))
        },
    }
    table, found = read_table(), []
    for entry in entries:
        own = [(role, row) for role, row in rows[entry].items() if row in table]
        if not own:
            raise PipelineError(
                f"--start-from {PREFIX}:{entry}: there is no such file for {dataset} with "
                f"--retrain {choices.retrain} and --segmenter {choices.segmenter}"
            )
        found += [Wanted(role, root / FOLDER / file_name(row), table[row]) for role, row in own]
    return found


def file_name(row: tuple[str, str, str]) -> str:
    """A name for a released file, such as proposals_voc07_trainval_mist.pkl."""
    what, dataset, method = row
    words = re.findall("[a-z0-9]+", f"{what} {dataset} {method.partition(' form')[0]}".lower())
    return "_".join(words) + SUFFIXES.get(what, ".pth")


def with_released(plan: WeakPlan, files: Sequence[Wanted]) -> WeakPlan:
    """The plan that reads released proposals and masks in place of making them."""
    read = {file.role: file.path for file in files if file.role in ("train", "test", "masks")}
    return replace(plan, released={**plan.released, **read})


def copied(plan: WeakPlan, files: Sequence[Wanted]) -> list[ReleasedFile]:
    """The files that stand in for what a stage makes: where they are, and where it writes."""
    targets = {
        "classifier": ("classifier", plan.weights),
        "detector": ("retrain", plan.output / "retrain" / FINAL_MODEL),
        "segmenter": ("segmenter", plan.output / "segmenter" / FINAL_MODEL),
    }
    return [
        ReleasedFile(file.role, file.path, *targets[file.role])
        for file in files
        if file.role in targets
    ]


def evaluated(stages: Sequence[Stage], files: Sequence[Wanted]) -> tuple[Stage, ...]:
    """The stages, of which those whose network is released only evaluate it."""
    released = {"detector": "retrain", "segmenter": "segmenter"}
    names = {released[file.role] for file in files if file.role in released}
    return tuple(
        replace(stage, what=stage.rest.what, command=stage.rest.command, needs=stage.rest.needs)
        if stage.name in names
        else stage
        for stage in stages
    )


def lay_out(run: Run, plan: WeakPlan, files: Sequence[Wanted]) -> None:
    """Copy the files to where the stages look.

    Raises:
        PipelineError: files are missing, which are named with address and place, or something else
            stands where a file belongs.
    """
    missing = [file for file in files if not file.path.is_file()]
    if missing:
        lines = "".join(f"\n  fetch {file.url} and save it as {file.path}" for file in missing)
        raise PipelineError(
            f"--start-from: {len(missing)} of {len(files)} released files are missing. Their "
            f"servers want a browser:{lines}"
        )
    for file in copied(plan, files):
        refuse_own_results(run, file)
        place(file)


def stage_named(plan: WeakPlan, stages: Sequence[Stage], name: str) -> str:
    """The stage of a name, or the first one of a group of that name.

    Raises:
        PipelineError: there is neither.
    """
    names = [stage.name for stage in stages]
    own = [stage.name for stage in group_stages(plan).get(name, ()) if stage.name in names]
    if name in names or not own:
        if name not in names:
            raise PipelineError(f"{name!r}: no such stage; stages are {', '.join(names)}")
        return name
    return own[0]


def begin_at(stages: Sequence[Stage], first: str) -> tuple[Stage, ...]:
    """The stages from `first` on, and of the earlier ones those whose results they may need."""
    index = [stage.name for stage in stages].index(first)
    kept = list(stages[index:])
    needed = {path for stage in kept for path in stage.needs}
    for stage in reversed(stages[:index]):
        if needed & {*stage.makes, *stage.leaves}:
            needed |= set(stage.needs)
            kept.insert(0, stage)
    return tuple(kept)


def refuse_missing(stages: Sequence[Stage], first: str) -> None:
    """PipelineError for a file that the stages from `first` on need of earlier ones, and lack."""
    index = [stage.name for stage in stages].index(first)
    makers = {path: stage for stage in stages[:index] for path in (*stage.makes, *stage.leaves)}
    for stage in stages[index:]:
        for path in stage.needs:
            if path in makers and not path.exists():
                raise PipelineError(
                    f"--from {first}: {path} is missing, which stage {makers[path].name!r} makes: "
                    "put yours there, or leave --from out to have that stage run"
                )


def earliest(entries: Sequence[str]) -> str:
    """The group of stages that a run from released files begins with."""
    return min((ENTRIES[entry] for entry in entries), key=STAGES.index)
