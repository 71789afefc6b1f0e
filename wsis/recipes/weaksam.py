"""The stages of WeakSAM, from image tags to a weakly supervised detector.

Tags, a classifier of them, points where it sees classes, proposals of a segmenter prompted there,
a multiple-instance detector on those, its boxes on its own training images, and how good they are.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from wsis.config import load_config
from wsis.recipes import given
from wsis.recipes.plan import FINAL_MODEL
from wsis.recipes.pointwssis import RESULTS, SUMMARY, shipped_config
from wsis.recipes.segmenters import how_to_get_segmenter
from wsis.recipes.weaksam_plan import STAGES, WeakPlan, datasets
from wsis.runner import Check, Command, FlagValue, Launch, PipelineError, Run, Stage
from wsis.training import AUGMENTED_FOLDER


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
        before=(partial(check_pretrained, plan),),
        checks={output: check},
    )


def check_pretrained(plan: WeakPlan) -> None:
    """What later stages take from elsewhere is there: weights of the segmenter, of the backbone."""
    path, last = plan.segmenter_file, STAGES.index(plan.until)
    if last >= STAGES.index("proposals") and path and not path.is_file():
        raise PipelineError(f"{path} is missing: {how_to_get_segmenter(path)}")
    if last < STAGES.index("wsod") or "MODEL.WEIGHTS" in plan.overrides:
        return
    if not load_config(shipped_config(plan.config), num_gpus=0).MODEL.WEIGHTS:
        raise PipelineError(
            f"{plan.config} names no MODEL.WEIGHTS, so the detector would begin with random ones: "
            "add MODEL.WEIGHTS FILE with the ImageNet weights of its backbone (for VGG-16 Caffe's, "
            "with torchvision's names), or MODEL.WEIGHTS '' to begin so"
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
    check = Check(partial(given.check_proposals, tags=tags), (tags,))
    command = replace(command, launch=Launch.SHARE)
    return Stage(output.stem, what, command, needs, (output,), checks={output: check})


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


def train(plan: WeakPlan, output: Path, sets: dict[str, str]) -> Command:
    """Training of the detector and its evaluation; --resume starts afresh without a checkpoint."""
    device = {"MODEL.DEVICE": "cpu"} if plan.machines.num_gpus == 0 else {}
    flags = {"config-file": shipped_config(plan.config), "resume": True}
    config = {"OUTPUT_DIR": str(output), **sets, **device, **plan.overrides}
    return Command("train", flags=flags, config=config, launch=Launch.SPAWN)


def detector_stages(plan: WeakPlan, name: str = "wsod") -> list[Stage]:
    """The detector with figures on the test images, its boxes on the training images, CorLoc."""
    folder, boxes = plan.output / name, plan.output / f"{name}_boxes"
    model, summary, found = folder / FINAL_MODEL, folder / SUMMARY, detections(plan, folder)
    proposals = plan.proposal_file("train"), plan.proposal_file("test")
    sets = datasets(plan.inline("train"), proposals[0], plan.source.test_name, proposals[1])
    command = train(plan, folder, sets)
    images = plan.source.train.images, plan.source.test.images
    check = partial(given.check_network, command=command)
    tags = plan.tags("train")
    training = Stage(
        name,
        "a detector that learns from tags which proposals are the objects",
        command,
        needs=(tags, *proposals, *images),
        makes=(model, summary),
        leaves=(found,),
        folder=folder,
        checks={model: Check(partial(check, like=tags), (tags,)), summary: Check(given.check_json)},
    )
    evaluation = replace(
        command,
        flags={"config-file": command.flags["config-file"], "eval-only": True},
        config={**command.config, "DATASETS.TRAIN": "()", "MODEL.WEIGHTS": str(model)},
    )
    training = replace(
        training,
        rest=replace(training, what=f"{model.name} is given: its evaluation", command=evaluation),
    )
    return [training, boxes_stage(plan, name, evaluation, boxes), quality_stage(plan, name, boxes)]


def boxes_stage(plan: WeakPlan, name: str, evaluation: Command, boxes: Path) -> Stage:
    """The detector's boxes on its own training images, of which it is told the tags alone."""
    proposals = plan.proposal_file("train")
    sets = datasets("", proposals, plan.inline("train"), proposals)
    command = replace(evaluation, config={**evaluation.config, **sets, "OUTPUT_DIR": str(boxes)})
    output = detections(plan, boxes)
    return Stage(
        boxes.name,
        "its boxes on its training images",
        command,
        needs=(Path(evaluation.config["MODEL.WEIGHTS"]), proposals, plan.tags("train")),
        makes=(output,),
        folder=boxes,
        checks={output: Check(given.check_json)},
    )


def detections(plan: WeakPlan, folder: Path) -> Path:
    """The results of an evaluation: those of test-time augmentation where the detector has it."""
    words = [word for pair in plan.overrides.items() for word in pair]
    is_augmented = load_config(shipped_config(plan.config), words, num_gpus=0).TEST.AUG.ENABLED
    return folder / (Path(AUGMENTED_FOLDER, RESULTS.name) if is_augmented else RESULTS)


def quality_stage(plan: WeakPlan, name: str, boxes: Path) -> Stage:
    """AP and CorLoc of the boxes on the training images; nothing reads it."""
    found, report = detections(plan, boxes), plan.output / f"{name}_quality.json"
    flags = {"detections": found, "tags": plan.tags("train"), "output": report}
    command = Command("evaluate-detections", flags={**flags, **plan.source.train.truth})
    checks = {report: Check(given.check_json)}
    what = "AP and CorLoc on the training images"
    return Stage(f"{name}_quality", what, command, (found,), (report,), checks=checks)


def build_stages(plan: WeakPlan) -> tuple[Stage, ...]:
    """Every stage up to `plan.until`, in order."""
    uses_points = plan.proposals == "points"
    groups = {
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
    }
    last = STAGES.index(plan.until)
    return tuple(stage for name in STAGES[: last + 1] for stage in groups[name])


def make_run(plan: WeakPlan, stages: tuple[Stage, ...] | None = None) -> Run:
    """The run of a plan; `stages` where they are others than those of `build_stages`."""
    hints = dict.fromkeys(plan.source.reads, plan.source.how_to_get)
    if plan.segmenter_file:
        hints[plan.segmenter_file] = how_to_get_segmenter(plan.segmenter_file)
    return Run(stages or build_stages(plan), plan.output, plan.machines, hints)
