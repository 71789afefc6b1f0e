"""Names of weights: from Caffe2's and torchvision's to ours, and from endings to full names."""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

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
    # feature pyramid; a name includes the block that a map comes from
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


def convert_c2_detectron_names(
    weights: dict[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights of a Caffe2 ResNet or detector by our names, and {new name: old name}.

    Class 0 of Caffe2's detectors is the background. In class scores it becomes the last class; in
    boxes and masks, where we have no background, it is dropped.
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

    `num_batches_tracked` is dropped: it matters only for batch norms without a momentum.
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
    """Weights of torchvision's VGG-16 by our names, without its last layer.

    The first two fully connected layers become those of the box head.
    """
    return {
        _substitute(name, TORCHVISION_VGG16): value
        for name, value in weights.items()
        if not name.startswith("classifier.6.")
    }


def rename_by_ending(names: Iterable[str], model_names: Iterable[str]) -> dict[str, str]:
    """{name in the file: name in the model}, for names in the model that end with one in the file.

    Endings are whole parts: `layer2.weight` matches `res.layer2.weight`, not `mylayer2.weight`. If
    several names in the file fit, the longest one is taken.
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
                "model: matching by endings needs one candidate. Give the checkpoint longer names"
            )
        matched[name] = model_name
    return matched
