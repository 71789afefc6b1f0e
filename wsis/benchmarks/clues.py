"""Measure the memory of WeakTr's maps against a twin that keeps every attention map, in one run.

Each of the two runs once in a process of its own; its figure is the peak of resident memory (Linux)
less what it was with the network and the image loaded. The twin's 72 maps alone take 9.6 GB at
1000 x 1500 pixels. On small images what both need beside attention counts more.
"""

import multiprocessing
import os
from pathlib import Path

import torch
from torch import Tensor

from weaksam.clues import WeakTrConfig
from weaksam.clues.weaktr import WeakTr
from wsis.benchmarks.maskrefinenet import Row

IMAGE_HW = (1000, 1500)
NUM_CLASSES, LAYERS = 20, (9, 10)
TO_REACH = 0.2
MALLOC_KEY = "MALLOC_MMAP_THRESHOLD_"  # bytes from which memory is returned when it is freed


@torch.no_grad()
def maps_with_all_attention(model: WeakTr, images: Tensor) -> tuple[Tensor, Tensor]:
    """Fine CAM and class-to-patch attention, as `WeakTr.maps` has them, in the plainest way."""
    c, heads, depth = model.config.num_outputs, model.config.num_heads, model.config.depth
    kept: dict[tuple[int, int], Tensor] = {}
    tokens, size_hw, pooled = model._encode(
        images, lambda layer, head, attention: kept.__setitem__((head, layer), attention)
    )
    weights = model.fusion(pooled).unflatten(1, (heads, depth))
    fused = sum(weights[:, h, k, None, None] * attention for (h, k), attention in kept.items())
    fused = fused / (heads * depth)
    coarse = model._classify(tokens, size_hw)[1].relu().flatten(2)
    fine = (fused[:, :c, c:] * coarse) @ fused[:, c:, c:].mT
    cross = [torch.stack([kept[h, k - 1][:, :c, c:] for k in LAYERS], 1) for h in range(heads)]
    return fine.unflatten(2, size_hw), torch.stack(cross, 1).unflatten(4, size_hw)


def resident_bytes(field: str) -> int:
    """Memory of this process by Linux: "VmRSS" now, "VmHWM" at most.

    The peak of `resource.getrusage` would begin with that of the process which started this one.
    """
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if field in x)
    return int(line.split()[1]) * 1024


def peak_bytes(which: str, image_hw: tuple[int, int], threads: int) -> int:
    """Memory that one run takes; to be called in a fresh process, since peaks never go down."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = WeakTrConfig(num_outputs=NUM_CLASSES).build().eval()
    model.scores(torch.rand(1, 3, 64, 64))  # what libraries set up once is not counted
    images = torch.rand(1, 3, *image_hw) * 255
    before = resident_bytes("VmRSS")
    if which == "twin":
        maps_with_all_attention(model, images)
    else:
        model.maps(images, layers=LAYERS)
    return resident_bytes("VmHWM") - before


def measure(image_hw: tuple[int, int] = IMAGE_HW, threads: int = 2) -> list[Row]:
    """The rows of the table."""
    context = multiprocessing.get_context("spawn")
    found = {}
    kept = os.environ.get(MALLOC_KEY)
    # glibc otherwise holds freed tensors back by rules that change while it runs.
    os.environ[MALLOC_KEY] = "1000000"
    try:
        for which in ("ours", "twin"):
            with context.Pool(1) as pool:
                found[which] = pool.apply(peak_bytes, (which, image_hw, threads))
    finally:
        os.environ.pop(MALLOC_KEY)
        if kept is not None:
            os.environ[MALLOC_KEY] = kept
    share = found["ours"] / found["twin"]
    texts = {which: f"{value / 1e9:.2f} GB" for which, value in found.items()}
    what = f"memory of WeakTr's maps, {image_hw[0]} x {image_hw[1]}"
    return [
        Row(what, texts["twin"], texts["ours"], share, f"<= {TO_REACH}", share <= TO_REACH),
    ]
