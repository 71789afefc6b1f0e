"""Run a prompted network over a dataset and write prediction records, image by image.

Each forward pass takes one image, so that no result depends on the other images of a batch and a
run that was killed and resumed ends with the same bytes. The processes of a job share the images.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from adet.modeling.solov2 import get_prompt
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog, build_detection_test_loader
from detectron2.data.datasets import load_coco_json
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from weaklabels.shards import RecordShards

from .records import make_record

logger = logging.getLogger(__name__)

HASH_BLOCK = 1 << 20  # bytes


@dataclass(frozen=True)
class GenerationSettings:
    """All that the bytes of the output depend on; stored beside the parts to refuse a mixed run.

    Files are identified by name and content, since a retrained teacher keeps its file name.
    """

    dataset: str
    json_file: str
    json_sha256: str
    prompt: str
    weights: str
    weights_sha256: str
    keep_unmatched: str
    model: str  # the MODEL and INPUT nodes of the configuration, as YAML


def file_sha256(path: str) -> str:
    """Hex digest of the content of a file or URL."""
    digest = hashlib.sha256()
    with PathManager.open(path, "rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@dataclass
class GenerationReport:
    """Result of a run: image count, lost points by (category id, reason), unreadable images."""

    images: int
    unmatched: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def load_prompted_dataset(
    name: str, prompt: str, skip_invalid: bool = False
) -> list[dict[str, Any]]:
    """Dataset dicts of a registered COCO-format dataset, with the labels that the prompt reads.

    For prompts without sizes an annotation with a `point` loses its mask, box and area before
    anything reads them; without a `point`, the mask's center of mass is the point. Crowds are
    left out.
    `record_file_name` is relative to the image root, or absolute for an image outside it.

    Raises:
        ValueError: the dataset has no annotation file.
    """
    metadata = MetadataCatalog.get(name)
    if not hasattr(metadata, "json_file"):
        raise ValueError(
            f"dataset {name!r} is not a COCO-format file: register it, or give it as "
            "name=annotations.json:image_folder"
        )
    records = load_coco_json(
        metadata.json_file,
        metadata.image_root,
        name,
        skip_invalid=skip_invalid,
        points_only=get_prompt(prompt).points_only,
    )
    for record in records:
        path = Path(record["file_name"])
        if path.is_relative_to(metadata.image_root):
            path = path.relative_to(metadata.image_root)
        record["record_file_name"] = path.as_posix()
        record["annotations"] = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
    return records


class PromptMapper:
    """Network input of one image, or `{"failure": reason}` where the image cannot be read."""

    def __init__(self, cfg: CfgNode):
        self.mapper = DatasetMapper(cfg, is_train=False, keep_annotations=True)

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        try:
            mapped = self.mapper(record)
        except (OSError, ValueError) as error:
            mapped = {"failure": f"{record['file_name']}: {error}"}
        return {"record": record, "input": mapped}


def generate_records(
    model: nn.Module,
    dataset: list[dict[str, Any]],
    mapper: PromptMapper,
    shards: RecordShards,
    *,
    category_ids: list[int],
    keep_unmatched: str,
    num_workers: int,
) -> GenerationReport:
    """Write the missing records in every process of the job and merge them in the first process.

    An image that cannot be read is reported and left out. The parts then stay on disk, so that the
    same command tries the image again.
    """
    problem = None
    if comm.is_main_process():
        try:
            shards.open()
        except ValueError as error:
            problem = str(error)
    problem = comm.all_gather(problem)[0]
    if problem:  # in every process; otherwise the others only report a lost connection
        raise ValueError(problem)
    finished = shards.finished_ids()
    comm.synchronize()  # no process writes before all have read
    missing = [record for record in dataset if record["image_id"] not in finished]
    if finished:
        logger.info("%d of %d images were finished before", len(finished), len(dataset))
    failures: list[str] = []
    if missing:
        loader = build_detection_test_loader(missing, mapper=mapper, num_workers=num_workers)
        with shards.writer(comm.get_rank(), comm.get_world_size()) as writer:
            for item in _outputs(model, loader):
                if "failure" in item:
                    failures.append(item["failure"])
                    logger.error("%s", item["failure"])
                    continue
                result = item["result"]
                instances = result["instances"].to("cpu")
                unmatched = result.get("unmatched", ())
                line = make_record(
                    item["record"], instances, unmatched, category_ids, keep_unmatched
                )
                writer.append(line)
    failures = [message for rank in comm.all_gather(failures) for message in rank]
    report = GenerationReport(images=len(dataset), failures=failures)
    if comm.is_main_process():
        report.unmatched = shards.merge([record["image_id"] for record in dataset]).unmatched
        if not failures:
            shards.remove()
    comm.synchronize()
    return report


@torch.no_grad()
def _outputs(model: nn.Module, loader: Any) -> Iterator[dict[str, Any]]:
    model.eval()
    progress = tqdm(loader, "images", unit="image", disable=not comm.is_main_process())
    for (item,) in progress:
        if "failure" in item["input"]:
            yield item["input"]
        else:
            yield {"record": item["record"], "result": model([item["input"]])[0]}
