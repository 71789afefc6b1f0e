"""A small Mask2Former and synthetic inputs, for its tests."""

from typing import Any

import torch

from adet.config import get_cfg
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from weaksam.config import add_weaksam_config

CLASSES = 3
# Values of KEY VALUE pairs for a network that takes a hundredth of a second an image.
SMALL = {
    "MODEL.META_ARCHITECTURE": "MaskFormer",
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.MASK_ON": True,
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.NHEADS": 4,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 64,
    "MODEL.MASK_FORMER.DEC_LAYERS": 3,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 10,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 256,
}


def words(values: dict[str, Any]) -> list[str]:
    """KEY, VALUE, KEY, VALUE, ... as on a command line."""
    return [word for key, value in values.items() for word in (key, str(value))]


def small_config(**changes: Any) -> CfgNode:
    """Changes: keys with `__` for dots."""
    cfg = get_cfg()
    add_weaksam_config(cfg)
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    cfg.merge_from_list(words(SMALL | {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": CLASSES} | changes))
    return cfg


def build(cfg: CfgNode | None = None, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_model(small_config() if cfg is None else cfg)


def make_input(seed: int, count: int = 3, size: int = 64) -> dict[str, Any]:
    """A noisy image with bright squares of a color a class, and its instances."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 60, (3, size, size), generator=generator, dtype=torch.uint8)
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    classes = torch.arange(count) % CLASSES
    for mask, label in zip(masks, classes, strict=True):
        y, x = torch.randint(0, size - 20, (2,), generator=generator).tolist()
        side = torch.randint(12, 20, (1,), generator=generator).item()
        mask[y : y + side, x : x + side] = True
        image[:, mask] = 60
        image[label, mask] = 220
    instances = Instances((size, size), gt_masks=BitMasks(masks), gt_classes=classes)
    return {"image": image, "instances": instances, "height": size, "width": size}
