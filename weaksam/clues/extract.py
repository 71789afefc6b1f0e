"""Points where a classifier sees classes: maps of several scales and flips, summed, then peaks."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from detectron2.utils import comm
from weaksam.image_shards import as_json, claim, make_shards
from weaksam.npz import read_npz, write_npz
from weaksam.skipped import write_skipped

from .checkpoint import weights_digest
from .classifier import Classifier, ClueMaps
from .data import TaggedDataset, read_rgb, to_tensor
from .peaks import PeakSettings, find_peaks, normalize_map
from .points import DTYPES, FORMS, PointFile, Points, write_points
from .train import pick_device

SOURCES = ("coarse", "fine", "cross")
LAYERS = tuple(range(5, 13))
RELEASED_LAYERS = (9, 10)  # what upstream's published code reads; the paper has all layers
LABELS = ("given", "predicted")
MIN_SIDE = 16  # pixels; smaller passes would have no patch


@dataclass(frozen=True)
class PointSettings:
    """How points are found.

    sources: of "coarse" (class maps), "fine" (refined by attention between patches) and "cross"
        (attention of class tokens, a map for each head and layer); None: all that the classifier
        has.
    scales: of the image, in the order of passes; each is followed by its mirror image with `flip`.
    layers: whose attention "cross" takes, from 1.
    labels: "given" searches for an image's tags; "predicted" for what the first pass finds in it.
    allow_gt_labels: take given tags also on an evaluation split, where they are the answer.
    """

    sources: tuple[str, ...] | None = None
    scales: tuple[float, ...] = (1.0, 0.8, 1.2)
    flip: bool = True
    peaks: PeakSettings = field(default_factory=PeakSettings)
    cross_peaks: PeakSettings = field(default_factory=lambda: PeakSettings(kernel=129))
    layers: tuple[int, ...] = LAYERS
    labels: str = "given"
    allow_gt_labels: bool = False

    def __post_init__(self) -> None:
        known = self.sources is None or bool(self.sources) and set(self.sources) <= set(SOURCES)
        if not known or not self.scales or min(self.scales) <= 0:
            raise ValueError(
                f"sources={self.sources}, scales={self.scales}; expected some of {SOURCES} and "
                "numbers above 0"
            )
        if self.labels not in LABELS:
            raise ValueError(f"labels={self.labels!r}; expected one of {LABELS}")
        if not self.layers:
            raise ValueError("the source 'cross' needs at least one layer")


def extract_points(
    classifier: Classifier,
    dataset: TaggedDataset,
    out: str | Path,
    settings: PointSettings,
    *,
    device: str = "auto",
) -> dict[str, Path]:
    """Write OUT/points_SOURCE.npz for each source, and the images without a point beside it.

    Every process of a job calls it with the same arguments. Each image is a shard of its own until
    all are there, so that a run which was killed goes on. A run with other settings, weights or
    tags in the same folder is refused.
    """
    if settings.sources is None:
        settings = replace(settings, sources=classifier.sources)
    check_search(classifier, dataset, settings)
    out = Path(out)
    finals = {source: out / f"points_{source}.npz" for source in settings.sources}
    manifest, folder = out / "manifest.json", out / "shards"
    if foreign := [path for path in finals.values() if path.exists() and not manifest.exists()]:
        raise ValueError(f"{foreign[0]} is there and not of this run; give another output")
    claim(manifest, _identity(classifier, dataset, settings), "points")
    if all(path.is_file() for path in finals.values()) and not folder.exists():
        return finals
    classifier = classifier.to(pick_device(device)).eval()
    shards = [folder / f"{entry['image_id']}.npz" for entry in dataset.dicts]

    def make(index: int) -> None:
        _write_shard(shards[index], *image_points(classifier, dataset.dicts[index], settings))

    make_shards(shards, make, "points")
    if comm.is_main_process():
        for source, path in finals.items():
            _merge(source, path, shards, dataset, settings)
        shutil.rmtree(folder)
    comm.synchronize()
    return finals


@dataclass(frozen=True)
class ImageMaps:
    """What all passes over one image show.

    classes: K contiguous ids that are searched for.  passes: maps of these alone, none mirrored.
    probabilities: (K,) of the first pass.  size_hw: of the image.
    reason: why there are no classes, "" where there are some.
    """

    classes: tuple[int, ...]
    passes: tuple[ClueMaps, ...]
    probabilities: np.ndarray
    size_hw: tuple[int, int]
    reason: str = ""


def image_points(
    classifier: Classifier, entry: dict[str, Any], settings: PointSettings
) -> tuple[dict[str, Points], str]:
    """Points of one image by source, and why there are none at all ("" where that is not so)."""
    found = image_maps(classifier, entry, settings)
    layers = settings.layers
    points = {}
    for source in settings.sources:
        peaks = settings.cross_peaks if source == "cross" else settings.peaks
        parts = []
        for position, class_index in enumerate(found.classes):
            for head, layer, low in _single_maps(found.passes, source, position, layers):
                values = normalize_map(sum_at_full_size(low, found.size_hw))
                parts.append(Points.of(*find_peaks(values, peaks), class_index, head, layer))
        points[source] = Points.joined(parts)
    return points, found.reason


def image_maps(classifier: Classifier, entry: dict[str, Any], settings: PointSettings) -> ImageMaps:
    """The maps of one image's classes: its tags, or those that the first pass finds."""
    size_hw = entry["height"], entry["width"]
    kept = list(entry["image_labels"]) if settings.labels == "given" else None
    if kept == []:
        return ImageMaps((), (), np.zeros(0), size_hw, "no tag")
    layers = settings.layers if "cross" in settings.sources else ()
    passes: list[ClueMaps] = []
    for pixels, mirrored in scaled_passes(read_rgb(entry), settings):
        maps = classifier.maps(pixels.to(classifier.pixel_mean.device), layers, kept)
        if kept is None:  # the first pass decides for the others
            kept = classifier.predicted(maps.logits)[0].nonzero().flatten().tolist()
            if not kept:
                return ImageMaps((), (), np.zeros(0), size_hw, "no class predicted")
            maps = _of_classes(maps, kept)
        passes.append(_mirrored(maps) if mirrored else maps)
    probabilities = classifier.probabilities(passes[0].logits)[0, kept].cpu().numpy()
    return ImageMaps(tuple(kept), tuple(passes), probabilities, size_hw)


def scaled_passes(image: np.ndarray, settings: PointSettings):
    """(pixels (1, 3, h, w) float 0 to 255, mirrored) for each scale and flip of (H, W, 3) uint8."""
    picture = Image.fromarray(image)
    for scale in settings.scales:
        size = (max(round(side * scale), MIN_SIDE) for side in picture.size)
        pixels = to_tensor(picture.resize(tuple(size), Image.Resampling.BICUBIC))[None]
        yield pixels, False
        if settings.flip:
            yield pixels.flip(3), True


def sum_at_full_size(maps: Sequence[Tensor], size_hw: tuple[int, int]) -> np.ndarray:
    """(H, W) float32: the sum of small maps (h, w), each stretched to the image."""
    total = torch.zeros(size_hw)
    for low in maps:
        total += F.interpolate(
            low.float().cpu()[None, None], size=size_hw, mode="bilinear", align_corners=False
        )[0, 0]
    return total.numpy()


def _single_maps(passes: Sequence[ClueMaps], source: str, position: int, layers: Sequence[int]):
    """(head, layer, its small maps in all passes) of one class; head and layer -1 without them."""
    if source != "cross":
        yield -1, -1, [getattr(maps, source)[0, position] for maps in passes]
        return
    for head in range(passes[0].cross.shape[1]):
        for number, layer in enumerate(layers):
            yield head, layer, [maps.cross[0, head, number, position] for maps in passes]


def _of_classes(maps: ClueMaps, classes: list[int]) -> ClueMaps:
    cross = None if maps.cross is None else maps.cross[:, :, :, classes]
    fine = None if maps.fine is None else maps.fine[:, classes]
    return ClueMaps(maps.logits, maps.coarse[:, classes], fine, cross)


def _mirrored(maps: ClueMaps) -> ClueMaps:
    """Turned back at the network's resolution, which is what turning back the large maps gives."""
    fine, cross = (None if m is None else m.flip(-1) for m in (maps.fine, maps.cross))
    return ClueMaps(maps.logits, maps.coarse.flip(-1), fine, cross)


def check_search(classifier: Classifier, dataset: TaggedDataset, settings: PointSettings) -> None:
    tags = dataset.tags
    if dataset.num_classes != classifier.num_classes:
        raise ValueError(
            f"{tags.file}: {dataset.num_classes} classes, the classifier has "
            f"{classifier.num_classes}; take the tag file that it was trained on"
        )
    if absent := [name for name in settings.sources if name not in classifier.sources]:
        raise ValueError(
            f"sources {absent}: this classifier gives {', '.join(classifier.sources)} only"
        )
    if settings.labels == "given" and tags.for_evaluation and not settings.allow_gt_labels:
        raise ValueError(
            f"{tags.file}: its split {tags.split!r} is for evaluation, and given tags tell which "
            "classes its images show; take --labels predicted, or --allow-gt-labels, which is "
            "recorded"
        )


def _identity(
    classifier: Classifier, dataset: TaggedDataset, settings: PointSettings
) -> dict[str, Any]:
    """All that the points depend on, as json gives it back."""
    tags = dataset.tags
    images = {str(e["image_id"]): e["image_labels"] for e in dataset.dicts}
    content = {
        "settings": asdict(settings),
        "classes": tags.class_names,
        "split": tags.split,
        "weights": weights_digest(classifier.state_dict()),
        "images": images if settings.labels == "given" else list(images),
    }
    return as_json(content)


def _write_shard(path: Path, found: dict[str, Points], reason: str) -> None:
    arrays = {
        f"{source}_{name}": getattr(points, name)
        for source, points in found.items()
        for name in DTYPES
    }
    write_npz(path, arrays | {"reason": np.array(reason)})


def _merge(
    source: str,
    path: Path,
    shards: Sequence[Path],
    dataset: TaggedDataset,
    settings: PointSettings,
) -> None:
    keys = {name: f"{source}_{name}" for name in DTYPES}
    points, skipped = [], []
    for entry, shard in zip(dataset.dicts, shards, strict=True):
        forms = {key: FORMS[name] for name, key in keys.items()}
        arrays = read_npz(shard, forms | {"reason": FORMS["meta"]})
        points.append(Points(**{name: arrays[key] for name, key in keys.items()}))
        if not len(points[-1]):
            reason = str(arrays["reason"]) or "no peak"
            file_name = Path(entry["file_name"]).name
            skipped.append(
                {"image_id": entry["image_id"], "file_name": file_name, "reason": reason}
            )
    meta = {
        "source": source,
        "classes": dataset.tags.class_names,
        "split": dataset.tags.split,
        "labels": settings.labels,
        "allow_gt_labels": settings.allow_gt_labels,
        "settings": asdict(settings),
    }
    ids = tuple(str(entry["image_id"]) for entry in dataset.dicts)
    sizes = tuple((entry["height"], entry["width"]) for entry in dataset.dicts)
    write_points(path, PointFile(ids, sizes, tuple(points), meta))
    write_skipped(path, skipped)
