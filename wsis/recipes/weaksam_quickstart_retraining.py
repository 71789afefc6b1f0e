"""WeakSAM's quick start behind MIST: pseudo boxes, detectors that learn from them, masks.

Every network here begins with the backbone that the classifier of tags has trained, and sees the
same number of images.
"""

from dataclasses import dataclass
from pathlib import Path

from wsis.recipes.pointwssis import SUMMARY
from wsis.recipes.weaksam_plan import Network, WeakPlan
from wsis.recipes.weaksam_retraining import (
    box_mask_stage,
    box_quality_stage,
    choice_stage,
    labels_file,
    retrain_stage,
    segmenter_stage,
)
from wsis.recipes.weaksam_training import network_config, results_of
from wsis.runner import FlagValue, Stage

DETECTOR_CONFIG = "configs/Quickstart/weak_faster_rcnn.yaml"
SEGMENTER_CONFIG = "configs/Quickstart/weak_mask_rcnn.yaml"
TOP1, ADAPTIVE = "boxes_top1", "boxes_adaptive"
RULES: dict[str, tuple[str, dict[str, FlagValue]]] = {  # file: title, flags of wsis pseudo-boxes
    TOP1: ("top-1", {"rule": "top1"}),
    ADAPTIVE: ("adaptive", {"rule": "adaptive"}),
}
MASKS, MASK_RCNN = "masks_adaptive", "mask_rcnn"
PROMPTED = "grabcut"  # needs no weights
DROP_FROM = 2 / 9  # of the training, as published for VOC 2007
SMOKE_ITERATIONS = 4


@dataclass(frozen=True)
class Row:
    """One detector of the table. boxes: the label file that it learns from; None: true boxes."""

    name: str
    title: str
    boxes: str | None
    drop: bool = False


ROWS = (
    Row("faster_rcnn_top1", "Faster R-CNN, top-1 boxes", TOP1),
    Row("faster_rcnn_adaptive", "Faster R-CNN, adaptive boxes", ADAPTIVE),
    Row("faster_rcnn_drop", "Faster R-CNN, adaptive boxes, RoI drop", ADAPTIVE, drop=True),
    Row("faster_rcnn_true", "Faster R-CNN, true boxes (fully supervised)", None),
)


@dataclass(frozen=True)
class RetrainedRun:
    """Where the results of one seed are, by title.

    boxes: reports of pseudo boxes.  detectors: COCO results on the test images.
    masks: the summary of the segmenter's evaluation.  images_seen: by each network.
    """

    boxes: dict[str, Path]
    detectors: dict[str, Path]
    masks: dict[str, Path]
    images_seen: int


def network(plan: WeakPlan, config: str, *, smoke: bool, drop: bool = False) -> Network:
    """A network that begins with the classifier's backbone."""
    options = {"SEED": plan.overrides["SEED"], "MODEL.WEIGHTS": str(plan.weights)}
    if smoke:
        options |= {"SOLVER.MAX_ITER": str(SMOKE_ITERATIONS), "SOLVER.WARMUP_ITERS": "1"}
        options["SOLVER.CHECKPOINT_PERIOD"] = str(SMOKE_ITERATIONS)
    if drop:
        steps = network_config(Network(config, options)).SOLVER.MAX_ITER
        options["MODEL.INSTANCE_DROP.ISON"] = "True"
        options["MODEL.INSTANCE_DROP.OPERATE_ITER"] = str(round(steps * DROP_FROM))
    return Network(config, options)


def labels_of(plan: WeakPlan, row: Row) -> Path:
    """What a detector learns from."""
    if row.boxes is None:
        return plan.source.train.truth["annotations"]
    return labels_file(plan, row.boxes)


def retraining_stages(plan: WeakPlan, detections: Path, *, smoke: bool) -> list[Stage]:
    """All stages behind the weak detector, whose boxes on the training images are `detections`."""
    stages = []
    for name, (_, flags) in RULES.items():
        stages += [choice_stage(plan, name, detections, flags), box_quality_stage(plan, name)]
    for row in ROWS:
        own = network(plan, DETECTOR_CONFIG, smoke=smoke, drop=row.drop)
        stages.append(retrain_stage(plan, row.name, own, labels_of(plan, row), (plan.weights,)))
    images = plan.source.train.images
    boxes = labels_file(plan, ADAPTIVE)
    masks = box_mask_stage(plan, MASKS, boxes, {"segmenter": PROMPTED})
    test = plan.source.masks
    own = network(plan, SEGMENTER_CONFIG, smoke=smoke)
    needs = (plan.weights, *test.reads, plan.source.test.images)
    learned = (*masks.makes, images)
    return [*stages, masks, segmenter_stage(plan, MASK_RCNN, own, learned, test.name, needs)]


def retrained_run(plan: WeakPlan, *, smoke: bool) -> RetrainedRun:
    """Where the results of `retraining_stages` are."""
    own = network(plan, DETECTOR_CONFIG, smoke=smoke)
    solver = network_config(own).SOLVER
    return RetrainedRun(
        boxes={
            title: labels_file(plan, name).with_name(f"{name}_quality.json")
            for name, (title, _) in RULES.items()
        },
        detectors={row.title: results_of(own, plan.output / row.name) for row in ROWS},
        masks={
            f"Mask R-CNN, masks of adaptive boxes ({PROMPTED})": plan.output / MASK_RCNN / SUMMARY
        },
        images_seen=solver.MAX_ITER * solver.IMS_PER_BATCH,
    )
