"""The training loop of MaskRefineNet: exact resume, validation by AP, metrics on disk.

All randomness after the weights' initialization is a function of the seed and a sample's position,
so a checkpoint needs no generator state: the weights, the optimizer and the iteration are enough.
"""

import importlib.util
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from weaklabels.files import atomic_text

from .checkpoint import (
    NetworkConfig,
    load_checkpoint,
    network_content,
    save_atomically,
)
from .data import PairDataset, PositionSampler, set_up_worker
from .distributed import World
from .fast_forms import FastMaskRefineNet
from .losses import dice_loss
from .model import MaskRefineNet
from .recipe import RECIPES, Recipe

LEARNING_RATE_FLOOR = 0.01  # of the peak: where warm-up starts and the cosine ends
DEFAULT_WARMUP = 2000
TIMING_KEYS = ("seconds_per_iteration", "eta_seconds")


@dataclass(frozen=True)
class Schedule:
    """How long and how training runs.

    batch_size: samples an iteration, over all processes.
    warmup: iterations of linear warm-up; None takes 2000, or a tenth of a short run.
    eval_period, checkpoint_period, log_period: iterations between validations, checkpoints, lines.
    amp: mixed precision; CUDA only.
    """

    iterations: int = 200_000
    batch_size: int = 16
    learning_rate: float = 1e-4
    warmup: int | None = None
    eval_period: int = 5000
    checkpoint_period: int = 1000
    log_period: int = 20
    seed: int = 0
    amp: bool = False

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "eval_period", "checkpoint_period", "log_period"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; at least 1 is needed")
        if not 0 <= self.learning_rate < math.inf:
            raise ValueError(f"--lr {self.learning_rate}; expected a finite number of 0 or more")
        if self.warmup is not None and not 0 <= self.warmup <= self.iterations:
            raise ValueError(f"warmup={self.warmup}; expected 0 to {self.iterations} iterations")

    def learning_rate_at(self, iteration: int) -> float:
        """Linear from 1% to the peak over the warm-up, then a cosine down to 1%."""
        warmup = self.warmup
        if warmup is None:
            warmup = min(DEFAULT_WARMUP, self.iterations // 10)
        if iteration < warmup:
            share = iteration / warmup
        else:
            done = (iteration - warmup) / max(self.iterations - warmup, 1)
            share = (1 + math.cos(math.pi * done)) / 2
        floor = LEARNING_RATE_FLOOR
        return self.learning_rate * (floor + (1 - floor) * share)


def check_batch(batch_size: int, here: World) -> None:
    """Refuse a batch of which batch norms see one sample; on CUDA they see all processes'."""
    samples = batch_size if here.device.type == "cuda" else batch_size // here.size
    if samples < 2:
        raise ValueError(
            f"a batch of {batch_size} over {here.size} processes on {here.device.type} leaves less "
            "than 2 samples to a batch norm, which needs 2: raise --batch-size"
        )


# Validation: the network in, metrics such as {"AP": ..} out; every process takes part.
Validate = Callable[[MaskRefineNet], dict[str, float]]


class Trainer:
    """Trains a network on a dataset and keeps `last.pth`, `best.pth`, `metrics.json` in `out`."""

    def __init__(
        self,
        *,
        model: MaskRefineNet,
        network: NetworkConfig,
        categories: tuple[dict[str, Any], ...],
        dataset: PairDataset,
        schedule: Schedule,
        out: Path,
        here: World,
        recipe: Recipe = RECIPES["paper"],
        workers: int = 2,
        validate: Validate | None = None,
    ):
        if schedule.amp and here.device.type != "cuda":
            raise ValueError(f"--amp needs a CUDA device; this run is on {here.device}")
        check_batch(schedule.batch_size, here)
        self.network, self.categories, self.schedule = network, categories, schedule
        self.dataset, self.out, self.here, self.workers = dataset, out, here, workers
        self.recipe, self.validate = recipe, validate
        self.model = model.to(here.device)
        self.wrapped = self._distribute()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=schedule.learning_rate)
        self.scaler = torch.amp.GradScaler("cuda", enabled=schedule.amp)
        self.iteration, self.best_ap = 0, -math.inf
        self.loss_sum, self.loss_count = 0.0, 0  # since the last line of metrics
        out.mkdir(parents=True, exist_ok=True)

    def _distribute(self) -> nn.Module:
        """What training calls: the network in its fast form, in step with the other processes."""
        if self.here.size == 1:
            return FastMaskRefineNet(self.model)
        if self.here.device.type == "cuda":
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
            device_ids = [self.here.device.index]
            return DistributedDataParallel(FastMaskRefineNet(self.model), device_ids=device_ids)
        return DistributedDataParallel(FastMaskRefineNet(self.model))

    @property
    def last_path(self) -> Path:
        return self.out / "last.pth"

    def resume(self) -> None:
        """Go on from `last.pth`; what was logged after it is logged again."""
        checkpoint = load_checkpoint(self.last_path)
        content, mine = checkpoint.content, self._identity()
        if "training" not in content:
            raise ValueError(f"{self.last_path} holds no training state: it cannot be resumed")
        theirs = content["training"]
        changed = [f"{k}: {theirs.get(k)} -> {v}" for k, v in mine.items() if theirs.get(k) != v]
        if changed:
            raise ValueError(
                f"{self.last_path} cannot be resumed with other options ({', '.join(changed)}); "
                "repeat its options or give another --out"
            )
        self.model.load_state_dict(checkpoint.model_state)
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.iteration = content["last_itr"]
        self.best_ap = content["best_AP"]
        self.loss_sum, self.loss_count = content["loss_sum"], content["loss_count"]

    def _identity(self) -> dict[str, Any]:
        """What must not change between the parts of one run."""
        schedule = asdict(self.schedule)
        del schedule["log_period"], schedule["checkpoint_period"], schedule["eval_period"]
        augmentation = asdict(self.dataset.augmentation)
        return {
            **{f"network.{key}": value for key, value in asdict(self.network).items()},
            **{f"recipe.{key}": value for key, value in asdict(self.recipe).items()},
            **schedule,
            **augmentation,
            "samples": len(self.dataset),
        }

    def run(self) -> None:
        """Train up to the last iteration."""
        if self.here.is_first:
            self._cut_metrics()
        writer = self._summary_writer()
        batches = iter(self._loader())
        bar = tqdm(
            total=self.schedule.iterations,
            initial=self.iteration,
            desc="train",
            disable=not self.here.is_first,
        )
        clock = time.perf_counter()
        clock_iteration = self.iteration
        while self.iteration < self.schedule.iterations:
            rate = self.schedule.learning_rate_at(self.iteration)
            self.loss_sum += self._step(next(batches), rate)
            self.loss_count += 1
            self.iteration += 1
            bar.update()
            if self._due(self.schedule.log_period):
                seconds = (time.perf_counter() - clock) / (self.iteration - clock_iteration)
                left = self.schedule.iterations - self.iteration
                line = {"iteration": self.iteration, "loss": self._mean_loss(), "lr": rate}
                line |= {"seconds_per_iteration": seconds, "eta_seconds": seconds * left}
                self._log(line, writer)
                bar.set_postfix(loss=f"{line['loss']:.4f}")
                clock, clock_iteration = time.perf_counter(), self.iteration
            if self._due(self.schedule.eval_period) and self.validate is not None:
                self._evaluate(writer)
            if self._due(self.schedule.checkpoint_period) or self._due(self.schedule.eval_period):
                self._save()
        bar.close()
        if writer is not None:
            writer.close()

    def _due(self, period: int) -> bool:
        return self.iteration % period == 0 or self.iteration == self.schedule.iterations

    def _step(self, batch: dict[str, Tensor], rate: float) -> float:
        """One update of the weights; the loss."""
        batch = {k: v.to(self.here.device, non_blocking=True) for k, v in batch.items()}
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.wrapped.train()
        statistics = [buffer.clone() for buffer in self.model.buffers()]  # of batch norms
        with torch.autocast(self.here.device.type, enabled=self.schedule.amp):
            logits = self.wrapped(batch["inputs"], batch["point"], batch["class_id"])
        loss = dice_loss(logits, batch["target"], self.recipe.dice)
        value = loss.item()
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        norm = 0.0 if self.schedule.amp else self._gradient_norm()  # the scaler skips such steps
        if not math.isfinite(value) or not math.isfinite(norm):
            for buffer, before in zip(self.model.buffers(), statistics, strict=True):
                buffer.copy_(before)
            what = "gradients' norm" if math.isfinite(value) else "loss"
            raise ValueError(self._not_finite(f"the {what} is {norm if what[0] == 'g' else value}"))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return value

    def _gradient_norm(self) -> float:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.stack(torch._foreach_norm(gradients)).sum().item()

    def _not_finite(self, fault: str) -> str:
        """What to tell of numbers that are not finite; writes a checkpoint that repeats the step.

        Samples follow from the iteration, so that the weights are all that it needs.
        """
        share = self.schedule.batch_size // self.here.size
        start = self.iteration * self.schedule.batch_size + self.here.rank * share
        names = [self.dataset.file_name(place) for place in range(start, start + share)]
        folder = self.out / f"nonfinite_{self.iteration:07d}"
        save_atomically(self._resumable(), folder / "last.pth")
        return (
            f"{fault} at iteration {self.iteration}, images {', '.join(names)}. The same command "
            f"with --resume --output {folder} repeats the step: lower --lr, raise --warmup, or "
            "correct the labels of these images"
        )

    def _mean_loss(self) -> float:
        mean = self.loss_sum / self.loss_count
        self.loss_sum, self.loss_count = 0.0, 0
        return mean

    def _loader(self) -> DataLoader:
        schedule = self.schedule
        sampler = PositionSampler(
            self.iteration,
            schedule.iterations,
            schedule.batch_size,
            rank=self.here.rank,
            world_size=self.here.size,
        )
        return DataLoader(
            self.dataset,
            batch_size=sampler.share,
            sampler=sampler,
            num_workers=self.workers,
            worker_init_fn=set_up_worker,
            pin_memory=self.here.device.type == "cuda",
        )

    def _evaluate(self, writer: Any) -> None:
        metrics = self.validate(self.model)
        self._log({"iteration": self.iteration, **metrics}, writer)
        if metrics["AP"] > self.best_ap:
            self.best_ap = metrics["AP"]
            if self.here.is_first:
                save_atomically(self._content(), self.out / "best.pth")

    def _content(self) -> dict[str, Any]:
        """A checkpoint to refine with."""
        state = self.model.state_dict()
        content = network_content(state, self.network, self.categories, self.recipe)
        samples = self.iteration * self.schedule.batch_size
        content["epoch"], content["last_itr"] = samples // len(self.dataset), self.iteration
        return {**content, "best_AP": self.best_ap}

    def _save(self) -> None:
        """A checkpoint to go on from."""
        if self.here.is_first:
            save_atomically(self._resumable(), self.last_path)

    def _resumable(self) -> dict[str, Any]:
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "loss_sum": self.loss_sum,
            "loss_count": self.loss_count,
            "training": self._identity(),
        }
        return {**self._content(), **state}

    def _metrics_path(self) -> Path:
        return self.out / "metrics.json"

    def _log(self, line: dict[str, Any], writer: Any) -> None:
        """A line of metrics.json, and the same figures for TensorBoard."""
        if not self.here.is_first:
            return
        with open(self._metrics_path(), "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if writer is not None:
            for name, value in line.items():
                if name != "iteration":
                    writer.add_scalar(name, value, line["iteration"])

    def _cut_metrics(self) -> None:
        """Drop the lines of iterations that are about to be repeated."""
        path = self._metrics_path()
        if not path.is_file():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        kept = [line for line in whole if json.loads(line)["iteration"] <= self.iteration]
        with atomic_text(path) as file:
            file.writelines(kept)

    def _summary_writer(self) -> Any:
        """TensorBoard's writer, where it is installed and this process is the first."""
        if not self.here.is_first or importlib.util.find_spec("tensorboard") is None:
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.out), purge_step=self.iteration + 1)
