"""VGG-16 without its last pooling, with the layer numbers of torchvision's weights."""

from collections.abc import Sequence

from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.modeling.backbone.build import BACKBONE_REGISTRY

# Channels of the 3x3 convolutions of each stage. Between stages is a 2x2 max pooling.
STAGES_16 = {
    "conv1": (64, 64),
    "conv2": (128, 128),
    "conv3": (256, 256, 256),
    "conv4": (512, 512, 512),
    "conv5": (512, 512, 512),
}


class VGG(Backbone):
    """VGG-16's convolutions; outputs are `conv1` (stride 1), `conv2` (2), ..., `conv5` (16).

    `features` holds the layers in torchvision's order, so that its checkpoints fit: torchvision's
    `classifier.0` and `classifier.3` are `fc1` and `fc2` of a `FastRCNNConvFCHead` with two layers
    of 4096 on regions pooled to 7 x 7.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_features: Sequence[str] = ("conv5",),
        freeze_at: int = 0,
    ) -> None:
        """
        Args:
            out_features: outputs of `forward`. Stages that no output needs are left out.
            freeze_at: 0 freezes nothing, 1 conv1, 2 conv1 and conv2, and so on.
        """
        super().__init__()
        unknown = [name for name in out_features if name not in STAGES_16]
        if unknown or not out_features:
            raise ValueError(
                f"out_features={list(out_features)}: VGG offers {list(STAGES_16)}, ask for at "
                "least one of them"
            )
        self._out_features = list(out_features)
        self._out_feature_channels = {name: widths[-1] for name, widths in STAGES_16.items()}
        self._out_feature_strides = {name: 2**i for i, name in enumerate(STAGES_16)}
        last = max(list(STAGES_16).index(name) for name in out_features)
        layers: list[nn.Module] = []
        self._ends: dict[int, str] = {}  # index of a stage's last layer: its name
        for number, name in enumerate(list(STAGES_16)[: last + 1], start=1):
            if layers:
                layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
            for out_channels in STAGES_16[name]:
                conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
                c2_msra_fill(conv)
                conv.requires_grad_(number > freeze_at)
                layers += [conv, nn.ReLU(inplace=True)]
                in_channels = out_channels
            self._ends[len(layers) - 1] = name
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> {name: (B, channels, floor(H / stride), floor(W / stride))}."""
        outputs = {}
        for i, layer in enumerate(self.features):
            x = layer(x)
            if self._ends.get(i) in self._out_features:
                outputs[self._ends[i]] = x
        return outputs


@BACKBONE_REGISTRY.register()
def build_vgg_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> VGG:
    """VGG-16 with the outputs `MODEL.VGG.OUT_FEATURES`, frozen up to `MODEL.BACKBONE.FREEZE_AT`."""
    return VGG(
        input_shape.channels,
        out_features=cfg.MODEL.VGG.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
