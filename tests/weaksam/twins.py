"""Slow, plain counterparts of the clues' networks and searches."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def weaktr_with_all_maps(model, images: Tensor) -> dict[str, Tensor]:
    """WeakTr's logits and maps with all heads x layers attention maps kept until the end.

    Returns: logits "cls", "patch", "attn" (B, C); "coarse", "fine", "fused_cross" (B, C, h, w);
    "raw" class-to-patch attention (B, A, L, C, h, w); "maps" (B, A * L, T, T); "pooled" (B, A * L).
    """
    config, c = model.config, model.config.num_outputs
    patches = model.patch_embed(model.normalize(images))
    h, w = patches.shape[2:]
    x = torch.cat([model.cls_token.expand(len(images), -1, -1), patches.flatten(2).mT], dim=1)
    x = x + model.position_vectors((h, w), square=images.shape[2] == images.shape[3])
    kept = []
    for block in model.blocks:
        y = block.norm1(x)
        qkv = block.attn.qkv(y).reshape(*y.shape[:2], 3, config.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attention = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)  # (B, A, T, T)
        kept.append(attention)
        x = x + block.attn.proj((attention @ v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    stack = torch.stack(kept, dim=2).detach()  # (B, A, L, T, T)
    maps = stack.flatten(1, 2)
    pool = torch.mean if config.pool == "avg" else torch.amax
    pooled = pool(maps, dim=(2, 3))
    fused = (model.fusion(pooled)[:, :, None, None] * maps).mean(dim=1)
    class_maps = model.head(x[:, c:].mT.reshape(len(x), -1, h, w))
    coarse = class_maps.detach().relu()
    cross = fused[:, :c, c:].reshape(coarse.shape)
    fine = torch.einsum("bij,bcj->bci", fused[:, c:, c:], (cross * coarse).flatten(2))
    fine = fine.reshape(coarse.shape)
    return {
        "cls": x[:, :c].mean(dim=2),
        "patch": class_maps.mean(dim=(2, 3)),
        "attn": fine.mean(dim=(2, 3)),
        "coarse": coarse,
        "fine": fine,
        "fused_cross": cross,
        "raw": stack[..., :c, c:].unflatten(4, (h, w)),
        "maps": maps,
        "pooled": pooled,
    }


def fine_cam_by_loops(affinity: np.ndarray, fused: np.ndarray) -> np.ndarray:
    """F_i = sum_j P_ij f_j; affinity (N, N), fused (N,)."""
    fine = np.zeros(len(fused))
    for i in range(len(fused)):
        for j in range(len(fused)):
            fine[i] += affinity[i, j] * fused[j]
    return fine


def peaks_by_sorting(values: np.ndarray, kernel: int, threshold: float, most: int) -> list[tuple]:
    """(x, y, score) of peaks: every pixel against its window, then a sorted list."""
    height, width = values.shape
    half = (kernel - 1) // 2
    candidates = []
    for y in range(height):
        for x in range(width):
            window = values[max(y - half, 0) : y + half + 1, max(x - half, 0) : x + half + 1]
            if values[y, x] == window.max():
                candidates.append((-values[y, x], y, x))
    kept: list[tuple] = []
    for negative, y, x in sorted(candidates)[:most]:
        if any(abs(x - a) + abs(y - b) < half for a, b, _ in kept):
            continue
        if -negative < threshold:
            break
        kept.append((x, y, -negative))
    return kept


def resized_positions_by_hand(stored: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Bicubic (a = -0.75) samples of stored (g, g) at the given factors (side + 0.1) / g."""
    grid = len(stored)

    def weights(side: int) -> np.ndarray:
        matrix = np.zeros((side, grid))
        factor = (side + 0.1) / grid
        for i in range(side):
            position = (i + 0.5) / factor - 0.5
            base = int(np.floor(position))
            for tap in range(base - 1, base + 3):
                matrix[i, min(max(tap, 0), grid - 1)] += cubic(abs(position - tap))
        return matrix

    def cubic(d: float, a: float = -0.75) -> float:
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0

    return weights(size_hw[0]) @ stored @ weights(size_hw[1]).T


def normalized(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (values.max() - values.min() + 1e-8)


def sum_of_passes(maps: list[Tensor], size_hw: tuple[int, int]) -> Tensor:
    """(C, H, W): small maps (1, C, h, w), stretched, every second one turned back, added up."""
    total = torch.zeros(())
    for index, low in enumerate(maps):
        full = F.interpolate(low, size=size_hw, mode="bilinear", align_corners=False)[0]
        total = total + (full.flip(-1) if index % 2 else full)
    return total
