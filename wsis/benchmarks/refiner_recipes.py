"""Measure the recipes of MaskRefineNet's training: what each of their differences does.

    python -m wsis.benchmarks.refiner_recipes --output output/refiner_recipes \\
        --nuclei datasets/nuclei [--data shapes] [--seeds 3] [--weights resnet18.pth]

One short teacher a dataset predicts its strong images, on which refiners are trained, and the
validation images, whose points guide it. Their masks are refined by a network of each recipe (the
paper's, ours, and ours with one option of the paper's) and each seed, and judged. OUTPUT gets a
JSON file a refiner and table.md; the same command goes on after a kill. --weights (of a ResNet-18)
adds the row of the stem's initialization; mixed precision needs CUDA and is not measured.
"""

import argparse
import itertools
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from maskrefinenet.distributed import World
from maskrefinenet.recipe import RECIPES, Recipe
from maskrefinenet.train import Schedule as RefinerSchedule
from maskrefinenet.train_run import TrainSettings, train
from weaklabels.evaluate import evaluate_labels, load_images
from weaklabels.files import atomic_text, read_json, write_json
from wsis.errors import user_message
from wsis.launcher import Job
from wsis.recipes import quickstart
from wsis.recipes.plan import Plan, Schedule
from wsis.recipes.pointwssis import build_stages, generate, make_run, records_stage
from wsis.refine import RefineSettings, refine
from wsis.runner import Stage, run_stages

# Schedule and checkpoint period of each dataset's teacher: the quick start's, and a short one.
TEACHERS = {
    "shapes": (quickstart.NORMAL.teacher, quickstart.NORMAL.checkpoint_period),
    "nuclei": (Schedule(200, (160,), (139, 179)), 20),
}
SHARED = ("split", "teacher", "strong_1", "strong_2")
UNREFINED, OURS = "unrefined", "ours"
FIGURES = {"miou": "mean IoU", "AP": "AP"}
NEEDS_CUDA, NEEDS_WEIGHTS = "amp", "stem"


@dataclass(frozen=True)
class Data:
    """What the refiners of one dataset are trained on and what they refine.

    strong: COCO file with masks, its records (one file a teacher checkpoint), its images.
    judged: COCO file with the masks of the refined records, for judging, and their images.
    """

    name: str
    strong: Path
    strong_records: tuple[Path, ...]
    strong_images: Path
    judged: Path
    judged_records: Path
    judged_images: Path


@dataclass(frozen=True)
class Training:
    """What the trainings have in common; the quick start's, with fewer iterations."""

    iterations: int = 100
    batch_size: int = 16
    learning_rate: float = 1e-3
    size: int = 64
    encoder: str = "resnet18"
    weights: str = "none"


def variants(*, pretrained: bool) -> dict[str, Recipe]:
    """The recipes that are compared, by their names in the table."""
    paper, ours = RECIPES["paper"], RECIPES["ours"]
    found = {"paper": paper, OURS: ours}
    for option in (field.name for field in fields(Recipe)):
        if option != NEEDS_CUDA and (pretrained or option != NEEDS_WEIGHTS):
            value = getattr(paper, option)
            found[f"ours, {option} {value}"] = replace(ours, **{option: value})
    return found


def make_data(output: Path, name: str, root: Path | None) -> Data:
    """Train the teacher and let it predict, where this is not done yet."""
    settings = quickstart.Settings(output / name, data=name, root=root)
    schedule, period = TEACHERS[name]
    plan = quickstart.make_plan(settings, seed=0)
    overrides = {**plan.overrides, "SOLVER.CHECKPOINT_PERIOD": str(period)}
    plan = replace(plan, schedule=schedule, overrides=overrides)
    if shapes := quickstart.data_stages(plan, settings):
        run_stages(make_run(plan, tuple(shapes)))
    judged = judged_stage(plan)
    stages = [stage for stage in build_stages(plan) if stage.name in SHARED]
    run_stages(make_run(plan, (*stages, judged)))
    return Data(
        name,
        strong=plan.strong,
        strong_records=tuple(plan.output / f"strong_{number}.jsonl" for number in (1, 2)),
        strong_images=plan.source.image_root,
        judged=plan.source.val_json,
        judged_records=judged.makes[0],
        judged_images=settings.folder / quickstart.FILES[name][-1],
    )


def judged_stage(plan: Plan) -> Stage:
    """The teacher's masks of the validation images, each guided by a point of its instance."""
    source, output = plan.source, plan.output / "val.jsonl"
    command = generate(plan, "w", "point", plan.teacher, output)
    command = replace(command, flags={**command.flags, "dataset": source.test_name})
    needs = (plan.teacher, source.val_json)
    what = "the teacher follows the points of the validation images"
    return records_stage("val", what, command, needs, output, source.val_json)


def measure(data: Data, recipe: Recipe, seed: int, training: Training, folder: Path) -> dict:
    """Train one refiner and judge what it makes of the records; a killed run goes on.

    Args:
        folder: for the checkpoint and the refined records; removed at the end.

    Returns:
        The settings, and the figures "before" and "after" in percent, ready for JSON.
    """
    began = time.process_time()
    settings = TrainSettings(
        annotations=data.strong,
        image_root=data.strong_images,
        records=data.strong_records,
        output=folder,
        recipe=recipe,
        resume=True,
        encoder=training.encoder,
        weights=training.weights,
        size=training.size,
        batch_size=training.batch_size,
        schedule=RefinerSchedule(
            iterations=training.iterations, learning_rate=training.learning_rate, seed=seed
        ),
        workers=0,
    )
    train(settings, World(0, 1, torch.device("cpu")))
    refined = folder / "refined.jsonl"
    wanted = RefineSettings(data.judged_records, folder / "last.pth", data.judged_images, refined)
    refine(wanted, Job(num_gpus=0))
    result = {
        **settings_of(recipe, seed, training),
        "before": judge(data, data.judged_records),
        "after": judge(data, refined),
        "cpu_seconds": time.process_time() - began,
    }
    shutil.rmtree(folder)
    return result


def settings_of(recipe: Recipe, seed: int, training: Training) -> dict[str, Any]:
    return {"recipe": asdict(recipe), "seed": seed, "training": asdict(training)}


def judge(data: Data, records: Path) -> dict[str, float]:
    """Mean IoU over all points and COCO's mask AP with the records' scores, in percent."""
    report = evaluate_labels(load_images(records, data.judged), {}, str(records))
    ap = report["mask_ap"]["scores as given"]["AP"]
    return {"miou": report["points"]["miou"], "AP": ap}


def compare(
    datasets: Sequence[Data], output: Path, seeds: int, training: Training
) -> Iterator[tuple[str, str, dict]]:
    """Dataset, recipe and result of every run, those of an earlier call included.

    Raises:
        ValueError: a result was made with other settings.
    """
    recipes = variants(pretrained=training.weights != "none")
    for seed, data, (name, recipe) in itertools.product(range(seeds), datasets, recipes.items()):
        file_name = f"{name.replace(', ', '_').replace(' ', '_')}_{seed}"
        path = output / data.name / "results" / f"{file_name}.json"
        if not path.exists():
            print(f"{data.name}: {name}, seed {seed}", flush=True)
            result = measure(data, recipe, seed, training, output / data.name / file_name)
            write_json(path, result)
        result = read_json(path)
        wanted = settings_of(recipe, seed, training)
        if {key: result.get(key) for key in wanted} != wanted:
            raise ValueError(
                f"{path} was made with other settings ({result.get('training')}, now "
                f"{asdict(training)}): repeat them or give another --output"
            )
        yield data.name, name, result


def table(results: Sequence[tuple[str, str, dict]]) -> str:
    """Markdown: a row a recipe; mean and standard deviation over the seeds that are there.

    Below, the same of the differences from ours with the same seed, which vary less: such networks
    start from the same weights.
    """
    after = {(data, name, result["seed"]): result["after"] for data, name, result in results}
    before = {data: result["before"] for data, _, result in results}
    columns = list(itertools.product(before, FIGURES))
    names = list(dict.fromkeys(name for _, name, _ in results))
    heads = [f"{data}: {FIGURES[figure]}" for data, figure in columns]
    absolute = [[UNREFINED, *(f"{before[data][figure]:.1f}" for data, figure in columns)]]
    relative = []
    for row in names:
        cells, differences = [], []
        for data, figure in columns:
            own = {seed: f[figure] for (d, n, seed), f in after.items() if (d, n) == (data, row)}
            cells.append(spread(list(own.values())))
            pairs = [(value, after.get((data, OURS, seed))) for seed, value in own.items()]
            gains = [value - ours[figure] for value, ours in pairs if ours is not None]
            differences.append(spread(gains, sign="+"))
        absolute.append([row, *cells])
        if row != OURS:
            relative.append([row, *differences])
    return (
        markdown(["recipe", *heads], absolute)
        + "\nDifferences from ours with the same seed:\n\n"
        + markdown(["recipe", *heads], relative)
    )


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean ± standard deviation (of n - 1) and the number of values; "+" signs the mean."""
    if not values:
        return "not run"
    mean = f"{statistics.mean(values):{sign}.1f}"
    if len(values) == 1:
        return f"{mean} (1)"
    return f"{mean} ± {statistics.stdev(values):.1f} ({len(values)})"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, defaults = parser.add_argument, Training()
    add("--output", type=Path, default=Path("output/refiner_recipes"))
    add("--data", nargs="+", choices=TEACHERS, default=list(TEACHERS))
    add("--nuclei", type=Path, default=Path("datasets/nuclei"), help="your copy of nuclei")
    add("--seeds", type=int, default=3)
    add("--iterations", type=int, default=defaults.iterations, help="of each refiner")
    add("--weights", default="none", help="of the ResNet-18: none, imagenet, or a file")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not finished, print and write the table."""
    args = make_parser().parse_args(argv)
    torch.set_num_threads(1)
    training = Training(iterations=args.iterations, weights=args.weights)
    roots = {"shapes": None, "nuclei": args.nuclei}
    try:
        datasets = [make_data(args.output, name, roots[name]) for name in args.data]
        results = []
        for result in compare(datasets, args.output, args.seeds, training):
            results.append(result)
            with atomic_text(args.output / "table.md") as file:
                file.write(table(results))
    except (OSError, ValueError) as error:
        if (message := user_message(error)) is None:
            raise
        print(f"refiner_recipes: {message}", file=sys.stderr)
        return 2
    print(table(results), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
