"""Time a training step of Faster R-CNN with RoI drop against one without, in one run.

    python -m wsis.benchmarks.roi_drop

A step differs in the losses of the box predictor alone, by far less than the noise of whole steps.
So these losses (forward and backward, for the regions of a whole batch) are timed with and without
the drop, and the difference is related to the time of a step.
"""

import sys
from collections.abc import Sequence

import torch

from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import build_box_predictor
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from weaksam.config import add_weaksam_config
from wsis.benchmarks.maskrefinenet import Row, best_times
from wsis.config import find_config

CONFIG_FILE = "WeakSAM/voc07_faster_rcnn.yaml"
LARGEST_RATIO = 1.02  # to reach
FEATURES = 1024  # of a region
OBJECTS = 5  # of an image
LOSS_TURNS = 20


def make_config(drop: bool) -> CfgNode:
    """The detector's config on the CPU, with RoI drop from the first iteration or without."""
    cfg = get_cfg()
    add_weaksam_config(cfg)
    cfg.merge_from_file(find_config(CONFIG_FILE))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.INSTANCE_DROP.ISON", drop])
    cfg.MODEL.INSTANCE_DROP.OPERATE_ITER = 0
    return cfg


def make_objects(size_hw: tuple[int, int], num_classes: int, count: int = OBJECTS) -> Instances:
    """Objects of an image, boxes of at least 16 pixels."""
    height, width = size_hw
    corner = torch.rand(count, 2) * torch.tensor([width - 16, height - 16])
    room = torch.tensor([width, height]) - corner
    boxes = torch.cat([corner, corner + 16 + torch.rand(count, 2) * (room - 16)], dim=1)
    classes = torch.randint(0, num_classes, (count,))
    return Instances(size_hw, gt_boxes=Boxes(boxes), gt_classes=classes)


def measure(*, size_hw: tuple[int, int] = (480, 640), repeats: int = 3) -> list[Row]:
    """The table; one image a step, with the threads that torch has."""
    torch.manual_seed(0)
    cfg = make_config(drop=True)
    model = build_model(cfg)
    image = {"image": torch.randint(0, 256, (3, *size_hw), dtype=torch.uint8)}
    image["instances"] = make_objects(size_hw, cfg.MODEL.ROI_HEADS.NUM_CLASSES)

    def step() -> None:
        model.zero_grad()
        sum(model([image]).values()).backward()

    # The regions of one image: a quarter of them are objects, as sampled.
    count = cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
    regions = make_objects(size_hw, cfg.MODEL.ROI_HEADS.NUM_CLASSES, count)
    regions.proposal_boxes = Boxes(regions.gt_boxes.tensor + 4 * torch.rand(count, 4))
    regions.gt_classes[count // 4 :] = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    features = torch.randn(count, FEATURES)
    predictors = [build_box_predictor(make_config(on), ShapeSpec(FEATURES)) for on in (False, True)]
    predictors[1].load_state_dict(predictors[0].state_dict())
    predictions = predictors[0](features)
    predictions = [values.detach().requires_grad_() for values in predictions]

    def losses(predictor: torch.nn.Module) -> None:
        sum(predictor.losses(predictions, [regions]).values()).backward()

    with EventStorage(0) as storage:
        (whole,) = best_times(repeats, step)
        plain, dropping = best_times(
            repeats * LOSS_TURNS, lambda: losses(predictors[0]), lambda: losses(predictors[1])
        )
    recorded = "instance_drop/cls" in storage.latest()
    ratio = 1 + (dropping - plain) / whole
    return [
        Row(
            f"training step of {CONFIG_FILE} with RoI drop, box losses {plain * 1e3:.2f} ms "
            f"without and {dropping * 1e3:.2f} ms with it",
            f"{whole:.2f} s",
            f"{whole + dropping - plain:.2f} s",
            ratio,
            f"<= {LARGEST_RATIO:g}",
            recorded and ratio <= LARGEST_RATIO,
        )
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a figure misses its target."""
    rows = measure()
    for row in rows:
        print(
            f"{row.what}: {row.baseline} without, {row.ours} with, {row.figure:.4f} ({row.target})"
        )
    return 0 if all(row.reached for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
