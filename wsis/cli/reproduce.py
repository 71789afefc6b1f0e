"""Evaluate a released (or own) checkpoint or pseudo-label file beside the reported figure.

    python tools/reproduce.py --subset 10p --stage student
    python tools/reproduce.py --subset 10p --stage student --split test-dev
    python tools/reproduce.py --subset 10p --stage teacher --checkpoint my_teacher.pth
    python tools/reproduce.py --subset 10p --stage pseudo_labels

teacher        detector AP (prompt none) and pseudo-label quality (prompt point), two figures of
               different meaning
pseudo_labels  quality of the labels of the weak images against the full annotations
student        detector AP

The reported figures are the student's mask AP on test-dev, whose annotations are not public: with
--split test-dev the file that the evaluation server takes is written, and nothing is measured.
"""

import argparse
import json
import math
import os
import re
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from adet.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.inline import register_inline_datasets
from detectron2.engine import launch
from detectron2.evaluation.coco_evaluation import RESULTS_FILE
from detectron2.utils import comm
from weaklabels.coco import CocoFile
from weaklabels.evaluate import evaluate_labels, format_report, load_images
from weaklabels.files import atomic_bytes, atomic_text, write_json
from wsis import training as train_net
from wsis.released import CONFIGS, ROOT, read_releases, released_path, verify
from wsis.trained_model import load_trained

STAGES = ("teacher", "pseudo_labels", "student")
SPLITS = {"val2017": "coco_2017_val", "test-dev": "coco_2017_test-dev"}
PROMPTS = {"teacher": ("none", "point"), "student": ("none",)}  # of the evaluations of a stage
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
SERVER_KEYS = ("image_id", "category_id", "segmentation", "score")
SERVER_NAME = re.compile(r"[A-Za-z0-9_.-]+")
# Keys that a flag decides.
FLAG_OF_KEY = {
    "MODEL.WEIGHTS": "--checkpoint",
    "MODEL.SOLOV2.PROMPT": "--stage",
    "OUTPUT_DIR": "--output",
}
HOW_TO_GET = {
    "val2017": "http://images.cocodataset.org/zips/val2017.zip and "
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
    "test-dev": "http://images.cocodataset.org/zips/test2017.zip and "
    "http://images.cocodataset.org/annotations/image_info_test2017.zip",
    "train2017": "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
}


def checkpoint_path(args: argparse.Namespace) -> Path:
    """The file to evaluate: the own one, or the released one after a look at what it holds."""
    if args.checkpoint:
        if not args.checkpoint.is_file():
            raise FileNotFoundError(f"--checkpoint {args.checkpoint}: no such file")
        return args.checkpoint
    path = released_path(args.checkpoints_dir, args.subset, args.stage)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; download it with\n  python tools/download_checkpoints.py "
            f"--subset {args.subset} --what {args.stage} --output {args.checkpoints_dir}\n"
            "or give a file of your own with --checkpoint"
        )
    print(f"{path}: {verify(path, args.stage)}")
    return path


def network_arguments(args: argparse.Namespace, weights: Path, prompt: str) -> argparse.Namespace:
    """What `train_net` would be called with to evaluate these weights with this prompt."""
    config_file = args.config_file or str(ROOT / CONFIGS[args.stage])
    output = args.output / f"prompt_{prompt}"
    words = ["--config-file", config_file, "--eval-only", "--num-gpus", str(args.num_gpus)]
    words += ["MODEL.WEIGHTS", str(weights), "MODEL.SOLOV2.PROMPT", prompt]
    words += ["OUTPUT_DIR", str(output)]
    # An evaluation does not need the training data that a config names.
    words += ["DATASETS.TRAIN", "()", "DATASETS.TEST", f"('{SPLITS[args.split]}',)"]
    return train_net.default_argument_parser().parse_args([*words, *args.opts])


def test_dataset(arguments: argparse.Namespace, split: str) -> str:
    """Name of the one data set of DATASETS.TEST, whose files are there."""
    cfg = get_cfg()
    cfg.merge_from_file(arguments.config_file)
    cfg.merge_from_list(arguments.opts)
    names = register_inline_datasets(cfg.DATASETS.TEST)
    if len(names) != 1 or names[0] not in DatasetCatalog:
        raise ValueError(f"DATASETS.TEST={tuple(names)}; one registered name or name=json:folder")
    metadata = MetadataCatalog.get(names[0])
    for path in (metadata.json_file, metadata.image_root):
        if not os.path.exists(path):
            raise FileNotFoundError(
                f"{path} of {names[0]} is missing: unpack {HOW_TO_GET[split]} into the folder "
                "coco below the one in the environment variable DETECTRON2_DATASETS"
            )
    return names[0]


def evaluate(arguments: argparse.Namespace, result_file: Path) -> None:
    """Evaluate in this process of a job; the first one writes mode and figures."""
    cfg = train_net.setup(arguments)
    results = train_net.Trainer.test(cfg, load_trained(cfg))
    if comm.is_main_process():
        figures = results.get("segm", results.get(f"{train_net.PROMPTED_TASK}segm"))
        plain = f"detector AP: prompt={cfg.MODEL.SOLOV2.PROMPT}, scores of the network"
        mode = train_net.evaluation_mode(cfg) or plain
        write_json(result_file, {"mode": mode, "figures": without_nan(figures)})


def without_nan(figures: dict[str, float] | None) -> dict[str, float | None] | None:
    """Figures with None where nothing was measured; None for a data set without annotations."""
    if figures is None:
        return None
    return {name: None if math.isnan(value) else value for name, value in figures.items()}


def run_network(args: argparse.Namespace, weights: Path) -> list[dict[str, Any]]:
    """Evaluate with each prompt of the stage, or write the file for the server; table rows."""
    prompts = PROMPTS[args.stage] if args.split == "val2017" else ("none",)
    rows = []
    for prompt in prompts:
        arguments = network_arguments(args, weights, prompt)
        dataset = test_dataset(arguments, args.split)
        result_file = args.output / f"prompt_{prompt}.json"
        result_file.unlink(missing_ok=True)
        launch(evaluate, args.num_gpus, args=(arguments, result_file))
        content = json.loads(result_file.read_text(encoding="utf-8"))
        if (content["figures"] is None) != (args.split == "test-dev"):
            raise ValueError(
                f"--split {args.split}, but {dataset} has "
                f"{'no ' * (content['figures'] is None)}annotations"
            )
        row = {"what": args.stage, "split": split_name(dataset), "mode": content["mode"]}
        row["source"] = f"measured here, {weights}"
        if content["figures"] is None:
            predictions = args.output / f"prompt_{prompt}" / "inference" / RESULTS_FILE
            row["source"] = f"to be measured by the server, {write_upload(args, predictions)}"
        rows.append(row | (content["figures"] or {}))
    return rows


def split_name(dataset: str) -> str:
    """COCO's name of the split where the data set is one of COCO's, else the data set's own."""
    return next((split for split, name in SPLITS.items() if name == dataset), dataset)


def write_upload(args: argparse.Namespace, predictions: Path) -> Path:
    """Write `detections_test-dev2017_<name>_results.json` and its zip file; returns the latter."""
    content = json.loads(predictions.read_text(encoding="utf-8"))
    results = [{key: result[key] for key in SERVER_KEYS} for result in content]
    path = args.output / f"detections_test-dev2017_{args.name}_results.json"
    with atomic_text(path) as file:
        json.dump(results, file)
    archive = path.with_suffix(".zip")
    with atomic_bytes(archive) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.write(path, path.name)
    print(
        f"{archive}: {len(results)} masks, for COCO's evaluation server (segmentation, test-dev; "
        "see https://cocodataset.org/#upload)"
    )
    return archive


def run_labels(args: argparse.Namespace, labels: Path) -> list[dict[str, Any]]:
    """Judge pseudo labels against the full annotations; table rows."""
    truth = args.truth_json or Path(MetadataCatalog.get("coco_2017_train").json_file)
    weak = args.weak_json
    if weak is None:
        weak = Path(MetadataCatalog.get(f"coco_2017_train_{args.subset}_w").json_file)
    if not truth.is_file():
        raise FileNotFoundError(
            f"{truth} is missing: it is in {HOW_TO_GET['train2017']}, or give --truth-json"
        )
    if not weak.is_file():
        raise FileNotFoundError(
            f"{weak} is missing; it says which images are weak. For the released labels it has to "
            "be the one of PointWSSIS's own split; give it with --weak-json"
        )
    if labels.suffix == ".json":
        check_split(labels, weak)
    images = load_images(labels, truth, weak)
    header = CocoFile(truth).header
    names = {c["id"]: str(c.get("name", c["id"])) for c in header["categories"]}
    report = evaluate_labels(images, names, str(labels))
    write_json(args.output / "quality.json", report)
    print(format_report(report))
    common = {"what": "pseudo labels", "split": f"weak images of {weak.name}"}
    common["source"] = f"measured here, {labels}"
    return [
        common | {"mode": f"pseudo-label quality: {mode}"} | figures
        for mode, figures in report["mask_ap"].items()
    ]


def check_split(labels: Path, weak: Path) -> None:
    """Refuse a merged file whose strong images are weak ones in `weak`.

    Their true masks would count as pseudo labels. Pseudo labels are compressed RLE; polygons are
    true masks.
    """
    weak_ids = set(CocoFile(weak).images)
    mixed = {
        a["image_id"]
        for a in CocoFile(labels).annotations()
        if a["image_id"] in weak_ids and isinstance(a.get("segmentation"), list)
    }
    if mixed:
        raise ValueError(
            f"{labels} has polygons, which are true masks, in {len(mixed)} images (such as id "
            f"{min(mixed)}) that are weak in {weak}: the two files are of different splits"
        )


def format_table(args: argparse.Namespace, rows: list[dict[str, Any]]) -> str:
    """Measured rows and, below, the reported one, each with its split and mode."""
    reported = {
        "what": "student",
        "split": "test-dev",
        "mode": "detector AP",
        "AP": read_releases()[args.subset].test_dev_ap,
        "source": "reported (arXiv 2303.15062)",
    }
    columns = ("what", "split", "mode", *METRICS, "source")
    cells = [[row.get(column) for column in columns] for row in [*rows, reported]]
    table = tabulate(cells, columns, floatfmt=".1f", missingval="-", disable_numparse=[0, 1, 2, 9])
    return f"Mask AP, subset {args.subset}\n{table}"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subset", required=True, choices=list(read_releases()))
    parser.add_argument("--stage", required=True, choices=STAGES)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="an own file in place of the released one; for pseudo_labels a merged COCO file or "
        "records (.jsonl)",
    )
    parser.add_argument("--checkpoints-dir", type=Path, default=Path("checkpoints"))
    parser.add_argument("--config-file", help="of an own checkpoint; default: the released ones'")
    parser.add_argument("--split", choices=list(SPLITS), default="val2017")
    parser.add_argument("--truth-json", type=Path, help="pseudo_labels: all masks of train2017")
    parser.add_argument("--weak-json", type=Path, help="pseudo_labels: the weak images and points")
    parser.add_argument("--output", type=Path, help="folder; output/reproduce/SUBSET_STAGE_SPLIT")
    parser.add_argument(
        "--name", help="in the name of the server's file; letters, digits, _, - and ."
    )
    parser.add_argument(
        "--num-gpus", type=int, default=torch.cuda.device_count(), help="0: CPU; default: all"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config, last")
    return parser


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the program where options contradict each other; fill in what depends on others."""
    for key in args.opts[::2]:
        if key in FLAG_OF_KEY:
            parser.error(f"{key} is decided by {FLAG_OF_KEY[key]}")
    if args.stage == "pseudo_labels":
        if args.split != "val2017":
            parser.error("pseudo labels are those of train2017: --split does not apply")
        if args.opts or args.config_file:
            parser.error("--stage pseudo_labels runs no network: no --config-file or KEY VALUE")
        args.split = "train2017"
    elif args.truth_json or args.weak_json:
        parser.error("--truth-json and --weak-json are for --stage pseudo_labels")
    if args.name and args.split != "test-dev":
        parser.error("--name is for --split test-dev")
    args.name = args.name or f"PointWSSIS-{args.subset}-{args.stage}"
    if not SERVER_NAME.fullmatch(args.name):
        parser.error(f"--name {args.name!r}: letters, digits, '_', '-' and '.' are allowed")
    folder = f"{args.subset}_{args.stage}_{args.split}"
    args.output = args.output or Path("output") / "reproduce" / folder


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    check_arguments(parser, args)
    run = run_labels if args.stage == "pseudo_labels" else run_network
    try:
        rows = run(args, checkpoint_path(args))
    except (OSError, ValueError, KeyError) as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return 1
    write_json(args.output / "reproduce.json", rows)
    print(format_table(args, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
