"""WeakTr: a vision transformer with a token for each class, whose attention says where classes are.

Parameters have timm's names for `deit_small_patch16_224`. Beside them there are C class tokens,
a 3x3 convolution `head` that turns patch tokens into class maps, and `fusion`, which weighs the
attention maps of all heads and layers. Attention is summed head by head: of the heads x layers
maps of T x T only one exists at a time.

Shapes: B images, C classes, h x w patches, N = h * w, T = C + N tokens, D channels, A heads and
L layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import stochastic_depth

from .classifier import IMAGENET_MEAN, IMAGENET_STD, Classifier, ClueMaps

# Sees the attention (B, T, T) of one head of one layer.
See = Callable[[int, int, Tensor], None]
POSITION_OFFSET = 0.1  # Upstream parity: the exact factor decides where positions are sampled


@dataclass(frozen=True)
class WeakTrConfig:
    """The shape of the network; the defaults are DeiT-S.

    num_outputs: class tokens.
    outputs: the tokens that are classes, in the order of these; None: all of them. The published
        COCO files have 90 tokens, of which 80 are classes; the others take part in attention.
    image_size: side in pixels of the images that position vectors are stored for.
    pool: "avg" or "max", what the fusion sees of an attention map. Upstream's is "avg", which is
        1 / T for every map and image, so that the weights depend on the number of tokens alone.
    """

    num_outputs: int
    outputs: tuple[int, ...] | None = None
    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 6
    patch_size: int = 16
    image_size: int = 224
    mlp_ratio: int = 4
    drop_path: float = 0.1
    pool: str = "avg"
    reduction: int = 4

    def __post_init__(self) -> None:
        if self.pool not in ("avg", "max"):
            raise ValueError(f"pool={self.pool!r}; expected 'avg' or 'max'")
        if self.embed_dim % self.num_heads or self.image_size % self.patch_size:
            raise ValueError(
                f"embed_dim {self.embed_dim} must be a multiple of num_heads {self.num_heads}, and "
                f"image_size {self.image_size} one of patch_size {self.patch_size}"
            )
        if self.outputs is not None and not set(self.outputs) <= set(range(self.num_outputs)):
            raise ValueError(f"outputs={self.outputs}; there are {self.num_outputs}")

    def build(self) -> "WeakTr":
        return WeakTr(self)


class Attention(nn.Module):
    """Multi-head self-attention that shows its maps, one head at a time."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, see: Callable[[int, Tensor], None] | None) -> Tensor:
        """(B, T, D) -> (B, T, D); `see(head, attention)` gets detached (B, T, T), rows sum to 1."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, -1).permute(2, 3, 0, 1, 4)
        scale = (dim // self.num_heads) ** -0.5
        if see is None:
            q, k, v = (part.transpose(0, 1) for part in qkv)  # (B, A, T, D / A)
            heads = F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)
            return self.proj(heads.reshape(batch, tokens, dim))
        heads = []
        for head, (q, k, v) in enumerate(zip(*qkv, strict=True)):
            attention = (q * scale @ k.transpose(1, 2)).softmax(dim=2)
            see(head, attention.detach())
            heads.append(attention @ v)
        return self.proj(torch.cat(heads, dim=2))


class MLP(nn.Module):
    """Two linear layers with a GELU between them, under timm's names."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: WeakTrConfig, drop_path: float):
        super().__init__()
        dim = config.embed_dim
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, config.num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim, config.mlp_ratio * dim)

    def forward(self, x: Tensor, see: Callable[[int, Tensor], None] | None) -> Tensor:
        x = x + self._drop(self.attn(self.norm1(x), see))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _drop(self, branch: Tensor) -> Tensor:
        return stochastic_depth(branch, self.drop_path, "row", self.training)


class PatchEmbed(nn.Module):
    """Non-overlapping patches to vectors; what is left over at the right and bottom is dropped."""

    def __init__(self, patch_size: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)  # (B, D, h, w)


@dataclass
class _Seen:
    """What training keeps of every attention map: rows of classes and mean rows of patches.

    class_rows: (B, C, N) for each map.  patch_means: (B, N) for each map.
    """

    num_outputs: int
    class_rows: list[Tensor]
    patch_means: list[Tensor]

    def __call__(self, layer: int, head: int, attention: Tensor) -> None:
        c = self.num_outputs
        self.class_rows.append(attention[:, :c, c:].clone())  # a view would keep the whole map
        self.patch_means.append(attention[:, c:, c:].mean(dim=1))


class WeakTr(Classifier):
    """See the module; `forward` trains on three kinds of logits, `maps` says where classes are."""

    sources = ("coarse", "fine", "cross")
    label_threshold = -0.5  # a raw logit, a probability of 0.38
    parameters_without_decay = ("pos_embed", "cls_token")

    def __init__(self, config: WeakTrConfig):
        super().__init__(IMAGENET_MEAN, IMAGENET_STD)
        self.config = config
        dim, num_maps = config.embed_dim, config.num_heads * config.depth
        self.grid = config.image_size // config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, config.num_outputs, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_outputs + self.grid**2, dim))
        self.patch_embed = PatchEmbed(config.patch_size, dim)
        rate = config.drop_path / max(config.depth - 1, 1)  # grows from 0 at the first block
        self.blocks = nn.ModuleList(Block(config, i * rate) for i in range(config.depth))
        # Upstream parity: part of the files, but the forward pass has no final norm.
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Conv2d(dim, config.num_outputs, 3, padding=1)
        hidden = num_maps // config.reduction
        self.fusion = nn.Sequential(
            nn.Linear(num_maps, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, num_maps, bias=False),
            nn.Sigmoid(),
        )
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def num_classes(self) -> int:
        return self.config.num_outputs if self.config.outputs is None else len(self.config.outputs)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (B, C) by name: "cls" of class tokens, "patch" of patches, "attn" of fine CAMs.

        "attn" gives gradient to the fusion alone: attention and coarse CAM are detached. It is the
        mean of the fine CAM over its pixels, which needs no map of patches to patches:
        mean_i sum_j P_ij f_j is sum_j (mean_i P_ij) f_j, and P is a weighted sum of the maps.
        """
        seen = _Seen(self.config.num_outputs, [], [])
        tokens, size_hw, pooled = self._encode(images, seen)
        weights = self.fusion(pooled) / pooled.shape[1]  # (B, A * L), rows of `seen` by layer
        weights = weights.unflatten(1, (self.config.num_heads, -1)).transpose(1, 2).flatten(1)
        class_rows = torch.einsum("bk,bkcn->bcn", weights, torch.stack(seen.class_rows, dim=1))
        patch_means = torch.einsum("bk,bkn->bn", weights, torch.stack(seen.patch_means, dim=1))
        y_cls, class_maps = self._classify(tokens, size_hw)
        coarse = class_maps.detach().relu().flatten(2)
        logits = {
            "cls": y_cls,
            "patch": class_maps.mean(dim=(2, 3)),
            "attn": torch.einsum("bn,bcn->bc", patch_means, class_rows * coarse),
        }
        return {name: self._chosen(value) for name, value in logits.items()}

    def scores(self, images: Tensor) -> Tensor:
        """(B, C) logits of the class tokens."""
        tokens, size_hw, _ = self._encode(images, None)
        return self._chosen(self._classify(tokens, size_hw)[0])

    def loss(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Soft-margin losses of the three logits, of equal weight; targets (B, C) are 0 or 1."""
        return {
            f"loss_{name}": F.multilabel_soft_margin_loss(logits, targets)
            for name, logits in self(images).items()
        }

    @torch.no_grad()
    def maps(
        self, images: Tensor, layers: Sequence[int] = (), classes: Sequence[int] | None = None
    ) -> ClueMaps:
        """Where classes are, at patch resolution.

        Args:
            layers: those whose class-to-patch attention is returned, from 1.
            classes: those whose maps are returned; None: all.
        """
        wrong = [layer for layer in layers if not 1 <= layer <= self.config.depth]
        if wrong:
            raise ValueError(f"attention layers {wrong}; the network has 1 to {self.config.depth}")
        c = self.config.num_outputs
        kept = torch.arange(c, device=images.device)
        kept = self._chosen(kept[None])[0]
        if classes is not None:
            kept = kept[torch.as_tensor(list(classes), dtype=torch.int64, device=images.device)]
        cross: dict[tuple[int, int], Tensor] = {}
        weights = self.fusion(self._pooled(images)).unflatten(1, (self.config.num_heads, -1))
        total: list[Tensor] = []

        def add(layer: int, head: int, attention: Tensor) -> None:
            rows = attention[:, :, c:]
            if layer + 1 in layers:
                cross[layer + 1, head] = rows[:, kept].clone()
            if not total:
                total.append(torch.zeros_like(rows))
            total[0].addcmul_(rows, weights[:, head, layer, None, None])

        tokens, (h, w), _ = self._encode(images, add)
        fused_rows = total[0] / (self.config.num_heads * self.config.depth)  # (B, T, N)
        y_cls, class_maps = self._classify(tokens, (h, w))
        coarse = class_maps[:, kept].relu()
        cross_attention = fused_rows[:, kept].unflatten(2, (h, w))
        fine = (cross_attention * coarse).flatten(2) @ fused_rows[:, c:].transpose(1, 2)
        by_head = [
            torch.stack([cross[layer, head] for layer in layers], dim=1)
            for head in range(self.config.num_heads if layers else 0)
        ]
        return ClueMaps(
            logits=self._chosen(y_cls),
            coarse=coarse,
            fine=fine.unflatten(2, (h, w)),
            cross=torch.stack(by_head, dim=1).unflatten(4, (h, w)) if layers else None,
        )

    def _chosen(self, values: Tensor) -> Tensor:
        """Columns (B, C, ...) of the tokens that are classes."""
        return values if self.config.outputs is None else values[:, list(self.config.outputs)]

    def _classify(self, tokens: Tensor, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Logits (B, C) of class tokens and class maps (B, C, h, w) of patch tokens."""
        class_tokens, patches = tokens.split(
            [self.config.num_outputs, size_hw[0] * size_hw[1]], dim=1
        )
        return class_tokens.mean(dim=2), self.head(patches.mT.unflatten(2, size_hw))

    def _encode(self, images: Tensor, see: See | None) -> tuple[Tensor, tuple[int, int], Tensor]:
        """Tokens (B, T, D) after the last block, (h, w), and what the fusion sees (B, A * L)."""
        patches = self.patch_embed(self.normalize(images))
        size_hw = patches.shape[2], patches.shape[3]
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), patches.flatten(2).mT], dim=1)
        positions = self.position_vectors(size_hw, square=images.shape[2] == images.shape[3])
        x = x + positions
        peaks = x.new_zeros(len(x), self.config.num_heads, self.config.depth)
        for layer, block in enumerate(self.blocks):

            def show(head: int, attention: Tensor, layer: int = layer) -> None:
                if self.config.pool == "max":
                    peaks[:, head, layer] = attention.amax(dim=(1, 2))
                see(layer, head, attention)

            x = block(x, show if see is not None else None)
        if self.config.pool == "avg":  # the mean of a map whose rows sum to 1
            return x, size_hw, torch.full_like(peaks, 1 / x.shape[1]).flatten(1)
        return x, size_hw, peaks.flatten(1)

    def _pooled(self, images: Tensor) -> Tensor:
        """What the fusion sees (B, A * L), channel head * L + layer, before the maps are there."""
        if self.config.pool == "max":
            return self._encode(images, lambda layer, head, attention: None)[2]
        patch = self.config.patch_size
        num_patches = (images.shape[2] // patch) * (images.shape[3] // patch)
        num_maps = self.config.num_heads * self.config.depth
        return images.new_full((len(images), num_maps), 1 / (self.config.num_outputs + num_patches))

    def position_vectors(self, size_hw: tuple[int, int], square: bool) -> Tensor:
        """(1, C + h * w, D): those of patches resized to h x w patches.

        Args:
            square: whether the image is; only then are stored vectors taken as they are.
        """
        h, w = size_hw
        if square and h * w == self.grid**2:
            return self.pos_embed
        c = self.config.num_outputs
        stored = self.pos_embed[:, c:].mT.unflatten(2, (self.grid, self.grid))
        factors = tuple((side + POSITION_OFFSET) / self.grid for side in size_hw)
        # Upstream parity: the factor is given and not computed anew from the sizes.
        resized = F.interpolate(
            stored, scale_factor=factors, mode="bicubic", recompute_scale_factor=False
        )
        if resized.shape[2:] != (h, w):
            raise AssertionError(f"positions for {h} x {w} patches became {resized.shape[2:]}")
        return torch.cat([self.pos_embed[:, :c], resized.flatten(2).mT], dim=1)
