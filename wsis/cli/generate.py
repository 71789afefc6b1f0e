"""Write a trained network's masks on labeled points as prediction records.

    wsis generate --config-file PointWSSIS/R101_teacher.yaml --weights teacher/model_final.pth \\
        --dataset coco_2017_train_10p_w --prompt point --output weak.jsonl

The same command again continues a killed run and ends with the same bytes, also with another
number of processes. Points that got no mask are counted and listed in OUTPUT.unmatched.json with
the reason. For the reason "nms", `other_point` is the point whose mask suppressed this one's
(MODEL.SOLOV2.PROMPT_NMS False keeps both).
"""

import argparse
import sys
from pathlib import Path

from adet.modeling.solov2 import PROMPTS
from weaklabels.shards import RecordShards
from wsis.cli.flags import add_config, add_flag, add_job, job_of
from wsis.pseudo_labels import KEEP_UNMATCHED, GenerateReport, GenerateSettings, generate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser, required=True)
    add_flag(parser, "--weights", type=str, help="trained network (default: MODEL.WEIGHTS)")
    add_flag(parser, "--dataset", required=True)
    add_flag(parser, "--output", required=True, help="records to write (.jsonl)")
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
    add_job(parser)


def run(args: argparse.Namespace) -> int:
    """Generate; 1 where an image could not be read, and is therefore not in the output."""
    settings = GenerateSettings(
        config_file=args.config_file,
        dataset=args.dataset,
        output=args.output,
        overrides=tuple(args.opts),
        weights=args.weights,
        prompt=args.prompt,
        keep_unmatched=args.keep_unmatched,
        skip_invalid=args.skip_invalid,
    )
    if RecordShards(settings.output, {}).is_complete():
        print(f"{settings.output} is complete: nothing to do (remove it to make it again)")
        return 0
    report = generate(settings, job_of(args))
    if report is None:
        return 0
    print_report(report, settings.output)
    return 1 if report.failures else 0


def print_report(report: GenerateReport, output: Path) -> None:
    print(f"{output}: {report.images} images")
    for (name, reason), count in report.unmatched.items():
        print(f"points without a mask: {count} of {name} ({reason})")
    for message in report.failures:
        print(f"not read: {message}", file=sys.stderr)
    if report.failures:
        print(
            f"{len(report.failures)} images could not be read; correct them and give the same "
            "command again: only they are missing",
            file=sys.stderr,
        )
