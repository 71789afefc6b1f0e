"""The stages of WeakSAM: those up to a weakly supervised detector, and the whole run.

Tags, a classifier of them, points where it sees classes, proposals of a segmenter prompted there,
a multiple-instance detector on those, its boxes on its own training images, and how good they are.
What is trained on those boxes is in `weaksam_retraining`.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from wsis.recipes import given
from wsis.recipes.plan import FINAL_MODEL
from wsis.recipes.segmenters import how_to_get_segmenter, require_segmenter, segmenter_file_of
from wsis.recipes.weaksam_plan import STAGES, WeakPlan, datasets
from wsis.recipes.weaksam_retraining import (
    mask_stages,
    pseudo_box_stages,
    retrain_stages,
    segmenter_stages,
)
from wsis.recipes.weaksam_training import boxes_stage, check_weights, results_of, training_stage
from wsis.runner import Check, Command, FlagValue, Launch, Run, Stage


def tag_stage(plan: WeakPlan, name: str, part: str, **flags: FlagValue) -> Stage:
    """The classes of a split's images; nothing else of its annotations goes further."""
    output, split = plan.tags(name), getattr(plan.source, part)
    command = Command("tags", flags={**split.tags, **flags, "output": output})
    what = f"which classes the images for {name} show"
    check = Check(given.check_tags)
    return Stage(
        f"tags_{name}",
        what,
        command,
        needs=plan.source.reads,
        makes=(output,),
        checks={output: check},
    )


def tag_stages(plan: WeakPlan) -> list[Stage]:
    """Tags for classifier and clues (with classes of difficult objects), detector, and test."""
    stages = [tag_stage(plan, "train", "train")]
    if plan.source.difficult:
        stages.append(tag_stage(plan, "clues", "train", difficult=True))
    absent = {"allow-absent-classes": True}
    return [*stages, tag_stage(plan, "test", "test", **absent)]


def clue_tags(plan: WeakPlan, part: str) -> Path:
    """The tags with which points of "train" or "test" are found."""
    return plan.tags("clues" if part == "train" and plan.source.difficult else part)


def classifier_stage(plan: WeakPlan) -> Stage:
    tags, folder = clue_tags(plan, "train"), plan.weights.parent
    flags = {"tags": tags, "image-root": plan.source.train.images, "output": folder}
    command = Command(
        "clues", ("train",), {**flags, **plan.classifier}, dict(plan.classifier_config)
    )
    checks = {plan.weights: Check(partial(given.check_classifier, tags=tags), (tags,))}
    needs = (tags, plan.source.train.images)
    what = "a classifier of the tags"
    return Stage("classifier", what, command, needs, (plan.weights,), folder=folder, checks=checks)


def point_stages(plan: WeakPlan, part: str) -> list[Stage]:
    """Points of one part's images, those of attention clustered; of test by predicted classes."""
    tags, images = clue_tags(plan, part), getattr(plan.source, part).images
    folder = plan.output / f"points_{part}"
    makes = tuple(folder / f"points_{source}.npz" for source in plan.point_sources)
    flags = {"weights": plan.weights, "tags": tags, "image-root": images, "output": folder}
    flags |= {"labels": "given" if part == "train" else "predicted", **plan.points}
    command = Command("clues", ("points",), flags, launch=Launch.SHARE)
    check = Check(given.check_points)
    stages = [
        Stage(
            f"points_{part}",
            f"points where the classifier sees classes in the images for {part}",
            command,
            needs=(plan.weights, tags, images),
            makes=makes,
            folder=folder,
            checks=dict.fromkeys(makes, check),
        )
    ]
    if "cross" in plan.point_sources:
        clusters = plan.output / f"clusters_{part}.npz"
        command = Command("clues", ("cluster",), {"points": makes[-1], "output": clusters})
        what, needs = "clusters of the points of attention", (makes[-1],)
        checks = {clusters: check}
        stages.append(Stage(clusters.stem, what, command, needs, (clusters,), checks=checks))
    return stages


def proposal_stage(plan: WeakPlan, part: str) -> Stage:
    """Boxes of one part's images."""
    tags, images = plan.tags(part), getattr(plan.source, part).images
    output = plan.proposal_file(part)
    check = Check(partial(given.check_proposals, tags=tags), (tags,))
    if part in plan.released:
        return released_proposal_stage(plan, part, check)
    flags = {"tags": tags, "image-root": images, "output": output}
    needs: tuple[Path, ...] = (tags, images)
    if plan.proposals == "points":
        points = {
            source: plan.output / f"points_{part}" / f"points_{source}.npz"
            for source in plan.point_sources
        }
        if "cross" in points:
            points["cross"] = plan.output / f"clusters_{part}.npz"
        command = Command("proposals", ("points",), {**flags, **points, **plan.proposal_flags})
        needs += tuple(points.values())
        needs += (plan.segmenter_file,) if plan.segmenter_file else ()
    else:
        flags["kind"] = plan.proposals
        command = Command("proposals", ("grid",), {**flags, **plan.proposal_flags})
    what = f"boxes that may hold an object ({plan.proposals}) of the images for {part}"
    command, checks = replace(command, launch=Launch.SHARE), {output: check}
    name = plan.segmenter_file and str(plan.proposal_flags["segmenter"])
    early = (partial(require_segmenter, name),) if name else ()
    return Stage(output.stem, what, command, needs, (output,), checks=checks, early=early)


def released_proposal_stage(plan: WeakPlan, part: str, check: Check) -> Stage:
    """Boxes of one part's images out of a file of WeakSAM's authors."""
    tags, source, output = plan.tags(part), plan.released[part], plan.proposal_file(part)
    flags = {"proposals": source, "tags": tags, "output": output}
    command = Command("proposals", ("merge",), flags)
    what = f"released boxes of the images for {part}"
    return Stage(output.stem, what, command, (source, tags), (output,), checks={output: check})


def recall_stage(
    plan: WeakPlan, files: dict[str, Path] | None = None, part: str = "train"
) -> Stage:
    """How many true boxes of a part's images the proposals find; nothing reads it."""
    files = files or {plan.proposals: plan.proposal_file(part)}
    report, tags = plan.output / "recall.json", plan.tags(part)
    named = tuple(f"{name}={path}" for name, path in files.items())
    flags = {"proposals": named, "tags": tags, "output": report}
    command = Command("proposals", ("recall",), {**flags, **getattr(plan.source, part).truth})
    needs, checks = (*files.values(), tags), {report: Check(given.check_json)}
    return Stage("recall", "recall of the proposals", command, needs, (report,), checks=checks)


def detector_stages(plan: WeakPlan, name: str = "wsod") -> list[Stage]:
    """The detector with figures on the test images, its boxes on the training images, CorLoc."""
    train, test = plan.proposal_file("train"), plan.proposal_file("test")
    tags, images = plan.tags("train"), (plan.source.train.images, plan.source.test.images)
    what = "a detector that learns from tags which proposals are the objects"
    model = plan.output / name / FINAL_MODEL
    stage = Stage(
        name,
        what,
        Command("train"),
        needs=(tags, train, test, *images),
        early=(partial(check_weights, plan.detector, "MODEL.WEIGHTS FILE", model),),
    )
    sets = datasets(plan.inline("train"), train, plan.source.test_name, test)
    always = (test, images[1])
    training = training_stage(plan, plan.detector, stage, sets, tags, always=always)
    own = datasets("", train, plan.inline("train"), train)
    boxes = boxes_stage(plan, plan.detector, training, own, needs=(train,))
    return [training, boxes, quality_stage(plan, name, boxes.makes[0])]


def detections(plan: WeakPlan, folder: Path) -> Path:
    """The results of an evaluation of the weak detector in a folder."""
    return results_of(plan.detector, folder)


def quality_stage(plan: WeakPlan, name: str, found: Path) -> Stage:
    """AP and CorLoc of the boxes on the training images; nothing reads it."""
    report = plan.output / f"{name}_quality.json"
    flags = {"detections": found, "tags": plan.tags("train"), "output": report}
    command = Command("evaluate-detections", flags={**flags, **plan.source.train.truth})
    checks = {report: Check(given.check_json)}
    what = "AP and CorLoc on the training images"
    return Stage(f"{name}_quality", what, command, (found,), (report,), checks=checks)


def group_stages(plan: WeakPlan) -> dict[str, list[Stage]]:
    """The stages of each group of STAGES, in order; none where the plan has no such stage."""
    uses_points = plan.proposals == "points" and not {"train", "test"} & plan.released.keys()
    return {
        "classifier": [*tag_stages(plan), *([classifier_stage(plan)] if uses_points else [])],
        "points": [
            stage
            for part in (("train", "test") if uses_points else ())
            for stage in point_stages(plan, part)
        ],
        "proposals": [
            *(proposal_stage(plan, part) for part in ("train", "test")),
            recall_stage(plan),
        ],
        "wsod": detector_stages(plan),
        "pseudo_boxes": pseudo_box_stages(plan),
        "retrain": retrain_stages(plan),
        "masks": mask_stages(plan),
        "segmenter": segmenter_stages(plan),
    }


def build_stages(plan: WeakPlan) -> tuple[Stage, ...]:
    """Every stage up to `plan.until`, in order."""
    groups, last = group_stages(plan), STAGES.index(plan.until)
    return tuple(stage for name in STAGES[: last + 1] for stage in groups[name])


def make_run(plan: WeakPlan, stages: tuple[Stage, ...] | None = None) -> Run:
    """The run of a plan; `stages` where they are others than those of `build_stages`."""
    hints = dict.fromkeys(plan.source.reads, plan.source.how_to_get)
    for file in filter(None, (plan.segmenter_file, segmenter_file_of(plan.masks))):
        hints[file] = how_to_get_segmenter(file)
    if plan.segmenter is not None:
        hints |= plan.source.masks.reads
    return Run(stages or build_stages(plan), plan.output, plan.machines, hints)
