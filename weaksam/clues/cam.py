"""A convolutional classifier whose class activation maps (CAM) say where classes are.

It stands on any backbone of detectron2's registry. A 1x1 convolution turns features into class
maps, whose means are the logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import Backbone

from .classifier import Classifier, ClueMaps
from .lite0 import add_lite0_config

LOSSES = ("softmax", "soft_margin")
LABEL_THRESHOLDS = {"softmax": 0.25, "soft_margin": -0.5}  # a probability; a logit, as WeakTr's


@dataclass(frozen=True)
class CAMConfig:
    """What it takes to build a CAM classifier.

    overrides: config keys and values, in turn, that describe the backbone, such as
        ("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 18).
    feature: the output of the backbone that is classified.
    loss: "softmax", cross-entropy against tags that share a sum of 1, or "soft_margin".
    """

    num_classes: int
    overrides: tuple[object, ...] = ()
    feature: str = "res4"
    loss: str = "softmax"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss={self.loss!r}; expected one of {LOSSES}")

    def build(self) -> "CAMClassifier":
        return build_cam(self)


def lite0_config(num_classes: int, loss: str = "softmax") -> CAMConfig:
    """EfficientNet-Lite0 at stride 16, for photographs and ImageNet weights."""
    overrides = (
        *("MODEL.BACKBONE.NAME", "build_efficientnet_lite0_backbone"),
        *("MODEL.BACKBONE.FREEZE_AT", 0),
        *("MODEL.EFFICIENTNET.OUTPUT_STRIDE", 16),
        *("MODEL.EFFICIENTNET.OUT_FEATURES", ["block6"]),
        *("MODEL.PIXEL_MEAN", [127.0] * 3, "MODEL.PIXEL_STD", [128.0] * 3),
        *("INPUT.FORMAT", "RGB"),
    )
    return CAMConfig(num_classes, overrides, "block6", loss)


def small_resnet_config(num_classes: int, loss: str = "soft_margin") -> CAMConfig:
    """A half-width ResNet-18 up to res4 that a CPU trains from scratch in minutes.

    Batch norm learns here in steps of 16 images, group norm hardly does. On scenes of shapes soft
    margin gave points that hit more often than softmax did (0.90 and 0.85).
    """
    overrides = (
        *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.FREEZE_AT", 0),
        *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.NORM", "BN"),
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", 32, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32),
        *("MODEL.RESNETS.OUT_FEATURES", ["res4"], "MODEL.PIXEL_STD", [57.375, 57.12, 58.395]),
    )
    return CAMConfig(num_classes, overrides, "res4", loss)


def build_cam(config: CAMConfig) -> "CAMClassifier":
    """The network of a CAMConfig, with the backbone's own initialisation."""
    cfg = get_cfg()
    add_lite0_config(cfg)
    cfg.merge_from_list(list(config.overrides))
    backbone = build_backbone(cfg)
    if config.feature not in backbone.output_shape():
        raise ValueError(
            f"feature {config.feature!r}: the backbone gives {list(backbone.output_shape())}"
        )
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise ValueError(f"INPUT.FORMAT={cfg.INPUT.FORMAT!r}; expected 'RGB' or 'BGR'")
    return CAMClassifier(
        backbone=backbone,
        config=config,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        bgr=cfg.INPUT.FORMAT == "BGR",
    )


class CAMClassifier(Classifier):
    """See the module. `backbone` keeps its keys, so that detectors can start from it."""

    sources = ("coarse",)

    def __init__(
        self,
        *,
        backbone: Backbone,
        config: CAMConfig,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        bgr: bool,
    ):
        """
        Args:
            bgr: whether the backbone takes BGR; images come as RGB, mean and std as it takes them.
        """
        super().__init__(pixel_mean, pixel_std)
        self.config, self.bgr = config, bgr
        self.label_threshold = LABEL_THRESHOLDS[config.loss]
        self.backbone = backbone
        channels = backbone.output_shape()[config.feature].channels
        self.classifier = nn.Conv2d(channels, config.num_classes, 1)
        nn.init.zeros_(self.classifier.bias)

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    def class_maps(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w), of either sign."""
        images = self.normalize(images.flip(1) if self.bgr else images)
        height, width = images.shape[2:]
        divisor = self.backbone.size_divisibility
        if divisor > 1:
            images = F.pad(images, (0, -width % divisor, 0, -height % divisor))
        features = self.backbone(images)[self.config.feature]
        stride = self.backbone.output_shape()[self.config.feature].stride
        features = features[:, :, : -(-height // stride), : -(-width // stride)]  # without padding
        return self.classifier(features)

    def scores(self, images: Tensor) -> Tensor:
        return self.class_maps(images).mean(dim=(2, 3))

    def loss(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Of targets (B, C), 0 or 1; images without a tag count with soft margin only."""
        logits = self.scores(images)
        if self.config.loss == "softmax":
            return {"loss_cls": normalized_softmax_loss(logits, targets)}
        return {"loss_cls": F.multilabel_soft_margin_loss(logits, targets)}

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1) if self.config.loss == "softmax" else logits.sigmoid()

    def predicted(self, logits: Tensor) -> Tensor:
        values = logits.softmax(dim=1) if self.config.loss == "softmax" else logits
        return values > self.label_threshold

    @torch.no_grad()
    def maps(
        self, images: Tensor, layers: Sequence[int] = (), classes: Sequence[int] | None = None
    ) -> ClueMaps:
        """The positive part of class maps; there is no attention, so `layers` must be empty."""
        if layers:
            raise ValueError(f"attention layers {list(layers)}: a CAM classifier has none")
        maps = self.class_maps(images)
        kept = maps if classes is None else maps[:, list(classes)]
        return ClueMaps(logits=maps.mean(dim=(2, 3)), coarse=kept.relu())


def normalized_softmax_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Softmax cross-entropy where an image's tags share a sum of 1: mean over tagged images.

    Args:
        logits, targets: (B, C); targets are 0 or 1.
    """
    counts = targets.sum(dim=1)
    shares = targets / counts.clamp(min=1)[:, None]
    losses = -(shares * logits.log_softmax(dim=1)).sum(dim=1)
    return losses.sum() / (counts > 0).sum().clamp(min=1)
