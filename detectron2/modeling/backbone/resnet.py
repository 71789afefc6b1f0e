"""ResNet of any depth, width and normalization, with the names of Detectron2's checkpoints."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.modeling.backbone.build import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet_blocks import (
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    DeformBottleneckBlock,
)

ResNetBlockBase = CNNBlockBase

# Blocks in res2, res3, res4, res5.
BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
# From this depth on, blocks are bottlenecks: their output has 4 times the channels of the middle.
BOTTLENECK_DEPTH = 50


class ResNet(Backbone):
    """A stem and stages of blocks; outputs are `stem`, `res2`, `res3`, ... and `linear`."""

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: Sequence[Sequence[CNNBlockBase]],
        num_classes: int | None = None,
        out_features: Sequence[str] | None = None,
        freeze_at: int = 0,
    ) -> None:
        """
        Args:
            stem: first layers, with `stride` and `out_channels`.
            stages: blocks of res2, res3, ...; usually four results of `make_stage`.
            num_classes: add average pooling and a linear classifier with this many outputs.
            out_features: outputs of `forward`; by default the last. Stages that no output needs
                are left out.
            freeze_at: see `freeze`.
        """
        super().__init__()
        self.stem = stem
        self.num_classes = num_classes
        names = [f"res{i}" for i in range(2, 2 + len(stages))]
        default = "linear" if num_classes is not None else (names or ["stem"])[-1]
        self._out_features = [default] if out_features is None else list(out_features)
        self._check_out_features(["stem", *names, *(["linear"] if num_classes else [])])
        if num_classes is None:
            used = max(names.index(f) + 1 if f in names else 0 for f in self._out_features)
            names = names[:used]

        stride, channels = stem.stride, stem.out_channels
        self._out_feature_strides = {"stem": stride}
        self._out_feature_channels = {"stem": channels}
        self.stage_names = tuple(names)
        self.stages: list[nn.Sequential] = []
        for name, blocks in zip(names, stages, strict=False):
            _check_blocks(name, blocks)
            stage = nn.Sequential(*blocks)
            self.add_module(name, stage)
            self.stages.append(stage)
            for block in blocks:
                stride *= block.stride
            channels = blocks[-1].out_channels
            self._out_feature_strides[name] = stride
            self._out_feature_channels[name] = channels
        if num_classes is not None:
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.linear = nn.Linear(channels, num_classes)
            nn.init.normal_(self.linear.weight, std=0.01)
            self._out_feature_strides["linear"] = stride
            self._out_feature_channels["linear"] = num_classes
        self.freeze(freeze_at)

    def _check_out_features(self, available: list[str]) -> None:
        unknown = [name for name in self._out_features if name not in available]
        if unknown or not self._out_features:
            raise ValueError(
                f"out_features={self._out_features}: this ResNet offers {available}, ask for at "
                "least one of them"
            )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> {name: (B, channels, H / stride, W / stride)}; `linear`: (B, classes)."""
        if x.dim() != 4:
            raise ValueError(f"ResNet takes a batch (B, C, H, W); got shape {tuple(x.shape)}")
        return {name: y for name, y in self._outputs(x) if name in self._out_features}

    def _outputs(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and output of each part, from the stem on."""
        x = self.stem(x)
        yield "stem", x
        for name in self.stage_names:
            x = getattr(self, name)(x)
            yield name, x
        if self.num_classes is not None:
            yield "linear", self.linear(self.avgpool(x).flatten(1))

    def freeze(self, freeze_at: int = 0) -> "ResNet":
        """Freeze the first stages: no gradients, and normalization as a fixed affine map.

        Args:
            freeze_at: 0 freezes nothing, 1 the stem, 2 the stem and res2, and so on.
        """
        if freeze_at >= 1:
            self.stem.freeze()
        for number, stage in enumerate(self.stages, start=2):
            if freeze_at >= number:
                for block in stage.children():
                    block.freeze()
        return self

    @staticmethod
    def make_stage(
        block_class: type[CNNBlockBase],
        num_blocks: int,
        *,
        in_channels: int,
        out_channels: int,
        **kwargs: Any,
    ) -> list[CNNBlockBase]:
        """Blocks of one stage; the first takes `in_channels`, the others `out_channels`.

        Args:
            kwargs: further arguments of `block_class`. A name with the suffix `_per_block` has one
                value for each block, e.g. `stride_per_block=[2, 1, 1]`.
        """
        per_block = {}
        for name in [name for name in kwargs if name.endswith("_per_block")]:
            values = kwargs.pop(name)
            single = name.removesuffix("_per_block")
            if len(values) != num_blocks:
                raise ValueError(f"{name} has {len(values)} values for {num_blocks} blocks")
            if single in kwargs:
                raise ValueError(f"give either {single} or {name}, not both")
            per_block[single] = values
        blocks = []
        for i in range(num_blocks):
            own = {name: values[i] for name, values in per_block.items()}
            blocks.append(
                block_class(
                    in_channels=in_channels if i == 0 else out_channels,
                    out_channels=out_channels,
                    **own,
                    **kwargs,
                )
            )
        return blocks


make_stage = ResNet.make_stage  # its older name


def _check_depth(depth: int) -> None:
    if depth not in BLOCKS_PER_STAGE:
        raise ValueError(f"ResNet depth {depth}: expected one of {sorted(BLOCKS_PER_STAGE)}")


def _check_blocks(name: str, blocks: Sequence[CNNBlockBase]) -> None:
    if not blocks:
        raise ValueError(f"stage {name} has no blocks")
    for block in blocks:
        if not isinstance(block, CNNBlockBase):
            raise ValueError(f"stage {name} holds a {type(block).__name__}, not a CNNBlockBase")


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """ResNet from `cfg.MODEL.RESNETS` and `cfg.MODEL.BACKBONE.FREEZE_AT`.

    At every depth, res2 has `RES2_OUT_CHANNELS` channels and each later stage twice as many.
    """
    resnets = cfg.MODEL.RESNETS
    _check_resnet_config(resnets)
    stem = BasicStem(input_shape.channels, resnets.STEM_OUT_CHANNELS, resnets.NORM)
    in_channels, out_channels = resnets.STEM_OUT_CHANNELS, resnets.RES2_OUT_CHANNELS
    bottleneck_channels = resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP
    stages = []
    for i, num_blocks in enumerate(BLOCKS_PER_STAGE[resnets.DEPTH]):
        dilation = resnets.RES5_DILATION if i == 3 else 1
        stride = 1 if i == 0 or dilation > 1 else 2  # dilation replaces the stride
        block: dict[str, Any] = {"block_class": BasicBlock, "norm": resnets.NORM}
        if resnets.DEPTH >= BOTTLENECK_DEPTH:
            block |= {
                "block_class": BottleneckBlock,
                "bottleneck_channels": bottleneck_channels,
                "stride_in_1x1": resnets.STRIDE_IN_1X1,
                "dilation": dilation,
                "num_groups": resnets.NUM_GROUPS,
            }
            if resnets.DEFORM_ON_PER_STAGE[i]:
                block |= {
                    "block_class": DeformBottleneckBlock,
                    "deform_modulated": resnets.DEFORM_MODULATED,
                    "deform_num_groups": resnets.DEFORM_NUM_GROUPS,
                }
        stages.append(
            ResNet.make_stage(
                num_blocks=num_blocks,
                stride_per_block=[stride] + [1] * (num_blocks - 1),
                in_channels=in_channels,
                out_channels=out_channels,
                **block,
            )
        )
        in_channels = out_channels
        out_channels *= 2
        bottleneck_channels *= 2
    return ResNet(
        stem,
        stages,
        out_features=resnets.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


def _check_resnet_config(resnets: CfgNode) -> None:
    _check_depth(resnets.DEPTH)
    if resnets.RES5_DILATION not in (1, 2):
        raise ValueError(f"MODEL.RESNETS.RES5_DILATION={resnets.RES5_DILATION}: expected 1 or 2")
    if len(resnets.DEFORM_ON_PER_STAGE) != 4:
        raise ValueError(
            f"MODEL.RESNETS.DEFORM_ON_PER_STAGE={resnets.DEFORM_ON_PER_STAGE}: expected four values"
        )
    if resnets.DEPTH < BOTTLENECK_DEPTH:
        needs_bottleneck = {
            "RES5_DILATION": resnets.RES5_DILATION != 1,
            "NUM_GROUPS": resnets.NUM_GROUPS != 1,
            "DEFORM_ON_PER_STAGE": any(resnets.DEFORM_ON_PER_STAGE),
        }
        for key, is_set in needs_bottleneck.items():
            if is_set:
                raise ValueError(
                    f"MODEL.RESNETS.{key}={resnets[key]} needs bottleneck blocks: set "
                    f"MODEL.RESNETS.DEPTH to 50, 101 or 152, not {resnets.DEPTH}"
                )
