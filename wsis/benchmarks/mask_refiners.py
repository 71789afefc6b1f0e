"""Measure what refines a teacher's masks: MaskRefineNet, a segmenter, both; and points alone.

    python -m wsis.benchmarks.mask_refiners --output output/mask_refiners \\
        --nuclei datasets/nuclei [--data shapes] [--seeds 3] [--segmenter SPEC] [--without-students]

One teacher and one MaskRefineNet a dataset and seed, those of the quick start (nuclei: a short
teacher). The pseudo masks of each way are judged against the hidden ones, and a student of each is
trained. OUTPUT gets table.md; the same command goes on after a kill.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from weaklabels.files import atomic_text, read_json
from weaksam.segmenters.spec import DEFAULT_SEGMENTER
from wsis.benchmarks.refiner_recipes import TEACHERS, markdown, spread
from wsis.errors import user_message
from wsis.recipes import quickstart
from wsis.recipes.plan import MASKREFINENET, SAM, Plan
from wsis.recipes.pointwssis import (
    SUMMARY,
    build_stages,
    make_run,
    merge,
    merge_stage,
    point_masks,
    records_stage,
    refine_stage,
)
from wsis.recipes.segmenters import require_clicks, require_segmenter
from wsis.runner import Stage, run_stages

# Name in the table: refiners of the teacher's masks, in their order of work.
WAYS = {
    "teacher": (),
    "teacher, MaskRefineNet": (MASKREFINENET,),
    "teacher, sam": (SAM,),
    "teacher, MaskRefineNet, sam": (MASKREFINENET, SAM),
    "teacher, sam, MaskRefineNet": (SAM, MASKREFINENET),
}
POINTS = "sam on the points, no teacher"
NAMES = (*WAYS, POINTS)
FIGURES = {"miou": "mean IoU of pseudo masks", "student": "student AP"}
AFTER_RECORDS = ("refine", "merge", "student")  # stages of which there is one a way here


def short(name: str) -> str:
    """What files of a way are called."""
    return "points" if name == POINTS else "_".join(("weak", *WAYS[name]))


def make_plan(
    output: Path, data: str, root: Path | None, seed: int, segmenter: str, smoke: bool
) -> tuple[Plan, list[Stage]]:
    """The plan of one seed, and the stages that make its data."""
    settings = quickstart.Settings(output / data, data=data, root=root, smoke=smoke)
    plan = replace(quickstart.make_plan(settings, seed), segmenter=segmenter)
    if not smoke:
        schedule, period = TEACHERS[data]
        overrides = {**plan.overrides, "SOLVER.CHECKPOINT_PERIOD": str(period)}
        plan = replace(plan, schedule=schedule, overrides=overrides)
    return plan, quickstart.data_stages(plan, settings)


def stages_of(plan: Plan, *, students: bool) -> list[Stage]:
    """The stages of one seed: what the ways share, and for each its records and what follows."""
    stages = [stage for stage in build_stages(plan) if stage.name not in AFTER_RECORDS]
    made = {(): plan.output / "weak.jsonl"}
    for refiners in WAYS.values():
        for end in range(1, len(refiners) + 1):
            chain = refiners[:end]
            if chain not in made:
                name = "_".join(("weak", *chain))
                output = plan.output / f"{name}.jsonl"
                stages.append(refine_stage(plan, name, chain[-1], made[chain[:-1]], output))
                made[chain] = output
    records = {name: made[refiners] for name, refiners in WAYS.items()}
    records[POINTS] = plan.output / "points.jsonl"
    needs = (plan.weak, plan.source.image_root)
    command = point_masks(plan, plan.weak, records[POINTS])
    stages.append(
        records_stage("points", "each point prompts", command, needs, records[POINTS], plan.weak)
    )
    for name, path in records.items():
        stages.append(quickstart.quality_stage(plan, f"quality_{short(name)}", path))
        stages += student_stages(plan, name, path) if students else []
    return stages


def student_stages(plan: Plan, name: str, records: Path) -> list[Stage]:
    """Strong labels and a way's pseudo labels, and the student of both."""
    labels, what = plan.output / f"labels_{short(name)}.json", f"labels of {name}"
    command = merge(plan, records, labels)
    return [
        merge_stage(plan, f"merge_{short(name)}", what, command, records, labels),
        quickstart.other_student(plan, f"student_{short(name)}", f"a student of {name}", labels),
    ]


def figures(plan: Plan, name: str) -> dict[str, float]:
    """The figures of a way that are there, in percent."""
    report = read_json(plan.output / f"quality_{short(name)}.json")
    found = {"miou": report["points"]["miou"]}
    summary = plan.output / f"student_{short(name)}" / SUMMARY
    if summary.exists():
        ap = read_json(summary)["results"]["segm"]["AP"]
        found["student"] = max(ap or 0.0, 0.0)  # null or NaN: no instance was found at all
    return found


def table(found: Mapping[tuple[str, str], Sequence[Mapping[str, float]]]) -> str:
    """Markdown: a row a way, mean and standard deviation over the seeds that are there.

    Args:
        found: figures of each seed by dataset and way.
    """
    datasets = list(dict.fromkeys(data for data, _ in found))
    columns = [(data, figure) for data in datasets for figure in FIGURES]
    rows = []
    for name in NAMES:
        cells = []
        for data, figure in columns:
            seeds = found.get((data, name), ())
            cells.append(spread([seed[figure] for seed in seeds if figure in seed]))
        rows.append([name, *cells])
    heads = [f"{data}: {FIGURES[figure]}" for data, figure in columns]
    return markdown(["pseudo masks", *heads], rows)


def measure(args: argparse.Namespace) -> str:
    """Run what is not finished, one seed after the other; the table of all."""
    require_clicks(args.segmenter)
    require_segmenter(args.segmenter)
    roots = {"shapes": None, "nuclei": args.nuclei}
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for seed in range(args.seeds):
        for data in args.data:
            plan, first = make_plan(
                args.output, data, roots[data], seed, args.segmenter, args.smoke
            )
            if args.student_iterations:
                own = {"SOLVER.MAX_ITER": str(args.student_iterations)}
                plan = replace(plan, student_options=own)
            if first and seed == 0:
                run_stages(make_run(plan, tuple(first)))
            stages = stages_of(plan, students=not args.without_students)
            run_stages(make_run(plan, tuple(stages)))
            for name in NAMES:
                found.setdefault((data, name), []).append(figures(plan, name))
            with atomic_text(args.output / "table.md") as file:
                file.write(table(found))
    return table(found)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("output/mask_refiners"))
    add("--data", nargs="+", choices=TEACHERS, default=list(TEACHERS))
    add("--nuclei", type=Path, default=Path("datasets/nuclei"), help="your copy of nuclei")
    add("--seeds", type=int, default=3)
    add("--segmenter", default=DEFAULT_SEGMENTER, help="of sam (default: tiny)")
    add("--student-iterations", type=int, help="another number than the quick start's")
    add("--without-students", action="store_true", help="judge the pseudo masks alone")
    add("--smoke", action="store_true", help="a few iterations of everything")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not finished, print and write the table."""
    args = make_parser().parse_args(argv)
    torch.set_num_threads(1)
    try:
        text = measure(args)
    except (OSError, ValueError) as error:
        if (message := user_message(error)) is None:
            raise
        print(f"mask_refiners: {message}", file=sys.stderr)
        return 2
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
