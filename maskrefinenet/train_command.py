"""The command line of training, for `python -m maskrefinenet train` and programs above it."""

import argparse
from dataclasses import replace
from pathlib import Path

from .checkpoint import DEFAULT_BOX_SCALE, DEFAULT_SIZE
from .model import ENCODERS
from .recipe import CHOICES, RECIPES, Recipe
from .train import Schedule
from .train_run import TrainSettings, Validation

DEFAULTS = Schedule()
# Accepted for one more release, and in no help text.
OLD_SPELLINGS = {
    "--strong-json": "--annotations",
    "--predictions": "--records",
    "--out": "--output",
    "--val-json": "--val-annotations",
    "--val-predictions": "--val-records",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of training; where it runs is not among them."""
    files = parser.add_argument_group("files")
    files.add_argument("--annotations", type=Path, required=True, help="COCO file with masks")
    files.add_argument("--image-root", type=Path, required=True, help="folder of its images")
    files.add_argument(
        "--records",
        type=Path,
        nargs="+",
        required=True,
        help="prediction records of a teacher, one file a model",
    )
    files.add_argument(
        "--output", type=Path, required=True, help="folder of checkpoints and metrics"
    )
    files.add_argument("--val-records", type=Path, help="records to refine and judge")
    files.add_argument("--val-annotations", type=Path, help="COCO file with their true masks")
    files.add_argument("--val-image-root", type=Path, help="default: --image-root")
    files.add_argument("--resume", action="store_true", help="continue OUTPUT/last.pth, if any")
    network = parser.add_argument_group("network")
    network.add_argument("--encoder", choices=ENCODERS, default="resnet101")
    network.add_argument(
        "--weights", default="imagenet", help="of the encoder: imagenet, none, or a file"
    )
    network.add_argument("--class-agnostic", action="store_true", help="one point channel for all")
    network.add_argument("--size", type=int, default=DEFAULT_SIZE, help="side of the input, pixels")
    network.add_argument("--box-scale", type=float, default=DEFAULT_BOX_SCALE)
    samples = parser.add_argument_group("samples")
    samples.add_argument("--color-jitter", type=float, default=0.0, metavar="STRENGTH")
    samples.add_argument(
        "--noise", type=float, default=0.0, metavar="SHARE", help="of priors that are spoilt"
    )
    _add_recipe(parser)
    _add_schedule(parser.add_argument_group("schedule"))
    parser.add_argument("--workers", type=int, default=2, help="processes that prepare samples")


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    """--recipe, and a flag for each of its options; one not given is no attribute of the result."""
    group = parser.add_argument_group("recipe", "an option that is not given is the recipe's")
    group.add_argument(
        "--recipe", choices=RECIPES, default="paper", help="the reference's, or our choices"
    )
    for option, choices in CHOICES.items():
        meanings = [
            f"{value}{_recipes_with(option, value)}: {why}" for value, why in choices.items()
        ]
        more = {"nargs": "?", "const": "on"} if option == "amp" else {}
        group.add_argument(
            "--" + option.replace("_", "-"),
            choices=choices,
            default=argparse.SUPPRESS,
            help="; ".join(meanings),
            **more,
        )
    # As --dice was written before; accepted for one more release.
    old = {"dest": "dice", "const": "columns", "default": argparse.SUPPRESS}
    group.add_argument("--dice-per-column", action="store_const", help=argparse.SUPPRESS, **old)


def _recipes_with(option: str, value: str) -> str:
    """The recipes of which a value is, such as " (paper)"."""
    names = [name for name, recipe in RECIPES.items() if getattr(recipe, option) == value]
    return f" ({', '.join(names)})" if names else ""


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe of a command line, its own flags included."""
    given = {option: getattr(args, option) for option in CHOICES if hasattr(args, option)}
    if given.get("stem") == "pretrained" and args.weights == "none":
        raise ValueError("--stem pretrained needs weights, but --weights none is given")
    return replace(RECIPES[args.recipe], **given)


def _add_schedule(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--iterations", type=int, default=DEFAULTS.iterations)
    group.add_argument(
        "--batch-size",
        type=int,
        help="samples an iteration over all processes; default: "
        f"{DEFAULTS.batch_size}, rounded up to a multiple of the number of processes",
    )
    group.add_argument("--lr", type=float, default=DEFAULTS.learning_rate)
    group.add_argument("--warmup", type=int, help="default: 2000, or a tenth of a short run")
    group.add_argument("--eval-period", type=int, default=DEFAULTS.eval_period)
    group.add_argument("--checkpoint-period", type=int, default=DEFAULTS.checkpoint_period)
    group.add_argument("--log-period", type=int, default=DEFAULTS.log_period)
    group.add_argument("--seed", type=int, default=DEFAULTS.seed)


def settings_of(args: argparse.Namespace) -> TrainSettings:
    """The settings of a command line."""
    return TrainSettings(
        annotations=args.annotations,
        image_root=args.image_root,
        records=tuple(args.records),
        output=args.output,
        recipe=recipe_of(args),
        validation=_validation(args),
        resume=args.resume,
        encoder=args.encoder,
        weights=args.weights,
        class_agnostic=args.class_agnostic,
        size=args.size,
        box_scale=args.box_scale,
        color_jitter=args.color_jitter,
        noise=args.noise,
        batch_size=args.batch_size,
        schedule=_schedule(args),
        workers=args.workers,
    )


def _validation(args: argparse.Namespace) -> Validation | None:
    if (args.val_records is None) != (args.val_annotations is None):
        raise ValueError("--val-records and --val-annotations belong together: give both or none")
    if args.val_records is None:
        return None
    return Validation(
        args.val_records, args.val_annotations, args.val_image_root or args.image_root
    )


def _schedule(args: argparse.Namespace) -> Schedule:
    return Schedule(
        iterations=args.iterations,
        learning_rate=args.lr,
        warmup=args.warmup,
        eval_period=args.eval_period,
        checkpoint_period=args.checkpoint_period,
        log_period=args.log_period,
        seed=args.seed,
    )
