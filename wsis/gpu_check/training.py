"""Train each network for a few steps: in each precision, compiled, and resumed.

Where losses have to fall, one batch is seen again and again.
"""

import contextlib
import io
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase, SimpleTrainer
from detectron2.utils import comm
from maskrefinenet.checkpoint import NetworkConfig, load_checkpoint
from maskrefinenet.data import Augmentation
from maskrefinenet.distributed import World
from maskrefinenet.train import Schedule
from maskrefinenet.train import Trainer as RefinerTrainer
from weaklabels.shapes.dataset import make_shapes

from .parity import DTYPES
from .results import Check, Result, judged
from .scenes import NETWORKS, NUM_CLASSES, Context, Network, config_of, refiner_batch

LEARNING_RATE = 1e-4
SHAPES = "gpu_check_shapes"
RESUMED_CROPS = 16
# Of the way from the checkpoint to the end: how far a resumed run may end from an uninterrupted
# one. CPUs repeat to the bit; sums on GPUs depend on the order of threads. Without the optimizer's
# state, MaskRefineNet ends at 0.08 (measured with the small networks, 20 steps).
RESUME_BOUND = {"cpu": 0.0, "cuda": 0.05}
COMPILED_BOUND = 0.02  # of the first loss


class AutocastTrainer(SimpleTrainer):
    """Autocast without a gradient scaler, for a type with float32's range, on any device."""

    def __init__(self, *args: Any, dtype: torch.dtype, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.dtype = dtype

    def _precision(self) -> AbstractContextManager:
        device = next(self.model.parameters()).device
        return torch.autocast(device.type, dtype=self.dtype)


class LossLog(HookBase):
    """Keeps the total loss of each step, the mean over all processes; in the first of them only."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def after_step(self) -> None:
        if comm.is_main_process():
            self.losses.append(float(self.trainer.storage.latest()["total_loss"][0]))


def train(model: nn.Module, batch: Any, steps: int, precision: str) -> list[float]:
    """The total losses of `steps` steps on one batch, with the loops that trainings use.

    With several processes, the losses are those of the first; the others get an empty list.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    arguments = (model, [batch] * steps, optimizer)
    device = next(model.parameters()).device
    if precision == "fp32":
        trainer = SimpleTrainer(*arguments)
    elif precision == "fp16" and device.type == "cuda":
        trainer = AMPTrainer(*arguments)
    else:
        trainer = AutocastTrainer(*arguments, dtype=DTYPES[precision])
    log = LossLog()
    trainer.register_hooks([log])
    trainer.train(0, steps)
    return log.losses


def judge_fall(title: str, losses: list[float]) -> Result:
    """Passed if the last loss is below the first; losses that are not finite end a training."""
    below = 1 - 1e-6
    note = f"last loss / first; {len(losses)} steps, {losses[0]:.4g} to {losses[-1]:.4g}"
    return judged(title, losses[-1] / losses[0], below, note=note)


def check_training(network: Network, precision: str, title: str, context: Context) -> Result:
    """The loss of one batch falls."""
    model = network.make(context.scale, None).to(context.device)
    batch = network.batch(context.scale, network.batch_size)
    return judge_fall(title, train(model, batch, context.scale.steps, precision))


def dense_parts(network: Network, model: nn.Module) -> list[nn.Module]:
    """The parts that torch.compile is given: what follows depends on the number of instances."""
    if network.name == "SOLOv2":
        return [model.backbone, model.mask_head]
    return [model.backbone] if network.name == "Mask R-CNN" else [model.forms]


def check_compiled(network: Network, title: str, context: Context) -> Result:
    """The first loss with compiled parts against that without; and it falls."""
    scale, device = context.scale, context.device
    precision = "fp16" if device.type == "cuda" else "fp32"
    batch = network.batch(scale, network.batch_size)
    (plain,) = train(network.make(scale, None).to(device), batch, 1, precision)
    model = network.make(scale, None).to(device)
    parts = dense_parts(network, model)
    for part in parts:
        part.compile(backend=scale.compiler)
    try:
        losses = train(model, batch, scale.steps, precision)
    finally:
        torch.compiler.reset()
    fall = judge_fall(title, losses)
    note = f"of the first loss, compiled to plain; {len(parts)} parts; then {fall.note}"
    if fall.figure > fall.bound:
        return fall
    return judged(title, abs(losses[0] / plain - 1), COMPILED_BOUND, note=note)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars between the lines of the table."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def distance_left(
    end: dict[str, Tensor], want: dict[str, Tensor], middle: dict[str, Tensor]
) -> float:
    """How far weights ended from the wanted ones, over the way from the middle to those."""
    names = [name for name, value in want.items() if value.is_floating_point()]
    flat = [torch.cat([x[n].cpu().double().flatten() for n in names]) for x in (end, want, middle)]
    return float((flat[0] - flat[1]).norm() / (flat[2] - flat[1]).norm())


def resume_config(context: Context, folder: Path) -> Any:
    """The small network's config on drawn shapes, with a checkpoint in the middle."""
    scale = context.scale
    images = context.folder / "shapes"
    if SHAPES not in DatasetCatalog:
        with quiet():
            make_shapes(images, 8, 1, max(scale.image_hw), 0)
        json_file = images / "annotations" / "instances_train.json"
        register_coco_instances(SHAPES, {}, str(json_file), str(images / "train"))
    cfg = config_of(scale.solov2, scale.solov2_opts)
    cfg.MODEL.DEVICE, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = str(context.device), (SHAPES,), ()
    cfg.SOLVER.AMP.ENABLED = context.device.type == "cuda"
    cfg.SOLVER.MAX_ITER = scale.steps
    cfg.SOLVER.CHECKPOINT_PERIOD = scale.steps // 2
    cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH = 0, 2
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_ITERS = "SGD", 0.005, 0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (min(scale.image_hw),), 2000
    cfg.DATALOADER.NUM_WORKERS, cfg.SEED, cfg.OUTPUT_DIR = 0, 0, str(folder)
    cfg.TEST.EVAL_PERIOD = 0
    return cfg


def check_solov2_resume(title: str, context: Context) -> Result:
    """A run from the checkpoint in the middle ends where the uninterrupted one does."""
    whole, resumed = context.folder / "whole", context.folder / "resumed"
    ends = []
    for folder in (whole, resumed):
        folder.mkdir()
        trainer = DefaultTrainer(resume_config(context, folder))
        if folder is resumed:
            name = f"model_{context.scale.steps // 2 - 1:07d}.pth"
            shutil.copy(whole / name, resumed / name)
            (resumed / "last_checkpoint").write_text(name)
        trainer.resume_or_load(resume=folder is resumed)
        if folder is resumed and trainer.start_iter != context.scale.steps // 2:
            raise ValueError(f"resumed at iteration {trainer.start_iter}, not in the middle")
        trainer.train()
        ends.append({k: v.cpu().clone() for k, v in trainer.model.state_dict().items()})
    middle = torch.load(resumed / name, map_location="cpu", weights_only=True)["model"]
    figure = distance_left(ends[1], ends[0], middle)
    note = "distance of the ends over the way from the checkpoint"
    return judged(title, figure, RESUME_BOUND[context.device.type], note=note)


class Crops(Dataset):
    """A few crops, again and again, in the form of MaskRefineNet's training data."""

    augmentation = Augmentation()

    def __init__(self, batch: dict[str, Tensor]):
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch["target"])

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        return {key: value[position % len(self)] for key, value in self.batch.items()}


class Interrupted(Exception):
    """Ends a training between two checkpoints, as a kill would."""


def refiner_trainer(
    context: Context, out: Path, here: World, batch: dict[str, Tensor], *, interrupt_at: int = 0
) -> RefinerTrainer:
    """MaskRefineNet's own trainer; `interrupt_at` 0 lets it run to its end."""
    scale = context.scale
    network = NetworkConfig(NUM_CLASSES, encoder=scale.encoder, size=scale.crop)
    torch.manual_seed(0)

    def interrupt(model: nn.Module) -> dict[str, float]:
        raise Interrupted

    return RefinerTrainer(
        model=network.build(),
        network=network,
        categories=tuple({"id": i + 1, "name": str(i + 1)} for i in range(NUM_CLASSES)),
        dataset=Crops(batch),
        schedule=Schedule(
            iterations=scale.steps,
            batch_size=8,
            learning_rate=LEARNING_RATE,
            warmup=0,
            checkpoint_period=scale.steps // 2,
            eval_period=interrupt_at or scale.steps,
            amp=here.device.type == "cuda",
        ),
        out=out,
        here=here,
        workers=0,
        validate=interrupt if interrupt_at else None,
    )


def check_refiner_resume(title: str, context: Context) -> Result:
    """As for SOLOv2; the run is broken off one step after the checkpoint."""
    here, batch = World(0, 1, context.device), refiner_batch(context.scale, RESUMED_CROPS)
    whole, broken = context.folder / "refiner_whole", context.folder / "refiner_broken"
    with quiet():
        refiner_trainer(context, whole, here, batch).run()
    stop = context.scale.steps // 2 + 1
    with contextlib.suppress(Interrupted), quiet():
        refiner_trainer(context, broken, here, batch, interrupt_at=stop).run()
    middle = load_checkpoint(broken / "last.pth")
    if middle.content["last_itr"] != context.scale.steps // 2:
        raise ValueError(f"the checkpoint is of iteration {middle.content['last_itr']}")
    resumed = refiner_trainer(context, broken, here, batch)
    resumed.resume()
    with quiet():
        resumed.run()
    ends = [load_checkpoint(folder / "last.pth").model_state for folder in (broken, whole)]
    figure = distance_left(*ends, middle.model_state)
    note = "distance of the ends over the way from the checkpoint"
    return judged(title, figure, RESUME_BOUND[context.device.type], note=note)


def training_checks(precisions: tuple[str, ...]) -> list[Check]:
    """A training of each network in each precision, and the resumed ones."""
    found = []
    for network in NETWORKS.values():
        for precision in precisions:
            title = f"training: {network.name}, {precision}"
            found.append(Check(title, partial(check_training, network, precision, title)))
    title = "resume: SOLOv2"
    found.append(Check(title, partial(check_solov2_resume, title)))
    title = "resume: MaskRefineNet"
    return [*found, Check(title, partial(check_refiner_resume, title))]


def compile_checks() -> list[Check]:
    """A training of each network with torch.compile."""
    titles = {f"torch.compile: {network.name}": network for network in NETWORKS.values()}
    return [Check(t, partial(check_compiled, network, t)) for t, network in titles.items()]
