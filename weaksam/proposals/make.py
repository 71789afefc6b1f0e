"""Make proposals for all images of a dataset: a shard an image, then one file.

A killed run goes on where it was. What is in the file depends on images, points and settings alone:
not on how many processes or machines made the shards.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from detectron2.utils import comm
from weaklabels.files import file_sha256
from weaksam.clues.points import read_points
from weaksam.image_shards import as_json, claim, difference, make_shards
from weaksam.npz import NUMBERS, WHOLE, read_npz, write_npz
from weaksam.proposals.files import (
    DROPPED,
    SOURCES,
    ImageProposals,
    Proposals,
    check_source,
    collect,
    read_proposal_file,
    write_proposals,
)
from weaksam.proposals.images import ImageRecord, read_images, read_rgb
from weaksam.proposals.prompts import POINT_SOURCES, Points, Prompting, image_proposals
from weaksam.proposals.released import read_released
from weaksam.proposals.without_prompts import (
    RandomBoxes,
    SelectiveSearch,
    random_boxes,
    selective_search,
)
from weaksam.segmenters.spec import load_segmenter
from weaksam.skipped import write_skipped

MANIFEST = "manifest.json"
SHARD_FORMS = {
    **{"boxes": (NUMBERS, 2), "source": (WHOLE, 1), "scores": (NUMBERS, 1)},
    "dropped": (WHOLE, 0),
}


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
class ProposalCounts:
    """What a proposal file holds. boxes, by_source: of all images; see `files.SOURCES`.

    empty_masks_dropped: prompts' masks without a pixel, which have no box.
    without: ids of the images that have no box.
    """

    images: int
    boxes: int
    by_source: dict[str, int]
    empty_masks_dropped: int
    without: tuple[str, ...]


def make_proposals(inputs: Inputs, method: Method, output: Path) -> ProposalCounts:
    """Write a proposal file OUTPUT (.npz), and `*.skipped.json` that lists images without a box.

    Every process of a job calls it with the same arguments. Shards lie in OUTPUT.shards until the
    file is whole, so that a run which was killed goes on.

    Raises:
        ValueError: an input cannot be used, or the output is there and was made from others.
    """
    records = read_images(inputs.images)
    if not isinstance(method, PromptedProposals) and inputs.points:
        raise ValueError(f"{type(method).__name__} takes no points, got {dict(inputs.points)}")
    points = _points_of(inputs, records)
    folder = output.with_name(output.name + ".shards")
    maker = Maker(inputs.root, method)
    manifest = _manifest(inputs, method, maker.identity, records)
    if output.exists():
        counts = _already_made(output, manifest, records)
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed at its very end
        return counts
    claim(folder / MANIFEST, manifest, "proposals")
    shards = [folder / f"{quote(record.id, safe='')}.npz" for record in records]

    def make(index: int) -> None:
        record = records[index]
        of_image = {source: points[source][record.id] for source in points}
        write_shard(shards[index], maker.proposals(record, of_image))

    make_shards(shards, make, "proposals")
    if comm.is_main_process():
        parts = [read_shard(shard) for shard in shards]
        dropped = sum(part.dropped for part in parts)
        _finish(records, parts, manifest | {DROPPED: dropped}, output)
        shutil.rmtree(folder)
    comm.synchronize()
    return count_proposals(read_proposal_file(output, records))


def _already_made(
    output: Path, manifest: dict[str, Any], records: Sequence[ImageRecord]
) -> ProposalCounts:
    found = read_proposal_file(output, records)
    if changed := difference(found.meta, manifest):
        raise ValueError(
            f"{output} was made with other {changed}; give another output, or remove it"
        )
    return count_proposals(found)


def merge_proposals(files: Sequence[Path], images: Path, output: Path) -> ProposalCounts:
    """Join the boxes of several files image by image, in the order of the files.

    Args:
        files: proposal files, or pickles (.pkl) of WeakSAM's authors.

    Raises:
        ValueError: a file is not of exactly these images, or has boxes that cannot be, or the
            output is there and holds something else.
    """
    if not files:
        raise ValueError("no proposal file to merge")
    records = read_images(images)
    read = [
        read_released(path, records) if path.suffix == ".pkl" else read_proposal_file(path, records)
        for path in files
    ]
    parts = [
        ImageProposals.join(
            [
                ImageProposals(*(column[p.rows(i)] for column in (p.boxes, p.source, p.scores)))
                for p in read
            ]
        )
        for i in range(len(records))
    ]
    meta = {
        "merged": [{"sha256": file_sha256(p), **r.meta} for p, r in zip(files, read, strict=True)]
    }
    if output.exists():
        return _already_made(output, meta, records)
    dropped = sum(proposals.meta.get(DROPPED, 0) for proposals in read)
    _finish(records, parts, meta | {DROPPED: dropped}, output)
    return count_proposals(read_proposal_file(output, records))


def read_shard(path: Path) -> ImageProposals:
    """The proposals of one image."""
    arrays = read_npz(path, SHARD_FORMS)
    boxes, source, scores = (arrays[key] for key in ("boxes", "source", "scores"))
    if boxes.shape != (len(source), 4) or len(scores) != len(source):
        raise ValueError(
            f"{path}: boxes {boxes.shape}, source {source.shape} and scores {scores.shape} do not "
            "fit; delete it, and the image's proposals are made again"
        )
    check_source(path, source)
    return ImageProposals(boxes, source, scores, int(arrays["dropped"]))


def _points_of(inputs: Inputs, records: Sequence[ImageRecord]) -> dict[str, dict[str, Any]]:
    """Points by source and image id, each file checked to be of these images."""
    found: dict[str, dict[str, Any]] = {}
    for source, path in inputs.points.items():
        if source not in POINT_SOURCES:
            raise ValueError(f"points of {source!r}; expected one of {POINT_SOURCES}")
        file = read_points(path)
        sizes = dict(zip(file.ids, file.sizes_hw, strict=True))
        for record in records:
            if record.id not in sizes:
                raise ValueError(
                    f"{path} lacks image {record.id} of {inputs.images}; it has "
                    f"{len(sizes)} images, such as {next(iter(sizes), 'none')}: another dataset?"
                )
            if sizes[record.id] != record.size_hw:
                raise ValueError(
                    f"{path}: image {record.id} is of {list(sizes[record.id])} (height, width), "
                    f"{inputs.images} says {list(record.size_hw)}: another dataset?"
                )
        found[source] = {
            name: (points.xy, points.cls.astype(np.int64))
            for name, points in zip(file.ids, file.points, strict=True)
        }
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
            source: file_sha256(path)[:16] for source, path in sorted(inputs.points.items())
        },
    }
    return as_json(content)


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


def write_shard(path: Path, found: ImageProposals) -> None:
    """Write the proposals of one image."""
    arrays = {key: np.asarray(getattr(found, key)) for key in SHARD_FORMS}
    write_npz(path, arrays)


def _finish(
    records: Sequence[ImageRecord],
    parts: Sequence[ImageProposals],
    meta: dict[str, Any],
    output: Path,
) -> None:
    """Write the list of images without a box, then the file."""
    write_skipped(
        output,
        [
            {"image_id": record.id, "file_name": record.file_name, "reason": "no proposal"}
            for record, part in zip(records, parts, strict=True)
            if not len(part.boxes)
        ],
    )
    write_proposals(output, collect(records, parts, meta))


def count_proposals(proposals: Proposals) -> ProposalCounts:
    """The counts of a proposal file."""
    by_source = np.bincount(proposals.source, minlength=len(SOURCES))
    without = proposals.ids[np.diff(proposals.offsets) == 0]
    return ProposalCounts(
        images=len(proposals.ids),
        boxes=len(proposals.boxes),
        by_source={n: int(c) for n, c in zip(SOURCES, by_source, strict=True) if c},
        empty_masks_dropped=int(proposals.meta.get(DROPPED, 0)),
        without=tuple(without.tolist()),
    )
