"""One box for each class of an image, around what its class map shows: the baseline without MIL."""

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detectron2.utils import comm
from weaklabels.files import read_json, write_json
from weaksam.image_shards import as_json, claim, make_shards

from .checkpoint import weights_digest
from .classifier import Classifier
from .data import TaggedDataset
from .extract import PointSettings, check_search, image_maps, sum_at_full_size
from .peaks import normalize_map
from .train import pick_device


@dataclass(frozen=True)
class BoxSettings:
    """How boxes are found.

    maps: passes and classes, see `PointSettings`; only its class maps ("coarse") are used.
    threshold: share of a map's range above which a pixel belongs to the object; CAM's is 0.2.
    """

    maps: PointSettings = field(default_factory=lambda: PointSettings(sources=("coarse",)))
    threshold: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1 or self.maps.sources != ("coarse",):
            raise ValueError(f"{self}: expected a threshold between 0 and 1, and coarse maps")


def extract_boxes(
    classifier: Classifier,
    dataset: TaggedDataset,
    output: str | Path,
    settings: BoxSettings,
    *,
    device: str = "auto",
) -> Path:
    """Write COCO results: a box for each class of each image, its score the class's probability.

    Every process of a job calls it with the same arguments; see `extract_points`.
    """
    check_search(classifier, dataset, settings.maps)
    output = Path(output)
    folder = output.with_name(output.name + ".shards")
    tags = dataset.tags
    labels = [[e["image_id"], e["image_labels"]] for e in dataset.dicts]
    identity = {
        "settings": asdict(settings),
        "classes": tags.class_names,
        "weights": weights_digest(classifier.state_dict()),
        "images": labels if settings.maps.labels == "given" else [name for name, _ in labels],
    }
    claim(output.with_suffix(".manifest.json"), as_json(identity), "boxes")
    if output.is_file():
        return output
    classifier = classifier.to(pick_device(device)).eval()
    category_ids = [number for number, _ in tags.categories]
    shards = [folder / f"{entry['image_id']}.json" for entry in dataset.dicts]

    def make(index: int) -> None:
        entry = dataset.dicts[index]
        write_json(shards[index], image_boxes(classifier, entry, settings, category_ids))

    make_shards(shards, make, "boxes")
    if comm.is_main_process():
        write_json(output, [row for shard in shards for row in read_json(shard)])
        shutil.rmtree(folder)
    comm.synchronize()
    return output


def image_boxes(
    classifier: Classifier, entry: dict[str, Any], settings: BoxSettings, category_ids: list[int]
) -> list[dict[str, Any]]:
    """COCO results of one image."""
    found = image_maps(classifier, entry, settings.maps)
    rows = []
    for position, index in enumerate(found.classes):
        low = [maps.coarse[0, position] for maps in found.passes]
        values = normalize_map(sum_at_full_size(low, found.size_hw))
        box = largest_region(values > settings.threshold)
        if box is not None:
            score = float(found.probabilities[position])
            row = {"image_id": entry["image_id"], "category_id": category_ids[index]}
            rows.append(row | {"bbox": box, "score": score})
    return rows


def largest_region(mask: np.ndarray) -> list[int] | None:
    """[x, y, width, height] of the largest connected region of (H, W) bool; None without one."""
    count, _, figures, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count == 1:
        return None
    largest = 1 + figures[1:, cv2.CC_STAT_AREA].argmax()  # row 0 is the background
    return figures[largest, :4].tolist()
