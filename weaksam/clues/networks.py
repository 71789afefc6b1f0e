"""The classifiers by name: how each is built, where its weights begin, and how it trains."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from .cam import LOSSES, CAMConfig, lite0_config, small_resnet_config
from .classifier import Classifier
from .data import Augmentation
from .lite0 import initialize_lite0
from .train import TrainSettings, cam_settings, weaktr_settings
from .weaktr import WeakTrConfig
from .weaktr_weights import initialize_from_deit

NO_WEIGHTS = "none"
NETWORKS = {  # name: where its weights begin, if nothing else is said
    "weaktr": "deit_small_patch16_224",
    "lite0": "imagenet",
    "resnet": NO_WEIGHTS,
    "cam": NO_WEIGHTS,
}
PHOTOGRAPH_SIDE = 320  # pixels of lite0's input: a stride of 16 leaves 20 x 20 cells


@dataclass(frozen=True)
class NetworkSettings:
    """Which classifier is trained.

    network: "weaktr"; "lite0", EfficientNet-Lite0 for photographs; "resnet", small, for scenes that
        it learns from scratch; or "cam", any backbone that `overrides` describe.
    init: a file or timm name of a DeiT (weaktr), "imagenet" (lite0), or "none"; None: as NETWORKS.
    loss: of CAM classifiers, see `CAMConfig`; None: that of the network.
    feature, overrides: of "cam", see `CAMConfig`.
    """

    network: str = "weaktr"
    init: str | None = None
    loss: str | None = None
    feature: str | None = None
    overrides: tuple[object, ...] = ()

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise ValueError(f"network={self.network!r}; expected one of {', '.join(NETWORKS)}")
        if self.loss is not None and (self.network == "weaktr" or self.loss not in LOSSES):
            raise ValueError(f"loss={self.loss!r}: CAM classifiers have {', '.join(LOSSES)}")
        if (self.feature is None or not self.overrides) != (self.network != "cam"):
            raise ValueError(
                "feature and config overrides describe the backbone of network 'cam', both of "
                f"them, and no other; got {self}"
            )
        if self.network in ("resnet", "cam") and self.start != NO_WEIGHTS:
            raise ValueError(f"init={self.init!r}: {self.network!r} begins with random weights")
        if self.network == "lite0" and self.start not in ("imagenet", NO_WEIGHTS):
            raise ValueError(f"init={self.init!r}; 'lite0' has 'imagenet' and {NO_WEIGHTS!r}")

    @property
    def start(self) -> str:
        """Where the weights begin."""
        return NETWORKS[self.network] if self.init is None else self.init


def build_network(settings: NetworkSettings, num_classes: int, size: int, seed: int) -> Classifier:
    """The classifier before it is trained; equal arguments give equal weights.

    Args:
        size: side of the images that it trains on, pixels.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = _config(settings, num_classes, size).build()
        if settings.start == NO_WEIGHTS:
            return model
        if settings.network == "weaktr":
            initialize_from_deit(model, settings.start)
        else:
            initialize_lite0(model.backbone)
    return model


def _config(settings: NetworkSettings, num_classes: int, size: int) -> WeakTrConfig | CAMConfig:
    if settings.network == "weaktr":
        return WeakTrConfig(num_classes, image_size=size)
    if settings.network == "cam":
        config = CAMConfig(num_classes, settings.overrides, settings.feature)
    else:
        config = {"lite0": lite0_config, "resnet": small_resnet_config}[settings.network](
            num_classes
        )
    return replace(config, loss=settings.loss) if settings.loss is not None else config


def schedule_of(
    network: str, *, batch_size: int | None = None, size: int | None = None, **changes: Any
) -> TrainSettings:
    """How a network trains by default, with changes; see `TrainSettings`.

    WeakTr's is the published one, whose learning rate goes with the batch size.
    """
    batch = {} if batch_size is None else {"batch_size": batch_size}
    if network == "weaktr":
        usual = weaktr_settings(**batch)
    elif network == "lite0":
        augmentation = Augmentation("crop", PHOTOGRAPH_SIDE, least_area=0.3)
        usual = cam_settings(learning_rate=5e-4, augmentation=augmentation, **batch)
    else:
        usual = cam_settings(**batch)
    if size is not None:
        usual = replace(usual, augmentation=replace(usual.augmentation, size=size))
    return replace(usual, **changes)
