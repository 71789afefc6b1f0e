"""Load weights under other names: those of Caffe2 and torchvision, and any by their endings."""

import logging
import re
from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = [
    "align_and_update_state_dicts",
    "convert_basic_c2_names",
    "convert_c2_detectron_names",
    "convert_torchvision_names",
    "is_torchvision_resnet",
    "rename_by_ending",
]

logger = logging.getLogger(__name__)

Substitutions = tuple[tuple[str, str], ...]

# In this order. Caffe2 separates by "_" what torch separates by ".".
C2_BASIC: Substitutions = (
    (r"^pred_([bw])$", r"linear_\1"),
    (r"_", "."),
    (r"\.b$", ".bias"),
    (r"\.w$", ".weight"),
    (r"bn\.(s|gamma)$", "norm.weight"),
    (r"bn\.(bias|beta)$", "norm.bias"),
    (r"bn\.(rm|running\.mean)$", "norm.running_mean"),
    (r"bn\.(riv|running\.var)$", "norm.running_var"),
    (r"gn\.s$", "norm.weight"),
    (r"gn\.bias$", "norm.bias"),
    (r"^res\.conv1\.norm\.", "conv1.norm."),
    (r"^conv1\.", "stem.conv1."),
    (r"\.branch1\.", ".shortcut."),
    (r"\.branch2a\.", ".conv1."),
    (r"\.branch2b\.", ".conv2."),
    (r"\.branch2c\.", ".conv3."),
)
C2_DETECTRON: Substitutions = (
    # region proposals
    (r"^conv\.rpn(\.fpn2)?\.", "proposal_generator.rpn_head.conv."),
    (r"^rpn\.bbox\.pred(\.fpn2)?\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"^rpn\.cls\.logits(\.fpn2)?\.", "proposal_generator.rpn_head.objectness_logits."),
    # boxes
    (r"^bbox\.pred", "bbox_pred"),
    (r"^cls\.score", "cls_score"),
    (r"^fc6\.", "box_head.fc1."),
    (r"^fc7\.", "box_head.fc2."),
    (r"^head\.conv", "box_head.conv"),
    # feature pyramid; its names say the block that a map comes from
    (r"^fpn\.inner\.res(\d)\.(?:.*?\.)?(norm\.)?(\w+)$", r"fpn_lateral\1.\2\3"),
    (r"^fpn\.res(\d)\.(?:.*?\.)?(norm\.)?(\w+)$", r"fpn_output\1.\2\3"),
    # masks
    (r"^\.?\[mask\]\.fcn", "mask_head.mask_fcn"),
    (r"^conv5\.mask\.", "mask_head.deconv."),
    (r"^mask\.fcn\.logits\.", "mask_head.predictor."),
)
TORCHVISION: Substitutions = (
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"^fc\.", "linear."),
)
TORCHVISION_VGG16: Substitutions = (
    (r"^classifier\.0\.", "box_head.fc1."),
    (r"^classifier\.3\.", "box_head.fc2."),
)


def _substitute(name: str, substitutions: Substitutions) -> str:
    for pattern, replacement in substitutions:
        name = re.sub(pattern, replacement, name)
    return name


def convert_basic_c2_names(original_keys: Iterable[str]) -> list[str]:
    """Names of a Caffe2 ResNet as ours, in order: res2_0_branch2a_w -> res2.0.conv1.weight."""
    return [_substitute(name, C2_BASIC) for name in original_keys]


def convert_c2_detectron_names(
    weights: dict[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights of a Caffe2 ResNet or detector under our names, and {new name: old name}.

    Caffe2's detectors have the background as class 0: it becomes the last class where ours has one,
    and is left out where ours has none.
    """
    new_weights, original = {}, {}
    for old in sorted(weights):
        new = _substitute(_substitute(old, C2_BASIC), C2_DETECTRON)
        if new in original:
            raise ValueError(f"{old} and {original[new]} both mean {new}")
        original[new] = old
        value = weights[old]
        if new.startswith("bbox_pred."):
            value = value[4:]  # the background's box
        elif new.startswith("mask_head.predictor."):
            value = value[1:]
        elif new.startswith("cls_score."):
            value = torch.cat([value[1:], value[:1]])
        new_weights[new] = value
    return new_weights, original


def is_torchvision_resnet(names: Iterable[str]) -> bool:
    """Whether these are the tensors of a ResNet of torchvision."""
    return {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer4.0.bn1.weight"} <= set(
        names
    )


def convert_torchvision_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a torchvision ResNet by our names: layer1.0.bn1.bias -> res2.0.conv1.norm.bias.

    `num_batches_tracked` is left out: it matters only for averages over the whole training.
    """
    return {
        _substitute(name, TORCHVISION): value
        for name, value in weights.items()
        if not name.endswith(".num_batches_tracked")
    }


def is_torchvision_vgg16(names: Iterable[str]) -> bool:
    """Whether these are the tensors of torchvision's VGG-16 (the one without batch norm)."""
    return {"features.0.weight", "features.28.weight", "classifier.6.weight"} <= set(names)


def convert_torchvision_vgg16_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of torchvision's VGG-16 by our names; its last layer, the classifier, is left out.

    The first two fully connected layers become those of the box head.
    """
    return {
        _substitute(name, TORCHVISION_VGG16): value
        for name, value in weights.items()
        if not name.startswith("classifier.6.")
    }


def rename_by_ending(names: Iterable[str], model_names: Iterable[str]) -> dict[str, str]:
    """{name in the file: name in the model} where the model's name ends with the file's one.

    Endings are whole parts: `layer2.weight` matches `res.layer2.weight`, not `mylayer2.weight`. Of
    several names that fit, a name of the model takes the longest.
    """
    names = set(names)
    matched: dict[str, str] = {}
    for model_name in model_names:
        parts = model_name.split(".")
        endings = (".".join(parts[i:]) for i in range(len(parts)))
        name = next((ending for ending in endings if ending in names), None)
        if name is None:
            continue
        if name in matched:
            raise ValueError(
                f"{name} in the checkpoint fits both {matched[name]} and {model_name} in the "
                "model: names that are matched by their endings must be clear"
            )
        matched[name] = model_name
    return matched


def align_and_update_state_dicts(
    model_state_dict: dict[str, Tensor],
    ckpt_state_dict: dict[str, Tensor],
    c2_conversion: bool = True,
) -> dict[str, Tensor]:
    """Checkpoint under the model's names, matched by their endings.

    What no name of the model fits keeps its own name; what fits but has another shape is left out,
    with a warning.

    Args:
        c2_conversion: turn Caffe2's names into ours first.
    """
    if c2_conversion:
        ckpt_state_dict, _ = convert_c2_detectron_names(ckpt_state_dict)
    names = rename_by_ending(ckpt_state_dict, model_state_dict)
    result = {}
    for name, value in ckpt_state_dict.items():
        new = names.get(name, name)
        if new in model_state_dict and value.shape != model_state_dict[new].shape:
            logger.warning(
                "%s is %s in the checkpoint, but %s in the model is %s: it is not loaded",
                name,
                tuple(value.shape),
                new,
                tuple(model_state_dict[new].shape),
            )
            continue
        result[new] = value
    return result
