"""Stages that train a network of WeakSAM, and that let it find boxes on the training images."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from wsis.config import load_config
from wsis.recipes import given
from wsis.recipes.plan import FINAL_MODEL
from wsis.recipes.pointwssis import RESULTS, SUMMARY, shipped_config
from wsis.recipes.weaksam_plan import Network, WeakPlan
from wsis.runner import Check, Command, Launch, PipelineError, Stage
from wsis.training import AUGMENTED_FOLDER


def network_config(network: Network) -> CfgNode:
    """The config of a network with its overrides, on the CPU."""
    words = [word for pair in network.overrides.items() for word in pair]
    return load_config(shipped_config(network.config), words, num_gpus=0)


def schedule_of(cfg: CfgNode) -> str:
    """How long and how fast a config trains, in a few words."""
    solver, steps = cfg.SOLVER, ", ".join(map(str, cfg.SOLVER.STEPS))
    words = [f"{solver.OPTIMIZER} {solver.BASE_LR:g}, {solver.IMS_PER_BATCH} images a step"]
    words.append(
        f"{solver.MAX_ITER} steps, lower after {steps}" if steps else f"{solver.MAX_ITER} steps"
    )
    words.append(f"warm-up {solver.WARMUP_ITERS}")
    if cfg.MODEL.META_ARCHITECTURE == "DINO":
        drop = cfg.MODEL.DINO.INSTANCE_DROP
        shown = f"of {drop.QUANTILE:g} of the queries"
    else:
        drop = cfg.MODEL.INSTANCE_DROP
        shown = f"above {drop.THRESH_CLS:g} and {drop.THRESH_REG:g}"
    if cfg.MODEL.META_ARCHITECTURE in ("DINO", "GeneralizedRCNN") and drop.ISON:
        words.append(f"RoI drop {shown} from {drop.OPERATE_ITER} on")
    return ", ".join(words)


def results_of(network: Network, folder: Path) -> Path:
    """The boxes of an evaluation: those of test-time augmentation where the network has it."""
    is_augmented = network_config(network).TEST.AUG.ENABLED
    return folder / (Path(AUGMENTED_FOLDER, RESULTS.name) if is_augmented else RESULTS)


def check_weights(network: Network, option: str, model: Path) -> None:
    """PipelineError where a network would begin with random weights, and the user said not so.

    Args:
        option: how its MODEL.WEIGHTS are given, for the message.
        model: what its training makes; nothing is asked of one that is there.
    """
    if model.exists() or "MODEL.WEIGHTS" in network.overrides:
        return
    if not network_config(network).MODEL.WEIGHTS:
        raise PipelineError(
            f"{network.config} names no MODEL.WEIGHTS, so the network would begin with random "
            f"ones: give {option} with the ImageNet weights of its backbone (VGG-16: Caffe's with "
            "torchvision's names; DINO: torchvision's resnet50-0676ba61.pth), or '' to begin so"
        )


def training_stage(
    plan: WeakPlan,
    network: Network,
    stage: Stage,
    config: Mapping[str, str],
    like: Path,
    *,
    always: tuple[Path, ...],
) -> Stage:
    """Training of a network in the folder of its name; of a given one, the evaluation is left.

    Args:
        stage: its name, what it is, what it needs, and `early` checks.
        config: which images it learns from and is tested on, and further overrides.
        like: file whose categories the network has, to check a given one.
        always: what the evaluation needs beside the network.
    """
    folder = plan.output / stage.name
    model, summary = folder / FINAL_MODEL, folder / SUMMARY
    device = {"MODEL.DEVICE": "cpu"} if plan.machines.num_gpus == 0 else {}
    command = Command(
        "train",
        flags={"config-file": shipped_config(network.config), "resume": True},
        config={"OUTPUT_DIR": str(folder), **config, **device, **network.overrides},
        launch=Launch.SPAWN,
    )
    look = partial(given.check_network, like=like, command=command)
    stage = replace(
        stage,
        what=f"{stage.what} ({schedule_of(network_config(network))})",
        command=command,
        makes=(model, summary),
        leaves=(results_of(network, folder),),
        folder=folder,
        checks={model: Check(look, (like,)), summary: Check(given.check_json)},
    )
    evaluation = evaluation_of(command, model)
    what = f"{model.name} is given: its evaluation"
    return replace(
        stage,
        rest=replace(stage, what=what, command=evaluation, needs=(like, *always), early=()),
    )


def evaluation_of(training: Command, model: Path) -> Command:
    """The evaluation of what a training has made."""
    flags = {"config-file": training.flags["config-file"], "eval-only": True}
    config = {**training.config, "DATASETS.TRAIN": "()", "MODEL.WEIGHTS": str(model)}
    return replace(training, flags=flags, config=config)


def boxes_stage(
    plan: WeakPlan,
    network: Network,
    training: Stage,
    config: Mapping[str, str],
    *,
    needs: tuple[Path, ...] = (),
) -> Stage:
    """A network's boxes on the training images, of which it is told the tags alone.

    Args:
        training: the stage that makes it.
        config: which images these are.
    """
    folder, model = plan.output / f"{training.name}_boxes", training.makes[0]
    evaluation = evaluation_of(training.command, model)
    command = replace(evaluation, config={**evaluation.config, **config, "OUTPUT_DIR": str(folder)})
    output = results_of(network, folder)
    return Stage(
        folder.name,
        "its boxes on its training images",
        command,
        needs=(model, *needs, plan.tags("train"), plan.source.train.images),
        makes=(output,),
        folder=folder,
        checks={output: Check(given.check_json)},
    )
