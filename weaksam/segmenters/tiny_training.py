"""Train the tiny segmenter on its own scenes.

    python -m weaksam.segmenters.tiny_training OUTPUT.safetensors

writes the weights and, beside them, a json file with the settings and the figures.
"""

import logging
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from weaklabels.files import atomic_bytes, write_json
from weaksam.segmenters.tiny import OBJECT, TinySegmenter
from weaksam.segmenters.tiny_network import PAD_TO, PIXEL_MEAN, STRIDE, Prompts, TinyNetwork
from weaksam.segmenters.tiny_scenes import Scene, draw_scene

COMMAND = "python -m weaksam.segmenters.tiny_training weaksam/segmenters/tiny.safetensors"
MAX_CLICKS = 5
MIN_MEASURED = 100  # pixels of what an object shows, less is a fragment
MEASURED_SIDE = 160
ROUND_TO = 4  # decimals of the figures

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TinyTraining:
    """Settings of the training. sizes: longer sides of scenes, one drawn a batch.

    The rates of prompts (several clicks on an object, clicks on two objects, boxes, clicks on the
    ground) leave single clicks the rest.
    """

    steps: int = 3200
    batch: int = 4
    prompts: int = 16
    sizes: tuple[int, ...] = (96, 128, 160)
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    warmup: float = 0.05
    clip: float = 1.0
    clicks_rate: float = 0.1
    union_rate: float = 0.05
    box_rate: float = 0.15
    ground_rate: float = 0.1
    box_jitter: float = 0.06
    seed: int = 0
    validation_scenes: int = 60
    threads: int = 1


@dataclass(frozen=True)
class Target:
    """One prompt of one scene: clicks (K, 2), box (4,) or None, masks (3, H, W) bool."""

    clicks: np.ndarray
    box: np.ndarray | None
    masks: np.ndarray


def sample_target(rng: np.random.Generator, scene: Scene, settings: TinyTraining) -> Target | None:
    """A random prompt and what it should give; None where the scene has no such place."""
    objects, empty = scene.labels[1], np.zeros(scene.labels.shape, bool)
    names = np.setdiff1d(np.unique(objects), [0])
    kind = rng.random()
    if kind < settings.ground_rate or len(names) == 0:
        clicks = _clicks(rng, objects == 0, 1)
        return None if clicks is None else Target(clicks, None, empty)
    kind -= settings.ground_rate
    mask = objects == rng.choice(names)
    if kind < settings.box_rate:
        box = mask_box(mask)
        sides = np.tile(box[2:] - box[:2], 2)
        box = box + (2 * rng.random(4) - 1) * settings.box_jitter * sides
        return Target((box[:2] + box[2:])[None] / 2 - 0.5, box, np.stack([mask] * 3))
    kind -= settings.box_rate
    if kind < settings.union_rate and len(names) > 1:
        other = objects == rng.choice(names)
        masks = np.stack([mask | other] * 3)
        clicks = np.concatenate([_clicks(rng, mask, 1), _clicks(rng, other, 1)])
        return Target(clicks, None, masks)
    kind -= settings.union_rate
    if kind < settings.clicks_rate:
        clicks = _clicks(rng, mask, int(rng.integers(2, MAX_CLICKS + 1)))
        group = scene.labels[2] == scene.labels[2][mask][0]
        return Target(clicks, None, np.stack([mask, mask, group]))
    clicks = _clicks(rng, mask, 1)
    column, row = clicks[0].astype(int)
    return Target(clicks, None, scene.labels == scene.labels[:, row, column][:, None, None])


def _clicks(rng: np.random.Generator, mask: np.ndarray, count: int) -> np.ndarray | None:
    """Random pixels (count, 2) x, y of a mask."""
    places = np.flatnonzero(mask)
    if len(places) == 0:
        return None
    rows, columns = np.divmod(places[rng.integers(len(places), size=count)], mask.shape[1])
    return np.stack([columns, rows], axis=1).astype(np.float64)


def mask_box(mask: np.ndarray) -> np.ndarray:
    """Half-open box (4,) float64 of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)


def make_batch(step: int, settings: TinyTraining) -> tuple[Tensor, Prompts, Tensor, Tensor]:
    """Images (B, 3, S, S), prompts, mask coverage (G, 3, S/4, S/4) and (G,) whether on the ground.

    A batch depends on the seed and its step alone.
    """
    rng = np.random.default_rng([settings.seed, step])
    side = int(rng.choice(settings.sizes))
    padded = -(-side // PAD_TO) * PAD_TO
    images = torch.full((settings.batch, 3, padded, padded), PIXEL_MEAN)
    targets: list[tuple[int, Target]] = []
    for index in range(settings.batch):
        scene = draw_scene(rng, side)
        height, width = scene.image.shape[:2]
        images[index, :, :height, :width] = torch.from_numpy(scene.image).permute(2, 0, 1).float()
        found = [sample_target(rng, scene, settings) for _ in range(settings.prompts)]
        targets += [(index, target) for target in found if target is not None]
    clicks = np.zeros((len(targets), MAX_CLICKS, 2), np.float32)
    valid = np.zeros((len(targets), MAX_CLICKS), bool)
    boxes = np.full((len(targets), 4), np.nan, np.float32)
    masks = np.zeros((len(targets), 3, padded, padded), np.float32)
    for row, (_, target) in enumerate(targets):
        clicks[row, : len(target.clicks)] = target.clicks
        valid[row, : len(target.clicks)] = True
        if target.box is not None:
            boxes[row] = target.box - 0.5  # edges in the frame of pixel centers
        masks[row, :, : target.masks.shape[1], : target.masks.shape[2]] = target.masks
    prompts = Prompts(
        clicks=torch.from_numpy(clicks),
        valid=torch.from_numpy(valid),
        boxes=torch.from_numpy(boxes),
        images=torch.tensor([index for index, _ in targets]),
    )
    coverage = F.avg_pool2d(torch.from_numpy(masks), STRIDE)
    return images, prompts, coverage, coverage.sum((1, 2, 3)) == 0


def loss_of(logits: Tensor, predicted: Tensor, coverage: Tensor, ground: Tensor) -> Tensor:
    """Cross-entropy and dice of the masks, and the squared error of the predicted IoU."""
    chance = torch.sigmoid(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, coverage, reduction="none").mean((2, 3))
    both = (chance * coverage).sum((2, 3))
    dice = 1 - (2 * both + 1) / (chance.square().sum((2, 3)) + coverage.square().sum((2, 3)) + 1)
    with torch.no_grad():
        drawn, true = logits > 0, coverage > 0.5
        iou = (drawn & true).sum((2, 3)) / (drawn | true).sum((2, 3)).clamp(min=1)
    on_object = (~ground).float()[:, None]
    quality = (predicted - iou * on_object).square()
    return (4 * entropy + dice * on_object + quality).mean()


def train_network(settings: TinyTraining) -> TinyNetwork:
    """Train from scratch; the same settings give the same weights on one machine."""
    torch.set_num_threads(settings.threads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = TinyNetwork()
    optimizer = torch.optim.AdamW(
        network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, settings.steps, pct_start=settings.warmup
    )
    network.train()
    recent = []
    for step in range(settings.steps):
        images, prompts, coverage, ground = make_batch(step, settings)
        logits, predicted = network(network.encode(images), prompts)
        loss = loss_of(logits, predicted, coverage, ground)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
        optimizer.step()
        schedule.step()
        recent.append(loss.item())
        if (step + 1) % 100 == 0:
            logger.info("step %d of %d, loss %.4f", step + 1, settings.steps, np.mean(recent))
            recent = []
    return network.eval()


def measure(network: TinyNetwork, settings: TinyTraining) -> dict[str, float]:
    """Mean IoUs on scenes that the training has not seen, at the scene's full size."""
    segmenter = TinySegmenter(network, "in training")
    best, middle, boxed, background, error = [], [], [], [], []
    for index in range(settings.validation_scenes):
        rng = np.random.default_rng([settings.seed, 1 << 30, index])
        scene = draw_scene(rng, MEASURED_SIDE)
        segmenter.set_image(scene.image)
        for name in np.setdiff1d(np.unique(scene.labels[1]), [0]):
            mask = scene.labels[1] == name
            if np.count_nonzero(mask) < MIN_MEASURED:
                continue
            (clicked,) = segmenter.points(_clicks(rng, mask, 1))
            found = _ious(clicked.masks[0].numpy(), mask)
            best.append(found.max())
            middle.append(found[OBJECT])
            error.append(abs(found[OBJECT] - clicked.predicted_iou[0, OBJECT].item()))
            (boxes,) = segmenter.boxes(mask_box(mask)[None])
            boxed.append(_ious(boxes.masks[0].numpy(), mask)[0])
        ground = _clicks(rng, scene.labels[1] == 0, 1)
        if ground is not None:
            (clicked,) = segmenter.points(ground)
            background.append(clicked.predicted_iou.max().item())
    figures = {
        "objects": len(best),
        "click_best_of_3_iou": np.mean(best),
        "click_object_mask_iou": np.mean(middle),
        "box_iou": np.mean(boxed),
        "predicted_iou_error": np.mean(error),
        "predicted_iou_on_ground": np.mean(background),
    }
    return {name: round(float(value), ROUND_TO) for name, value in figures.items()}


def _ious(masks: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return (masks & truth).sum((1, 2)) / (masks | truth).sum((1, 2))


def train_tiny(settings: TinyTraining, output: Path) -> dict[str, Any]:
    """Train, measure, and write OUTPUT and the json file beside it; returns the json's content."""
    start = time.process_time()
    network = train_network(settings)
    seconds = time.process_time() - start
    report = {
        "command": COMMAND,
        "parameters": sum(p.numel() for p in network.parameters()),
        "settings": asdict(settings),
        "figures": measure(network, settings),
        "training_cpu_seconds": round(seconds),
        "torch": torch.__version__,
    }
    with atomic_bytes(output) as file:
        file.write(save({k: v.contiguous() for k, v in network.state_dict().items()}))
    write_json(output.with_suffix(".json"), report, indent=2)
    return report


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logger.info("%s", train_tiny(TinyTraining(), Path(sys.argv[1])))
