"""VGG-16 without its last pooling, with the layer numbers of torchvision's weights."""

from collections.abc import Sequence

from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, get_norm
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

    `features` holds the layers in torchvision's order, so that its checkpoints fit (without norms):
    torchvision's `classifier.0` and `classifier.3` are `fc1` and `fc2` of a head with two layers of
    4096 on regions pooled to 7 x 7.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_features: Sequence[str] = ("conv5",),
        freeze_at: int = 0,
        *,
        width: float = 1.0,
        norm: str = "",
        last_dilation: int = 1,
        last_relu: bool = True,
        ceil_mode: bool = False,
    ) -> None:
        """
        Args:
            out_features: outputs of `forward`. Stages that no output needs are left out.
            freeze_at: 0 freezes nothing, 1 conv1, 2 conv1 and conv2, and so on.
            width: factor of all channels.
            norm: of each convolution, see `get_norm`; then the layers are no longer torchvision's.
            last_dilation: 2 dilates conv5 and leaves out the pooling before it: its stride is 8.
            last_relu: False ends conv5 with its last convolution.
            ceil_mode: poolings round sizes up.
        """
        super().__init__()
        unknown = [name for name in out_features if name not in STAGES_16]
        if unknown or not out_features:
            raise ValueError(
                f"out_features={list(out_features)}: VGG offers {list(STAGES_16)}, ask for at "
                "least one of them"
            )
        if last_dilation not in (1, 2):
            raise ValueError(f"last_dilation={last_dilation}; expected 1 or 2")
        self._out_features = list(out_features)
        self._out_feature_channels = {}
        self._out_feature_strides = {name: 2**i for i, name in enumerate(STAGES_16)}
        self._out_feature_strides["conv5"] //= last_dilation
        last = max(list(STAGES_16).index(name) for name in out_features)
        layers: list[nn.Module] = []
        self._ends: dict[int, str] = {}  # index of a stage's last layer: its name
        for number, name in enumerate(list(STAGES_16)[: last + 1], start=1):
            dilation = last_dilation if name == "conv5" else 1
            if dilation > 1:
                layers.append(nn.Identity())  # in the pooling's place: numbers stay torchvision's
            elif layers:
                layers.append(nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=ceil_mode))
            start = len(layers)
            for channels in STAGES_16[name]:
                out_channels = max(1, round(channels * width))
                layers += _convolution(in_channels, out_channels, dilation, norm)
                in_channels = out_channels
            if number <= freeze_at:
                for layer in layers[start:]:
                    layer.requires_grad_(False)
            self._out_feature_channels[name] = in_channels
            if name == "conv5" and not last_relu:
                layers.pop()
            self._ends[len(layers) - 1] = name
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> (B, channels, H / stride, W / stride) by name, rounded by poolings."""
        outputs = {}
        for i, layer in enumerate(self.features):
            x = layer(x)
            if self._ends.get(i) in self._out_features:
                outputs[self._ends[i]] = x
        return outputs


def _convolution(in_channels: int, out_channels: int, dilation: int, norm: str) -> list[nn.Module]:
    """A 3x3 convolution of the same size, its norm, if any, and a ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation)
    c2_msra_fill(conv)
    own_norm = get_norm(norm, out_channels)
    return [conv, *([] if own_norm is None else [own_norm]), nn.ReLU(inplace=True)]


@BACKBONE_REGISTRY.register()
def build_vgg_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> VGG:
    """VGG-16 as `MODEL.VGG` describes it, frozen up to `MODEL.BACKBONE.FREEZE_AT`."""
    node = cfg.MODEL.VGG
    return VGG(
        input_shape.channels,
        out_features=node.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        width=node.WIDTH,
        norm=node.NORM,
        last_dilation=node.LAST_DILATION,
        last_relu=node.LAST_RELU,
        ceil_mode=node.CEIL_MODE,
    )
