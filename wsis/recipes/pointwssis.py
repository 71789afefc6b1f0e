"""The stages of PointWSSIS.

Teacher on the strong images, predictions of two of its checkpoints there, MaskRefineNet trained on
those, point-guided pseudo labels on the weak images, refinement, merging, student, evaluation.
A promptable segmenter may take the place of the teacher, of MaskRefineNet, or follow it.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from weaklabels.coco import CocoFile
from weaklabels.merge import refuse_other_categories, refuse_shared_images
from wsis.recipes import given
from wsis.recipes.plan import (
    FINAL_MODEL,
    MASKREFINENET,
    SAM,
    Plan,
    student_solver,
    teacher_solver,
    tuple_text,
)
from wsis.recipes.segmenters import require_segmenter
from wsis.runner import ROOT, Check, Command, Launch, PipelineError, Run, Stage

BYTES_PER_CHECKPOINT = 550e6  # R-101-FPN SOLOv2 with its momentum buffers, measured
IMAGES_LOOKED_FOR = 20  # of the strong file, before the teacher starts
RESULTS = Path("inference", "coco_instances_results.json")
SUMMARY = Path("inference", "summary.json")


def common_options(plan: Plan) -> dict[str, str]:
    """What every command with a SOLOv2 is told: classes, device, scaling, and the user's own."""
    options = {}
    if plan.source.num_classes is not None:
        options["MODEL.SOLOV2.NUM_CLASSES"] = str(plan.source.num_classes)
    if plan.machines.num_gpus == 0:
        options["MODEL.DEVICE"] = "cpu"
    if plan.reference_gpus:
        options["SOLVER.REFERENCE_WORLD_SIZE"] = str(plan.reference_gpus)
    return {**options, **plan.overrides}


def like_val(plan: Plan, look: Callable[..., str]) -> Check:
    """A check of a given file against the categories of the validation file."""
    return Check(partial(look, like=plan.source.val_json), (plan.source.val_json,))


def shipped_config(name: str) -> str:
    """A config file as a command takes it: as it is, or that of the checkout from elsewhere."""
    shipped = ROOT / name
    return name if Path(name).is_file() or not shipped.is_file() else str(shipped)


def train(
    plan: Plan, config: str, train_name: str, output: Path, options: Mapping[str, str]
) -> Command:
    """Training on one dataset, with an evaluation; --resume starts afresh without a checkpoint."""
    datasets = {"DATASETS.TRAIN": tuple_text([train_name])}
    datasets["DATASETS.TEST"] = tuple_text([plan.source.test_name])
    return Command(
        "train",
        flags={"config-file": shipped_config(config), "resume": True},
        config={"OUTPUT_DIR": str(output), **datasets, **common_options(plan), **options},
        launch=Launch.SPAWN,
    )


def evaluate(
    plan: Plan, config: str, weights: Path, output: Path, options: Mapping[str, str]
) -> Command:
    """Evaluation of a checkpoint on the validation images."""
    command = train(plan, config, "", output, options)
    last = {"DATASETS.TRAIN": "()", "MODEL.WEIGHTS": str(weights)}
    flags = {"config-file": command.flags["config-file"], "eval-only": True}
    return replace(command, flags=flags, config={**command.config, **last})


def generate(
    plan: Plan,
    kind: str,
    prompt: str,
    weights: Path,
    output: Path,
    options: Mapping[str, str] | None = None,
) -> Command:
    """Records of a teacher on the strong ("s") or weak ("w") images of the subset."""
    dataset = plan.source.name(plan.subset, kind)
    flags = {"config-file": shipped_config(plan.teacher_config), "dataset": dataset}
    # The teacher's weights, not those that an own MODEL.WEIGHTS has a training start from.
    config = {**common_options(plan), "MODEL.WEIGHTS": str(weights), **(options or {})}
    flags |= {"prompt": prompt, "output": output}
    return Command("generate", flags=flags, config=config, launch=Launch.SPAWN)


def point_masks(plan: Plan, labels: Path, output: Path) -> Command:
    """Records of a segmenter that the points of a label file prompt."""
    flags = {"annotations": labels, "image-root": plan.source.image_root}
    flags |= {"segmenter": plan.segmenter, "output": output}
    return Command("point-masks", flags=flags, launch=Launch.SHARE)


def merge(plan: Plan, records: Path, output: Path, min_score: float | None = None) -> Command:
    """Strong labels and records in one label file."""
    flags = {"annotations": plan.strong, "records": records, "weak-annotations": plan.weak}
    return Command("merge", flags={**flags, "output": output, "min-score": min_score})


def records_stage(
    name: str, what: str, command: Command, needs: tuple[Path, ...], output: Path, labels: Path
) -> Stage:
    """A stage that writes records of the images of a label file."""
    check = Check(partial(given.check_records, labels=labels), (labels,))
    leaves = (output.with_suffix(".unmatched.json"),)
    return Stage(name, what, command, needs, (output,), leaves=leaves, checks={output: check})


def training_stage(
    plan: Plan, name: str, what: str, labels: Path, train_name: str, config: str, own: dict
) -> Stage:
    """Training on a label file; of a given checkpoint only the evaluation is left to do."""
    output = plan.output / name
    model, *results = output / FINAL_MODEL, output / RESULTS, output / SUMMARY
    images = plan.source.image_root, plan.source.val_json
    evaluation = evaluate(plan, config, model, output, own)
    checks = {
        model: like_val(plan, partial(given.check_network, command=evaluation)),
        **dict.fromkeys(results, Check(given.check_json)),
    }
    stage = Stage(
        name,
        what,
        train(plan, config, train_name, output, own),
        needs=(labels, *images),
        makes=(model, *results),
        folder=output,
        checks=checks,
    )
    rest = replace(
        stage, what=f"{model.name} is given: its evaluation", command=evaluation, needs=images
    )
    return replace(stage, rest=rest)


def split_stage(plan: Plan) -> Stage:
    flags = {**plan.split_flags, "out-dir": plan.strong.parent}
    command = Command(
        "split",
        arguments=(str(plan.source.train_json),),
        flags={**flags, "percent": plan.subset.removesuffix("p")},
    )
    checks = {
        plan.strong: like_val(plan, given.check_labels),
        plan.weak: like_val(plan, partial(given.check_weak_labels, strong=plan.strong)),
    }
    what = "strong images keep masks, weak images keep one point per instance"
    makes = (plan.strong, plan.weak)
    return Stage("split", what, command, (plan.source.train_json,), makes, checks=checks)


def teacher_stage(plan: Plan) -> Stage:
    source, folder = plan.source, plan.teacher.parent
    options, iterations = teacher_solver(plan)
    train_name = source.name(plan.subset, "s")
    evaluation = evaluate(plan, plan.teacher_config, plan.teacher, folder, options)
    look = partial(given.check_network, command=evaluation)
    return Stage(
        "teacher",
        "SOLOv2 on the strong images",
        train(plan, plan.teacher_config, train_name, folder, options),
        needs=(plan.strong, source.image_root, source.val_json),
        makes=(plan.teacher,),
        leaves=tuple(dict.fromkeys(checkpoint(plan, i) for i in iterations)),
        folder=folder,
        before=(partial(check_split, plan), partial(check_disk, plan)),
        checks={plan.teacher: like_val(plan, look)},
    )


def checkpoint(plan: Plan, iteration: int) -> Path:
    return plan.teacher.parent / f"model_{iteration:07d}.pth"


def refiner_stages(plan: Plan) -> list[Stage]:
    """Predictions of two teacher checkpoints on the strong images, and MaskRefineNet on them."""
    images, folder = plan.source.image_root, plan.refiner.parent
    stages = [segmenter_on_strong(plan)] if plan.teacher_kind == SAM else teacher_on_strong(plan)
    records = [output for stage in stages for output in stage.makes]
    flags = {"annotations": plan.strong, "image-root": images, "records": tuple(records)}
    flags |= {"output": folder, "recipe": "paper", "resume": True}
    flags["amp"] = plan.machines.num_gpus > 0
    flags |= plan.refiner_flags
    refiner = Stage(
        "refiner",
        "MaskRefineNet on those masks",
        Command("train-refiner", flags=flags, launch=Launch.SPAWN),
        needs=(*records, plan.strong, images),
        makes=(plan.refiner,),
        folder=folder,
        checks={plan.refiner: like_val(plan, given.check_refiner)},
    )
    return [*stages, refiner]


def teacher_on_strong(plan: Plan) -> list[Stage]:
    """What two checkpoints of the teacher make of the strong images."""
    stages = []
    for number, iteration in enumerate(teacher_solver(plan)[1], start=1):
        weights, output = checkpoint(plan, iteration), plan.output / f"strong_{number}.jsonl"
        command = generate(plan, "s", "point_with_size", weights, output)
        needs = (weights, plan.strong, plan.source.image_root)
        what = f"teacher masks on the strong images at iteration {iteration}"
        stages.append(records_stage(f"strong_{number}", what, command, needs, output, plan.strong))
    return stages


def segmenter_on_strong(plan: Plan) -> Stage:
    """What the segmenter makes of the centers of the strong images' masks."""
    output = plan.output / "strong_1.jsonl"
    command = point_masks(plan, plan.strong, output)
    needs = (plan.strong, plan.source.image_root)
    what = "the segmenter's masks on the strong images"
    return records_stage("strong_1", what, command, needs, output, plan.strong)


def pseudo_label_stages(plan: Plan) -> list[Stage]:
    """Point-guided masks on the weak images, refined and merged with the strong labels."""
    images, records = plan.source.image_root, plan.output / "weak.jsonl"
    if plan.teacher_kind == SAM:
        what, command = "each point prompts the segmenter", point_masks(plan, plan.weak, records)
        needs = (plan.weak, images)
    else:
        what = "the teacher follows the points of the weak images"
        command = generate(plan, "w", "point", plan.teacher, records)
        needs = (plan.teacher, plan.weak, images)
    stages = [records_stage("weak", what, command, needs, records, plan.weak)]
    for number, name in enumerate(plan.refiners, start=1):
        last = "" if number == 1 else f"_{number}"
        refined = plan.output / f"weak_refined{last}.jsonl"
        stages.append(refine_stage(plan, f"refine{last}", name, records, refined))
        records = refined
    what = "strong labels and pseudo labels in one file"
    command = merge(plan, records, plan.merged)
    return [*stages, merge_stage(plan, "merge", what, command, records, plan.merged)]


def refine_stage(plan: Plan, name: str, refiner: str, records: Path, output: Path) -> Stage:
    """A stage that refines records of the weak images by one of REFINERS."""
    flags = {"records": records, "image-root": plan.source.image_root, "output": output}
    needs = (records, plan.weak, plan.source.image_root)
    if refiner == SAM:
        what, launch = "the segmenter redraws them", Launch.SHARE
        own = {"refiner": SAM, "segmenter": plan.segmenter}
    else:
        what, launch, needs = "MaskRefineNet improves them", Launch.SPAWN, (plan.refiner, *needs)
        # A released refiner does not say its categories.
        own = {"weights": plan.refiner, "annotations": plan.weak}
    command = Command("refine", flags={**own, **flags}, launch=launch)
    return records_stage(name, what, command, needs, output, plan.weak)


def merge_stage(
    plan: Plan, name: str, what: str, command: Command, records: Path, output: Path
) -> Stage:
    """A stage that writes a student's label file."""
    look = partial(given.check_merged, strong=plan.strong, weak=plan.weak)
    needs = (plan.strong, plan.weak, records)
    return Stage(name, what, command, needs, (output,), checks={output: like_val(plan, look)})


def student_stage(plan: Plan) -> Stage:
    what = "a plain network on strong labels and pseudo labels, evaluated at the end"
    name, config = plan.merged_name, plan.student_config
    own = {**student_solver(plan), **plan.student_options}
    return training_stage(plan, "student", what, plan.merged, name, config, own)


def build_stages(plan: Plan) -> tuple[Stage, ...]:
    """Every stage of one run, in order."""
    teacher = [] if plan.teacher_kind == SAM else [teacher_stage(plan)]
    refiner = refiner_stages(plan) if MASKREFINENET in plan.refiners else []
    labels = [split_stage(plan), *teacher, *refiner, *pseudo_label_stages(plan)]
    if plan.uses_segmenter:
        look = partial(require_segmenter, plan.segmenter)
        labels = [replace(stage, before=(look, *stage.before)) for stage in labels]
    return (*labels, student_stage(plan))


def make_run(plan: Plan, stages: tuple[Stage, ...] | None = None) -> Run:
    """The run of a plan; `stages` where they are others than those of `build_stages`."""
    source = plan.source
    data = (source.train_json, source.image_root, source.val_json)
    hints = dict.fromkeys(data, source.how_to_get)
    return Run(stages or build_stages(plan), plan.output, plan.machines, hints)


def check_split(plan: Plan) -> None:
    """Images of the split are there, and both of its files fit together, as merging will need."""
    strong, weak = CocoFile(plan.strong), CocoFile(plan.weak)
    for image in list(strong.images.values())[:IMAGES_LOOKED_FOR]:
        path = plan.source.image_root / image["file_name"]
        if not path.exists():
            raise PipelineError(
                f"{strong.path} names {path}, which is missing: {plan.source.how_to_get}"
            )
    refuse_other_categories(strong, weak)
    refuse_shared_images(strong, weak.images, weak.path)


def check_disk(plan: Plan) -> None:
    """The teacher's checkpoints fit on the disk."""
    solver, _ = teacher_solver(plan)
    checkpoints = int(solver["SOLVER.MAX_ITER"]) // int(solver["SOLVER.CHECKPOINT_PERIOD"]) + 2
    needed = checkpoints * BYTES_PER_CHECKPOINT
    plan.output.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(plan.output).free
    if free < needed:
        raise PipelineError(
            f"the teacher writes about {checkpoints} checkpoints, {needed / 1e9:.1f} GB; "
            f"{plan.output} has {free / 1e9:.1f} GB free: free some space, raise "
            "SOLVER.CHECKPOINT_PERIOD, or set OUTPUT_DIR to a larger disk"
        )
