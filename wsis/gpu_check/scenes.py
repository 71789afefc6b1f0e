"""Networks with seeded random weights and drawn inputs, at full size and small.

Every network here takes a batch and returns its losses by name in training, so that one training
loop serves all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from adet.config import get_cfg
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from maskrefinenet import FastMaskRefineNet, MaskRefineNet
from maskrefinenet.losses import dice_loss
from wsis.benchmarks.solov2 import random_ellipses

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NUM_CLASSES = 7
RESIDUAL_SCALE = 0.25
ALL = 10**6  # more than an image has anchors
SMALL = (
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8),
    *("MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "", "MODEL.FPN.OUT_CHANNELS", 32),
)
SMALL_SOLOV2 = {
    "INSTANCE_IN_CHANNELS": 32,
    "INSTANCE_CHANNELS": 32,
    "NUM_INSTANCE_CONVS": 1,
    "NUM_KERNELS": 32,
    "MASK_IN_CHANNELS": 32,
    "MASK_CHANNELS": 32,
    "NUM_MASKS": 32,
    "NUM_GRIDS": (12, 10, 8, 6, 4),
    "FPN_SCALE_RANGES": ((1, 24), (16, 40), (32, 64), (48, 96), (80, 2048)),
}
SMALL_RCNN = (
    *("MODEL.RPN.IN_FEATURES", ("p2", "p3", "p4", "p5", "p6")),  # every level is used
    *("MODEL.ANCHOR_GENERATOR.SIZES", ((8,), (16,), (32,), (64,), (128,))),
    *("MODEL.ROI_HEADS.IN_FEATURES", ("p2", "p3", "p4", "p5")),
    *("MODEL.ROI_BOX_HEAD.NUM_CONV", 0, "MODEL.ROI_BOX_HEAD.FC_DIM", 32),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", 32),
)


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    solov2, rcnn: config files below configs/.  solov2_opts, rcnn_opts: keys and values over them.
    encoder, crop: ResNet and input side of MaskRefineNet.
    image_hw, instances: of the scenes that are checked and trained on.
    steps: of each training.  compiler: backend of torch.compile.
    speed_config, speed_hw: network and images whose speed is measured, at `speed_batches`.
    timed: steps that are timed, after `warm_up`.
    two_processes: whether networks are trained by two processes.
    """

    solov2: str = "PointWSSIS/R50_teacher.yaml"
    solov2_opts: tuple = ()
    rcnn: str = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
    rcnn_opts: tuple = ()
    encoder: str = "resnet50"
    crop: int = 256
    image_hw: tuple[int, int] = (320, 480)
    instances: int = 8
    steps: int = 20
    compiler: str = "inductor"
    speed_config: str = "PointWSSIS/R101_teacher.yaml"
    speed_hw: tuple[int, int] = (800, 1216)
    speed_encoder: str = "resnet101"
    speed_batches: tuple[int, ...] = (2, 16)
    timed: int = 10
    warm_up: int = 3
    two_processes: bool = True


FULL = Scale()
QUICK = Scale(
    solov2="Quickstart/Base-small.yaml",
    solov2_opts=(
        *SMALL,
        *(word for key, value in SMALL_SOLOV2.items() for word in (f"MODEL.SOLOV2.{key}", value)),
    ),
    rcnn="Quickstart/mask_rcnn_shapes.yaml",
    rcnn_opts=(*SMALL, *SMALL_RCNN),
    encoder="resnet18",
    crop=32,
    image_hw=(64, 96),
    instances=3,
    steps=2,
    compiler="eager",
    speed_config="Quickstart/Base-small.yaml",
    speed_hw=(64, 96),
    speed_encoder="resnet18",
    speed_batches=(2,),
    timed=1,
    warm_up=1,
    two_processes=False,
)


@dataclass(frozen=True)
class Context:
    """What every check gets: the device under test, sizes, and a folder for its files."""

    device: torch.device
    scale: Scale
    folder: Path
    precisions: tuple[str, ...] = field(default=("fp32", "fp16", "bf16"))


class RefinerLosses(nn.Module):
    """MaskRefineNet with its loss, in the form of the other networks."""

    def __init__(self, network: MaskRefineNet):
        super().__init__()
        self.forms = FastMaskRefineNet(network)

    @property
    def device(self) -> torch.device:
        return self.forms.network.head.weight.device

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        batch = {key: value.to(self.device) for key, value in batch.items()}
        logits = self.forms(batch["inputs"], batch["point"], batch["class_id"])
        return {"loss_dice": dice_loss(logits, batch["target"])}


@dataclass(frozen=True)
class Network:
    """A network under test.

    make: (scale, norm of its batch norms or None for the config's) -> the network, on the CPU.
    batch: (scale, number of images or crops) -> its input.
    batch_size: of its training here; batch norms need some crops.
    """

    name: str
    make: Callable[[Scale, str | None], nn.Module]
    batch: Callable[[Scale, int], Any]
    batch_size: int = 2


def config_of(file: str, opts: tuple, norm: str | None = None) -> CfgNode:
    """The config of a network with this module's number of classes; norm: see `Network`."""
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / file))
    cfg.merge_from_list([*opts, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    cfg.MODEL.SOLOV2.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES = NUM_CLASSES
    if norm is not None:
        cfg.MODEL.RESNETS.NORM, cfg.MODEL.BACKBONE.FREEZE_AT = norm, 0
    return cfg


def make_detector(cfg: CfgNode, seed: int = 0) -> nn.Module:
    """A SOLOv2 or Mask R-CNN whose activations stay moderate and whose masks have structure."""
    torch.manual_seed(seed)
    model = damp_residuals(build_model(cfg))
    if cfg.MODEL.META_ARCHITECTURE == "SOLOv2":
        nn.init.normal_(model.ins_head.kernel_pred.weight, std=0.1)
    return model


def damp_residuals(model: nn.Module) -> nn.Module:
    """Scale the last norm of each residual block, in place: random blocks of a deep network would
    double its activations one by one, out of half precision's range."""
    for module in model.modules():
        if isinstance(module, BasicBlock | Bottleneck):
            last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
        elif isinstance(module, CNNBlockBase) and hasattr(module, "conv2"):
            last = (module.conv3 if hasattr(module, "conv3") else module.conv2).norm
        else:
            continue
        nn.init.constant_(last.weight, RESIDUAL_SCALE)
    return model


# The functions below make networks from seeds; `norm` is for their backbones' batch norms.


def make_solov2(scale: Scale, norm: str | None = None) -> nn.Module:
    return make_detector(config_of(scale.solov2, scale.solov2_opts, norm))


def make_speed_solov2(scale: Scale) -> nn.Module:
    """The network whose speed is measured."""
    small = scale.solov2_opts if scale.speed_config == scale.solov2 else ()
    return make_detector(config_of(scale.speed_config, small, None))


def make_rcnn(scale: Scale, norm: str | None = None) -> nn.Module:
    """A Mask R-CNN that trains on every anchor and every proposal: it draws no random sample, so
    that its losses are the same on every device."""
    cfg = config_of(scale.rcnn, scale.rcnn_opts, norm)
    for node in (cfg.MODEL.RPN, cfg.MODEL.ROI_HEADS):
        node.BATCH_SIZE_PER_IMAGE, node.POSITIVE_FRACTION = ALL, 1.0
    cfg.MODEL.RPN.LOSS_WEIGHT = ALL / 10_000  # the RPN divides by the number that it would sample
    return make_detector(cfg)


def make_refiner(scale: Scale, norm: str | None = None, encoder: str | None = None) -> nn.Module:
    torch.manual_seed(0)
    network = MaskRefineNet(NUM_CLASSES, encoder=encoder or scale.encoder)
    nn.init.normal_(network.head.weight, std=0.1)  # fresh heads say 0.5 everywhere
    if norm == "SyncBN":  # as its trainer does on GPUs; on CPUs it keeps plain batch norms
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return RefinerLosses(damp_residuals(network))


def make_scenes(
    size_hw: tuple[int, int], instances: int, count: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Input records of noise and colored ellipses, fully labeled."""
    rng = np.random.default_rng(seed)
    records = []
    for _ in range(count):
        masks = random_ellipses(rng, instances, size_hw)
        image = rng.integers(0, 64, (3, *size_hw), dtype=np.uint8)
        for mask in masks:
            image[:, mask > 0] = rng.integers(64, 256, (3, 1), dtype=np.uint8)
        labels = Instances(size_hw)
        labels.gt_masks = BitMasks(torch.from_numpy(masks))
        labels.gt_boxes = labels.gt_masks.get_bounding_boxes()
        labels.gt_classes = torch.from_numpy(rng.integers(0, NUM_CLASSES, instances))
        labels.gt_points = labels.gt_boxes.get_centers()
        sizes = {"height": size_hw[0], "width": size_hw[1]}
        records.append({"image": torch.from_numpy(image), "instances": labels, **sizes})
    return records


def detector_batch(scale: Scale, count: int) -> list[dict[str, Any]]:
    return make_scenes(scale.image_hw, scale.instances, count)


def refiner_batch(scale: Scale, count: int) -> dict[str, Tensor]:
    """Crops: noise, a prior mask, and a target that differs from it by a shift."""
    rng, side = np.random.default_rng(0), scale.crop
    target = torch.from_numpy(random_ellipses(rng, count, (side, side)))
    prior = target.roll((side // 16, side // 16), dims=(1, 2))
    image = torch.from_numpy(rng.normal(size=(count, 3, side, side)).astype(np.float32))
    image = image * 0.3 + target[:, None]
    return {
        "inputs": torch.cat([image, prior[:, None].float()], dim=1),
        "point": torch.from_numpy(rng.integers(0, side, (count, 2))),
        "class_id": torch.from_numpy(rng.integers(0, NUM_CLASSES, count)),
        "target": target.long(),
    }


SOLOV2 = Network("SOLOv2", make_solov2, detector_batch)
RCNN = Network("Mask R-CNN", make_rcnn, detector_batch)
REFINER = Network("MaskRefineNet", make_refiner, refiner_batch, batch_size=8)
NETWORKS = {network.name: network for network in (SOLOV2, RCNN, REFINER)}
