"""Train or evaluate the network of a config: the trainer, and one run of it.

Datasets are registered names or `name=annotations.json:image_folder`. A resumed run with SEED >= 0
ends with the weights of an uninterrupted one.
"""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
    load_test_dataset,
)
from detectron2.data.datasets.inline import register_inline_datasets
from detectron2.engine import DefaultTrainer, SimpleTrainer, default_setup, hooks
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    PascalVOCDetectionEvaluator,
    verify_results,
)
from detectron2.modeling import meta_architecture
from detectron2.solver import build_optimizer
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger
from weaklabels.coco import category_names
from weaklabels.examine import refuse_unreadable
from weaklabels.files import atomic_text
from weaklabels.locks import job_lock
from weaksam.wsod.adversarial import build_adversarial_loop, build_detector_optimizer
from wsis.config import load_config
from wsis.guards import guard

PROMPTED_TASK = "pseudo_label_"  # before the task names of results that used labeled points
# Below OUTPUT_DIR: results without and with test-time augmentation.
INFERENCE_FOLDER = "inference"
AUGMENTED_FOLDER = "inference_TTA"


class Trainer(DefaultTrainer):
    """Detectron2's trainer, which gives prompts to networks that need them and names the mode."""

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable:
        architecture = meta_architecture(cfg)
        keeps = architecture.reads_prompts(cfg)
        mapper = DatasetMapper(cfg, is_train=False, keep_annotations=keeps)
        dataset = load_test_dataset(cfg, dataset_name)
        dataset = architecture.prepare_dataset(cfg, dataset, is_train=False)
        num_workers = cfg.DATALOADER.NUM_WORKERS
        return build_detection_test_loader(dataset, mapper=mapper, num_workers=num_workers)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable:
        """Of the images and proposals that the architecture learns from."""
        files = cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None
        filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty, files)
        architecture = meta_architecture(cfg)
        if architecture.supervision == "instances" and "image_labels" in dataset[0]:
            raise ValueError(
                f"DATASETS.TRAIN={cfg.DATASETS.TRAIN}: a tag file says what an image shows and not "
                f"where, which {cfg.MODEL.META_ARCHITECTURE} needs to know: give annotations, or a "
                "network that learns from tags (MODEL.META_ARCHITECTURE WeakRCNN)"
            )
        dataset = architecture.prepare_dataset(cfg, dataset, is_train=True)
        refuse_unreadable(
            f"DATASETS.TRAIN={cfg.DATASETS.TRAIN}",
            [(Path(e["file_name"]), (e["height"], e["width"])) for e in dataset],
        )
        return build_detection_train_loader(cfg, dataset=dataset)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Of all parameters but an adversary's, which `build_loop` gives its own."""
        has_adversary = getattr(model, "adversary", None) is not None
        return (build_detector_optimizer if has_adversary else build_optimizer)(cfg, model)

    @classmethod
    def build_loop(
        cls,
        cfg: CfgNode,
        model: torch.nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
    ) -> SimpleTrainer:
        if getattr(getattr(model, "module", model), "adversary", None) is not None:
            return build_adversarial_loop(cfg, model, data_loader, optimizer)
        return super().build_loop(cfg, model, data_loader, optimizer)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, folder: str = INFERENCE_FOLDER
    ) -> DatasetEvaluator:
        """The one that the dataset's metadata names in `evaluator_type`, else COCO's.

        Args:
            folder: where results go, below OUTPUT_DIR.
        """
        metadata = MetadataCatalog.get(dataset_name)
        mode = meta_architecture(cfg).evaluation_mode(cfg)
        evaluator_type = metadata.get("evaluator_type", "coco")
        if evaluator_type == "pascal_voc":
            return PascalVOCDetectionEvaluator(dataset_name, corloc=True, mode=mode)
        if evaluator_type == "coco":
            thresholds = {*metadata.get("extra_iou_thresholds", ()), *cfg.TEST.EXTRA_IOU_THRESHOLDS}
            return COCOEvaluator(
                dataset_name,
                output_dir=os.path.join(cfg.OUTPUT_DIR, folder),
                mode=mode,
                extra_iou_thresholds=sorted(thresholds),
            )
        raise ValueError(
            f"dataset {dataset_name!r}: evaluator_type={evaluator_type!r} in its metadata; allowed "
            "'coco', 'pascal_voc'"
        )

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """As in DefaultTrainer; with a prompt "segm" is "pseudo_label_segm" in what is recorded.

        The figures and the mode that made them are also written to inference/summary.json.
        """
        results = super().test(cfg, model, evaluators)
        if meta_architecture(cfg).reads_prompts(cfg):
            single = len(cfg.DATASETS.TEST) == 1
            results = (
                name_prompted(results)
                if single
                else {name: name_prompted(tasks) for name, tasks in results.items()}
            )
        if comm.is_main_process():
            write_summary(cfg, results, INFERENCE_FOLDER)
        return results

    @classmethod
    def test_with_augmentation(cls, cfg: CfgNode, model: torch.nn.Module) -> dict[str, Any]:
        """As `test`, on the images that TEST.AUG describes; names of results end with `_TTA`."""
        model = meta_architecture(cfg).with_tta(cfg, model)
        evaluators = [
            cls.build_evaluator(cfg, name, AUGMENTED_FOLDER) for name in cfg.DATASETS.TEST
        ]
        results = super().test(cfg, model, evaluators)
        results = {f"{name}_TTA": metrics for name, metrics in results.items()}
        if comm.is_main_process():
            write_summary(cfg, results, AUGMENTED_FOLDER)
        return results

    def build_hooks(self) -> list[hooks.HookBase | None]:
        """Those of DefaultTrainer, and a last evaluation with test-time augmentation if wanted."""
        built = super().build_hooks()
        if self.cfg.TEST.AUG.ENABLED:

            def test() -> dict[str, Any]:
                return self.test_with_augmentation(self.cfg, self.model)

            built.insert(-1, hooks.EvalHook(0, test))  # the last one writes what was measured
        return built


def name_prompted(tasks: dict[str, Any]) -> dict[str, Any]:
    return {PROMPTED_TASK + task: metrics for task, metrics in tasks.items()}


def write_summary(cfg: CfgNode, results: dict[str, Any], folder: str) -> None:
    """Write OUTPUT_DIR/folder/summary.json: what was measured, how, and with which weights."""
    content = {
        "datasets": list(cfg.DATASETS.TEST),
        "mode": meta_architecture(cfg).evaluation_mode(cfg) or "detector",
        "weights": cfg.MODEL.WEIGHTS,
        "results": results,
    }
    with atomic_text(Path(cfg.OUTPUT_DIR, folder, "summary.json")) as file:
        file.write(json.dumps(content, indent=1) + "\n")  # NaN where there is nothing to measure


def class_names(dataset_name: str) -> list[str] | None:
    """Names of a registered dataset's classes, from its metadata or its file; None: unknown."""
    if dataset_name not in DatasetCatalog:
        raise KeyError(
            f"dataset {dataset_name!r} is not registered: give a known name or "
            f"name=annotations.json:image_folder; known: {', '.join(sorted(DatasetCatalog))}"
        )
    metadata = MetadataCatalog.get(dataset_name)
    names = getattr(metadata, "thing_classes", None)
    if names is None and hasattr(metadata, "json_file"):
        names = category_names(PathManager.get_local_path(metadata.json_file))
    return None if names is None else list(names)


def adapt_num_classes(cfg: CfgNode, eval_only: bool) -> list[str]:
    """Set the architecture's NUM_CLASSES from the datasets' classes; returns lines for the log.

    The training data counts, or in a pure evaluation the test data.
    """
    test = list(cfg.DATASETS.TEST)
    datasets = test if eval_only else [*cfg.DATASETS.TRAIN, *test]
    classes = {name: class_names(name) for name in datasets}
    classes = {name: names for name, names in classes.items() if names is not None}
    architecture = meta_architecture(cfg)
    key = architecture.num_classes_key
    if key is None or not classes:
        return []
    first, wanted = next(iter(classes.items()))
    notes = []
    for name, names in classes.items():
        if len(names) != len(wanted):
            raise ValueError(
                f"{name} has {len(names)} classes ({_some(names)}), {first} has {len(wanted)} "
                f"({_some(wanted)}): all of DATASETS.TRAIN and DATASETS.TEST must have the same "
                "(DATASETS.TEST '()' trains without evaluation)"
            )
        if names != wanted:
            notes.append(f"{name} names its classes otherwise than {first}: {_some(names)}")
    before = architecture.num_classes(cfg)
    if before != len(wanted):
        cfg.merge_from_list([key, len(wanted)])
        notes.append(
            f"{key} set to {len(wanted)} (it was {before}), the classes of {first}: {_some(wanted)}"
        )
    return notes


def _some(names: Sequence[str], limit: int = 10) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


@dataclass(frozen=True)
class TrainingSettings:
    """One run of training or evaluation.

    config_file: a file or the name of a shipped config; "" takes the defaults of all keys.
    overrides: KEY, VALUE, KEY, VALUE, ... on top of the file.
    num_gpus: on each machine; 0 sets MODEL.DEVICE to the CPU.
    """

    config_file: str = ""
    overrides: tuple[str, ...] = ()
    eval_only: bool = False
    resume: bool = False
    num_gpus: int = 1


@contextmanager
def prepared(settings: TrainingSettings) -> Iterator[CfgNode]:
    """The frozen config of this run; logs, seeds and OUTPUT_DIR are ready, the last one locked."""
    cfg, notes = read_config(settings)
    with job_lock(cfg.OUTPUT_DIR, comm.is_main_process(), comm.all_gather):
        default_setup(cfg, settings)
        setup_logger(cfg.OUTPUT_DIR or None, distributed_rank=comm.get_rank(), name="weaksam")
        logger = logging.getLogger("detectron2.train_net")
        for note in notes:
            logger.warning(note)
        mode = meta_architecture(cfg).evaluation_mode(cfg)
        if mode:
            logger.info("Evaluation mode: %s", mode)
        yield cfg


def read_config(settings: TrainingSettings) -> tuple[CfgNode, list[str]]:
    """The frozen config of a run, its datasets registered, and lines for the log."""
    cfg = load_config(settings.config_file, settings.overrides, num_gpus=settings.num_gpus)
    if cfg.TEST.AUG.ENABLED:
        meta_architecture(cfg).check_tta(cfg)
    for split in ("TEST",) if settings.eval_only else ("TRAIN", "TEST"):
        tags = split == "TRAIN" and meta_architecture(cfg).supervision == "tags"
        cfg.DATASETS[split] = tuple(register_inline_datasets(cfg.DATASETS[split], tags=tags))
    notes = adapt_num_classes(cfg, settings.eval_only)
    cfg.freeze()
    return cfg, notes


def train(settings: TrainingSettings) -> dict[str, Any] | None:
    """Train or evaluate in this process of a job; the results of the last evaluation, if any."""
    with prepared(settings) as cfg:
        if settings.eval_only:
            return evaluate(cfg, resume=settings.resume)
        trainer = Trainer(cfg)
        guard(trainer)
        trainer.resume_or_load(resume=settings.resume)
        return trainer.train()


def evaluate(cfg: CfgNode, *, resume: bool = False) -> dict[str, Any]:
    """Measure MODEL.WEIGHTS (with `resume`, the last checkpoint of OUTPUT_DIR) on DATASETS.TEST."""
    model = Trainer.build_model(cfg)
    checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results |= Trainer.test_with_augmentation(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results
