"""Guards of a training: numbers that are not finite, and memory that does not suffice.

A step whose loss or gradients are not finite changes nothing. It ends the training with the names
of its images and a folder from which the same command repeats that step, or it is skipped where
SOLVER.SKIP_NONFINITE allows so many steps. Where an adversary makes a second pass, its step is
checked, too, and the detector's step before it is undone.
"""

import copy
import functools
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import DefaultTrainer
from detectron2.engine.train_loop import SimpleTrainer
from detectron2.utils import comm
from weaklabels.files import atomic_text

logger = logging.getLogger(__name__)
OUT_OF_MEMORY = (
    "the GPU's memory does not suffice ({}): lower SOLVER.IMS_PER_BATCH (and SOLVER.BASE_LR with "
    "it) or INPUT.MIN_SIZE_TRAIN and INPUT.MAX_SIZE_TRAIN, set SOLVER.AMP.ENABLED True, or use "
    "more GPUs; --resume goes on from the last checkpoint"
)


def guard(trainer: DefaultTrainer) -> None:
    """Let a trainer check each of its steps."""
    _Guard(trainer, trainer.cfg.SOLVER.SKIP_NONFINITE)


class _Guard:
    """The checks around the parts of a loop's step.

    skipped: steps that changed nothing so far; a resumed run counts from 0.
    """

    def __init__(self, trainer: DefaultTrainer, allowed: int):
        self.trainer, self.allowed, self.skipped = trainer, allowed, 0
        self.batch: Any = ()
        self.loss: Tensor | None = None
        loop = trainer._trainer
        self.statistics = _running_statistics(loop.model)
        self.before: list[Tensor] = []
        self.undo: Callable[[], None] = lambda: None  # the step before the adversary's
        self.has_adversary = hasattr(loop, "_update_adversary")
        names = ["run_step", "_next_batch", "_backward", "_write_metrics", "_update"]
        for name in names + ["_update_adversary"] * self.has_adversary:
            inner = getattr(loop, name)
            setattr(loop, name, functools.partial(getattr(self, name), inner, loop))

    def run_step(self, inner: Callable[[], None], loop: SimpleTrainer) -> None:
        try:
            inner()
        except torch.OutOfMemoryError as error:
            message = OUT_OF_MEMORY.format(str(error).partition(".")[0])
        else:
            return
        raise ValueError(message)  # outside the handler, so that no tensor of the step stays

    def _next_batch(self, inner: Callable[[], Any], loop: SimpleTrainer) -> Any:
        self.batch = inner()
        self.before = [tensor.clone() for tensor in self.statistics]
        return self.batch

    def _backward(self, inner: Callable, loop: SimpleTrainer, loss: Tensor) -> None:
        self.loss = loss.detach()
        inner(loss)

    def _write_metrics(self, inner: Callable, loop: SimpleTrainer, *args: Any, **kw: Any) -> None:
        if _everywhere(self.loss.isfinite()):
            inner(*args, **kw)

    def _update(self, inner: Callable[[], None], loop: SimpleTrainer) -> None:
        fault = self._fault(loop, loop.model.parameters())
        if fault is not None:
            self._refuse(fault, loop)
            return
        if self.has_adversary:
            self.undo = _copied(loop.optimizer)
        inner()

    def _update_adversary(self, inner: Callable[[], None], loop: SimpleTrainer) -> None:
        groups = loop.adversary_optimizer.param_groups
        fault = self._fault(loop, [p for group in groups for p in group["params"]])
        if fault is None:
            inner()
            return
        self.undo()
        loop.adversary_optimizer.zero_grad()
        self._refuse(f"of the adversary, {fault}", loop)

    def _refuse(self, fault: str, loop: SimpleTrainer) -> None:
        """Leave the step out where that is allowed, else end the training."""
        for tensor, value in zip(self.statistics, self.before, strict=True):
            tensor.copy_(value)
        loop.optimizer.zero_grad()
        names = [name for rank in comm.all_gather(_names(self.batch)) for name in rank]
        shown = ", ".join(names)
        if self.skipped < self.allowed:
            self.skipped += 1
            logger.warning(
                "Step %d is skipped, %d of at most %d: %s. Images: %s",
                *(self.trainer.iter, self.skipped, self.allowed, fault, shown),
            )
            return
        folder = Path(self.trainer.cfg.OUTPUT_DIR, f"nonfinite_{self.trainer.iter:07d}")
        self._dump(folder, fault, names)
        raise ValueError(
            f"{fault} at iteration {self.trainer.iter}, images: {shown}. {folder} holds their "
            f"names and a checkpoint: the same command with --resume and OUTPUT_DIR {folder} "
            "repeats the step. Lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS, set "
            "SOLVER.CLIP_GRADIENTS.ENABLED True, correct the images' labels, or let such steps "
            "change nothing with SOLVER.SKIP_NONFINITE N"
        )

    def _fault(self, loop: SimpleTrainer, parameters: Iterable[nn.Parameter]) -> str | None:
        """What is not finite, the same answer in every process; None: nothing."""
        if not _everywhere(self.loss.isfinite()):
            return f"the loss is {self.loss.item()}"
        if hasattr(loop, "grad_scaler"):
            return None  # the scaler skips such steps itself, and lowers its scale
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return None
        norm = torch.stack(torch._foreach_norm(gradients)).sum()
        return None if _everywhere(norm.isfinite()) else f"the gradients' norm is {norm.item()}"

    def _dump(self, folder: Path, fault: str, names: list[str]) -> None:
        """A checkpoint from which --resume repeats this step, and what the step saw."""
        if not comm.is_main_process():
            return
        trainer = self.trainer
        content = {"iteration": trainer.iter, "fault": fault, "images": names}
        with atomic_text(folder / "batch.json") as file:
            file.write(json.dumps(content | {"seed": trainer.cfg.SEED}, indent=1) + "\n")
        known = trainer.checkpointer.checkpointables
        saver = DetectionCheckpointer(
            trainer.checkpointer.model, str(folder), save_to_disk=True, **known
        )
        present = trainer.iter
        trainer.iter = trainer._trainer.iter = present - 1  # the last iteration that counts
        try:
            saver.save("model_before", iteration=present - 1)
        finally:
            trainer.iter = trainer._trainer.iter = present


def _copied(optimizer: Optimizer) -> Callable[[], None]:
    """What sets the optimizer and its parameters back to what they are now."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    values = [p.detach().clone() for p in parameters]
    state = copy.deepcopy(optimizer.state_dict())

    def restore() -> None:
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)
        optimizer.load_state_dict(state)

    return restore


def _running_statistics(model: nn.Module) -> list[Tensor]:
    """What a forward pass in training changes: batch norms' means and variances."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [buffer for norm in norms for buffer in norm.buffers()]


def _everywhere(is_finite: Tensor) -> bool:
    """Whether it holds in all processes, which must decide alike."""
    if comm.get_world_size() > 1:
        flag = is_finite.float()
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
        return bool(flag.item())
    return bool(is_finite)


def _names(batch: Any) -> list[str]:
    """File names of a batch's images."""
    entries = batch if isinstance(batch, list | tuple) else ()
    return [str(entry["file_name"]) for entry in entries if "file_name" in entry]
