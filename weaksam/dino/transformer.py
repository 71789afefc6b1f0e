"""DINO's encoder and decoder (Zhang et al. 2023), under the names of mmdetection's checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from weaksam.dino.attention import FlatMaps, deformable_attention
from weaksam.dino.positions import box_encoding, inverse_sigmoid

__all__ = ["Decoder", "Encoder", "TransformerSizes", "xavier_linear"]

REFINE_EPS = 1e-3  # of the inverse sigmoid between decoder layers, as in mmdetection


@dataclass(frozen=True)
class TransformerSizes:
    """Channels, heads, maps, points of a head on each map, hidden channels, and layers."""

    dim: int = 256
    heads: int = 8
    levels: int = 4
    points: int = 4
    ffn_dim: int = 2048
    dropout: float = 0.0
    encoder_layers: int = 6
    decoder_layers: int = 6

    def __post_init__(self) -> None:
        if self.dim % self.heads or self.dim % 4:
            raise ValueError(
                f"MODEL.DINO.HIDDEN_DIM={self.dim}: expected a multiple of 4 and of "
                f"MODEL.DINO.NUM_HEADS={self.heads}"
            )


def xavier_linear(in_channels: int, out_channels: int) -> nn.Linear:
    """A linear layer with Xavier's initial weights."""
    linear = nn.Linear(in_channels, out_channels)
    nn.init.xavier_uniform_(linear.weight)
    return linear


class FeedForward(nn.Module):
    """Two linear layers around a ReLU, and the input added: (..., dim) -> (..., dim)."""

    def __init__(self, dim: int, hidden: int, dropout: float):
        super().__init__()
        first = nn.Sequential(xavier_linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.layers = nn.Sequential(first, xavier_linear(hidden, dim), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class EncoderLayer(nn.Module):
    """Each place of the maps looks around itself on all maps."""

    def __init__(self, sizes: TransformerSizes):
        super().__init__()
        self.self_attn = deformable_attention(sizes.dim, sizes.heads, sizes.levels, sizes.points)
        self.ffn = FeedForward(sizes.dim, sizes.ffn_dim, sizes.dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(sizes.dim) for _ in range(2))
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, maps: FlatMaps, places: Tensor) -> FlatMaps:
        found = maps.attend(self.self_attn, maps.values, maps.positions, places)
        x = self.norms[0](maps.values + self.dropout(found))
        return replace(maps, values=self.norms[1](self.ffn(x)))


class Encoder(nn.Module):
    """Layers of deformable self-attention over all maps."""

    def __init__(self, sizes: TransformerSizes):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(sizes) for _ in range(sizes.encoder_layers))

    def forward(self, maps: FlatMaps) -> FlatMaps:
        places = cell_centers(maps)
        for layer in self.layers:
            maps = layer(maps, places)
        return maps


def cell_centers(maps: FlatMaps) -> Tensor:
    """(B, S, levels, 2): x, y of the center of each place, in [0, 1] of each padded map."""
    ratios = maps.valid_ratios  # (B, levels, 2)
    centers = []
    for level, (height, width) in enumerate(maps.sizes_hw):
        y = (torch.arange(height, device=ratios.device) + 0.5) / height
        x = (torch.arange(width, device=ratios.device) + 0.5) / width
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)  # (HW, 2)
        centers.append(grid / ratios[:, None, level])  # in [0, 1] of the image
    return torch.cat(centers, dim=1)[:, :, None] * ratios[:, None]


class SelfAttention(nn.Module):
    """Attention between queries; `attn` is a part of the checkpoints' names."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.attn = nn.MultiheadAttention(dim, heads, dropout, batch_first=True)
        nn.init.xavier_uniform_(self.attn.out_proj.weight)

    def forward(self, queries: Tensor, positions: Tensor, is_hidden: Tensor | None) -> Tensor:
        """is_hidden: (Q, Q) bool, True where the query of the row must not see the column's."""
        placed = queries + positions
        return self.attn(placed, placed, queries, attn_mask=is_hidden, need_weights=False)[0]


class DecoderLayer(nn.Module):
    """Queries see each other, then the maps around their boxes."""

    def __init__(self, sizes: TransformerSizes):
        super().__init__()
        self.self_attn = SelfAttention(sizes.dim, sizes.heads, sizes.dropout)
        self.cross_attn = deformable_attention(sizes.dim, sizes.heads, sizes.levels, sizes.points)
        self.ffn = FeedForward(sizes.dim, sizes.ffn_dim, sizes.dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(sizes.dim) for _ in range(3))
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(
        self,
        queries: Tensor,
        positions: Tensor,
        maps: FlatMaps,
        places: Tensor,
        is_hidden: Tensor | None,
    ) -> Tensor:
        seen = self.self_attn(queries, positions, is_hidden)
        queries = self.norms[0](queries + self.dropout(seen))
        found = maps.attend(self.cross_attn, queries, positions, places)
        queries = self.norms[1](queries + self.dropout(found))
        return self.norms[2](self.ffn(queries))


class BoxMLP(nn.Module):
    """Two linear layers that turn the encoding of a box into a query's position."""

    def __init__(self, dim: int):
        super().__init__()
        self.layers = nn.ModuleList([xavier_linear(2 * dim, dim), xavier_linear(dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](self.layers[0](x).relu())


class Decoder(nn.Module):
    """Layers that refine queries and their boxes, as in DAB-DETR with DINO's look-forward-twice."""

    def __init__(self, sizes: TransformerSizes):
        super().__init__()
        self.dim = sizes.dim
        self.layers = nn.ModuleList(DecoderLayer(sizes) for _ in range(sizes.decoder_layers))
        self.ref_point_head = BoxMLP(sizes.dim)
        self.norm = nn.LayerNorm(sizes.dim)

    def forward(
        self,
        queries: Tensor,
        boxes: Tensor,
        maps: FlatMaps,
        reg_branches: Sequence[nn.Module],
        is_hidden: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run all layers.

        Args:
            queries: (B, Q, C).
            boxes: (B, Q, 4), center and size in [0, 1] of the image.
            reg_branches: of each layer, queries -> corrections of their boxes.
            is_hidden: see `SelfAttention`.

        Returns:
            (layers, B, Q, C) queries after each layer; (layers, B, Q, 4) boxes that each layer
            started from. A box carries a gradient to the layer that made it, where the next layer's
            prediction starts from it (look-forward-twice); what a layer *sees* carries none.
        """
        ratios = maps.valid_ratios.repeat(1, 1, 2)[:, None]  # (B, 1, levels, 4)
        outputs, starts = [], []
        seen_boxes = boxes.detach()
        for layer, regress in zip(self.layers, reg_branches, strict=False):
            places = seen_boxes[:, :, None] * ratios  # (B, Q, levels, 4)
            positions = self.ref_point_head(box_encoding(places[:, :, 0], self.dim // 2))
            queries = layer(queries, positions, maps, places, is_hidden)
            outputs.append(self.norm(queries))
            starts.append(boxes)
            boxes = (regress(queries) + inverse_sigmoid(seen_boxes, REFINE_EPS)).sigmoid()
            seen_boxes = boxes.detach()
        return torch.stack(outputs), torch.stack(starts)
