"""RoIAlign as a module."""

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

__all__ = ["ROIAlign", "roi_align"]


class ROIAlign(nn.Module):
    """Pool each region to a fixed size by averaging bilinear samples."""

    def __init__(
        self,
        output_size: tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = True,
    ):
        """
        Args:
            output_size: (height, width) of the results.
            spatial_scale: feature cells per unit of the boxes, e.g. 1 / stride.
            sampling_ratio: samples per output cell and axis; 0 takes about one per feature cell.
            aligned: cell (i, j) has its center at (i + 0.5, j + 0.5), as everywhere in this
                package; False puts it at (i, j), which is half a cell off, as in old models.
        """
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """(N, C, H, W) and (R, 5) rois -> (R, C, *output_size).

        A roi is the index of the image in the batch, then x0, y0, x1, y1.
        """
        if rois.dim() != 2 or rois.size(1) != 5:
            raise ValueError(f"rois must have shape (R, 5), got {tuple(rois.shape)}")
        settings = (self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)
        # At least float32: in half precision the corners of boxes would move by a pixel or more.
        dtype = torch.promote_types(input.dtype, torch.float32)
        return roi_align(input.to(dtype), rois.to(dtype), *settings).to(input.dtype)

    def __repr__(self) -> str:
        return (
            f"ROIAlign(output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned})"
        )
