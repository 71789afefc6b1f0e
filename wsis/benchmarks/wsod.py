"""Time the weak detector's targets and its training step against plain twins, in one run.

The twin of MIST's targets is the loop over classes, ranks and proposals that describes them. A
training step is compared with the bare network, the same backbone, pooling and layers, whose
outputs are summed up instead of being trained on: what is left is what multiple-instance learning
costs.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adet.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from weaksam.config import add_weaksam_config
from weaksam.wsod.settings import HEADS
from weaksam.wsod.targets import ProposalTargets, SeedRule, assign_proposals, find_seeds
from wsis.benchmarks.maskrefinenet import Row, best_times
from wsis.config import find_config

CONFIG_FILE = "WeakSAM/voc07_mist.yaml"
TARGETS_SPEED_UP, STEP_OVER_BARE = 10.0, 1.10  # to reach
NUM_CLASSES = 20
SIDE, LONG_SIDE = 480, 640  # pixels of the image of a step


def random_boxes(count: int, width: float, height: float, generator: torch.Generator) -> Tensor:
    """(count, 4) boxes of 20 pixels and more inside an image."""
    size = torch.tensor([width, height])
    low = torch.rand(count, 2, generator=generator) * (size - 21)
    sides = 20 + torch.rand(count, 2, generator=generator) * (size - 20 - low)
    return torch.cat([low, torch.minimum(low + sides, size)], dim=1)


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Of two boxes x0, y0, x1, y1."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def targets_by_loops(
    boxes: Tensor, scores: Tensor, tags: Tensor, rule: SeedRule
) -> tuple[list[int], list[float], list[int]]:
    """Classes, weights and seed rows of all proposals, one by one (SPEC_WEAKSAM 8.4, MIST)."""
    rows, values = boxes.tolist(), scores.tolist()
    kept = 1 if len(rows) < rule.min_rois else max(1, int(rule.share * len(rows)))
    seeds = []
    for c in tags.tolist():
        order = sorted(range(len(rows)), key=lambda r, c=c: -values[r][c])[:kept]
        for i, r in enumerate(order):
            if all(iou(rows[r], rows[better]) < rule.iou for better in order[:i]):
                seeds.append((r, c))
    classes, weights, followed = [], [], []
    for box in rows:
        overlaps = [iou(box, rows[r]) for r, _ in seeds]
        r, c = seeds[overlaps.index(max(overlaps))]
        classes.append(c if max(overlaps) >= rule.fg_iou else scores.shape[1])
        weights.append(values[r][c])
        followed.append(r)
    return classes, weights, followed


def targets(boxes: Tensor, scores: Tensor, tags: Tensor, rule: SeedRule) -> ProposalTargets:
    """As the detector computes them."""
    return assign_proposals(boxes, find_seeds(boxes, scores, tags, rule), scores.shape[1], rule)


def targets_row(count: int = 1000, tags: int = 3, repeats: int = 3) -> Row:
    """MIST's targets of an image against the loops."""
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(count, 500, 375, generator)
    scores = torch.rand(count, NUM_CLASSES, generator=generator)
    shown = torch.arange(tags) * 2
    rule = HEADS["mist"].seeds
    classes, _, followed = targets_by_loops(boxes, scores, shown, rule)
    ours = targets(boxes, scores, shown, rule)
    same = ours.classes.tolist() == classes and ours.seeds.tolist() == followed
    loop, batched = best_times(
        repeats,
        partial(targets_by_loops, boxes, scores, shown, rule),
        partial(targets, boxes, scores, shown, rule),
    )
    return Row(
        f"MIST targets, {count} RoIs, {tags} classes, {'the same' if same else 'OTHERS'}",
        f"{loop * 1e3:.1f} ms",
        f"{batched * 1e3:.2f} ms",
        loop / batched,
        f">= {TARGETS_SPEED_UP:g}",
        same and loop / batched >= TARGETS_SPEED_UP,
    )


def build_detector(*overrides: Any) -> nn.Module:
    """The published VOC 2007 detector with random weights, in training, without DropBlock.

    DropBlock's second pass has an optimizer of its own and is no part of this step.
    """
    cfg = get_cfg()
    add_weaksam_config(cfg)
    cfg.merge_from_file(find_config(CONFIG_FILE))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WSOD.DROP_BLOCK.ENABLED", False])
    cfg.merge_from_list(list(overrides))
    torch.manual_seed(0)
    return build_model(cfg).train()


def make_input(count: int, size_hw: tuple[int, int], tags: int) -> dict[str, Any]:
    """A random image with proposals and tags."""
    generator = torch.Generator().manual_seed(1)
    boxes = random_boxes(count, size_hw[1], size_hw[0], generator)
    proposals = Instances(size_hw, proposal_boxes=Boxes(boxes))
    proposals.objectness_logits = torch.ones(count)
    image = torch.randint(0, 256, (3, *size_hw), generator=generator, dtype=torch.uint8)
    return {"image": image, "proposals": proposals, "image_labels": list(range(tags))}


def training_step(model: nn.Module, batch: list[dict[str, Any]]) -> None:
    """Forward and backward of the detector's losses."""
    model.zero_grad(set_to_none=True)
    sum(model(batch).values()).backward()


def bare_step(model: nn.Module, batch: list[dict[str, Any]]) -> None:
    """Forward and backward of the same network, whose outputs are summed up."""
    model.zero_grad(set_to_none=True)
    features = model.backbone(model.preprocess_image(batch).tensor)
    heads = model.roi_heads
    boxes = [x["proposals"].proposal_boxes for x in batch]
    pooled = heads.pooler([features[name] for name in heads.in_features], boxes)
    outputs = heads.predictor(heads.box_head(pooled))
    columns = (outputs.classification, outputs.detection, *outputs.refinements, *outputs.deltas)
    sum(column.sum() for column in columns).backward()


def step_row(
    count: int = 500,
    size_hw: tuple[int, int] = (SIDE, LONG_SIDE),
    tags: int = 3,
    repeats: int = 3,
    overrides: Sequence[Any] = (),
) -> Row:
    """A training step against the bare network."""
    model = build_detector(*overrides)
    batch = [make_input(count, size_hw, tags)]
    training_step(model, batch)  # what libraries set up once is not counted
    bare, ours = best_times(
        repeats, partial(bare_step, model, batch), partial(training_step, model, batch)
    )
    return Row(
        f"WSOD step, {count} proposals, VGG-16, {size_hw[0]} x {size_hw[1]}",
        f"{bare:.2f} s",
        f"{ours:.2f} s",
        ours / bare,
        f"<= {STEP_OVER_BARE:g}",
        ours / bare <= STEP_OVER_BARE,
    )


def measure(repeats: int = 3) -> list[Row]:
    """The table; all in one run, with the threads that torch has."""
    return [targets_row(repeats=repeats), step_row(repeats=repeats)]
