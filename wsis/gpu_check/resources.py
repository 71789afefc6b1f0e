"""GPU memory that runs out, and speed: images a second of training, generation, refinement."""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from adet.modeling.solov2 import get_prompt
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.structures import Boxes, pairwise_iou
from detectron2.utils.events import EventStorage
from detectron2.utils.memory import retry_if_cuda_oom
from maskrefinenet import MaskRefiner

from .parity import relative_error
from .results import Check, Result, judged, measured, skipped
from .scenes import SOLOV2, Context, make_refiner, make_scenes, make_speed_solov2

GIB = 2**30
LITTLE = 64 * 2**20  # bytes of GPU memory that a check leaves itself
LEAK_BOUND = 0.1  # GiB; libraries keep workspaces
NO_GPU = "there is no GPU memory to run out of"


@contextlib.contextmanager
def little_memory(device: torch.device) -> Iterator[None]:
    """Let this process take LITTLE more GPU memory than it holds."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    held = torch.cuda.memory_reserved(device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, (held + LITTLE) / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def check_fallback(title: str, context: Context) -> Result:
    """A matrix of IoUs that does not fit is computed on the CPU instead."""
    if context.device.type != "cuda":
        return skipped(title, NO_GPU)
    corners = torch.rand(60_000, 2, generator=torch.Generator().manual_seed(0)).repeat(1, 2)
    corners[:, 2:] += 0.1
    boxes, few = Boxes(corners), Boxes(corners[:1000])
    own, own_few = boxes.to(context.device), few.to(context.device)
    with little_memory(context.device):
        got = retry_if_cuda_oom(iou_of_corners)(own_few.tensor, own.tensor)
    if got.is_cuda:
        raise ValueError(f"240 MB fitted into {LITTLE / 2**20:.0f} MB of GPU memory")
    return judged(title, relative_error([got], [pairwise_iou(few, boxes)]), 1e-6, note="on the CPU")


def iou_of_corners(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return pairwise_iou(Boxes(first), Boxes(second))


def check_recovery(title: str, context: Context) -> Result:
    """A step that runs out of memory leaves none of it behind, and the next step works."""
    if context.device.type != "cuda":
        return skipped(title, NO_GPU)
    model = SOLOV2.make(context.scale, None).to(context.device).train()
    batch = SOLOV2.batch(context.scale, SOLOV2.batch_size)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        sum(model(batch).values()).backward()

    step()
    model.zero_grad(set_to_none=True)
    before = torch.cuda.memory_allocated(context.device)
    try:
        with little_memory(context.device):
            step()
    except torch.cuda.OutOfMemoryError:
        ran_out = True
    else:
        ran_out = False
    if not ran_out:
        raise ValueError(f"a step fitted into {LITTLE / 2**20:.0f} MB of GPU memory")
    model.zero_grad(set_to_none=True)
    gc.collect()
    left = (torch.cuda.memory_allocated(context.device) - before) / GIB
    step()
    return judged(title, left, LEAK_BOUND, unit="GiB", note="left behind; the next step worked")


def seconds_of(step: Callable[[], object], context: Context) -> float:
    """Mean seconds of a step, after some that are not timed."""

    def wait() -> None:
        if context.device.type == "cuda":
            torch.cuda.synchronize(context.device)

    for _ in range(context.scale.warm_up):
        step()
    wait()
    start = time.perf_counter()
    for _ in range(context.scale.timed):
        step()
    wait()
    return (time.perf_counter() - start) / context.scale.timed


def check_step_speed(count: int, title: str, context: Context) -> Result:
    """Images a second of the teacher's training step, without the loading of data."""
    scale, on_gpu = context.scale, context.device.type == "cuda"
    model = make_speed_solov2(scale).to(context.device)
    batch = make_scenes(scale.speed_hw, 8, count)
    loop = AMPTrainer if on_gpu else SimpleTrainer
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    trainer = loop(model, [batch] * (scale.warm_up + scale.timed), optimizer)
    try:
        with EventStorage():
            seconds = seconds_of(trainer.run_step, context)
    except torch.cuda.OutOfMemoryError as error:
        return skipped(title, f"does not fit into this GPU's memory: {error}")
    return measured(title, count / seconds, unit="images/s", note=size_note(context))


def size_note(context: Context) -> str:
    height, width = context.scale.speed_hw
    kind = "AMP" if context.device.type == "cuda" else "fp32"
    return f"{context.scale.speed_config}, {height} x {width}, {kind}, without loading data"


def check_generation_speed(title: str, context: Context) -> Result:
    """Images a second of pseudo-label generation: prompt `point`, 8 points, image by image."""
    model = make_speed_solov2(context.scale).to(context.device).eval()
    model.prompt = get_prompt("point")
    (record,) = make_scenes(context.scale.speed_hw, 8, 1)
    seconds = seconds_of(lambda: model([record])[0]["instances"].to("cpu"), context)
    height, width = context.scale.speed_hw
    note = f"{context.scale.speed_config}, {height} x {width}, fp32, 8 points, to masks on the CPU"
    return measured(title, 1 / seconds, unit="images/s", note=note)


def check_refinement_speed(title: str, context: Context) -> Result:
    """Instances a second of MaskRefiner, crops and pasting included."""
    scale, count = context.scale, 16
    network = make_refiner(scale, encoder=scale.speed_encoder).forms.network
    refiner = MaskRefiner(network, size=scale.crop, device=context.device)
    (record,) = make_scenes(scale.speed_hw, count, 1)
    labels = record["instances"]
    arguments = (
        record["image"].permute(1, 2, 0).numpy(),
        labels.gt_masks.tensor.numpy(),
        labels.gt_points.numpy(),
        labels.gt_classes.numpy(),
    )
    seconds = seconds_of(lambda: refiner.refine(*arguments), context)
    note = f"{scale.speed_encoder}, {scale.crop} x {scale.crop}, fp32, {count} an image"
    return measured(title, count / seconds, unit="instances/s", note=note)


def memory_checks() -> list[Check]:
    """What happens when GPU memory runs out."""
    rows = {
        "out of memory: fallback to the CPU": check_fallback,
        "out of memory: a step fails, the next works": check_recovery,
    }
    return [Check(title, partial(run, title)) for title, run in rows.items()]


def speed_checks(batches: tuple[int, ...]) -> list[Check]:
    """Measurements; nothing is asked of them. Each line has its peak of GPU memory."""
    rows = {f"speed: teacher's step, batch {n}": partial(check_step_speed, n) for n in batches} | {
        "speed: generation": check_generation_speed,
        "speed: refinement": check_refinement_speed,
    }
    return [Check(title, partial(run, title)) for title, run in rows.items()]
