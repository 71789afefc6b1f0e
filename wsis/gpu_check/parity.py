"""The device under test against the CPU in float32: same weights, same inputs, same results.

Errors of numbers are |device - CPU| / |CPU| by the Euclidean norm, of the worst output or loss and
of all gradients together; errors of masks are 1 minus the mean IoU. BOUNDS says how large they may
be at each precision; half precision is autocast, as in training. TensorFloat-32 is off, so that
fp32 is fp32.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor, nn

from adet.modeling.solov2 import get_prompt
from adet.modeling.solov2.nms import mask_suppressors, matrix_decay, point_nms
from detectron2.layers import ROIAlign, batched_nms, paste_masks_in_image
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from maskrefinenet import MaskRefiner
from wsis.benchmarks.solov2 import plain_forward, random_ellipses

from .results import Check, Result, judged
from .scenes import (
    NETWORKS,
    RCNN,
    REFINER,
    SOLOV2,
    Context,
    Network,
    Scale,
    make_refiner,
    make_scenes,
)

DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
# Half precision was calibrated by autocast on a CPU: bf16 with the networks of FULL and QUICK, fp16
# with those of QUICK. The largest figures there are a tenth to a half of the bounds.
BOUNDS = {
    "outputs": {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1},
    "losses": {"fp32": 1e-4, "fp16": 0.01, "bf16": 0.05},
    "gradients": {"fp32": 1e-3, "fp16": 0.1, "bf16": 0.25},
    "masks": {"fp32": 0.01, "fp16": 0.1, "bf16": 0.25},
    "pooled": {"fp32": 1e-5, "fp16": 2e-3, "bf16": 1e-2},
}
# `cls` compares the scores of neighboring cells, where the smallest difference decides: fp32 only.
PROMPTED = {"fp32": ("point", "point_with_size", "cls")}
PROMPTED |= dict.fromkeys(("fp16", "bf16"), ("point", "point_with_size"))
# The loss is scaled before the backward pass, as in training: fp16 has no smaller numbers.
LOSS_SCALE = 1024.0
Tensors = list[Tensor]


@contextmanager
def exact_float32() -> Iterator[None]:
    """No TensorFloat-32 in products and convolutions."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Autocast to a half precision, or float32 exactly."""
    dtype = DTYPES[name]
    with exact_float32(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        yield


def relative_error(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """|got - want| / |want| over all tensors together, in float64 on the CPU; 0 if both are 0."""
    if [x.shape for x in got] != [x.shape for x in want]:
        raise ValueError(
            f"shapes differ: {[tuple(x.shape) for x in got]} on the device, "
            f"{[tuple(x.shape) for x in want]} on the CPU"
        )
    flat = [torch.cat([x.detach().cpu().double().flatten() for x in xs]) for xs in (got, want)]
    difference = flat[0] - flat[1]
    return float(difference.norm() / flat[1].norm()) if difference.any() else 0.0


def worst_error(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """The largest `relative_error` of a single tensor; a NaN is one."""
    errors = [relative_error([a], [b]) for a, b in zip(got, want, strict=True)]
    return float(np.max(errors))


def mask_error(got: np.ndarray, want: np.ndarray) -> float:
    """1 minus the mean IoU of masks (N, H, W), pair by pair; two empty masks agree."""
    union = (got | want).sum(axis=(1, 2))
    shared = (got & want).sum(axis=(1, 2))
    return float(1 - np.where(union == 0, 1.0, shared / np.maximum(union, 1)).mean())


# What is compared: outputs of the network, and losses with gradients.


@torch.no_grad()
def solov2_outputs(model: nn.Module, scale: Scale) -> Tensors:
    pixels = model.preprocess_image(SOLOV2.batch(scale, 1)).tensor
    category, kernels, masks = plain_forward(model.eval(), pixels)
    return [*category, *kernels, masks]


@torch.no_grad()
def rcnn_outputs(model: nn.Module, scale: Scale) -> Tensors:
    """Maps, proposals before their selection, boxes' and masks' outputs for the true boxes."""
    batch, heads = RCNN.batch(scale, 1), model.eval().roi_heads
    labels = batch[0]["instances"].to(model.device)
    features = model.backbone(model.preprocess_image(batch).tensor)
    rpn = model.proposal_generator
    logits, deltas = rpn.rpn_head([features[name] for name in rpn.in_features])
    maps = [features[name] for name in heads.box_in_features]
    boxes = heads.box_predictor(heads.box_head(heads.box_pooler(maps, [labels.gt_boxes])))
    given = Instances(labels.image_size, pred_boxes=labels.gt_boxes, pred_classes=labels.gt_classes)
    (completed,) = heads.forward_with_given_boxes(features, [given])
    return [*features.values(), *logits, *deltas, *boxes, completed.pred_masks]


@torch.no_grad()
def refiner_outputs(model: nn.Module, scale: Scale) -> Tensors:
    batch = {key: value.to(model.device) for key, value in REFINER.batch(scale, 4).items()}
    return [model.eval().forms(batch["inputs"], batch["point"], batch["class_id"])]


def common_losses(model: nn.Module, batch: object) -> dict[str, Tensor]:
    return model.train()(batch)


def rcnn_losses(model: nn.Module, batch: list[dict]) -> dict[str, Tensor]:
    """Losses of both stages; the second gets fixed proposals, since which ones the first selects
    turns on its rounding."""
    model.train()
    truth = [x["instances"].to(model.device) for x in batch]
    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    with EventStorage():
        _, losses = model.proposal_generator(images, features, truth)
        proposals = [fixed_proposals(x) for x in truth]
        return losses | model.roi_heads(images, features, proposals, truth)[1]


def fixed_proposals(truth: Instances) -> Instances:
    """Each true box and four shifts of it by a quarter of its size."""
    boxes = truth.gt_boxes.tensor
    sizes = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    shifts = boxes.new_tensor([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]]).repeat(1, 2) / 4
    shifted = (boxes[:, None] + shifts * sizes[:, None]).flatten(0, 1)
    proposals = Instances(truth.image_size)
    proposals.proposal_boxes = Boxes(shifted)
    proposals.proposal_boxes.clip(truth.image_size)
    proposals.objectness_logits = torch.zeros(len(shifted), device=boxes.device)
    return proposals


OUTPUTS: dict[str, Callable[[nn.Module, Scale], Tensors]] = {
    SOLOV2.name: solov2_outputs,
    RCNN.name: rcnn_outputs,
    REFINER.name: refiner_outputs,
}
LOSSES = {SOLOV2.name: common_losses, RCNN.name: rcnn_losses, REFINER.name: common_losses}


def outputs_of(network: Network, scale: Scale, device: torch.device, name: str) -> Tensors:
    model = network.make(scale, None).to(device)
    with precision(name, device):
        return OUTPUTS[network.name](model, scale)


def losses_of(
    network: Network, scale: Scale, device: torch.device, name: str
) -> tuple[Tensors, Tensors]:
    """Each loss, and the gradient of each trained parameter."""
    model = network.make(scale, None).to(device)
    with precision(name, device):
        losses = LOSSES[network.name](model, network.batch(scale, network.batch_size))
    with exact_float32():
        (sum(losses.values()) * LOSS_SCALE).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad / LOSS_SCALE for p in trained]
    return [losses[key].detach() for key in sorted(losses)], gradients


# The CPU's side is computed once for all precisions.
CPU = torch.device("cpu")


@cache
def cpu_outputs(network_name: str, scale: Scale) -> Tensors:
    return outputs_of(NETWORKS[network_name], scale, CPU, "fp32")


@cache
def cpu_losses(network_name: str, scale: Scale) -> tuple[Tensors, Tensors]:
    return losses_of(NETWORKS[network_name], scale, CPU, "fp32")


def check_outputs(network: Network, name: str, title: str, context: Context) -> Result:
    """The network's outputs in evaluation mode."""
    got = outputs_of(network, context.scale, context.device, name)
    error = worst_error(got, cpu_outputs(network.name, context.scale))
    return judged(title, error, BOUNDS["outputs"][name], note=f"{len(got)} output tensors")


def check_losses(network: Network, name: str, part: str, title: str, context: Context) -> Result:
    """The network's losses, or their gradients, on one batch."""
    index = ("losses", "gradients").index(part)
    got = losses_of(network, context.scale, context.device, name)[index]
    want = cpu_losses(network.name, context.scale)[index]
    error = worst_error(got, want) if part == "losses" else relative_error(got, want)
    return judged(title, error, BOUNDS[part][name], note=f"{len(got)} {part}")


def prompted_masks(scale: Scale, device: torch.device, name: str, prompt: str) -> np.ndarray:
    """The best mask of each labeled instance, (N, H, W) bool; empty where it has none."""
    model = SOLOV2.make(scale, None).to(device).eval()
    model.prompt = get_prompt(prompt)
    model.settings = type(model.settings)(score_thr=0.0, nms_type="mask", prompt_nms=False)
    (record,) = make_scenes(scale.image_hw, scale.instances, 1)
    with precision(name, device):
        instances = model([record])[0]["instances"].to("cpu")
    masks = np.zeros((scale.instances, *scale.image_hw), dtype=bool)
    masks[instances.prompt_indices.numpy()] = instances.pred_masks.numpy()
    return masks


def check_prompt(prompt: str, name: str, title: str, context: Context) -> Result:
    """Masks of a scene's points."""
    got = prompted_masks(context.scale, context.device, name, prompt)
    want = prompted_masks(context.scale, CPU, "fp32", prompt)
    found = int(want.any(axis=(1, 2)).sum())
    if not found:
        raise ValueError(f"the CPU makes no mask for {len(want)} points: nothing to compare")
    error = mask_error(got, want)
    return judged(title, error, BOUNDS["masks"][name], note=f"1 - IoU, {found} masks")


def check_nms(name: str, title: str, context: Context) -> Result:
    """Mask, Matrix, point and box NMS under autocast: share of different decisions and factors."""
    rng, count = np.random.default_rng(0), 40 * context.scale.instances
    height, width = context.scale.image_hw
    masks = random_ellipses(rng, count, (height // 4, width // 4)).reshape(count, -1)
    boxes = rng.uniform(0, width / 2, (count, 2)).repeat(2, axis=1)
    boxes[:, 2:] += rng.uniform(8, width / 2, (count, 2))
    classes = torch.from_numpy(rng.integers(0, 3, count))
    inputs = [torch.from_numpy(masks), classes, torch.from_numpy(boxes).float()]
    inputs += [torch.from_numpy(rng.permutation(count)).float() / count]

    def all_kinds(device: torch.device, kind: str) -> Tensors:
        own, groups, corners, scores = (x.to(device) for x in inputs)
        with precision(kind, device):
            kept = torch.zeros(count, device=device)
            kept[batched_nms(corners, scores, groups, 0.5)] = 1
            return [
                mask_suppressors(own, groups, threshold=0.5).float(),
                matrix_decay(own, groups, kernel="gaussian", sigma=2.0)[0],
                point_nms(scores[: count // 16 * 16].view(1, -1, 4, 4)),
                kept,
            ]

    pairs = zip(all_kinds(context.device, name), all_kinds(CPU, "fp32"), strict=True)
    differing = [float(((a.cpu().float() - b).abs() > 1e-4).float().mean()) for a, b in pairs]
    note = "share of differing results: mask {:.2g}, Matrix {:.2g}, point {:.2g}, box {:.2g}"
    return judged(title, max(differing), 0.0, note=note.format(*differing))


def check_regions(name: str, title: str, context: Context) -> Result:
    """RoIAlign, pooling from a pyramid and pasting of masks, from inputs in that precision."""
    generator = torch.Generator().manual_seed(0)
    size = context.scale.image_hw
    (record,) = make_scenes(size, context.scale.instances, 1)
    boxes = record["instances"].gt_boxes
    maps = [
        torch.randn(1, 16, *(n // stride for n in size), generator=generator)
        for stride in (4, 8, 16, 32)
    ]
    masks = torch.rand(len(boxes), 28, 28, generator=generator)
    dtype = DTYPES[name] or torch.float32
    align = ROIAlign((7, 7), 1 / 4, 2)
    pool = ROIPooler(14, [1 / 4, 1 / 8, 1 / 16, 1 / 32], 0, "ROIAlignV2")

    def regions(device: torch.device, kind: str) -> Tensors:
        # Every side begins with the same rounded inputs: the operators are compared, not the cast.
        own = [x.to(dtype).float().to(device) for x in maps]
        if kind != "fp32":
            own = [x.to(dtype) for x in own]
        corners = boxes.to(device)
        rois = torch.cat([corners.tensor.new_zeros(len(corners), 1), corners.tensor], dim=1)
        with precision(kind, device):
            pasted = paste_masks_in_image(masks.to(device), corners, size, threshold=-1)
            return [align(own[0], rois), pool(own, [corners]), pasted / 255.0]

    error = worst_error(regions(context.device, name), regions(CPU, "fp32"))
    return judged(title, error, BOUNDS["pooled"][name], note="RoIAlign, pooler, pasting")


def refined_masks(scale: Scale, device: torch.device, name: str) -> np.ndarray:
    network = make_refiner(scale).forms.network
    (record,) = make_scenes(scale.image_hw, scale.instances, 1)
    labels = record["instances"]
    refiner = MaskRefiner(network, size=scale.crop, device=device)
    with precision(name, device):
        return refiner.refine(
            record["image"].permute(1, 2, 0).numpy(),
            labels.gt_masks.tensor.numpy(),
            labels.gt_points.numpy(),
            labels.gt_classes.numpy(),
        )


def check_refinement(name: str, title: str, context: Context) -> Result:
    """Masks that MaskRefiner makes of a scene's."""
    got = refined_masks(context.scale, context.device, name)
    error = mask_error(got, refined_masks(context.scale, CPU, "fp32"))
    return judged(title, error, BOUNDS["masks"][name], note=f"1 - IoU, {len(got)} masks")


def checks(precisions: Sequence[str]) -> list[Check]:
    """All of this module, at each precision."""
    found: list[tuple[str, Callable]] = []
    for name in precisions:
        for network in NETWORKS.values():
            found.append((f"{network.name} outputs, {name}", partial(check_outputs, network, name)))
            found += [
                (f"{network.name} {part}, {name}", partial(check_losses, network, name, part))
                for part in ("losses", "gradients")
            ]
        found += [
            (f"prompt {prompt}, {name}", partial(check_prompt, prompt, name))
            for prompt in PROMPTED[name]
        ]
        found.append((f"NMS of masks, cells, boxes, {name}", partial(check_nms, name)))
        found.append((f"regions, {name}", partial(check_regions, name)))
        found.append((f"refinement, {name}", partial(check_refinement, name)))
    return [Check(f"parity: {t}", partial(run, f"parity: {t}")) for t, run in found]
