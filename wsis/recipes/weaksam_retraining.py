"""The stages of WeakSAM behind its weak detector: pseudo boxes, a detector, masks, a segmenter.

Which of the weak detector's boxes on its training images are learned from, a detector that is
trained on those, masks that a promptable segmenter makes of them, and an instance segmenter that is
trained on the masks.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from weaksam.segmenters.extras import require_extra
from wsis.recipes import given
from wsis.recipes.plan import FINAL_MODEL, tuple_text
from wsis.recipes.segmenters import require_segmenter, segmenter_file_of
from wsis.recipes.weaksam_plan import BOX_SOURCES, MaskTest, Network, WeakPlan
from wsis.recipes.weaksam_training import (
    boxes_stage,
    check_weights,
    network_config,
    results_of,
    training_stage,
)
from wsis.runner import Check, Command, FlagValue, Launch, PipelineError, Stage

PSEUDO_BOXES, RETRAIN, MASKS, SEGMENTER = "pseudo_boxes", "retrain", "masks", "segmenter"
OF_TRANSFORMERS = ("DINO", "MaskFormer")  # networks that need that package


def labels_file(plan: WeakPlan, name: str) -> Path:
    """The label file that the stage of this name makes."""
    return plan.output / f"{name}.json"


def images_with(plan: WeakPlan, labels: Path, images: Path) -> dict[str, str]:
    """Training images with the labels of a file, as DATASETS.TRAIN names them."""
    name = f"{plan.output.name}_{plan.source.name}_{labels.stem}"
    return {"DATASETS.TRAIN": tuple_text([f"{name}={labels.absolute()}:{images}"])}


def pseudo_box_stages(plan: WeakPlan) -> list[Stage]:
    """The boxes to learn from, and how good they are."""
    found = results_of(plan.detector, plan.output / "wsod_boxes")
    chosen = choice_stage(plan, PSEUDO_BOXES, found, plan.pseudo_boxes)
    return [chosen, box_quality_stage(plan, PSEUDO_BOXES)]


def choice_stage(
    plan: WeakPlan,
    name: str,
    detections: Path,
    flags: Mapping[str, FlagValue],
    left_out: Path | None = None,
) -> Stage:
    """Which of a detector's boxes on the training images are learned from.

    Args:
        flags: the rule and its thresholds.
        left_out: list of images that are not learned from.
    """
    tags, output = plan.tags("train"), labels_file(plan, name)
    flags = {"detections": detections, "tags": tags, "output": output, **flags}
    needs: tuple[Path, ...] = (detections, tags)
    if left_out:
        flags["leave-out"], needs = left_out, (*needs, left_out)
    command = Command("pseudo-boxes", flags=flags)
    checks = {output: Check(given.check_boxes)}
    what = "the boxes that count as labels"
    return Stage(name, what, command, needs, (output,), checks=checks)


def box_quality_stage(plan: WeakPlan, name: str) -> Stage:
    """Precision, recall and F1 of chosen boxes against true ones; nothing reads it."""
    boxes, report = labels_file(plan, name), plan.output / f"{name}_quality.json"
    flags = {"boxes": boxes, "tags": plan.tags("train"), "output": report}
    command = Command("evaluate-detections", flags={**flags, **plan.source.train.truth})
    checks, needs = {report: Check(given.check_json)}, (boxes, plan.tags("train"))
    what = "precision, recall and F1 of these boxes"
    return Stage(report.stem, what, command, needs, (report,), checks=checks)


def retrain_stages(plan: WeakPlan) -> list[Stage]:
    """The detector that learns from pseudo boxes; its own boxes where masks are made of them."""
    if plan.retrain is None:
        return []
    training = retrain_stage(plan, RETRAIN, plan.retrain, labels_file(plan, PSEUDO_BOXES))
    if plan.segmenter is None or plan.mask_boxes != BOX_SOURCES[1]:
        return [training]
    own = {"DATASETS.TRAIN": "()", "DATASETS.TEST": tuple_text([plan.inline("train")])}
    return [training, boxes_stage(plan, plan.retrain, training, own)]


def retrain_stage(
    plan: WeakPlan, name: str, network: Network, labels: Path, needs: tuple[Path, ...] = ()
) -> Stage:
    """A detector that learns from boxes, with figures on the test images.

    Args:
        needs: what it needs beside the labels and the images.
    """
    config = images_with(plan, labels, plan.source.train.images)
    config |= {"DATASETS.TEST": tuple_text([plan.source.test_name])}
    images = plan.source.train.images, plan.source.test.images
    stage = Stage(
        name,
        "a detector that learns from these boxes",
        Command("train"),
        needs=(labels, *needs, *images),
        early=(partial(check_network, plan, name, network, "--retrain-options"),),
    )
    return training_stage(plan, network, stage, config, plan.tags("train"), always=images[1:])


def mask_stages(plan: WeakPlan) -> list[Stage]:
    """Masks of pseudo boxes; which boxes these are, see BOX_SOURCES."""
    if plan.segmenter is None or MASKS in plan.released:
        return []
    stages, boxes = [], labels_file(plan, PSEUDO_BOXES)
    left_out, of_weak = plan.source.masks.left_out, plan.mask_boxes == BOX_SOURCES[0]
    if left_out or not of_weak:
        network = plan.detector if of_weak else plan.retrain
        found = results_of(network, plan.output / f"{plan.mask_boxes}_boxes")
        stages = [choice_stage(plan, "mask_boxes", found, plan.pseudo_boxes, left_out)]
        boxes = stages[0].makes[0]
    return [*stages, box_mask_stage(plan, MASKS, boxes, plan.masks)]


def box_mask_stage(plan: WeakPlan, name: str, boxes: Path, flags: Mapping[str, FlagValue]) -> Stage:
    """Masks that a segmenter makes of boxes."""
    output, images = labels_file(plan, name), plan.source.train.images
    flags = {"boxes": boxes, "image-root": images, "output": output, **flags}
    file = segmenter_file_of(flags)
    command = Command("box-masks", flags=flags, launch=Launch.SHARE)
    return Stage(
        name,
        "masks, of which each box is the prompt",
        command,
        needs=(boxes, images, *((file,) if file else ())),
        makes=(output,),
        early=(partial(require_segmenter, str(flags["segmenter"])),) if file else (),
        checks={output: Check(given.check_masks)},
    )


def require_file(path: Path, remedy: str) -> None:
    """PipelineError with the remedy where a file is missing."""
    if not path.exists():
        raise PipelineError(f"{path} is missing: {remedy}")


def segmenter_stages(plan: WeakPlan) -> list[Stage]:
    """The segmenter that learns from masks, with figures on the test images."""
    if plan.segmenter is None:
        return []
    test, images = plan.source.masks, plan.source.train.images
    labels = labels_file(plan, MASKS)
    if MASKS in plan.released:
        labels, images = plan.released[MASKS], test.released_images or images
    stages, name, needs = [], test.name, (*test.reads,)
    if test.voc is not None:
        stages = [mask_test_stage(plan, test)]
        (file,) = stages[0].makes
        name = f"{plan.output.name}_{file.stem}={file.absolute()}:{plan.source.test.images}"
        needs = (file, plan.source.test.images)
    training = segmenter_stage(plan, SEGMENTER, plan.segmenter, (labels, images), name, needs)
    return [*stages, training]


def mask_test_stage(plan: WeakPlan, test: MaskTest) -> Stage:
    """True masks of the images that the segmenter is measured on, as a COCO file."""
    output = labels_file(plan, "mask_test")
    flags = {"voc": test.voc, "split": test.split, "output": output}
    command, checks = Command("voc-to-coco", flags=flags), {output: Check(given.check_masks)}
    what = "true masks of the images that the segmenter is measured on"
    early = tuple(partial(require_file, *item) for item in test.reads.items())
    needs = tuple(test.reads)
    return Stage(output.stem, what, command, needs, (output,), checks=checks, early=early)


def segmenter_stage(
    plan: WeakPlan,
    name: str,
    network: Network,
    learned: tuple[Path, Path],
    test: str,
    needs: tuple[Path, ...],
) -> Stage:
    """An instance segmenter that learns from masks.

    Args:
        learned: file of the masks, folder of the images.
        test: what DATASETS.TEST says.
        needs: what the evaluation needs.
    """
    config = {**images_with(plan, *learned), "DATASETS.TEST": tuple_text([test])}
    hints = {path: hint for path, hint in plan.source.masks.reads.items() if path in needs}
    check = partial(check_network, plan, name, network, "--segmenter-options")
    stage = Stage(
        name,
        "an instance segmenter that learns from these masks",
        Command("train"),
        needs=(*learned, *needs),
        early=(check, *(partial(require_file, *item) for item in hints.items())),
    )
    config |= plan.source.masks.config
    return training_stage(plan, network, stage, config, plan.tags("train"), always=needs)


def check_network(plan: WeakPlan, name: str, network: Network, option: str) -> None:
    """PipelineError where a package or weights are missing that a training begins with."""
    model = plan.output / name / FINAL_MODEL
    check_weights(network, f"{option} 'MODEL.WEIGHTS FILE'", model)
    architecture = network_config(network).MODEL.META_ARCHITECTURE
    if architecture in OF_TRANSFORMERS and not model.exists():
        try:
            require_extra("transformers", "transformers")
        except ImportError as error:
            raise PipelineError(f"{architecture}: {error}") from error
