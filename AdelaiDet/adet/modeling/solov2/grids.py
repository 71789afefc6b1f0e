"""The S x S cells that each pyramid level lays over an image.

Cells of all levels share one flat numbering: level 0's cells row by row, then level 1's, ...
The frame that the cells divide is the padded network input.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MASK_STRIDE = 4  # of the mask feature, in pixels of the network's input


@dataclass(frozen=True)
class PyramidGrids:
    """Grid size, range of instance sizes and stride of every pyramid level.

    Args:
        num_grids: S of each level.
        scale_ranges: (low, high) of each level: it holds low <= sqrt(box area) < high, in pixels.
        strides: smallest mask area of each level, in pixels at stride 4 (exclusive).
        sigma: share of a box, around the mask's center of mass, that is positive.
    """

    num_grids: tuple[int, ...]
    scale_ranges: tuple[tuple[float, float], ...]
    strides: tuple[int, ...]
    sigma: float

    def __post_init__(self) -> None:
        lengths = {len(self.num_grids), len(self.scale_ranges), len(self.strides)}
        if len(lengths) != 1:
            raise ValueError(
                f"MODEL.SOLOV2 needs one entry a level in each of NUM_GRIDS {self.num_grids}, "
                f"FPN_SCALE_RANGES {self.scale_ranges} and FPN_INSTANCE_STRIDES {self.strides}"
            )

    def __len__(self) -> int:
        return len(self.num_grids)

    @property
    def num_cells(self) -> int:
        """Number of cells of all levels together."""
        return sum(grid**2 for grid in self.num_grids)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Flat number of the first cell of each level."""
        return tuple(sum(g**2 for g in self.num_grids[:level]) for level in range(len(self)))

    def levels_of(self, cells: Tensor) -> Tensor:
        """Level (P,) int64 that each flat cell number (P,) belongs to."""
        starts = torch.tensor(self.offsets, device=cells.device)
        return torch.searchsorted(starts, cells, right=True) - 1

    def strides_of(self, cells: Tensor) -> Tensor:
        """Stride (P,) int64 of the level that each flat cell number (P,) belongs to."""
        return torch.tensor(self.strides, device=cells.device)[self.levels_of(cells)]


def flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """Maps (B, C, S, S) of all levels as rows of cells: (B, sum of S * S, C)."""
    return torch.cat([x.flatten(2) for x in maps], dim=2).transpose(1, 2)


def reference_cells(positions: Tensor, frame: int, grid: int) -> Tensor:
    """Cells of float32 pixel positions, computed as published training runs did.

    Upstream parity: floor division by 1 / S in float32 puts some positions on the exact
    border of a cell one cell too low; released checkpoints learned from such targets.
    """
    return ((positions / frame) // (1.0 / grid)).long()


def exact_cells(positions: Tensor, frame: int, grid: int) -> Tensor:
    """Cells of pixel positions: floor(position * S / frame), in float64."""
    return (positions.double() * grid / frame).floor().long()


def covered_cells(
    centers_xy: Tensor,
    sizes_wh: Tensor,
    frame_hw: tuple[int, int],
    grids: PyramidGrids,
    *,
    exact: bool,
) -> tuple[Tensor, Tensor]:
    """Positive cells of instances on every level whose range holds their size.

    On its level an instance covers the cells under center +- sigma / 2 * size, at most one cell
    away from the center's cell.

    Args:
        centers_xy: (N, 2) in pixels.  sizes_wh: (N, 2) box width and height in pixels.
        frame_hw: height and width of the padded input.
        exact: `exact_cells` in place of `reference_cells`.

    Returns:
        Flat cell numbers (P,) and instance numbers (P,), both int64, ordered by level,
        instance, row, column.
    """
    cell_of = exact_cells if exact else reference_cells
    scales = torch.sqrt(sizes_wh[:, 0] * sizes_wh[:, 1])
    halves = 0.5 * sizes_wh * grids.sigma
    cells, owners = [], []
    steps = torch.arange(3, device=centers_xy.device)  # a region is at most 3 x 3 cells
    for (low, high), grid, offset in zip(
        grids.scale_ranges, grids.num_grids, grids.offsets, strict=True
    ):
        hits = torch.nonzero((scales >= low) & (scales < high)).flatten()
        bounds = []
        for axis, frame in ((1, frame_hw[0]), (0, frame_hw[1])):
            center, half = centers_xy[hits, axis], halves[hits, axis]
            cell = cell_of(center, frame, grid)
            first = torch.maximum(cell_of(center - half, frame, grid).clamp(min=0), cell - 1)
            last = cell_of(center + half, frame, grid).clamp(max=grid - 1)
            last = torch.minimum(last, cell + 1)
            index = first[:, None] + steps  # (K, 3)
            bounds.append((index, index <= last[:, None]))
        (rows, row_ok), (columns, column_ok) = bounds
        flat = offset + rows[:, :, None] * grid + columns[:, None, :]  # (K, 3, 3)
        covered = row_ok[:, :, None] & column_ok[:, None, :]
        cells.append(flat[covered])
        owners.append(hits[:, None, None].expand_as(flat)[covered])
    return torch.cat(cells), torch.cat(owners)
