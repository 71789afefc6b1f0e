"""Let a trained SOLOv2 follow the labels of a data set and write prediction records (.jsonl).

    python tools/generate_pseudo_labels.py --config-file configs/PointWSSIS/R101_teacher.yaml \\
        --dataset coco_2017_train_10p_w --prompt point --output weak.jsonl \\
        MODEL.WEIGHTS output/teacher/model_final.pth

A killed run goes on when the same command is given again, and ends with the same bytes. Points
that got no mask are counted and listed in OUTPUT.unmatched.json, with the reason; where it is
"nms", `other_point` is the point whose mask suppressed this one's (MODEL.SOLOV2.PROMPT_NMS False
keeps both).
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adet.config import get_cfg
from adet.modeling.solov2 import PROMPTS
from detectron2.checkpoint.detection_checkpoint import HEURISTICS_QUERY
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.datasets.inline import register_inline_datasets
from detectron2.engine import launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from wsis.pseudo_labels import (
    KEEP_UNMATCHED,
    GenerationReport,
    GenerationSettings,
    PromptMapper,
    RecordShards,
    file_sha256,
    generate_records,
    load_prompted_dataset,
)
from wsis.trained_model import load_trained

logger = logging.getLogger("adet.generate_pseudo_labels")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--dataset", required=True, help="a registered name, or name=json:folder")
    parser.add_argument("--output", type=Path, required=True, help="records to write (.jsonl)")
    parser.add_argument(
        "--prompt",
        choices=PROMPTS,
        default="point",
        help="; ".join(f"{p.name}: {p.description}" for p in PROMPTS.values()),
    )
    parser.add_argument(
        "--keep-unmatched",
        choices=KEEP_UNMATCHED,
        default="drop",
        help="circle: a point without a mask gets a small disc with score 0",
    )
    parser.add_argument(
        "--skip-invalid", action="store_true", help="list invalid annotations and leave them out"
    )
    parser.add_argument("--num-gpus", type=int, default=1, help="0: the CPU")
    parser.add_argument("--num-processes", type=int, default=1, help="with --num-gpus 0")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    return parser


def make_config(args: argparse.Namespace, num_classes: int) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    if args.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.SOLOV2.PROMPT = args.prompt
    cfg.MODEL.SOLOV2.EVAL_PSEUDO_LABEL = False
    if cfg.MODEL.SOLOV2.NUM_CLASSES != num_classes:
        logger.info("MODEL.SOLOV2.NUM_CLASSES set to %d, as in %s", num_classes, args.dataset)
        cfg.MODEL.SOLOV2.NUM_CLASSES = num_classes
    cfg.freeze()
    return cfg


def make_settings(args: argparse.Namespace, cfg: CfgNode, metadata: Metadata) -> dict[str, Any]:
    """What the output depends on; reads the files of the weights and of the annotations."""
    weights = cfg.MODEL.WEIGHTS
    settings = GenerationSettings(
        dataset=metadata.name,
        json_file=str(metadata.json_file),
        json_sha256=file_sha256(metadata.json_file),
        prompt=args.prompt,
        weights=weights,
        weights_sha256=file_sha256(HEURISTICS_QUERY.sub("", weights)),
        keep_unmatched=args.keep_unmatched,
        model=cfg.MODEL.dump() + cfg.INPUT.dump(),
    )
    return asdict(settings)


def run(args: argparse.Namespace) -> None:
    """Generate in this process; the first one says what came of it."""
    setup_logger(name="detectron2", distributed_rank=comm.get_rank())
    setup_logger(name="adet", distributed_rank=comm.get_rank())
    (name,) = register_inline_datasets([args.dataset])
    dataset = load_prompted_dataset(name, args.prompt, args.skip_invalid)
    metadata = MetadataCatalog.get(name)
    id_of = {index: i for i, index in metadata.thing_dataset_id_to_contiguous_id.items()}
    category_ids = [id_of[index] for index in sorted(id_of)]
    cfg = make_config(args, len(category_ids))
    model = load_trained(cfg)
    # The main process alone compares the settings with those of the parts.
    settings = make_settings(args, cfg, metadata) if comm.is_main_process() else {}
    shards = RecordShards(args.output, settings)
    report = generate_records(
        model,
        dataset,
        PromptMapper(cfg),
        shards,
        category_ids=category_ids,
        keep_unmatched=args.keep_unmatched,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    if comm.is_main_process():
        print_report(report, shards, dict(zip(category_ids, metadata.thing_classes, strict=True)))


def print_report(report: GenerationReport, shards: RecordShards, names: dict[int, str]) -> None:
    print(f"{shards.output}: {report.images - len(report.failures)} images")
    for (category_id, reason), count in sorted(report.unmatched.items()):
        print(f"points without a mask: {count} of {names[category_id]} ({reason})")
    for message in report.failures:
        print(f"not read: {message}", file=sys.stderr)
    if report.failures:
        print(
            f"{len(report.failures)} images could not be read; mend them and give the same command "
            "again: only they are missing",
            file=sys.stderr,
        )


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    parts = RecordShards(args.output, {}).folder
    if args.output.exists() and not parts.exists():
        print(f"{args.output} is finished: nothing to do (remove it to make it again)")
        return 0
    try:
        launch(run, args.num_gpus, args=(args,), num_processes=args.num_processes)
    except (ValueError, FileNotFoundError) as error:
        print(f"generate_pseudo_labels: {error}", file=sys.stderr)
        return 1
    return 1 if parts.exists() else 0


if __name__ == "__main__":
    sys.exit(main())
