"""The two branches of SOLOv2: cells (class and kernel) and the mask feature."""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_GROUPS = 32  # of every GroupNorm
INIT_STD = 0.01
NORMS = ("GN", "none")


def conv_norm_relu(in_channels: int, channels: int, norm: str, kernel_size: int = 3) -> list:
    """Modules [convolution, GroupNorm (for norm "GN"), ReLU] that keep the map's size."""
    if norm not in NORMS:
        raise ValueError(f"MODEL.SOLOV2.NORM={norm!r}; expected one of {NORMS}")
    bias = norm == "none"
    conv = nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, bias=bias)
    norms = [nn.GroupNorm(NUM_GROUPS, channels)] if norm == "GN" else []
    return [conv, *norms, nn.ReLU(inplace=True)]


def initialize_convs(module: nn.Module) -> None:
    """Draw all convolution weights from normal(std 0.01) and zero their biases, in place."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=INIT_STD)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def coordinates(x: Tensor) -> Tensor:
    """Channels x then y, each from -1 to 1 across the map: (B, C, H, W) -> (B, 2, H, W)."""
    ys, xs = (torch.linspace(-1, 1, n, device=x.device, dtype=x.dtype) for n in x.shape[-2:])
    grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack([grid_x, grid_y]).expand(len(x), -1, -1, -1)


def resize(x: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Bilinear resize of (B, C, H, W) to `size_hw`."""
    return F.interpolate(x, size=size_hw, mode="bilinear", align_corners=False)


def convolve_at(conv: nn.Conv2d, maps: Tensor, images: Tensor, cells: Tensor) -> Tensor:
    """A 3x3 convolution evaluated at some cells only: (Q, out channels).

    Args:
        maps: (B, C, S, S).  images: (Q,) int64 index into the batch.
        cells: (Q,) int64, y * S + x.
    """
    size = maps.shape[-1]
    # Windows of the padded maps, a view: (B, C, S, S, 3, 3).
    windows = F.pad(maps, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
    rows, columns = torch.div(cells, size, rounding_mode="floor"), cells % size
    patches = windows[images, :, rows, columns]  # (Q, C, 3, 3)
    return F.linear(patches.flatten(1), conv.weight.flatten(1), conv.bias)


class SOLOv2InsHead(nn.Module):
    """Predict class scores and a dynamic kernel for every cell of every level's grid.

    Attribute names are state-dict keys of released checkpoints.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        num_convs: int,
        num_classes: int,
        num_kernels: int,
        num_grids: Sequence[int],
        norm: str = "GN",
        use_coord_conv: bool = True,
        prior_prob: float = 0.01,
    ):
        super().__init__()
        self.num_grids = tuple(num_grids)
        self.num_classes = num_classes
        self.num_kernels = num_kernels
        self.use_coord_conv = use_coord_conv
        towers: dict[str, nn.Module] = {}
        for name, extra in (("cate", 0), ("kernel", 2 if use_coord_conv else 0)):
            layers: list[nn.Module] = []
            for i in range(num_convs):
                layers += conv_norm_relu(
                    in_channels + extra if i == 0 else channels, channels, norm
                )
            towers[name] = nn.Sequential(*layers)
        self.cate_tower, self.kernel_tower = towers["cate"], towers["kernel"]
        tower_channels = channels if num_convs else in_channels
        self.cate_pred = nn.Conv2d(tower_channels, num_classes, 3, padding=1)
        self.kernel_pred = nn.Conv2d(tower_channels, num_kernels, 3, padding=1)
        initialize_convs(self)
        # Every class starts with probability `prior_prob` in every cell.
        nn.init.constant_(self.cate_pred.bias, -math.log((1 - prior_prob) / prior_prob))

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Pyramid features, a level each -> class logits (B, C, S, S) and kernels (B, K, S, S)."""
        grid_features = self.grid_features(features)
        category = [self.cate_pred(x) for x in self.category_towers(grid_features)]
        kernels = [self.kernel_pred(x) for x in self.kernel_towers(grid_features)]
        return category, kernels

    def grid_features(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Each level's features and coordinates on its grid: (B, C + 2, S, S) a level."""
        levels = list(features)
        # The finest level is halved and the coarsest brought to the size of the one before it.
        levels[-1] = resize(features[-1], features[-2].shape[-2:])
        levels[0] = F.interpolate(
            features[0], scale_factor=0.5, mode="bilinear", align_corners=False
        )
        if self.use_coord_conv:
            levels = [torch.cat([x, coordinates(x)], dim=1) for x in levels]
        return [resize(x, (s, s)) for x, s in zip(levels, self.num_grids, strict=True)]

    def category_towers(self, grid_features: Sequence[Tensor]) -> list[Tensor]:
        """Inputs of `cate_pred`, (B, channels, S, S) a level; this branch gets no coordinates."""
        extra = 2 if self.use_coord_conv else 0
        return [self.cate_tower(x[:, : x.shape[1] - extra]) for x in grid_features]

    def kernel_towers(self, grid_features: Sequence[Tensor]) -> list[Tensor]:
        """Inputs of `kernel_pred`, (B, channels, S, S) a level."""
        return [self.kernel_tower(x) for x in grid_features]


class SOLOv2MaskHead(nn.Module):
    """Merge pyramid levels into one mask feature at stride 4: (B, num_masks, Hf, Wf).

    Level i is convolved and upsampled by 2 i times (level 0 is convolved once). The coarsest level
    also gets coordinates. Attribute names are state-dict keys of released checkpoints.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        num_masks: int,
        num_levels: int = 4,
        norm: str = "GN",
    ):
        super().__init__()
        self.convs_all_levels = nn.ModuleList()
        for level in range(num_levels):
            steps: OrderedDict[str, nn.Module] = OrderedDict()
            for i in range(max(level, 1)):
                extra = 2 if i == 0 and 0 < level == num_levels - 1 else 0
                source = in_channels + extra if i == 0 else channels
                steps[f"conv{i}"] = nn.Sequential(*conv_norm_relu(source, channels, norm))
                if level > 0:
                    steps[f"upsample{i}"] = nn.Upsample(
                        scale_factor=2, mode="bilinear", align_corners=False
                    )
            self.convs_all_levels.append(nn.Sequential(steps))
        self.conv_pred = nn.Sequential(*conv_norm_relu(channels, num_masks, norm, kernel_size=1))
        initialize_convs(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Pyramid features, finest first, each half the size of the one before."""
        levels = list(features)
        if len(levels) > 1:
            levels[-1] = torch.cat([levels[-1], coordinates(levels[-1])], dim=1)
        merged = self.convs_all_levels[0](levels[0])
        for convs, x in zip(self.convs_all_levels[1:], levels[1:], strict=True):
            merged = merged + convs(x)
        return self.conv_pred(merged)
