"""Make proposals for all images of a dataset: a shard an image, then one file.

A killed run goes on where it was. What is in the file depends on images, points and settings alone:
not on how many processes or machines made the shards.
"""

import hashlib
import logging
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from tqdm import tqdm

from weaklabels.arrays import read_npz
from weaklabels.files import atomic_bytes, read_json, write_json
from weaksam.proposals.files import (
    SOURCES,
    ImageProposals,
    collect,
    read_proposal_file,
    write_proposals,
)
from weaksam.proposals.images import ImageRecord, read_images, read_rgb
from weaksam.proposals.points import read_points
from weaksam.proposals.prompts import POINT_SOURCES, Points, Prompting, image_proposals
from weaksam.proposals.without_prompts import (
    RandomBoxes,
    SelectiveSearch,
    random_boxes,
    selective_search,
)
from weaksam.segmenters.spec import load_segmenter

MANIFEST = "manifest.json"
SHARD_KEYS = ("boxes", "source", "scores", "dropped")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptedProposals:
    """Proposals of a segmenter. segmenter: see weaksam.segmenters.spec.  device: of torch."""

    segmenter: str = "tiny"
    prompting: Prompting = field(default_factory=Prompting)
    device: str = "auto"
    download: bool = False


Method = PromptedProposals | SelectiveSearch | RandomBoxes


@dataclass(frozen=True)
class Inputs:
    """images: COCO-form file that lists them.  root: folder of their file names.

    points: points.npz by source (coarse, fine, cross), each of just these images.
    """

    images: Path
    root: Path
    points: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """How the work is done; nothing of it changes the result.

    processes: on this machine, each with a segmenter of its own.  part, parts: which share of the
    images this machine makes, where several write to one folder.
    """

    processes: int = 1
    part: int = 0
    parts: int = 1

    def __post_init__(self) -> None:
        if self.processes < 1 or not 0 <= self.part < self.parts:
            raise ValueError(f"{self}; expected processes >= 1 and part from 0 to parts - 1")


def make_proposals(
    inputs: Inputs, method: Method, output: Path, work: Work = Work()
) -> dict[str, Any] | None:
    """Write a proposal file OUTPUT (.npz), and OUTPUT.skipped.json that lists images without a box.

    Shards are kept in OUTPUT.shards. Returns the counts; None where other machines have not made
    their share yet.
    """
    records = read_images(inputs.images)
    if not isinstance(method, PromptedProposals) and inputs.points:
        raise ValueError(f"{type(method).__name__} takes no points, got {dict(inputs.points)}")
    points = _points_of(inputs, records)
    folder = output.with_name(output.name + ".shards")
    maker = Maker(inputs.root, method)
    manifest = _check_manifest(folder, _manifest(inputs, method, maker.identity, records))
    shards = [folder / f"{quote(record.id, safe='')}.npz" for record in records]
    mine = range(work.part, len(records), work.parts)
    todo = [index for index in mine if not shards[index].is_file()]
    tasks = [
        (records[i], {source: points[source][records[i].id] for source in points}, shards[i])
        for i in todo
    ]
    done = len(mine) - len(todo)
    for _ in tqdm(
        _run(tasks, maker, inputs.root, method, work.processes),
        desc="proposals",
        total=len(mine),
        initial=done,
        unit="image",
    ):
        pass
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        logger.info("%d of %d images are left to other machines", len(missing), len(shards))
        return None
    return _finish(records, [read_shard(shard) for shard in shards], manifest, output)


def merge_proposals(files: Sequence[Path], images: Path, output: Path) -> dict[str, Any]:
    """Join the boxes of several files image by image, in the order of the files.

    Raises:
        ValueError: a file is not of exactly these images, or has boxes that cannot be.
    """
    if not files:
        raise ValueError("no proposal file to merge")
    records = read_images(images)
    read = [read_proposal_file(path, records) for path in files]
    parts = [
        ImageProposals.join(
            [
                ImageProposals(*(column[p.rows(i)] for column in (p.boxes, p.source, p.scores)))
                for p in read
            ]
        )
        for i in range(len(records))
    ]
    return _finish(records, parts, {"merged": [p.meta for p in read]}, output)


def read_shard(path: Path) -> ImageProposals:
    """The proposals of one image."""
    try:
        data = read_npz(path, SHARD_KEYS, "a shard")
    except ValueError as error:
        raise ValueError(f"{path} is no whole shard ({error}): delete it and run again") from error
    boxes, source, scores, dropped = (data[key] for key in SHARD_KEYS)
    return ImageProposals(boxes, source, scores, int(dropped))


def _points_of(inputs: Inputs, records: Sequence[ImageRecord]) -> dict[str, dict[str, Any]]:
    """Points by source and image id, each file checked to be of these images."""
    found: dict[str, dict[str, Any]] = {}
    for source, path in inputs.points.items():
        if source not in POINT_SOURCES:
            raise ValueError(f"points of {source!r}; expected one of {POINT_SOURCES}")
        file = read_points(path)
        sizes = dict(zip(file.ids.tolist(), file.sizes.tolist(), strict=True))
        for record in records:
            if record.id not in sizes:
                raise ValueError(
                    f"{path} lacks image {record.id} of {inputs.images}; it has "
                    f"{len(sizes)} images, such as {next(iter(sizes), 'none')}"
                )
            if tuple(sizes[record.id]) != record.size_hw:
                raise ValueError(
                    f"{path}: image {record.id} is of {sizes[record.id]} (height, width), "
                    f"{inputs.images} says {list(record.size_hw)}"
                )
        found[source] = file.by_image()
    return found


def _manifest(
    inputs: Inputs, method: Method, identity: str, records: Sequence[ImageRecord]
) -> dict[str, Any]:
    """All that the boxes depend on, as json."""
    settings = asdict(method)
    for name in ("device", "download"):
        settings.pop(name, None)
    listed = "\n".join(f"{r.id} {r.file_name} {r.size_hw}" for r in records)
    content = {
        "method": type(method).__name__,
        "settings": settings,
        "network": identity,
        "images": hashlib.sha256(listed.encode()).hexdigest()[:16],
        "points": {
            source: hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
            for source, path in sorted(inputs.points.items())
        },
    }
    return _as_json(content)


def _as_json(value: Any) -> Any:
    """Tuples as lists, as they come back from a file."""
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value


def _check_manifest(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Write the manifest of new shards; ValueError where the folder's shards are of another run."""
    path = folder / MANIFEST
    if not path.is_file():
        if folder.is_dir() and any(folder.glob("*.npz")):
            raise ValueError(f"{folder} has shards but no {MANIFEST}: delete it and run again")
        write_json(path, manifest)
        return manifest
    before = read_json(path)
    for key, value in manifest.items():
        if before.get(key) != value:
            raise ValueError(
                f"{path}: these shards were made with {key} = {before.get(key)}, now it is "
                f"{value}; delete {folder} or choose another output"
            )
    return manifest


Task = tuple[ImageRecord, Points, Path]


class Maker:
    """Makes the proposals of an image by a method. identity: of its network, '' without one."""

    def __init__(self, root: Path, method: Method):
        self._root, self._method, self.identity = root, method, ""
        if isinstance(method, PromptedProposals):
            self._segmenter = load_segmenter(method.segmenter, method.device, method.download)
            self.identity = self._segmenter.identity

    def proposals(self, record: ImageRecord, points: Points) -> ImageProposals:
        method = self._method
        if isinstance(method, RandomBoxes):
            return random_boxes(record.id, record.size_hw, method.count, method.seed)
        image = read_rgb(record, self._root)
        if isinstance(method, SelectiveSearch):
            return selective_search(image, method)
        return image_proposals(self._segmenter, image, points, method.prompting)

    def make_shard(self, task: Task) -> None:
        record, points, path = task
        found = self.proposals(record, points)
        with atomic_bytes(path) as file:
            np.savez(
                file,
                boxes=found.boxes,
                source=found.source,
                scores=found.scores,
                dropped=np.int64(found.dropped),
            )


def _run(
    tasks: list[Task], maker: Maker, root: Path, method: Method, processes: int
) -> Iterator[None]:
    """Make the shards of all tasks, yielding once a shard; the first error ends it.

    Each process has one thread: sums depend on how many threads share them, the files must not.
    """
    processes = min(processes, len(tasks))
    if processes <= 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for task in tasks:
                yield maker.make_shard(task)
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    with ProcessPoolExecutor(processes, context, _start_worker, (root, method)) as pool:
        try:
            yield from pool.map(_work, tasks)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_worker: Maker | None = None  # of a process of the pool: too large to send with every task


def _start_worker(root: Path, method: Method) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = Maker(root, method)


def _work(task: Task) -> None:
    _worker.make_shard(task)


def _finish(
    records: Sequence[ImageRecord],
    parts: Sequence[ImageProposals],
    meta: dict[str, Any],
    output: Path,
) -> dict[str, Any]:
    """Write the file and the list of images without a box; returns the counts."""
    proposals = collect(records, parts, meta)
    by_source = np.bincount(proposals.source, minlength=len(SOURCES))
    without = [r.id for r, part in zip(records, parts, strict=True) if len(part.boxes) == 0]
    write_proposals(output, proposals)
    write_json(output.with_name(output.name + ".skipped.json"), {"no proposals": without})
    return {
        "images": len(records),
        "boxes": len(proposals.boxes),
        "by_source": {n: int(c) for n, c in zip(SOURCES, by_source, strict=True) if c},
        "empty_masks_dropped": sum(part.dropped for part in parts),
        "images_without_proposals": len(without),
    }
