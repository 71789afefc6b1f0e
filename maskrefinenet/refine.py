"""`python -m maskrefinenet refine`: refine a file of prediction records, image by image.

Each process appends to a file of its own beside the output, whose first line tells what it is made
from. The same command again goes on after the last whole line; when all is done, the parts become
the output, in the order of the predictions.
"""

import argparse
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from weaklabels.coco import Annotations, load_annotations
from weaklabels.files import atomic_bytes, dumps, file_sha256
from weaklabels.records import Record

from .distributed import World, world
from .pipeline import KEPT_PRIOR, make_groups, refine_groups
from .predictions import read_predictions
from .refiner import DEFAULT_BATCH_SIZE, MaskRefiner

LISTED = 10  # unreadable images that the summary names


@dataclass
class Summary:
    """What a run did; seconds and unreadable images are those of this run and this process."""

    images: int = 0
    instances: int = 0
    kept_priors: int = 0
    unreadable: list[str] = field(default_factory=list)
    network_seconds: float = 0.0
    wall_seconds: float = 0.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="of train, or a released one"
    )
    parser.add_argument(
        "--predictions", type=Path, required=True, help="records (.jsonl), COCO results, or .pth"
    )
    parser.add_argument("--image-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="refined records (.jsonl)")
    parser.add_argument(
        "--annotations",
        type=Path,
        help="COCO file that names the images of .json and .pth predictions and, for a checkpoint "
        "that does not know them, the categories",
    )
    parser.add_argument(
        "--batch-size", type=int, default=DEFAULT_BATCH_SIZE, help="instances at once"
    )
    parser.add_argument("--workers", type=int, default=2, help="threads beside the network")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: CUDA if there is any")


def main(args: argparse.Namespace) -> int:
    """Refine; 1 where an image could not be read, and is therefore not in the output."""
    with world(args.device) as here:
        summary = refine_file(args, here)
    if not here.is_first:
        return 0
    print(
        f"{args.out}: {summary.instances} masks of {summary.images} images; {summary.kept_priors} "
        "kept their prior mask, as nothing was found in them"
    )
    if summary.wall_seconds > 0:
        print(f"{summary.wall_seconds:.1f} s, {summary.network_seconds:.1f} s in the network")
    if not summary.unreadable:
        return 0
    print(f"{len(summary.unreadable)} images are left out; the same command again retries them:")
    for reason in summary.unreadable[:LISTED]:
        print(f"  {reason}")
    return 1


def refine_file(args: argparse.Namespace, here: World) -> Summary:
    """Refine this process's share, then put all shares together; the summary is of rank 0."""
    if args.out.suffix != ".jsonl":
        raise ValueError(f"--out {args.out}: refined records are written as .jsonl")
    if not args.predictions.is_file():
        raise FileNotFoundError(f"--predictions {args.predictions}: no such file")
    annotations = load_annotations(args.annotations) if args.annotations else None
    refiner = MaskRefiner.load(args.checkpoint, device=here.device, batch_size=args.batch_size)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    part = Part(part_path(args.out, here.rank, here.size), _fingerprint(args, here, annotations))
    refuse_other_parts(args.out, here.size)
    summary = Summary()
    start = time.perf_counter()
    order = _refine_share(args, here, annotations, refiner, part, summary)
    summary.wall_seconds = time.perf_counter() - start
    summary.unreadable = [reason for share in here.gather(summary.unreadable) for reason in share]
    if here.is_first:
        parts = [part_path(args.out, rank, here.size) for rank in range(here.size)]
        _merge(parts, order, args.out, summary)
        if not summary.unreadable:
            for path in parts:
                path.unlink()
    here.barrier()
    return summary


def part_path(out: Path, rank: int, size: int) -> Path:
    """Where a process appends its records."""
    return out.with_name(f"{out.name}.rank{rank}of{size}.part")


def refuse_other_parts(out: Path, size: int) -> None:
    """Parts of another number of processes cannot be continued: say so, do not repeat the work."""
    others = [
        p for p in out.parent.glob(f"{out.name}.rank*.part") if f"of{size}.part" not in p.name
    ]
    if others:
        raise ValueError(
            f"{others[0]} is left from a run with another number of processes than {size}: "
            "start as many to continue it, or delete it"
        )


def _fingerprint(
    args: argparse.Namespace, here: World, annotations: Annotations | None
) -> dict[str, Any]:
    """All that the results depend on."""
    return {
        "checkpoint": file_sha256(args.checkpoint),
        "predictions": file_sha256(args.predictions),
        "annotations": None if annotations is None else file_sha256(annotations.path),
        "batch_size": args.batch_size,
        "device": here.device.type,
    }


class Part:
    """The append-only file of one process; made or continued on construction.

    done: ids of the images whose records it holds.
    """

    def __init__(self, path: Path, fingerprint: dict[str, Any]):
        self.path, self.done = path, set()
        header = json.dumps({"made_from": fingerprint}, sort_keys=True).encode() + b"\n"
        end = 0
        if path.is_file():
            with open(path, "rb") as lines:
                for number, line in enumerate(lines):
                    if not line.endswith(b"\n"):
                        break  # cut off while it was written
                    if number == 0 and line != header:
                        raise ValueError(
                            f"{path} was made from another checkpoint, predictions or options: "
                            "repeat them to continue it, or delete it"
                        )
                    if number > 0:
                        self.done.add(json.loads(line)["image_id"])
                    end += len(line)
        self._file: IO[bytes] = open(path, "r+b" if path.is_file() else "w+b")
        self._file.truncate(end)
        self._file.seek(end)
        if end == 0:
            self._file.write(header)
            self._file.flush()

    def append(self, record: Record) -> None:
        """Write a record as a whole line."""
        self._file.write((dumps(record) + "\n").encode("utf-8"))
        self._file.flush()

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def _refine_share(
    args: argparse.Namespace,
    here: World,
    annotations: Annotations | None,
    refiner: MaskRefiner,
    part: Part,
    summary: Summary,
) -> list[int]:
    """Refine every size-th group that is not done yet; return all image ids in their order."""
    order: list[int] = []
    bar = tqdm(desc="refine", unit=" images", total=_count(args), disable=not here.is_first)

    def share() -> Iterator[list[Record]]:
        records = _unique(read_predictions(args.predictions, annotations), order, args.predictions)
        for number, group in enumerate(make_groups(records)):
            todo = any(record["image_id"] not in part.done for record in group)
            if number % here.size == here.rank and todo:
                yield group
            else:
                bar.update(len(group))

    category_ids = None if annotations is None else annotations.category_ids
    for refined in refine_groups(
        share(),
        refiner,
        args.image_root,
        workers=args.workers,
        category_ids=refiner.category_ids or category_ids,
    ):
        for record in refined.records:
            if record["image_id"] not in part.done:
                part.append(record)
        summary.unreadable += refined.unreadable
        summary.network_seconds += refined.network_seconds
        bar.update(len(refined.records) + len(refined.unreadable))
    bar.close()
    part.close()
    return order


def _count(args: argparse.Namespace) -> int | None:
    """The number of images, where that is cheap to know."""
    if args.predictions.suffix != ".jsonl":
        return None
    with open(args.predictions, "rb") as lines:
        return sum(1 for _ in lines)


def _unique(records: Iterable[Record], order: list[int], path: Path) -> Iterator[Record]:
    """The records, their image ids noted in `order`; an image may come once."""
    seen: set[int] = set()
    for record in records:
        image_id = record["image_id"]
        if image_id in seen:
            raise ValueError(f"{path}: image {image_id} has two records; one is allowed")
        seen.add(image_id)
        order.append(image_id)
        yield record


def _merge(parts: list[Path], order: list[int], out: Path, summary: Summary) -> None:
    """Write the records of all parts in the given order, skipping images that no part has."""
    places: dict[int, tuple[int, int]] = {}
    files = [open(path, "rb") for path in parts]
    try:
        for number, file in enumerate(files):
            file.readline()
            place = file.tell()
            while line := file.readline():
                record = json.loads(line)
                places[record["image_id"]] = (number, place)
                summary.images += 1
                summary.instances += len(record["instances"])
                summary.kept_priors += sum(KEPT_PRIOR in i for i in record["instances"])
                place = file.tell()
        with atomic_bytes(out) as merged:
            for image_id in order:
                if image_id in places:
                    number, place = places[image_id]
                    files[number].seek(place)
                    merged.write(files[number].readline())
    finally:
        for file in files:
            file.close()
