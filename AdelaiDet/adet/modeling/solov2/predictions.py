"""What the network predicts for a batch: for all cells, or only for the cells that are asked for.

A prompt with a few points needs a few cells, and some prompts need no class scores. Each prediction
is therefore computed when it is called for, not before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .grids import PyramidGrids, flatten_levels
from .heads import SOLOv2InsHead, convolve_at
from .nms import point_nms


@dataclass(frozen=True)
class Predictions:
    """One run of the network on B images, up to the inputs of its instance head.

    Cells are numbered as in `grids`: flat over all levels, M cells in total. All predictions
    are float32, also under autocast.

    grid_features: (B, C, S, S) a level, inputs of `head`.  mask_features: (B, K, Hf, Wf).
    image_sizes_hw: unpadded input sizes.  frame_hw: the padded size.
    """

    head: SOLOv2InsHead
    grids: PyramidGrids
    grid_features: Sequence[Tensor]
    mask_features: Tensor
    image_sizes_hw: Sequence[tuple[int, int]]
    frame_hw: tuple[int, int]

    def kernels(self) -> Tensor:
        """Mask kernels of all cells: (B, M, K)."""
        towers = self.head.kernel_towers(self.grid_features)
        return flatten_levels([self.head.kernel_pred(x) for x in towers]).float()

    def class_scores(self) -> Tensor:
        """Class probabilities of all cells after point NMS, 0 where suppressed: (B, M, classes)."""
        towers = self.head.category_towers(self.grid_features)
        return flatten_levels([point_nms(self.head.cate_pred(x).float().sigmoid()) for x in towers])

    def kernels_at(self, cells: Sequence[Tensor]) -> list[Tensor]:
        """Mask kernels (Q, K) of each image's cells (Q,)."""
        towers = self.head.kernel_towers(self.grid_features)
        return self._predict_at(self.head.kernel_pred, towers, cells)

    def class_logits_at(self, cells: Sequence[Tensor]) -> list[Tensor]:
        """Class logits (Q, classes) of each image's cells (Q,)."""
        towers = self.head.category_towers(self.grid_features)
        return self._predict_at(self.head.cate_pred, towers, cells)

    def _predict_at(
        self, conv: nn.Conv2d, towers: Sequence[Tensor], cells: Sequence[Tensor]
    ) -> list[Tensor]:
        """A 3x3 convolution of `towers` at each image's cells; one product a level."""
        counts = [len(image_cells) for image_cells in cells]
        flat = torch.cat(list(cells))
        images = torch.arange(len(counts), device=flat.device).repeat_interleave(
            torch.tensor(counts, device=flat.device)
        )
        levels = self.grids.levels_of(flat)
        output = towers[0].new_zeros(len(flat), conv.out_channels, dtype=torch.float32)
        for level, (tower, offset) in enumerate(zip(towers, self.grids.offsets, strict=True)):
            chosen = levels == level
            values = convolve_at(conv, tower, images[chosen], flat[chosen] - offset)
            output[chosen] = values.to(output)
        return list(output.split(counts))
