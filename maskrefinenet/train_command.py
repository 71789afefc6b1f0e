"""`python -m maskrefinenet train`: from files and options to a trained network."""

import argparse
import math
from pathlib import Path

import torch
from tqdm import tqdm

from weaklabels.coco import Annotations, load_annotations
from weaklabels.evaluate import records_ap
from weaklabels.records import Record

from .checkpoint import DEFAULT_BOX_SCALE, DEFAULT_SIZE, NetworkConfig, load_encoder
from .data import Augmentation, PairDataset
from .distributed import World, world
from .model import ENCODERS, MaskRefineNet
from .pairs import RULES, Pair, match_predictions
from .pipeline import make_groups, refine_groups
from .predictions import read_predictions
from .refiner import MaskRefiner
from .train import Schedule, Trainer, Validate

DEFAULTS = Schedule()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    files = parser.add_argument_group("files")
    files.add_argument("--strong-json", type=Path, required=True, help="COCO file with masks")
    files.add_argument("--image-root", type=Path, required=True)
    files.add_argument(
        "--predictions", type=Path, nargs="+", required=True, help="a teacher's, one file a model"
    )
    files.add_argument("--out", type=Path, required=True, help="folder of checkpoints and metrics")
    files.add_argument("--val-predictions", type=Path, help="records to refine and judge")
    files.add_argument("--val-json", type=Path, help="COCO file with their true masks")
    files.add_argument("--val-image-root", type=Path, help="default: --image-root")
    files.add_argument("--resume", action="store_true", help="go on from OUT/last.pth, if any")
    network = parser.add_argument_group("network")
    network.add_argument("--encoder", choices=ENCODERS, default="resnet101")
    network.add_argument(
        "--weights", default="imagenet", help="of the encoder: imagenet, none, or a file"
    )
    network.add_argument("--class-agnostic", action="store_true", help="one point channel for all")
    network.add_argument("--size", type=int, default=DEFAULT_SIZE, help="side of the input, pixels")
    network.add_argument("--box-scale", type=float, default=DEFAULT_BOX_SCALE)
    samples = parser.add_argument_group("samples")
    samples.add_argument("--matching", choices=RULES, default=RULES[0])
    samples.add_argument("--color-jitter", type=float, default=0.0, metavar="STRENGTH")
    samples.add_argument(
        "--noise", type=float, default=0.0, metavar="SHARE", help="of priors that are spoilt"
    )
    _add_schedule(parser.add_argument_group("schedule"))
    parser.add_argument("--workers", type=int, default=2, help="processes that prepare samples")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: CUDA if there is any")


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
    group.add_argument("--amp", action="store_true", help="mixed precision; CUDA only")
    group.add_argument(
        "--dice-per-column", action="store_true", help="the Dice sums of the reference code"
    )


def default_batch_size(processes: int) -> int:
    """16 or, where these cannot be divided among the processes, the next number that can."""
    return math.ceil(DEFAULTS.batch_size / processes) * processes


def make_schedule(args: argparse.Namespace, processes: int) -> Schedule:
    """The schedule of a command line."""
    batch_size = default_batch_size(processes) if args.batch_size is None else args.batch_size
    return Schedule(
        iterations=args.iterations,
        batch_size=batch_size,
        learning_rate=args.lr,
        warmup=args.warmup,
        eval_period=args.eval_period,
        checkpoint_period=args.checkpoint_period,
        log_period=args.log_period,
        seed=args.seed,
        amp=args.amp,
        per_column=args.dice_per_column,
    )


def main(args: argparse.Namespace) -> int:
    """Train."""
    if (args.val_predictions is None) != (args.val_json is None):
        raise ValueError("--val-predictions and --val-json belong together: give both or none")
    if (args.out / "last.pth").exists() and not args.resume:
        raise ValueError(f"{args.out}/last.pth exists: go on with --resume, or give another --out")
    with world(args.device) as here:
        schedule = make_schedule(args, here.size)
        trainer = make_trainer(args, schedule, here)
        if trainer.last_path.exists():
            trainer.resume()
        if here.is_first:
            print(
                f"{len(trainer.dataset)} training pairs, iterations {trainer.iteration} to ", end=""
            )
            print(f"{schedule.iterations}, on {here.size} x {here.device.type}")
        trainer.run()
    return 0


def make_trainer(args: argparse.Namespace, schedule: Schedule, here: World) -> Trainer:
    """The trainer of a command line, at its first iteration."""
    annotations = load_annotations(args.strong_json)
    network = NetworkConfig(
        num_classes=len(annotations.categories),
        encoder=args.encoder,
        class_agnostic=args.class_agnostic,
        size=args.size,
        box_scale=args.box_scale,
    )
    for name, value in (("--noise", args.noise), ("--color-jitter", args.color_jitter)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} {value}; expected 0 to 1")
    if args.box_scale < 1:
        raise ValueError(f"--box-scale {args.box_scale}; at least 1 is needed")
    augmentation = Augmentation(args.box_scale, args.color_jitter, args.noise)
    dataset = PairDataset(
        training_pairs(args.predictions, annotations, args.matching, progress=here.is_first),
        args.image_root,
        size=args.size,
        augmentation=augmentation,
        seed=args.seed,
    )
    torch.manual_seed(args.seed)
    model = network.build()
    if not (args.out / "last.pth").exists():
        load_encoder(model, args.weights)
    return Trainer(
        model=model,
        network=network,
        categories=annotations.categories,
        dataset=dataset,
        schedule=schedule,
        out=args.out,
        here=here,
        workers=args.workers,
        validate=_validation(args, network, annotations, here),
    )


def training_pairs(
    paths: list[Path], annotations: Annotations, rule: str, *, progress: bool = False
) -> list[Pair]:
    """The pairs of all prediction files; each is matched on its own."""
    pairs: list[Pair] = []
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"--predictions {path}: no such file")
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
    args: argparse.Namespace, network: NetworkConfig, strong: Annotations, here: World
) -> Validate | None:
    """Refine the validation records and judge them; None where there are none."""
    if args.val_json is None:
        return None
    truth = load_annotations(args.val_json)
    records = list(read_predictions(args.val_predictions, truth))
    prior = _known_ap(records, truth)["AP"]
    groups = list(make_groups(records))
    image_root = args.val_image_root or args.image_root

    def validate(model: MaskRefineNet) -> dict[str, float]:
        refiner = MaskRefiner(
            model,
            size=network.size,
            box_scale=network.box_scale,
            category_ids=strong.category_ids,
            device=here.device,
        )
        refined: list[Record] = []
        for result in refine_groups(groups[here.rank :: here.size], refiner, image_root):
            if result.unreadable:
                raise ValueError(f"validation: {result.unreadable[0]}")
            refined += result.records
        everything = [record for share in here.gather(refined) for record in share]
        return {**_known_ap(everything, truth), "AP_prior": prior}

    return validate


def _known_ap(records: list[Record], truth: Annotations) -> dict[str, float]:
    """AP of the records, without the size classes of which there is no instance."""
    return {name: ap for name, ap in records_ap(records, truth).items() if ap is not None}
