"""Whole ResNets of the standard widths, for tests against torchvision's."""

from typing import Any

from detectron2.layers import CNNBlockBase
from detectron2.modeling import ResNet
from detectron2.modeling.backbone.resnet import BLOCKS_PER_STAGE, BOTTLENECK_DEPTH
from detectron2.modeling.backbone.resnet_blocks import BasicBlock, BottleneckBlock

BOTTLENECK_EXPANSION = 4


def default_stages(
    depth: int, block_class: type[CNNBlockBase] | None = None, **kwargs: Any
) -> list[list[CNNBlockBase]]:
    """Four stages of the standard widths, for a stem of 64 channels; see `ResNet`.

    Args:
        block_class: by default `BasicBlock` below depth 50, else `BottleneckBlock`.
        kwargs: further arguments of the blocks.
    """
    deep = depth >= BOTTLENECK_DEPTH
    stages, channels = [], 64
    for i, num_blocks in enumerate(BLOCKS_PER_STAGE[depth]):
        width = 64 * 2**i
        own = {"bottleneck_channels": width, **kwargs} if deep else kwargs
        strides = [1 if i == 0 else 2] + [1] * (num_blocks - 1)
        stages.append(
            ResNet.make_stage(
                block_class or (BottleneckBlock if deep else BasicBlock),
                num_blocks,
                stride_per_block=strides,
                in_channels=channels,
                out_channels=width * BOTTLENECK_EXPANSION if deep else width,
                **own,
            )
        )
        channels = stages[-1][-1].out_channels
    return stages
