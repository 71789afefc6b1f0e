"""Train a classifier on image tags: exact resume, selection by how well it classifies.

All randomness is a function of the seed, the epoch and a sample's index, so that a run which was
killed goes on to the same weights, on a CPU to the bit.
"""

import json
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from detectron2.checkpoint.safe_files import read_torch_file, write_torch_file
from weaklabels.files import atomic_text
from weaklabels.tags import require_every_class

from .checkpoint import classifier_content, save_classifier, weights_digest
from .classifier import Classifier
from .data import Augmentation, Samples, TaggedDataset
from .metrics import classification_metrics

STEPS = ("epoch", "iteration")


@dataclass(frozen=True)
class TrainSettings:
    """How a classifier trains; the defaults are WeakTr's published schedule (AdamW).

    learning_rate: the peak; upstream's is 4e-4 for each 512 images of a batch.
    min_learning_rate: the end of the cosine.  warmup_learning_rate: the beginning of the warm-up.
    step: "epoch" or "iteration", how often the rate changes.
    lag_epochs: epochs by which the rate is behind. Upstream's is 1, as it steps after an epoch with
        that epoch's number.
    amp: mixed precision; CUDA only.
    """

    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 4e-4 * 64 / 512
    min_learning_rate: float = 1e-5
    warmup_learning_rate: float = 1e-6
    warmup_epochs: int = 5
    step: str = "epoch"
    lag_epochs: int = 0
    weight_decay: float = 0.05
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 504
    workers: int = 2
    amp: bool = False

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size) < 1 or min(self.workers, self.warmup_epochs) < 0:
            raise ValueError(f"epochs and batch_size must be 1 or more, the others 0: {self}")
        if self.step not in STEPS:
            raise ValueError(f"step={self.step!r}; expected one of {STEPS}")

    def learning_rate_at(self, epochs: float) -> float:
        """The rate after so many epochs: a linear warm-up inside a cosine over the whole run."""
        if self.step == "epoch":
            epochs = math.floor(epochs)
        epochs = max(epochs - self.lag_epochs, 0)
        if epochs < self.warmup_epochs:
            low = self.warmup_learning_rate
            return low + (self.learning_rate - low) * epochs / self.warmup_epochs
        low = self.min_learning_rate
        return low + (self.learning_rate - low) / 2 * (1 + math.cos(math.pi * epochs / self.epochs))


def weaktr_settings(batch_size: int = 64, **changes: Any) -> TrainSettings:
    """WeakTr's schedule with the rate of this batch size."""
    return TrainSettings(
        **{"batch_size": batch_size, "learning_rate": 4e-4 * batch_size / 512} | changes
    )


def cam_settings(epochs: int = 12, size: int = 96, **changes: Any) -> TrainSettings:
    """A schedule for CAM classifiers: from scratch on small scenes, as the quick start has them."""
    values = {
        "epochs": epochs,
        "batch_size": 16,
        "learning_rate": 7e-4,
        "warmup_epochs": 1,
        "step": "iteration",
        "augmentation": Augmentation("crop", size, least_area=0.7),
        "seed": 0,
    }
    return TrainSettings(**values | changes)


@dataclass(frozen=True)
class TrainResult:
    """checkpoint: the chosen classifier.  metrics: those of its epoch, `class_AP` with `val`."""

    checkpoint: Path
    metrics: dict[str, Any]


def train_classifier(
    model: Classifier,
    train: TaggedDataset,
    out: str | Path,
    settings: TrainSettings,
    *,
    val: TaggedDataset | None = None,
    device: str = "auto",
) -> TrainResult:
    """Train `model` into OUT/classifier.pth; a run that was killed goes on from OUT/last.pth.

    OUT/metrics.json has a line of json for each epoch.

    Args:
        val: tagged images, by whose class AP an epoch is chosen; None takes the last epoch.
        device: "auto" is CUDA where there is one.
    """
    for name, dataset in (("train", train), ("val", val)):
        if dataset is not None and dataset.num_classes != model.num_classes:
            raise ValueError(
                f"{dataset.tags.file}: {dataset.num_classes} classes ({name}), the network has "
                f"{model.num_classes}"
            )
    if val is not None and val.tags.class_names != train.tags.class_names:
        raise ValueError(f"{val.tags.file} has other classes than {train.tags.file}")
    require_every_class(train.tags)
    run = _Run(model, train, Path(out), settings, val, pick_device(device))
    run.resume()
    while run.epoch < settings.epochs:
        run.train_epoch()
    return run.result()


def pick_device(device: str) -> torch.device:
    """A torch device; "auto" is CUDA where there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


class _Run:
    """The state of one training: what changes from epoch to epoch."""

    def __init__(
        self,
        model: Classifier,
        train: TaggedDataset,
        out: Path,
        settings: TrainSettings,
        val: TaggedDataset | None,
        device: torch.device,
    ):
        if settings.amp and device.type != "cuda":
            raise ValueError(f"amp needs a CUDA device; this run is on {device}")
        self.model, self.settings, self.out, self.device = model.to(device), settings, out, device
        self.train, self.val = train, val
        self.start = weights_digest(model.state_dict())
        self.samples = Samples(train, settings.augmentation.for_training(), settings.seed)
        groups = decay_groups(model, settings.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, eps=1e-8)
        self.scaler = torch.amp.GradScaler("cuda", enabled=settings.amp)
        self.epoch = 0  # epochs that are done
        self.history: list[dict[str, Any]] = []
        out.mkdir(parents=True, exist_ok=True)

    @property
    def last(self) -> Path:
        return self.out / "last.pth"

    @property
    def chosen(self) -> Path:
        return self.out / "classifier.pth"

    def identity(self) -> dict[str, Any]:
        """What must not change between the parts of one run."""
        settings = asdict(self.settings)
        del settings["workers"]
        datasets = {"train": self.train, "val": self.val}
        return {
            **settings,
            "network": asdict(self.model.config),
            "start": self.start,
            "classes": self.train.tags.class_names,
            **{name: None if d is None else d.digest() for name, d in datasets.items()},
        }

    def resume(self) -> None:
        """Go on from `last.pth` if it is there."""
        if not self.last.is_file():
            return
        content = read_torch_file(str(self.last))
        if not isinstance(content, dict) or "training" not in content:
            raise ValueError(f"{self.last} holds no training; move it away or give another folder")
        theirs, mine = json.loads(content["training"]["identity"]), self.identity()
        mine = json.loads(json.dumps(mine))
        changed = [f"{k}: {theirs.get(k)} -> {v}" for k, v in mine.items() if theirs.get(k) != v]
        if changed:
            raise ValueError(
                f"{self.last} cannot be resumed with other settings ({'; '.join(changed)}); repeat "
                "those or give another folder"
            )
        self.model.load_state_dict(content["model"])
        training = content["training"]
        self.optimizer.load_state_dict(training["optimizer"])
        self.scaler.load_state_dict(training["scaler"])
        self.epoch, self.history = training["epoch"], json.loads(training["history"])

    def train_epoch(self) -> None:
        """One epoch, its measurement and its files."""
        started, settings = time.perf_counter(), self.settings
        loss, rate = self._pass_over_images()
        self.epoch += 1
        line = {"epoch": self.epoch, "loss": loss, "learning_rate": rate}
        if self.val is not None:
            scores = classify(self.model, self.val, settings, self.device)
            line |= classification_metrics(scores, self.val.targets())
        seconds = time.perf_counter() - started
        left = settings.epochs - self.epoch
        self.history.append(line | {"seconds": seconds, "eta_seconds": seconds * left})
        if self._best() is self.history[-1]:
            save_classifier(self.chosen, self.model, self.train.tags.class_names)
        self._save()

    def _pass_over_images(self) -> tuple[float, float]:
        """Mean loss and last learning rate of an epoch."""
        self.model.train()
        self.samples.epoch = self.epoch
        order = np.random.default_rng([self.settings.seed, self.epoch]).permutation(len(self.train))
        size = min(self.settings.batch_size, len(order))
        batches = [order[i : i + size].tolist() for i in range(0, len(order) - size + 1, size)]
        loader = DataLoader(self.samples, batch_sampler=batches, num_workers=self.settings.workers)
        devices = [self.device] if self.device.type == "cuda" else []
        total, rate = 0.0, 0.0
        label = f"epoch {self.epoch + 1}/{self.settings.epochs}"
        with torch.random.fork_rng(devices):  # stochastic depth draws from it
            torch.manual_seed(
                int(
                    np.random.SeedSequence([self.settings.seed, self.epoch, 1]).generate_state(1)[0]
                )
            )
            bar = tqdm(loader, label, unit="batch", leave=False)
            for number, (images, targets) in enumerate(bar):
                rate = self.settings.learning_rate_at(self.epoch + number / len(batches))
                total += self._step(images, targets, rate)
                bar.set_postfix(loss=f"{total / (number + 1):.4f}")
        return total / len(batches), rate

    def _step(self, images: Tensor, targets: Tensor, rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images, targets = images.to(self.device), targets.to(self.device)
        with torch.autocast(self.device.type, enabled=self.settings.amp):
            loss = sum(self.model.loss(images, targets).values())
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss became {value} in epoch {self.epoch + 1}; lower the learning rate, now "
                f"{rate:g}, or turn mixed precision off"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return value

    def _best(self) -> dict[str, Any]:
        """The line of the chosen epoch: the first with the highest class AP, or the last one."""
        if self.val is None:
            return self.history[-1]
        return max(self.history, key=lambda line: line["class_AP"])

    def _save(self) -> None:
        training = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "history": json.dumps(self.history),
            "identity": json.dumps(self.identity()),
        }
        content = classifier_content(self.model, self.train.tags.class_names)
        write_torch_file(content | {"training": training}, str(self.last))
        with atomic_text(self.out / "metrics.json") as file:
            file.writelines(json.dumps(line) + "\n" for line in self.history)

    def result(self) -> TrainResult:
        return TrainResult(self.chosen, self._best())


def decay_groups(model: Classifier, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: no decay for vectors (biases, norms) and what the network names."""
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = parameter.dim() == 1 or name in model.parameters_without_decay
            groups[not exempt].append(parameter)
    decays = {True: weight_decay, False: 0.0}
    return [{"params": groups[key], "weight_decay": decays[key]} for key in groups if groups[key]]


@torch.no_grad()
def classify(
    model: Classifier, dataset: TaggedDataset, settings: TrainSettings, device: torch.device
) -> np.ndarray:
    """(N, C) probabilities of each image of a dataset."""
    model.eval()
    samples = Samples(dataset, settings.augmentation.for_evaluation(), settings.seed)
    loader: Iterable = DataLoader(
        samples, batch_size=settings.batch_size, num_workers=settings.workers
    )
    found = [
        model.probabilities(model.scores(images.to(device))).float().cpu().numpy()
        for images, _ in tqdm(loader, "classify", unit="batch", leave=False)
    ]
    return np.concatenate(found)
