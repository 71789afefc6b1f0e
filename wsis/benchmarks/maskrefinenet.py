#!/usr/bin/env python
"""Time MaskRefineNet's refinement against a dense, one-by-one twin, in one run.

    python tools/benchmark_maskrefinenet.py

The twin is what the network's definition says, and no more: for each instance an input with all
class-point channels, through the network with its layers in their plain form, alone.
"""

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from maskrefinenet import MaskRefineNet, MaskRefiner
from maskrefinenet.__main__ import make_parser
from maskrefinenet.checkpoint import NetworkConfig, network_content
from maskrefinenet.distributed import world
from maskrefinenet.model import Decoder, SameConv2d
from maskrefinenet.points import class_point_map
from maskrefinenet.refine import refine_file
from maskrefinenet.refiner import Crop
from weaklabels.files import dumps
from weaklabels.masks import encode_mask, mask_fields

IMAGE_HW = (480, 640)
INSTANCES_PER_IMAGE = 5
SPEED_UP, INPUT_BYTES, WALL_OVER_NETWORK = 1.6, 2e6, 1.15  # to reach


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    twin: str
    ours: str
    figure: float
    target: str
    reached: bool


def random_scene(rng: np.random.Generator, count: int, num_classes: int) -> tuple:
    """Noise with ellipses on it: image (H, W, 3), masks, points (x, y), class ids."""
    image = rng.integers(0, 256, (*IMAGE_HW, 3), dtype=np.uint8)
    masks, points = [], []
    for _ in range(count):
        axes = rng.integers(20, 100, 2)
        centre = rng.integers(100, [IMAGE_HW[1] - 100, IMAGE_HW[0] - 100])
        mask = np.zeros(IMAGE_HW, dtype=np.uint8)
        cv2.ellipse(mask, centre.tolist(), axes.tolist(), 0, 0, 360, 1, thickness=-1)
        masks.append(mask)
        points.append(centre.astype(float))
    return image, np.stack(masks), np.stack(points), rng.integers(0, num_classes, count)


class PlainDecoder(Decoder):
    """The decoder as it is defined: enlarge, concatenate, convolve."""

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
        return self.conv(torch.cat([x, skip], dim=1))


def plain_twin(model: MaskRefineNet) -> MaskRefineNet:
    """The same weights in plain layers."""
    twin, plain = copy.deepcopy(model), {Decoder: PlainDecoder, SameConv2d: torch.nn.Conv2d}
    for module in twin.modules():
        module.__class__ = plain.get(type(module), type(module))
    return twin


def dense_one_by_one(model: MaskRefineNet, crops: Sequence[Crop]) -> np.ndarray:
    """Foreground probabilities (N, S, S) by the dense input of each instance."""
    results = []
    with torch.inference_mode():
        for crop in crops:
            inputs = torch.from_numpy(crop.inputs)
            channel = model.point_channel(torch.tensor([crop.class_id]))
            size = tuple(inputs.shape[-2:])
            maps = class_point_map(torch.tensor([crop.point]), channel, model.point_channels, size)
            dense = torch.cat([inputs[None, :3], maps, inputs[None, 3:]], dim=1)
            results.append(model(dense).softmax(dim=1)[0, 1].numpy())
    return np.stack(results)


def sparse_batches(refiner: MaskRefiner, crops: Sequence[Crop]) -> np.ndarray:
    """Foreground probabilities (N, S, S) as refinement computes them."""
    step = refiner.batch_size
    return np.concatenate(
        [refiner.foreground(crops[i : i + step]) for i in range(0, len(crops), step)]
    )


def best_times(repeats: int, *functions: Callable[[], object]) -> list[float]:
    """Least seconds of each function; they take turns, so that all meet the same machine."""
    best = [float("inf")] * len(functions)
    for _ in range(repeats):
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def measure(
    *, encoder: str = "resnet101", size: int = 256, instances: int = 20, repeats: int = 3
) -> list[Row]:
    """The table; all in one run, with the threads that torch has."""
    torch.manual_seed(0)
    model = MaskRefineNet(encoder=encoder).eval()
    torch.nn.init.normal_(model.head.weight)  # fresh heads say 0.5 everywhere: nothing to compare
    refiner = MaskRefiner(model, size=size)
    image, masks, points, classes = random_scene(np.random.default_rng(0), instances, 80)
    crops = [
        refiner.prepare(image, mask, tuple(point), int(index))
        for mask, point, index in zip(masks, points, classes, strict=True)
    ]
    twin = plain_twin(model)
    difference = np.abs(dense_one_by_one(twin, crops) - sparse_batches(refiner, crops)).max()
    dense, sparse = best_times(
        repeats,
        lambda: dense_one_by_one(twin, crops),
        lambda: sparse_batches(refiner, crops),
    )
    dense_bytes = 4 * (model.point_channels + 4) * size**2
    sparse_bytes = crops[0].inputs.nbytes
    wall = refine_overhead(model, encoder, size, instances)
    return [
        Row(
            f"refinement, s per instance (results differ by {difference:.0e})",
            f"{dense / instances:.3f}",
            f"{sparse / instances:.3f}",
            dense / sparse,
            f">= {SPEED_UP} x",
            dense / sparse >= SPEED_UP,
        ),
        Row(
            "input tensors, MB per instance",
            f"{dense_bytes / 1e6:.1f}",
            f"{sparse_bytes / 1e6:.1f}",
            dense_bytes / sparse_bytes,
            f"<= {INPUT_BYTES / 1e6:.0f} MB",
            sparse_bytes <= INPUT_BYTES,
        ),
        Row(
            "refine: wall time over its network time",
            "-",
            f"{wall:.3f}",
            wall,
            f"<= {WALL_OVER_NETWORK}",
            wall <= WALL_OVER_NETWORK,
        ),
    ]


def refine_overhead(model: MaskRefineNet, encoder: str, size: int, instances: int) -> float:
    """Run the refine command on image files; its wall time over the network's part of it."""
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        categories = tuple({"id": i + 1, "name": str(i + 1)} for i in range(model.num_classes))
        config = NetworkConfig(model.num_classes, encoder=encoder, size=size)
        checkpoint, records = folder / "model.pth", folder / "weak.jsonl"
        torch.save(network_content(model.state_dict(), config, categories), checkpoint)
        with open(records, "w", encoding="utf-8") as file:
            for number in range(max(1, instances // INSTANCES_PER_IMAGE)):
                scene = random_scene(rng, min(instances, INSTANCES_PER_IMAGE), model.num_classes)
                file.write(dumps(_record(folder, number, *scene)) + "\n")
        arguments = ["refine", "--checkpoint", str(checkpoint), "--predictions", str(records)]
        arguments += ["--image-root", name, "--out", str(folder / "out.jsonl"), "--device", "cpu"]
        with world("cpu") as here:
            summary = refine_file(make_parser().parse_args(arguments), here)
    return summary.wall_seconds / summary.network_seconds


def _record(
    folder: Path,
    number: int,
    image: np.ndarray,
    masks: np.ndarray,
    points: np.ndarray,
    classes: np.ndarray,
) -> dict:
    """Write the image, return its prediction record."""
    file_name = f"{number}.jpg"
    cv2.imwrite(str(folder / file_name), image)
    instances = [
        {
            "category_id": int(index) + 1,
            "score": 1.0,
            "point": point.tolist(),
            **mask_fields(encode_mask(mask)),
        }
        for mask, point, index in zip(masks, points, classes, strict=True)
    ]
    height, width = IMAGE_HW
    sizes = {"height": height, "width": width}
    return {"image_id": number, "file_name": file_name, **sizes, "instances": instances}


def print_table(rows: Sequence[Row]) -> None:
    print("| what | dense, one by one | ours | ratio | to reach | reached |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        cells = (row.what, row.twin, row.ours, f"{row.figure:.2f}", row.target)
        print("|", " | ".join([*cells, "yes" if row.reached else "NO"]), "|")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a figure misses its target."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="resnet101")
    parser.add_argument("--size", type=int, default=256, help="side of the input, pixels")
    parser.add_argument("--instances", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many counts")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    print(
        f"MaskRefineNet {args.encoder}, {args.size} x {args.size}, {args.instances} instances, "
        f"{args.threads} threads, CPU, float32, random weights"
    )
    rows = measure(
        encoder=args.encoder, size=args.size, instances=args.instances, repeats=args.repeats
    )
    print_table(rows)
    return 0 if all(row.reached for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
