"""One training of MaskRefineNet: from files and settings to a trained network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from tqdm import tqdm

from weaklabels.coco import Annotations, load_annotations
from weaklabels.evaluate import records_ap
from weaklabels.examine import refuse_unreadable
from weaklabels.locks import job_lock
from weaklabels.records import Record

from .checkpoint import DEFAULT_BOX_SCALE, DEFAULT_SIZE, NetworkConfig, load_encoder
from .data import Augmentation, PairDataset
from .distributed import World
from .model import MaskRefineNet
from .pairs import Pair, match_predictions
from .pipeline import make_groups, refine_groups
from .predictions import read_predictions
from .recipe import RECIPES, Recipe
from .refiner import MaskRefiner
from .train import Schedule, Trainer, Validate


@dataclass(frozen=True)
class Validation:
    """Records to refine and judge, the COCO file with their true masks, and their images."""

    records: Path
    annotations: Path
    image_root: Path


@dataclass(frozen=True)
class TrainSettings:
    """One training.

    annotations: COCO file with masks.  records: a teacher's, one file a model.
    output: folder of checkpoints and metrics.  weights: of the encoder: imagenet, none, or a file.
    class_agnostic: one point channel for all classes.  size: side of the input, pixels.
    noise: share of priors that are spoilt.
    batch_size: over all processes; None: see `default_batch_size`.
    """

    annotations: Path
    image_root: Path
    records: tuple[Path, ...]
    output: Path
    recipe: Recipe = RECIPES["paper"]
    validation: Validation | None = None
    resume: bool = False
    encoder: str = "resnet101"
    weights: str = "imagenet"
    class_agnostic: bool = False
    size: int = DEFAULT_SIZE
    box_scale: float = DEFAULT_BOX_SCALE
    color_jitter: float = 0.0
    noise: float = 0.0
    batch_size: int | None = None
    schedule: Schedule = field(default_factory=Schedule)
    workers: int = 2

    def __post_init__(self) -> None:
        for name, value in (("--noise", self.noise), ("--color-jitter", self.color_jitter)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} {value}; expected 0 to 1")
        for name, value, least in (("--size", self.size, 32), ("--workers", self.workers, 0)):
            if value < least:
                raise ValueError(f"{name} {value}; at least {least} is needed")
        if self.box_scale < 1:
            raise ValueError(f"--box-scale {self.box_scale}; at least 1 is needed")

    def schedule_for(self, processes: int, device_type: str = "cpu") -> Schedule:
        """The schedule of so many processes on devices of a kind."""
        size = self.batch_size
        return replace(
            self.schedule,
            batch_size=default_batch_size(processes) if size is None else size,
            amp=self.recipe.mixed_precision(device_type),
        )


def default_batch_size(processes: int) -> int:
    """16 or, where these cannot be divided among the processes, the next number that can."""
    return math.ceil(Schedule.batch_size / processes) * processes


def train(settings: TrainSettings, here: World) -> None:
    """Train, as one of the processes of a run.

    Raises:
        ValueError: an input cannot be used, the folder holds a training and resume is False, or
            another job writes it.
    """
    with job_lock(settings.output, here.is_first, here.gather):
        _train(settings, here)


def _train(settings: TrainSettings, here: World) -> None:
    last = settings.output / "last.pth"
    if last.exists() and not settings.resume:
        raise ValueError(f"{last} exists: continue it with --resume, or give another --output")
    trainer = make_trainer(settings, here)
    if trainer.last_path.exists():
        trainer.resume()
    if here.is_first:
        print(
            f"{len(trainer.dataset)} training pairs, iterations {trainer.iteration} to "
            f"{trainer.schedule.iterations}, on {here.size} x {here.device.type}, "
            f"recipe: {settings.recipe}"
        )
    trainer.run()


def make_trainer(settings: TrainSettings, here: World) -> Trainer:
    """The trainer of one process, at its first iteration."""
    schedule, recipe = settings.schedule_for(here.size, here.device.type), settings.recipe
    annotations = load_annotations(settings.annotations)
    network = NetworkConfig(
        num_classes=len(annotations.categories),
        encoder=settings.encoder,
        class_agnostic=settings.class_agnostic,
        size=settings.size,
        box_scale=settings.box_scale,
    )
    augmentation = Augmentation(settings.box_scale, settings.color_jitter, settings.noise)
    dataset = PairDataset(
        training_pairs(settings.records, annotations, recipe.matching, progress=here.is_first),
        settings.image_root,
        size=settings.size,
        augmentation=augmentation,
        recipe=recipe,
        seed=schedule.seed,
    )
    shown = {pair.image.file_name: pair.image for pair in dataset.pairs}
    refuse_unreadable(
        str(settings.annotations),
        [(settings.image_root / name, (i.height, i.width)) for name, i in shown.items()],
    )
    torch.manual_seed(schedule.seed)
    model = network.build()
    if not (settings.output / "last.pth").exists():
        load_encoder(model, settings.weights, recipe.stem)
    return Trainer(
        model=model,
        network=network,
        categories=annotations.categories,
        dataset=dataset,
        schedule=schedule,
        out=settings.output,
        here=here,
        recipe=recipe,
        workers=settings.workers,
        validate=_validation(settings.validation, network, annotations, here),
    )


def training_pairs(
    paths: Sequence[Path], annotations: Annotations, rule: str, *, progress: bool = False
) -> list[Pair]:
    """The pairs of all prediction files; each is matched on its own."""
    pairs: list[Pair] = []
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"--records {path}: no such file")
        records = tqdm(
            read_predictions(path, annotations),
            desc=f"match {path.name}",
            unit=" images",
            disable=not progress,
        )
        try:
            pairs += match_predictions(records, annotations, rule=rule)
        except ValueError as error:
            raise ValueError(f"{error} (while matching {path})") from error
    return pairs


def _validation(
    settings: Validation | None, network: NetworkConfig, strong: Annotations, here: World
) -> Validate | None:
    """Refine the validation records and judge them; None where there are none."""
    if settings is None:
        return None
    truth = load_annotations(settings.annotations)
    records = list(read_predictions(settings.records, truth))
    prior = _known_ap(records, truth)["AP"]
    share = list(make_groups(records))[here.rank :: here.size]

    def validate(model: MaskRefineNet) -> dict[str, float]:
        refiner = MaskRefiner(
            model,
            size=network.size,
            box_scale=network.box_scale,
            category_ids=strong.category_ids,
            device=here.device,
        )
        refined: list[Record] = []
        for result in refine_groups(share, refiner, settings.image_root):
            if result.unreadable:
                raise ValueError(f"validation: {result.unreadable[0]}")
            refined += result.records
        everything = [record for share in here.gather(refined) for record in share]
        return {**_known_ap(everything, truth), "AP_prior": prior}

    return validate


def _known_ap(records: list[Record], truth: Annotations) -> dict[str, float]:
    """AP of the records, without the size classes of which there is no instance."""
    return {name: ap for name, ap in records_ap(records, truth).items() if ap is not None}
