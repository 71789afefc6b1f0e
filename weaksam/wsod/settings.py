"""The weak detectors as data: WSDDN, OICR, MIST and WSOD2 are one head with other settings.

Numbers are those of SPEC_WEAKSAM 4.1 to 4.3. `MODEL.WSOD.HEAD` names a row of `HEADS`; any other
key of `MODEL.WSOD` that is not None replaces the value of that row.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from weaksam.wsod.targets import SeedRule

__all__ = ["BOX_REGRESSIONS", "HEADS", "IMAGE_LOSSES", "MILSettings", "settings_from_config"]

IMAGE_LOSSES = ("mean", "sum")
BOX_REGRESSIONS = ("none", "class", "agnostic")


@dataclass(frozen=True)
class MILSettings:
    """What distinguishes one weak detector from another.

    num_refine: refinement branches behind the multiple-instance scores.
    mil_background: the multiple-instance scores have a background class, which no image shows.
    image_loss: binary cross entropy of an image's classes, their "mean" or "sum".
    seeds: how each branch gets its targets from the scores before it.
    loss_weights: of the refinement branches, one each.
    probability_floor: is added to a probability before its logarithm in the refinement losses.
    box_regression: "none", "class" (a box for each class from every branch) or "agnostic" (one
        box, trained with the targets of the last branch).
    box_loss_weight: of the agnostic box loss, a mean over foreground; boxes of each class share
        the weight of their branch, and are summed and divided by the number of proposals.
    weight_std: of the normal distribution that all layers start from.
    superpixel_calls: training calls in which the weight of foreground turns from how well it keeps
        superpixels whole into 1; 0 does without superpixels.
    """

    num_refine: int
    mil_background: bool
    image_loss: str
    loss_weights: tuple[float, ...]
    seeds: SeedRule = field(default_factory=SeedRule)
    probability_floor: float = 0.0
    box_regression: str = "none"
    box_loss_weight: float = 1.0
    weight_std: float = 0.01
    superpixel_calls: int = 0

    def __post_init__(self) -> None:
        if self.image_loss not in IMAGE_LOSSES:
            raise ValueError(f"IMAGE_LOSS={self.image_loss!r}; expected one of {IMAGE_LOSSES}")
        if self.box_regression not in BOX_REGRESSIONS:
            raise ValueError(f"BOX_REG={self.box_regression!r}; expected one of {BOX_REGRESSIONS}")
        if self.num_refine < 0 or len(self.loss_weights) != self.num_refine:
            raise ValueError(
                f"NUM_REFINE={self.num_refine} needs as many LOSS_WEIGHTS, got "
                f"{len(self.loss_weights)}"
            )
        if self.box_regression != "none" and not self.num_refine:
            raise ValueError(
                f"BOX_REG={self.box_regression!r} needs the targets of a refinement branch: set "
                "NUM_REFINE above 0"
            )


_OICR = MILSettings(
    num_refine=3,
    mil_background=False,
    image_loss="sum",
    loss_weights=(1.0, 1.0, 1.0),
    seeds=SeedRule("top_ratio"),
    probability_floor=1e-6,
)
HEADS: dict[str, MILSettings] = {
    "wsddn": MILSettings(num_refine=0, mil_background=False, image_loss="sum", loss_weights=()),
    "oicr": _OICR,
    "mist": MILSettings(
        num_refine=3,
        mil_background=True,
        image_loss="mean",
        loss_weights=(3.0, 1.0, 1.0),
        box_regression="class",
        weight_std=1e-3,
    ),
    "wsod2": replace(
        _OICR, box_regression="agnostic", box_loss_weight=30.0, superpixel_calls=40_000
    ),
}

# Keys of MODEL.WSOD and the fields that they replace.
SEED_KEYS = {
    "SEEDS": "name",
    "SEED_SHARE": "share",
    "SEED_IOU": "iou",
    "SEED_RATIO": "ratio",
    "SEED_NMS": "nms",
    "FG_IOU": "fg_iou",
    "MIN_ROIS": "min_rois",
}
HEAD_KEYS = {
    "NUM_REFINE": "num_refine",
    "MIL_BACKGROUND": "mil_background",
    "IMAGE_LOSS": "image_loss",
    "LOSS_WEIGHTS": "loss_weights",
    "BOX_REG": "box_regression",
    "BOX_LOSS_WEIGHT": "box_loss_weight",
    "WEIGHT_STD": "weight_std",
}


def settings_from_config(node: Any) -> MILSettings:
    """Settings of a `MODEL.WSOD` node.

    Raises:
        ValueError: the head is unknown, or its values do not fit together.
    """
    if node.HEAD not in HEADS:
        raise ValueError(f"MODEL.WSOD.HEAD={node.HEAD!r}; expected one of {list(HEADS)}")
    preset = HEADS[node.HEAD]
    seeds = {name: node[key] for key, name in SEED_KEYS.items() if node[key] is not None}
    changes = {name: node[key] for key, name in HEAD_KEYS.items() if node[key] is not None}
    if "loss_weights" in changes:
        changes["loss_weights"] = tuple(changes["loss_weights"])
    elif "num_refine" in changes:
        weights = preset.loss_weights or (1.0,)
        last = (weights[-1],) * changes["num_refine"]
        changes["loss_weights"] = (*weights, *last)[: changes["num_refine"]]
    if preset.superpixel_calls:
        changes["superpixel_calls"] = node.SUPERPIXELS.CALLS
    return replace(preset, seeds=replace(preset.seeds, **seeds), **changes)
