"""What is fuzzed: each target opens the files beside the input, then reads one changed file.

A reader either works or raises what a command turns into one line and exit code 2. Where more can
be said of a result, such as that two ways to count a mask's pixels agree, that is asserted.

The name of a file in `corpus/TARGET/` begins with its form, which says who reads it.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as mask_utils

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data.datasets import load_coco_json
from detectron2.data.proposals import load_proposals_into_dataset, read_proposals
from maskrefinenet.checkpoint import load_checkpoint
from tests.fuzz import tokens
from tests.fuzz.documented import is_documented
from weaklabels.array_pickle import read_array_pickle
from weaklabels.arrays import read_npz
from weaklabels.coco import CocoFile, load_annotations
from weaklabels.converters.bdd100k import convert_bdd100k
from weaklabels.evaluate import evaluate_labels, load_images
from weaklabels.examine import examine
from weaklabels.importers.points import import_file
from weaklabels.masks import (
    Runs,
    check_image_size,
    check_segmentation,
    decode_mask,
    encode_mask,
    segmentation_rle,
)
from weaklabels.merge import merge_labels
from weaklabels.model_folder import CARD, read_card
from weaklabels.pictures import image_size_hw, read_image
from weaklabels.points import POINT_RULES, mask_point
from weaklabels.records import read_records
from weaklabels.shards import RecordShards
from weaklabels.split import SplitSettings, split_coco
from weaklabels.tag_sources import tags_from_coco, tags_from_csv
from weaklabels.tags import read_tags
from weaklabels.voc import read_image_set, read_voc_annotation
from weaksam.clues.checkpoint import load_classifier
from weaksam.clues.points import read_points
from weaksam.detections import read_detections
from weaksam.image_shards import claim
from weaksam.proposals.files import read_proposal_file
from weaksam.proposals.images import read_images
from weaksam.proposals.make import read_shard
from weaksam.proposals.recall import truth_of_coco
from weaksam.proposals.released import read_released
from weaksam.pseudo_box_quality import read_true_boxes
from wsis.config import load_config
from wsis.demo import read_classes_json
from wsis.runner.markers import read_marker

DRAWN = 1 << 20  # pixels; larger masks are checked by their runs alone
Read = Callable[[Path], object]


@dataclass(frozen=True)
class Target:
    """A family of readers.

    open: given a folder for what lies beside the input, the function that reads an input.
    tokens: texts that mean something to the readers.
    form: how all files of it are changed; None: as their suffix says.
    share: how many of the executions it gets, relative to others; less for slow ones.
    """

    name: str
    open: Callable[[Path], Read]
    tokens: tuple[bytes, ...] = ()
    form: str | None = None
    share: int = 10


def by_form(readers: dict[str, Read]) -> Read:
    """The reader of a file's form."""
    return lambda path: readers[path.name.partition(".")[0]](path)


def beside(folder: Path) -> Path:
    """What inputs refer to: two images, strong and weak labels, tags, a config."""
    images = folder / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("1.png", "2.png"):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)).save(images / name)
    categories = [{"id": 1, "name": "box"}, {"id": 5, "name": "disc"}]
    entries = [{"id": i, "file_name": f"{i}.png", "height": 8, "width": 8} for i in (1, 2)]
    mask = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 16.0}
    mask |= {"bbox": [1, 1, 4, 4], "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]}
    other = mask | {"id": 2, "image_id": 2}
    point = {"id": 2, "image_id": 2, "category_id": 1, "iscrowd": 0, "point": [3, 3]}
    for name, shown, annotations in (
        ("all", entries, [mask, other]),
        ("strong", entries[:1], [mask]),
        ("weak", entries[1:], [point]),
    ):
        content = {"images": shown, "annotations": annotations, "categories": categories}
        (folder / f"{name}.json").write_text(json.dumps(content))
    tagged = [entry | {"category_ids": [1]} for entry in entries]
    tags = {"info": {}, "images": tagged, "categories": categories}
    (folder / "tags.json").write_text(json.dumps(tags))
    (folder / "base.yaml").write_text("VERSION: 2\nSOLVER: {MAX_ITER: 5}\n")
    return folder


def annotations(folder: Path) -> Read:
    beside(folder)

    def read(path: Path) -> None:
        listed(examine(path, folder / "images"))
        for load in (_load_all, read_images, truth_of_coco, tags_of):
            _refused_or(load, path)
        load_coco_json(str(path), str(folder / "images"))

    def tags_of(path: Path) -> None:
        tags_from_coco(path, difficult=True)
        read_true_boxes(path, read_tags(folder / "tags.json"))

    return read


def _load_all(path: Path) -> None:
    file = load_annotations(path)
    for image_id, rows in file.instances.items():
        image = file.images[image_id]
        for row in rows:
            if row.get("segmentation"):
                rle = file.mask_rle(row, "fuzzing")
                check_rle(rle, image.height, image.width)


def listed(findings: Iterable[Any]) -> list[Any]:
    """The findings of a doctor, who never stops at a fault."""
    try:
        return list(findings)
    except Exception as error:
        raise AssertionError(f"the doctor stopped: {error!r}") from error


def _refused_or(read: Read, path: Path) -> None:
    """Read; go on where that is refused in the way that is documented."""
    try:
        read(path)
    except Exception as error:
        if not is_documented(error, path):
            raise


def split(folder: Path) -> Read:
    settings = SplitSettings(images=(1,), stratify=True, points="inside")
    return lambda path: split_coco(CocoFile(path, skip_invalid=True), folder, settings)


def segmentations(folder: Path) -> Read:
    """Files {"size": [height, width], "segmentation": ...}: masks alone, so many in a second."""

    def read(path: Path) -> None:
        try:
            content = json.loads(path.read_bytes())
            (height, width), segmentation = content["size"], content["segmentation"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return  # no JSON of this form, which no reader looks at
        check_image_size(height, width)
        rle = segmentation_rle(segmentation, height, width)
        check_segmentation(segmentation, height, width)
        check_rle(rle, height, width)
        if height * width <= DRAWN:
            check_rle(encode_mask(decode_mask(segmentation, height, width)), height, width)
            for rule in POINT_RULES.values():
                x, y = mask_point(segmentation, height, width, rule, np.random.default_rng(0))
                assert 0 <= x <= width - 1 and 0 <= y <= height - 1, (x, y)

    return read


def check_rle(rle: dict[str, Any], height: int, width: int) -> None:
    """Both ways to count a mask's pixels agree, and so does the drawn mask."""
    runs = Runs.of(rle)
    text = rle["counts"]
    area = int(mask_utils.area(rle | {"counts": text.encode() if isinstance(text, str) else text}))
    assert 0 <= runs.area <= height * width and runs.area == area, (runs.area, area)
    if height * width <= DRAWN:
        mask = decode_mask(rle, height, width)
        assert mask.shape == (height, width) and int(mask.sum()) == area


def records(folder: Path) -> Read:
    beside(folder)
    whole = load_annotations(folder / "all.json")
    tags = read_tags(folder / "tags.json")
    names = {1: "box", 5: "disc"}

    def read(path: Path) -> None:
        for use in (rows, detections, evaluate, merge):
            _refused_or(use, path)

    def rows(path: Path) -> None:
        for _, record in read_records(path, whole):
            for row in record["instances"]:
                size = record["height"], record["width"]
                check_rle(segmentation_rle(row["segmentation"], *size), *size)

    def detections(path: Path) -> None:
        read_detections(path, tags)

    def evaluate(path: Path) -> None:
        if path.suffix == ".jsonl":
            evaluate_labels(load_images(path, folder / "all.json"), names, str(path))

    def merge(path: Path) -> None:
        if path.suffix == ".jsonl":
            weak = folder / "weak.json"
            merge_labels(folder / "strong.json", path, folder / "out.json", weak)

    return read


def importers(folder: Path) -> Read:
    images = beside(folder) / "images"

    def points(form: str) -> Read:
        def read(path: Path) -> None:
            for skip in (True, False):
                import_file(path, format=form, image_root=images, skip_invalid=skip)

        return read

    forms = ("csv", "labelme", "cvat", "labelstudio", "coco-keypoints")
    return by_form(
        {form: points(form) for form in forms}
        | {
            "bdd": lambda path: convert_bdd100k(images, polygons=path),
            "voc": lambda path: read_voc_annotation(str(path)),
            "list": lambda path: read_image_set(str(path)),
            "tagscsv": lambda path: tags_from_csv(path, images),
            "tags": read_tags,
            "classes": read_classes_json,
        }
    )


def arrays(folder: Path) -> Read:
    beside(folder)
    images = read_images(folder / "tags.json")

    def proposals(path: Path) -> None:
        for use in (read_proposal_file, lambda p: read_proposal_file(p, images), dataset):
            _refused_or(use, path)

    def dataset(path: Path) -> None:
        dicts = [{"image_id": 1}, {"image_id": 2}]
        for entry in load_proposals_into_dataset(dicts, str(path)):
            assert entry["proposal_boxes"].shape[1:] == (4,)

    return by_form(
        {
            "proposals": proposals,
            "results": lambda path: read_proposals(str(path)),
            "points": read_points,
            "shard": read_shard,
            "arrays": lambda path: read_npz(path, ("a",), "arrays"),
        }
    )


def pickles(folder: Path) -> Read:
    beside(folder)
    images = read_images(folder / "tags.json")
    model = torch.nn.Linear(2, 2)

    def zoo(path: Path) -> None:
        DetectionCheckpointer(model).load(str(path))

    return by_form(
        {
            "arrays": lambda path: read_array_pickle(str(path)),
            "released": lambda path: read_released(path, images),
            "zoo": zoo,
        }
    )


def configs(folder: Path) -> Read:
    beside(folder)
    return lambda path: load_config(str(path), num_gpus=0)


def checkpoints(folder: Path) -> Read:
    model = torch.nn.Linear(2, 2)

    def detector(path: Path) -> None:
        DetectionCheckpointer(model).load(str(path))
        for value in model.state_dict().values():
            assert value.shape in ((2, 2), (2,))
            value.sum()

    def refiner(path: Path) -> None:
        for value in load_checkpoint(path).model_state.values():
            value.double().sum()

    return by_form({"detector": detector, "refiner": refiner, "classifier": load_classifier})


def images(folder: Path) -> Read:
    def read(path: Path) -> None:
        size = image_size_hw(path, path.name)
        if size[0] * size[1] <= DRAWN:
            read_image(path, size)

    return read


def state(folder: Path) -> Read:
    """What unfinished runs leave: markers, settings, parts, manifests; and cards of models."""
    place = beside(folder) / "place"
    place.mkdir()

    def settings(path: Path) -> None:
        _in_parts(path, "settings.json")

    def part(path: Path) -> None:
        _in_parts(path, "rank0of1.jsonl")

    def _in_parts(path: Path, name: str) -> None:
        # The name of the input is that of the output, so that messages name it.
        shards = RecordShards(place / path.name, {"a": 1})
        shards.folder.mkdir(exist_ok=True)
        (shards.folder / name).write_bytes(path.read_bytes())
        try:
            shards.open()
            shards.finished_ids()
            shards.merge([1, 2])
        finally:
            shards.remove()

    def manifest(path: Path) -> None:
        claim(path, {"a": 1}, f"what {path.name} says")

    def card(path: Path) -> None:
        (place / CARD).write_bytes(path.read_bytes())
        try:
            read_card(place)
        except ValueError as error:
            assert CARD in str(error), error

    return by_form(
        {
            "marker": read_marker,
            "settings": settings,
            "part": part,
            "manifest": manifest,
            "bare_card": card,
        }
    )


TARGETS = {
    target.name: target
    for target in (
        Target("annotations", annotations, tokens.COCO),
        Target("split", split, tokens.COCO, share=4),
        Target("segmentations", segmentations, tokens.RLE, share=30),
        Target("records", records, tokens.COCO),
        Target("importers", importers, tokens.XML, share=15),
        Target("arrays", arrays, tokens.NPY),
        Target("pickles", pickles, tokens.PICKLE, share=20),
        Target("configs", configs, tokens.YAML, share=3),
        Target("checkpoints", checkpoints, tokens.PICKLE, share=6),
        Target("images", images, share=5),
        Target("state", state, tokens.COCO),
    )
}
