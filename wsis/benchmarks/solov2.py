"""Time SOLOv2's prompts and inference as parts of its plain forward, and mask NMS against a loop.

CPU, float32, seeded random weights. The baseline is the plain forward: backbone, mask branch,
and both towers and both prediction convolutions of the instance branch on every cell.

- "prompt=point after the network": reading the prompts, then all that `SOLOv2.inference` does once
  backbone, mask branch and towers have run: prediction convolutions at the points' cells (although
  the baseline, too, holds them), masks of all points on all levels, choice of the level, NMS,
  enlargement, boxes. The towers' outputs are computed beforehand and handed in. Not "whole image
  minus plain forward": what `point` saves in the network would be taken off its own cost there.
- "whole image": `model(inputs)`, from the pixels to the results, as a user calls it.
- "prompt=none after the network": from the class logits and kernels of all cells to the results,
  with Matrix NMS. The category biases are shifted so that the wanted number of cells and classes
  pass SCORE_THR.
- "mask NMS": against the definition, a double loop over pairs of masks, whose result is the same.

All that is compared takes turns within each repeat, and the medians are divided, so that the
ratios hold on a busy machine, where the seconds do not.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from adet.modeling.solov2 import SOLOv2, get_prompt
from adet.modeling.solov2.inference import segment
from adet.modeling.solov2.nms import mask_nms
from adet.modeling.solov2.predictions import Predictions
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from wsis.config import load_config

CONFIG_FILE = "PointWSSIS/R50_teacher.yaml"
# In a repeat; those that run the network have one.
TURNS_OF_SHORT_PARTS, TURNS_OF_MASK_NMS = 3, 15
# To reach, as parts of the plain forward: by number of points, whole image, prompt none.
POINT_SHARES = {60: 0.08, 5: 0.02}
SIZED_SHARE, NONE_SHARE = 0.75, 0.17
MASK_NMS_SPEED_UP = 20.0


@dataclass(frozen=True)
class Row:
    """One line of the table; `target` and `reached` are None where the line is for information."""

    what: str
    seconds: float
    ratio: float
    target: str | None = None
    reached: bool | None = None


@dataclass(frozen=True)
class Scale:
    """How large the measured problem is; the defaults are the table's."""

    image_hw: tuple[int, int] = (512, 640)
    points: tuple[int, ...] = tuple(POINT_SHARES)
    candidates: int = 3764
    nms_masks: int = 300
    nms_hw: tuple[int, int] = (128, 160)


@dataclass(frozen=True)
class FinishedHead:
    """An instance branch that has run: maps (B, C, S, S) a level in place of the towers."""

    category: Sequence[Tensor]
    kernels: Sequence[Tensor]
    cate_pred: nn.Module
    kernel_pred: nn.Module

    def category_towers(self, grid_features: Sequence[Tensor]) -> Sequence[Tensor]:
        return self.category

    def kernel_towers(self, grid_features: Sequence[Tensor]) -> Sequence[Tensor]:
        return self.kernels


def random_ellipses(rng: np.random.Generator, count: int, size_hw: tuple[int, int]) -> np.ndarray:
    """Masks (N, H, W) of 0 and 1, radii between 1/64 and 1/5 of the sides."""
    size_xy = np.array(size_hw[::-1])
    masks = np.zeros((count, *size_hw), dtype=np.uint8)
    for mask in masks:
        radii = rng.uniform(size_xy / 64, size_xy / 5)
        center = rng.uniform(radii, size_xy - radii)
        ellipse = (center.round().astype(int).tolist(), radii.round().astype(int).tolist())
        cv2.ellipse(mask, *ellipse, 0, 0, 360, 1, thickness=-1)
    return masks


def make_input(
    rng: np.random.Generator, count: int, num_classes: int, size_hw: tuple[int, int]
) -> list[dict]:
    """A batch of one image of noise and colored ellipses, labeled with points and boxes."""
    masks = random_ellipses(rng, count, size_hw)
    image = rng.integers(0, 256, (3, *size_hw), dtype=np.uint8)
    for mask in masks:
        image[:, mask > 0] = (image[:, mask > 0] + rng.integers(0, 256, (3, 1))) // 2
    boxes = BitMasks(torch.from_numpy(masks)).get_bounding_boxes()
    instances = Instances(size_hw)
    instances.gt_classes = torch.from_numpy(rng.integers(0, num_classes, count))
    instances.gt_boxes = boxes
    instances.gt_points = boxes.get_centers()
    height, width = size_hw
    return [
        {
            "image": torch.from_numpy(image),
            "instances": instances,
            "height": height,
            "width": width,
        }
    ]


def make_model(config_file: str) -> SOLOv2:
    """The configured network with seeded random weights, on the CPU."""
    cfg = load_config(config_file, num_gpus=0)
    torch.manual_seed(0)
    return build_model(cfg).eval()


def plain_forward(model: SOLOv2, pixels: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The network and nothing else: class logits and kernels a level, mask feature."""
    features = model.backbone(pixels)
    category, kernels = model.ins_head([features[f] for f in model.instance_in_features])
    return category, kernels, model.mask_head([features[f] for f in model.mask_in_features])


def calibrate(model: SOLOv2, predictions: Predictions, wanted: int) -> None:
    """Shift the category biases so that `wanted` local maxima of the scores pass SCORE_THR.

    One more or less may pass where the scores nearest to it differ by float32's precision only.
    """
    scores = predictions.class_scores()
    logits = torch.logit(scores.flatten().double()).sort(descending=True).values
    border = (logits[wanted - 1] + logits[wanted]) / 2
    threshold = torch.logit(torch.tensor(model.settings.score_thr, dtype=torch.float64))
    model.ins_head.cate_pred.bias += threshold - border


def after_points(model: SOLOv2, predictions: Predictions, batched_inputs: list[dict]) -> list[dict]:
    """Results of prompt `point` from finished towers."""
    prompt = get_prompt("point")
    labels = prompt.read(batched_inputs, model.device)
    candidates = prompt.choose(predictions, labels, model.settings)
    return model.postprocess(batched_inputs, predictions, candidates, labels)


def after_none(model: SOLOv2, predictions: Predictions) -> tuple[int, Instances]:
    """Number of candidates and results of prompt `none`, Matrix NMS, from finished predictions."""
    settings = dataclasses.replace(model.settings, nms_type="matrix")
    (candidates,) = get_prompt("none").choose(predictions, None, settings)
    (size,) = predictions.image_sizes_hw
    results, _ = segment(
        candidates, predictions.mask_features[0], size, size, model.grids, settings
    )
    return len(candidates), results


def whole_image(model: SOLOv2, batched_inputs: list[dict], prompt: str) -> list[dict]:
    model.prompt = get_prompt(prompt)
    return model(batched_inputs)


def mask_nms_loop(masks: Tensor, groups: Tensor, *, threshold: float) -> Tensor:
    """What `mask_nms` computes, as its definition says: pair by pair."""
    areas = [float(mask.sum()) for mask in masks]
    classes = groups.tolist()
    keep = [True] * len(masks)
    for i in range(len(masks)):
        for j in range(i + 1, len(masks)):
            if keep[i] and keep[j] and classes[i] == classes[j]:
                intersection = float((masks[i] * masks[j]).sum())
                union = areas[i] + areas[j] - intersection
                keep[j] = intersection <= threshold * union
    return torch.tensor(keep)


def median_times(
    repeats: int, functions: dict[str, tuple[int, Callable[[], object]]]
) -> dict[str, float]:
    """Median seconds of each named function, given with its turns a repeat; all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, (turns, function) in functions.items():
            for _ in range(turns):
                start = time.perf_counter()
                function()
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


@dataclass(frozen=True)
class Setup:
    """A network and what its parts are run on.

    inputs: batches of one image, by number of points.  pixels: (1, 3, H, W), what the plain forward
    sees.  towers, outputs: the network's results on them, up to where each part begins.
    """

    model: SOLOv2
    inputs: dict[int, list[dict]]
    pixels: Tensor
    towers: Predictions
    outputs: Predictions


def prepare(scale: Scale, config_file: str) -> Setup:
    model = make_model(config_file)
    head = model.ins_head
    rng = np.random.default_rng(0)
    inputs = {n: make_input(rng, n, head.num_classes, scale.image_hw) for n in scale.points}
    images = model.preprocess_image(inputs[max(inputs)])
    predictions = model.extract(images)
    calibrate(model, predictions, scale.candidates)
    towers = FinishedHead(
        head.category_towers(predictions.grid_features),
        head.kernel_towers(predictions.grid_features),
        head.cate_pred,
        head.kernel_pred,
    )
    category, kernels, _ = plain_forward(model, images.tensor)
    outputs = FinishedHead(category, kernels, nn.Identity(), nn.Identity())
    stages = [dataclasses.replace(predictions, head=finished) for finished in (towers, outputs)]
    return Setup(model, inputs, images.tensor, *stages)


def network_rows(setup: Setup, repeats: int) -> list[Row]:
    """The forward, and the prompts as parts of it."""
    model, inputs = setup.model, setup.inputs
    most = max(inputs)

    def after(count: int) -> list[dict]:
        return after_points(model, setup.towers, inputs[count])

    def none() -> tuple[int, Instances]:
        return after_none(model, setup.outputs)

    # First what is computed, so that the table can say it; these calls also warm up.
    masks = {n: len(after(n)[0]["instances"]) for n in inputs}
    sized = len(whole_image(model, inputs[most], "point_with_size")[0]["instances"])
    candidates, results = none()
    seconds = median_times(
        repeats,
        {
            "forward": (1, lambda: plain_forward(model, setup.pixels)),
            **{f"point {n}": (TURNS_OF_SHORT_PARTS, lambda n=n: after(n)) for n in inputs},
            "sized": (1, lambda: whole_image(model, inputs[most], "point_with_size")),
            "whole": (1, lambda: whole_image(model, inputs[most], "point")),
            "none": (TURNS_OF_SHORT_PARTS, none),
        },
    )
    parts: dict[str, tuple[str, float | None]] = {
        f"point {n}": (
            f"prompt=point after the network, {n} points ({masks[n]} masks)",
            POINT_SHARES.get(n),
        )
        for n in inputs
    }
    parts["sized"] = (f"whole image, prompt=point_with_size ({sized} masks)", SIZED_SHARE)
    parts["whole"] = (f"whole image, prompt=point, {most} points", None)
    parts["none"] = (
        f"prompt=none after the network, {candidates} candidates, Matrix NMS "
        f"({len(results)} masks)",
        NONE_SHARE,
    )
    rows = [Row("plain forward (the baseline)", seconds["forward"], 1.0)]
    for name, (what, allowed) in parts.items():
        ratio = seconds[name] / seconds["forward"]
        target = (f"<= {allowed} x forward", ratio <= allowed) if allowed is not None else ()
        rows.append(Row(what, seconds[name], ratio, *target))
    return rows


def mask_nms_rows(scale: Scale, threshold: float, repeats: int) -> list[Row]:
    """Mask NMS and its baseline, the double loop."""
    masks = random_ellipses(np.random.default_rng(1), scale.nms_masks, scale.nms_hw)
    masks = torch.from_numpy(masks).flatten(1).float()
    one_class = torch.zeros(len(masks), dtype=torch.int64)
    kept = mask_nms(masks, one_class, threshold=threshold)
    if not torch.equal(kept, mask_nms_loop(masks, one_class, threshold=threshold)):
        raise AssertionError("mask NMS and the double loop keep different masks")
    seconds = median_times(
        repeats,
        {
            "loop": (1, lambda: mask_nms_loop(masks, one_class, threshold=threshold)),
            "ours": (
                TURNS_OF_MASK_NMS,
                lambda: mask_nms(masks, one_class, threshold=threshold),
            ),
        },
    )
    what = f"mask NMS, {len(masks)} masks {scale.nms_hw[0]}x{scale.nms_hw[1]}, one class"
    ratio = seconds["loop"] / seconds["ours"]
    target = f">= {MASK_NMS_SPEED_UP:.0f} x faster"
    return [
        Row(f"{what}: the double loop", seconds["loop"], 1.0),
        Row(
            f"{what}: ours ({int(kept.sum())} kept by both)",
            seconds["ours"],
            ratio,
            target,
            ratio >= MASK_NMS_SPEED_UP,
        ),
    ]


@torch.inference_mode()
def measure(
    scale: Scale | None = None,
    *,
    config_file: str = CONFIG_FILE,
    repeats: int = 3,
) -> list[Row]:
    """The SOLOv2 table; all in one run, with the threads that torch has."""
    scale = scale or Scale()
    setup = prepare(scale, config_file)
    threshold = setup.model.settings.mask_thr
    return network_rows(setup, repeats) + mask_nms_rows(scale, threshold, repeats)


def print_table(rows: Sequence[Row]) -> None:
    print("| what | seconds | ratio | to reach | reached |")
    print("| --- | --- | --- | --- | --- |")
    verdicts = {True: "yes", False: "NO", None: "-"}
    for row in rows:
        cells = (row.what, f"{row.seconds:.4f}", f"{row.ratio:.3f}", row.target or "-")
        print("|", " | ".join([*cells, verdicts[row.reached]]), "|")
