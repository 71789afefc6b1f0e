"""A small DINO, maps and images for its tests."""

import torch

from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from weaksam.dino.attention import FlatMaps
from weaksam.dino.maps import flatten_maps
from weaksam.dino.matching import Targets
from wsis.config import load_config

SMALL = {
    "MODEL.META_ARCHITECTURE": "DINO",
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
    "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.PIXEL_STD": [57.0, 57.0, 57.0],
    "MODEL.DINO.HIDDEN_DIM": 32,
    "MODEL.DINO.NUM_HEADS": 4,
    "MODEL.DINO.NUM_POINTS": 2,
    "MODEL.DINO.FFN_DIM": 64,
    "MODEL.DINO.ENC_LAYERS": 1,
    "MODEL.DINO.DEC_LAYERS": 2,
    "MODEL.DINO.NUM_QUERIES": 20,
    "MODEL.DINO.DN_QUERIES": 6,
    "MODEL.DINO.NUM_CLASSES": 3,
    "TEST.DETECTIONS_PER_IMAGE": 20,
}


def small_config(**changes):
    """Changes as MODEL__DINO__NUM_QUERIES=5."""
    values = SMALL | {name.replace("__", "."): value for name, value in changes.items()}
    return load_config(None, [item for pair in values.items() for item in pair])


def small_dino(seed: int = 0, **changes):
    torch.manual_seed(seed)
    return build_model(small_config(**changes))


def shaken_dino(**changes):
    """Random boxes and samples: at the start the last layers are 0."""
    model = small_dino(**changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "reg_branches" in name or "sampling_offsets" in name:
                parameter.normal_(std=0.2)
    return model


def make_input(seed: int, height: int = 64, width: int = 64, count: int = 2) -> dict:
    """An image with squares whose color is their class."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    image = torch.full((3, height, width), 110.0)
    boxes, classes = [], []
    for _ in range(count):
        side, color = draw(14, 30), draw(0, 3)
        x, y = draw(0, width - side), draw(0, height - side)
        image[:, y : y + side, x : x + side] = 30
        image[color, y : y + side, x : x + side] = 240
        boxes.append([x, y, x + side, y + side])
        classes.append(color)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return {"image": image, "instances": instances, "height": height, "width": width}


def random_maps(seed: int = 0, dim: int = 16, levels: int = 2) -> FlatMaps:
    """Two images; the second is padded to the size of the first."""
    torch.manual_seed(seed)
    maps = [torch.randn(2, dim, 8 >> i, 12 >> i) for i in range(levels)]
    is_padding = torch.zeros(2, 16, 24, dtype=torch.bool)
    is_padding[1, 8:], is_padding[1, :, 16:] = True, True
    return flatten_maps(maps, is_padding, torch.randn(levels, dim), temperature=20)


def random_targets(seed: int, counts: tuple[int, ...], num_classes: int) -> list[Targets]:
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for count in counts:
        size = 0.1 + 0.3 * torch.rand(count, 2, generator=generator)
        center = 0.2 + 0.6 * torch.rand(count, 2, generator=generator)
        classes = torch.randint(0, num_classes, (count,), generator=generator)
        targets.append(Targets(classes, torch.cat([center, size], dim=1)))
    return targets
