"""Train or evaluate a network from a config file.

    python tools/train_net.py --config-file configs/SOLOv2/R50_3x.yaml --num-gpus 8
    python tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth

Data sets are registered names or `name=annotations.json:image_folder`. A run that was killed goes
on with --resume; with SEED >= 0 it ends with the weights of an uninterrupted one.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

import adet.modeling  # noqa: F401 (registers the meta-architectures)
from adet.config import get_cfg
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
)
from detectron2.data.datasets.inline import register_inline_datasets
from detectron2.engine import (
    DefaultTrainer,
    default_argument_parser,
    default_setup,
    hooks,
    launch,
)
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    PascalVOCDetectionEvaluator,
    verify_results,
)
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from weaklabels.files import atomic_text

PROMPTED_TASK = "pseudo_label_"  # before the task names of results that used labelled points
# Below OUTPUT_DIR: results without and with test-time augmentation.
INFERENCE_FOLDER = "inference"
AUGMENTED_FOLDER = "inference_TTA"
# Node of MODEL that holds the NUM_CLASSES of each meta-architecture.
CLASSES_NODE = {"SOLOv2": "SOLOV2", "GeneralizedRCNN": "ROI_HEADS"}


def evaluation_mode(cfg: CfgNode) -> str | None:
    """What makes this config's figures differ from a detector's AP; None where nothing does."""
    if cfg.MODEL.META_ARCHITECTURE != "SOLOv2":
        return None
    solov2 = cfg.MODEL.SOLOV2
    scores = "scores forced to 1" if solov2.EVAL_PSEUDO_LABEL else "scores of the network"
    if solov2.PROMPT != "none":
        return f"pseudo-label quality: prompt={solov2.PROMPT}, {scores}"
    return f"not detector AP: {scores}" if solov2.EVAL_PSEUDO_LABEL else None


def is_prompted(cfg: CfgNode) -> bool:
    """Whether the network reads labelled points (or boxes or classes) at test time."""
    return cfg.MODEL.META_ARCHITECTURE == "SOLOv2" and cfg.MODEL.SOLOV2.PROMPT != "none"


class Trainer(DefaultTrainer):
    """Detectron2's trainer, which gives prompts to networks that need them and names the mode."""

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable:
        mapper = DatasetMapper(cfg, is_train=False, keep_annotations=is_prompted(cfg))
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, folder: str = INFERENCE_FOLDER
    ) -> DatasetEvaluator:
        """The one that the dataset's metadata names in `evaluator_type`, else COCO's.

        Args:
            folder: where results go, below OUTPUT_DIR.
        """
        metadata, mode = MetadataCatalog.get(dataset_name), evaluation_mode(cfg)
        evaluator_type = metadata.get("evaluator_type", "coco")
        if evaluator_type == "pascal_voc":
            return PascalVOCDetectionEvaluator(dataset_name, corloc=True, mode=mode)
        if evaluator_type == "coco":
            thresholds = metadata.get("extra_iou_thresholds", ())
            return COCOEvaluator(
                dataset_name,
                output_dir=os.path.join(cfg.OUTPUT_DIR, folder),
                mode=mode,
                extra_iou_thresholds=thresholds,
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
        if is_prompted(cfg):
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
        model = GeneralizedRCNNWithTTA(cfg, model)
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
        "mode": evaluation_mode(cfg) or "detector",
        "weights": cfg.MODEL.WEIGHTS,
        "results": results,
    }
    path = Path(cfg.OUTPUT_DIR, folder, "summary.json")
    with atomic_text(path) as file:
        file.write(json.dumps(content, indent=1) + "\n")  # an AP without instances is NaN


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
        with open(PathManager.get_local_path(metadata.json_file), encoding="utf-8") as file:
            categories = json.load(file)["categories"]
        names = [c["name"] for c in sorted(categories, key=lambda c: c["id"])]
    return None if names is None else list(names)


def adapt_num_classes(cfg: CfgNode, eval_only: bool) -> list[str]:
    """Set the architecture's NUM_CLASSES from the datasets' classes; returns lines for the log.

    The training data counts, or in a pure evaluation the test data.
    """
    test = list(cfg.DATASETS.TEST)
    datasets = test if eval_only else [*cfg.DATASETS.TRAIN, *test]
    classes = {name: class_names(name) for name in datasets}
    classes = {name: names for name, names in classes.items() if names is not None}
    node_name = CLASSES_NODE.get(cfg.MODEL.META_ARCHITECTURE)
    if node_name is None or not classes:
        return []
    node = cfg.MODEL[node_name]
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
    before = node.NUM_CLASSES
    if before != len(wanted):
        node.NUM_CLASSES = len(wanted)
        notes.append(
            f"MODEL.{node_name}.NUM_CLASSES set to {len(wanted)} (it was {before}), the classes of "
            f"{first}: {_some(wanted)}"
        )
    return notes


def _some(names: Sequence[str], limit: int = 10) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen config of this run; logs, seeds and OUTPUT_DIR are ready afterwards."""
    cfg = get_cfg()
    if args.config_file:
        cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    if args.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"MODEL.DEVICE={cfg.MODEL.DEVICE!r}, but no CUDA device was found: add --num-gpus 0 "
            "(or MODEL.DEVICE cpu) to run on the CPU"
        )
    if cfg.TEST.AUG.ENABLED and cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        raise ValueError(
            f"TEST.AUG.ENABLED=True: only GeneralizedRCNN has test-time augmentation, not "
            f"{cfg.MODEL.META_ARCHITECTURE}; set it to False"
        )
    for split in ("TEST",) if args.eval_only else ("TRAIN", "TEST"):
        cfg.DATASETS[split] = tuple(register_inline_datasets(cfg.DATASETS[split]))
    notes = adapt_num_classes(cfg, args.eval_only)
    cfg.freeze()
    default_setup(cfg, args)
    logger = logging.getLogger("detectron2.train_net")
    for note in notes:
        logger.warning(note)
    if evaluation_mode(cfg):
        logger.info("Evaluation mode: %s", evaluation_mode(cfg))
    return cfg


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Train or evaluate in this process; returns the results of the last evaluation, if any."""
    cfg = setup(args)
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()
    model = Trainer.build_model(cfg)
    checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results |= Trainer.test_with_augmentation(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    args = default_argument_parser().parse_args(argv)
    launch(
        run,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
        num_processes=args.num_processes,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
