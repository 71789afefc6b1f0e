"""Time MaskRefineNet's refinement against the plain network, in one run.

The baseline is the plain network: each instance alone, as an input with all class-point channels.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from maskrefinenet import MaskRefineNet, MaskRefiner
from maskrefinenet.checkpoint import NetworkConfig, network_content
from maskrefinenet.refiner import Crop
from weaklabels.files import dumps
from weaklabels.masks import encode_mask, mask_fields
from wsis.launcher import Job
from wsis.refine import RefineSettings, refine

IMAGE_HW = (480, 640)
INSTANCES_PER_IMAGE = 5
SPEED_UP, INPUT_BYTES, WALL_OVER_NETWORK = 1.6, 2e6, 1.15  # to reach


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    baseline: str
    ours: str
    figure: float
    target: str
    reached: bool


def print_rows(rows: Sequence[Row]) -> int:
    """Print speed-ups over a twin, a line each; 1 where one misses its target, else 0."""
    for row in rows:
        print(
            f"{row.what}: twin {row.baseline}, ours {row.ours}, {row.figure:.1f} x ({row.target})"
        )
    return 0 if all(row.reached for row in rows) else 1


def random_scene(rng: np.random.Generator, count: int, num_classes: int) -> tuple:
    """Noise with ellipses on it: image (H, W, 3), masks, points (x, y), class ids."""
    image = rng.integers(0, 256, (*IMAGE_HW, 3), dtype=np.uint8)
    masks, points = [], []
    for _ in range(count):
        axes = rng.integers(20, 100, 2)
        center = rng.integers(100, [IMAGE_HW[1] - 100, IMAGE_HW[0] - 100])
        mask = np.zeros(IMAGE_HW, dtype=np.uint8)
        cv2.ellipse(mask, center.tolist(), axes.tolist(), 0, 0, 360, 1, thickness=-1)
        masks.append(mask)
        points.append(center.astype(float))
    return image, np.stack(masks), np.stack(points), rng.integers(0, num_classes, count)


def dense_one_by_one(model: MaskRefineNet, crops: Sequence[Crop]) -> np.ndarray:
    """Foreground probabilities (N, S, S) by the dense input of each instance."""
    results = []
    with torch.inference_mode():
        for crop in crops:
            inputs = torch.from_numpy(crop.inputs)[None]
            point, class_id = torch.tensor([crop.point]), torch.tensor([crop.class_id])
            logits = model(model.dense_input(inputs, point, class_id))
            results.append(logits.softmax(dim=1)[0, 1].numpy())
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
    difference = np.abs(dense_one_by_one(model, crops) - sparse_batches(refiner, crops)).max()
    dense, sparse = best_times(
        repeats,
        lambda: dense_one_by_one(model, crops),
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
    """Refine records of image files; its wall time over the network's part of it."""
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
        settings = RefineSettings(
            records=records, weights=checkpoint, image_root=folder, output=folder / "out.jsonl"
        )
        report = refine(settings, Job(num_gpus=0))
    return report.wall_seconds / report.network_seconds


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


def print_table(rows: Sequence[Row], baseline: str = "dense, one by one") -> None:
    """Print rows as Markdown; `baseline` names what is compared with."""
    print(f"| what | {baseline} | ours | ratio | to reach | reached |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        cells = (row.what, row.baseline, row.ours, f"{row.figure:.2f}", row.target)
        print("|", " | ".join([*cells, "yes" if row.reached else "NO"]), "|")
