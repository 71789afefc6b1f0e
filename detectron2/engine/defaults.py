"""A trainer and a predictor made from a config; what `setup.py` holds is exported here too."""

import logging
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

import detectron2.data.transforms as T
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data.stream import set_start_batch
from detectron2.engine import hooks
from detectron2.engine.setup import (  # noqa: F401 (imported from here by users)
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
)
from detectron2.engine.train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from detectron2.utils.logger import setup_logger

_LOG_PERIOD = 20  # iterations between two lines of progress
_LOG_SECONDS = 10.0  # in slow runs, about the longest silence


class DefaultPredictor:
    """The model of a config with its weights, for one image at a time.

    Resizes as in testing and returns results in the frame of the given image.
    """

    def __init__(self, cfg: CfgNode) -> None:
        if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT={cfg.INPUT.FORMAT!r}; expected 'RGB' or 'BGR'")
        self.cfg = cfg.clone()  # building the model may change it
        self.input_format = cfg.INPUT.FORMAT
        shortest = cfg.INPUT.MIN_SIZE_TEST
        self.aug = T.ResizeShortestEdge([shortest, shortest], cfg.INPUT.MAX_SIZE_TEST)
        if cfg.DATASETS.TEST:
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        self.model = build_model(self.cfg).eval()
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)

    @torch.no_grad()
    def __call__(self, original_image: np.ndarray) -> dict[str, Any]:
        """Predict on an image: (H, W, 3) uint8, BGR -> the model's output for it."""
        pixels = original_image if self.input_format == "BGR" else original_image[..., ::-1]
        resized = self.aug.get_transform(pixels).apply_image(pixels)
        image = torch.from_numpy(resized.astype(np.float32)).permute(2, 0, 1).contiguous()
        height, width = original_image.shape[:2]
        return self.model([{"image": image, "height": height, "width": width}])[0]


def _of_loop(name: str) -> property:
    """Attribute of a `DefaultTrainer` that is read from and written to its inner trainer."""

    def read(trainer: "DefaultTrainer") -> Any:
        return getattr(trainer._trainer, name)

    def write(trainer: "DefaultTrainer", value: Any) -> None:
        setattr(trainer._trainer, name, value)

    return property(read, write)


class DefaultTrainer(TrainerBase):
    """The standard training program of a config: model, optimizer, data, schedule, hooks.

    Subclasses override the `build_*` class methods. With `SEED` >= 0, a run that was killed and
    resumed ends with the weights of an uninterrupted one (on a CPU, bit for bit): checkpoints hold
    model, optimizer, schedule and iteration, and data order, augmentation and the generators of
    the training process depend only on the seed and the position in the training.
    """

    model = _of_loop("model")
    data_loader = _of_loop("data_loader")
    optimizer = _of_loop("optimizer")

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()  # a program that did not call default_setup
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.max_iter = cfg.SOLVER.MAX_ITER
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        parallel = create_ddp_model(model, broadcast_buffers=False)
        loop = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = loop(parallel, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        # A proxy, because trainer and checkpointer would keep each other alive.
        self.checkpointer = DetectionCheckpointer(
            parallel, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """With `resume`, continue from the last checkpoint in OUTPUT_DIR if there is one.

        Otherwise load MODEL.WEIGHTS (weights only) and start at iteration 0.
        """
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            # The checkpoint names the last finished iteration.
            self.start_iter = self.iter + 1
        starts = comm.all_gather(self.start_iter)
        if len(set(starts)) > 1:
            raise ValueError(
                f"the ranks would start at iterations {starts}: {self.cfg.OUTPUT_DIR} must hold "
                "the same checkpoint on every machine"
            )
        in_order = self.cfg.SEED >= 0 and set_start_batch(self.data_loader, self.start_iter)
        if self.start_iter > 0 and not in_order:
            logging.getLogger(__name__).warning(
                "The order of the data starts anew. To continue it, set SEED >= 0 and use a loader "
                "made by build_detection_train_loader"
            )

    def build_hooks(self) -> list[HookBase | None]:
        """Seeds, timing, learning rate, batch-norm statistics, checkpoints, evaluation, writing."""
        cfg = self.cfg
        precise_bn = None
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            # A loader in this process: it leaves the order and the memory of the training alone.
            bn_cfg = cfg.clone()
            bn_cfg.defrost()
            bn_cfg.DATALOADER.NUM_WORKERS = 0
            precise_bn = hooks.PreciseBN(
                cfg.TEST.EVAL_PERIOD,
                self.model,
                self.build_train_loader(bn_cfg),
                cfg.TEST.PRECISE_BN.NUM_ITER,
            )

        def test_and_save_results() -> dict[str, Any]:
            self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        built: list[HookBase | None] = [
            hooks.IterationSeed(cfg.SEED) if cfg.SEED >= 0 else None,
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            precise_bn,
        ]
        is_main = comm.is_main_process()
        if is_main:
            # Before the evaluation: if that fails, its model is saved.
            period = cfg.SOLVER.CHECKPOINT_PERIOD
            built.append(hooks.PeriodicCheckpointer(self.checkpointer, period))
        built.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, test_and_save_results))
        if is_main:
            # Last, so that the figures of the evaluation are written, too.
            built.append(hooks.PeriodicWriter(self.build_writers(), _LOG_PERIOD, _LOG_SECONDS))
        return built

    def build_writers(self) -> list[EventWriter]:
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def train(self) -> dict[str, Any] | None:
        """Train to MAX_ITER; returns the last evaluation if TEST.EXPECTED_RESULTS are checked."""
        super().train(self.start_iter, self.max_iter)
        if len(self.cfg.TEST.EXPECTED_RESULTS) and comm.is_main_process():
            verify_results(self.cfg, self._last_eval_results)
            return self._last_eval_results
        return None

    def before_train(self) -> None:
        super().before_train()
        if self.start_iter < self.max_iter:
            # Starting the loader draws a random number. It must not happen inside the first step,
            # because the first step of a resumed run is another one.
            self._trainer.start_data_loader()

    def run_step(self) -> None:
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def join_background(self) -> None:
        self._trainer.join_background()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = build_model(cfg)
        logging.getLogger(__name__).info("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(
        cls, cfg: CfgNode, optimizer: torch.optim.Optimizer
    ) -> torch.optim.lr_scheduler.LRScheduler:
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable:
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable:
        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """COCO box and mask AP; results go to OUTPUT_DIR/inference."""
        return COCOEvaluator(dataset_name, output_dir=os.path.join(cfg.OUTPUT_DIR, "inference"))

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None = None,
    ) -> dict[str, Any]:
        """Evaluate on each dataset of DATASETS.TEST, with `build_evaluator` if none are given.

        Returns:
            `{task: {metric: number}}` for one dataset, `{dataset: {task: ...}}` for several; filled
            on the main process.
        """
        logger = logging.getLogger(__name__)
        names = cfg.DATASETS.TEST
        if evaluators is None:
            evaluators = [None] * len(names)
        elif isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        if len(evaluators) != len(names):
            raise ValueError(
                f"{len(names)} datasets in DATASETS.TEST, {len(evaluators)} evaluators"
            )
        results: dict[str, Any] = OrderedDict()
        for name, evaluator in zip(names, evaluators, strict=True):
            # The loader first: loading the dataset completes the metadata that evaluators read.
            data_loader = cls.build_test_loader(cfg, name)
            try:
                evaluator = cls.build_evaluator(cfg, name) if evaluator is None else evaluator
            except NotImplementedError:
                logger.warning("%s is not evaluated: build_evaluator has no evaluator for it", name)
                results[name] = {}
                continue
            results[name] = inference_on_dataset(model, data_loader, evaluator)
            if comm.is_main_process():
                logger.info("Results on %s, as rows to copy:", name)
                print_csv_format(results[name], mode=getattr(evaluator, "mode", None))
        return next(iter(results.values())) if len(results) == 1 else results

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """`cfg`, written for SOLVER.REFERENCE_WORLD_SIZE processes, scaled to `num_workers`.

        Batch size and learning rate grow with the number of processes; iterations, steps, warm-up
        and periods shrink. A reference of 0 changes nothing.
        """
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference in (0, num_workers):
            return cfg
        if cfg.SOLVER.IMS_PER_BATCH % reference != 0:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH={cfg.SOLVER.IMS_PER_BATCH} is not divisible by "
                f"SOLVER.REFERENCE_WORLD_SIZE={reference}"
            )
        cfg = cfg.clone()
        frozen = cfg.is_frozen()
        cfg.defrost()
        scale = num_workers / reference
        solver = cfg.SOLVER
        solver.IMS_PER_BATCH = round(solver.IMS_PER_BATCH * scale)
        solver.BASE_LR = solver.BASE_LR * scale
        solver.MAX_ITER = round(solver.MAX_ITER / scale)
        solver.WARMUP_ITERS = round(solver.WARMUP_ITERS / scale)
        solver.STEPS = tuple(round(step / scale) for step in solver.STEPS)
        solver.CHECKPOINT_PERIOD = max(1, round(solver.CHECKPOINT_PERIOD / scale))
        cfg.TEST.EVAL_PERIOD = round(cfg.TEST.EVAL_PERIOD / scale)
        solver.REFERENCE_WORLD_SIZE = num_workers  # never scale twice
        logging.getLogger(__name__).info(
            "Config scaled from %d to %d processes: IMS_PER_BATCH=%d BASE_LR=%g MAX_ITER=%d "
            "WARMUP_ITERS=%d",
            *(reference, num_workers, solver.IMS_PER_BATCH, solver.BASE_LR),
            *(solver.MAX_ITER, solver.WARMUP_ITERS),
        )
        if frozen:
            cfg.freeze()
        return cfg
