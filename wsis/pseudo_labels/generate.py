"""Run a prompted network over a dataset and write prediction records, image by image.

Each forward pass takes one image, so that no result depends on the other images of a batch.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from adet.modeling.solov2 import PROMPTS, get_prompt
from detectron2.checkpoint.detection_checkpoint import HEURISTICS_QUERY
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog, build_detection_test_loader
from detectron2.data.catalog import Metadata
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.inline import register_inline_datasets
from detectron2.modeling import meta_architecture
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger
from weaklabels.files import file_sha256
from weaklabels.model_folder import weights_file
from weaklabels.shards import RecordShards, ShardWriter
from wsis.config import load_config
from wsis.launcher import SHARED_WORK_TIMEOUT, Job, launch
from wsis.sharded import Share, write_sharded
from wsis.trained_model import load_trained

from .records import KEEP_UNMATCHED, make_record

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GenerateSettings:
    """One generation.

    config_file: a file or the name of a shipped config.
    dataset: a registered name, or name=annotations.json:image_folder.
    overrides: KEY, VALUE, KEY, VALUE, ... on top of the config.
    weights: a trained network; None: MODEL.WEIGHTS of the config.
    keep_unmatched: see `make_record`.
    skip_invalid: list invalid annotations and leave them out.
    """

    config_file: str
    dataset: str
    output: Path
    overrides: tuple[str, ...] = ()
    weights: str | None = None
    prompt: str = "point"
    keep_unmatched: str = "drop"
    skip_invalid: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("prompt", PROMPTS), ("keep_unmatched", KEEP_UNMATCHED)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}; expected one of {', '.join(allowed)}"
                )


@dataclass(frozen=True)
class GenerateReport:
    """What came of a generation.

    images: of the merged file.
    unmatched: number of points without a mask, by (class name, reason).
    failures: one message for each image that could not be read and is missing.
    """

    images: int
    unmatched: dict[tuple[str, str], int]
    failures: list[str]


def generate(settings: GenerateSettings, job: Job) -> GenerateReport | None:
    """Generate pseudo labels in all processes of a job.

    Returns:
        the report; None on other machines than the first.

    Raises:
        ValueError: an input cannot be used.
    """
    return launch(job, generate_share, settings, job, timeout=SHARED_WORK_TIMEOUT)


def generate_share(settings: GenerateSettings, job: Job) -> GenerateReport | None:
    """Generate the share of this process, and in the first process merge all of them."""
    for name in ("detectron2", "adet", "wsis"):
        setup_logger(name=name, distributed_rank=comm.get_rank())
    (name,) = register_inline_datasets([settings.dataset])
    dataset = load_prompted_dataset(name, settings.prompt, settings.skip_invalid)
    metadata = MetadataCatalog.get(name)
    id_of = {index: i for i, index in metadata.thing_dataset_id_to_contiguous_id.items()}
    category_ids = [id_of[index] for index in sorted(id_of)]
    cfg = make_config(settings, job, len(category_ids))
    model = load_trained(cfg)
    # The first process alone compares the settings with those of the parts.
    made_from = _made_from(settings, cfg, metadata) if comm.is_main_process() else {}
    work = _Work(model, dataset, cfg, category_ids, settings.keep_unmatched)
    report = write_sharded(RecordShards(settings.output, made_from), work)
    if report is None:
        return None
    names = dict(zip(category_ids, metadata.thing_classes, strict=True))
    unmatched = {
        (names[category_id], reason): count
        for (category_id, reason), count in sorted(report.merged.unmatched.items())
    }
    return GenerateReport(report.merged.images, unmatched, report.failures)


def make_config(settings: GenerateSettings, job: Job, num_classes: int) -> CfgNode:
    """The frozen config, with the prompt and the dataset's number of classes."""
    cfg = load_config(settings.config_file, settings.overrides, num_gpus=job.num_gpus)
    if settings.weights is not None:
        cfg.MODEL.WEIGHTS = settings.weights
    architecture = meta_architecture(cfg)
    if architecture.prompt_key is None:
        raise ValueError(
            f"{settings.config_file}: {cfg.MODEL.META_ARCHITECTURE} reads no prompts; generation "
            "needs a network that does, such as SOLOv2"
        )
    cfg.merge_from_list([architecture.prompt_key, settings.prompt])
    cfg.MODEL.SOLOV2.EVAL_PSEUDO_LABEL = False
    if architecture.num_classes(cfg) != num_classes:
        key = architecture.num_classes_key
        logger.info("%s set to %d, as in %s", key, num_classes, settings.dataset)
        cfg.merge_from_list([key, num_classes])
    cfg.freeze()
    return cfg


def _made_from(settings: GenerateSettings, cfg: CfgNode, metadata: Metadata) -> dict[str, Any]:
    """What the records depend on; it is kept beside their parts to refuse a mixed run.

    Files are told by name and content: a teacher that was trained again keeps its file name.
    """
    weights = PathManager.get_local_path(HEURISTICS_QUERY.sub("", cfg.MODEL.WEIGHTS))
    return {
        "dataset": metadata.name,
        "json_file": str(metadata.json_file),
        "json_sha256": file_sha256(PathManager.get_local_path(metadata.json_file)),
        "prompt": settings.prompt,
        "weights": cfg.MODEL.WEIGHTS,
        "weights_sha256": file_sha256(weights_file(weights)),
        "keep_unmatched": settings.keep_unmatched,
        "model": cfg.MODEL.dump() + cfg.INPUT.dump(),
    }


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


@dataclass(frozen=True)
class _Work:
    """The share of one process."""

    model: nn.Module
    dataset: list[dict[str, Any]]
    cfg: CfgNode
    category_ids: list[int]
    keep_unmatched: str

    def __call__(self, finished: set[int], writer: ShardWriter) -> Share:
        """Write the records of this process that are missing."""
        share = Share([record["image_id"] for record in self.dataset])
        missing = [record for record in self.dataset if record["image_id"] not in finished]
        if finished:
            logger.info("%d of %d images were finished before", len(finished), len(self.dataset))
        for item in self._outputs(missing):
            if "failure" in item:
                share.failures.append(item["failure"])
                logger.error("%s", item["failure"])
                continue
            result = item["result"]
            writer.append(
                make_record(
                    item["record"],
                    result["instances"].to("cpu"),
                    result.get("unmatched", ()),
                    self.category_ids,
                    self.keep_unmatched,
                )
            )
        return share

    @torch.no_grad()
    def _outputs(self, records: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """For each image of this process: its record and result, or its failure."""
        if not records:
            return
        loader = build_detection_test_loader(
            records, mapper=PromptMapper(self.cfg), num_workers=self.cfg.DATALOADER.NUM_WORKERS
        )
        for (item,) in tqdm(loader, "images", unit="image", disable=not comm.is_main_process()):
            if "failure" in item["input"]:
                yield item["input"]
            else:
                yield {"record": item["record"], "result": self.model([item["input"]])[0]}
