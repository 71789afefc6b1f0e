"""The interface of feature extractors."""

from abc import ABCMeta, abstractmethod

from torch import Tensor, nn

from detectron2.layers import ShapeSpec


class Backbone(nn.Module, metaclass=ABCMeta):
    """A network from an image batch to named feature maps.

    A subclass sets `_out_features` (names, in order), `_out_feature_channels` and
    `_out_feature_strides` (name -> int), which `output_shape` reads, or overrides `output_shape`.
    """

    @abstractmethod
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) image batch -> {name: (B, channels, H / stride, W / stride)}."""

    @property
    def size_divisibility(self) -> int:
        """Height and width of the input must be multiples of this number; 0: any size."""
        return 0

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each output, by name."""
        return {
            name: ShapeSpec(
                channels=self._out_feature_channels[name], stride=self._out_feature_strides[name]
            )
            for name in self._out_features
        }
