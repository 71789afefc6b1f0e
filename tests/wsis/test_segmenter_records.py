"""Records that a segmenter makes of points, or redraws: the format, resuming, bad input."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.weaksam.samples import BlockSegmenter, make_dataset
from weaklabels.masks import decode_mask
from weaklabels.merge import merge_labels
from weaklabels.pictures import read_image
from weaklabels.records import read_records
from weaksam.mask_prompts import refined_masks
from weaksam.segmenters.protocol import MaskBatch
from weaksam.segmenters.spec import load_segmenter
from weaksam.segmenters.tiny import TinySegmenter
from wsis.cli.main import program
from wsis.pseudo_labels import point_masks as module
from wsis.refine import RefineSettings

pytestmark = pytest.mark.usefixtures("one_thread")
KEYS = {"category_id", "score", "bbox", "area", "point", "segmentation"}


@pytest.fixture
def weak(tmp_path) -> Path:
    """weak.json beside images/: images 1 to 4 of 40 to 52 x 56 pixels with 2, 1, 0 and 3 points."""
    path, _ = make_dataset(tmp_path)
    content = json.loads(path.read_text())
    points = [(1, 7, [20, 15]), (1, 9, [40.4, 30.2]), (2, 9, [3, 20])]
    points += [(4, 7, [56, 52]), (4, 7, [30, 25]), (4, 9, [31, 25])]
    content["annotations"] = [
        {"id": number, "image_id": image, "category_id": category, "point": point}
        for number, (image, category, point) in enumerate(points, start=1)
    ]
    content["categories"] = [{"id": number, "name": f"class {number}"} for number in (7, 9)]
    (tmp_path / "weak.json").write_text(json.dumps(content))
    return tmp_path / "weak.json"


def point_masks(weak: Path, *extra: str, output: str = "weak.jsonl") -> int:
    files = ["--annotations", weak, "--image-root", weak.parent / "images"]
    files += ["--output", weak.parent / output, "--num-gpus", "0"]
    return program("point-masks", [*map(str, files), *extra])


def refine(weak: Path, *extra: str, output: str, records: str = "weak.jsonl") -> int:
    files = ["--records", weak.parent / records, "--image-root", weak.parent / "images"]
    files += ["--output", weak.parent / output, "--num-gpus", "0"]
    return program("refine", [*map(str, files), "--refiner", "sam", *extra])


def records_of(path: Path) -> list[dict]:
    return [record for _, record in read_records(path)]


def test_points_become_records_of_their_own_class(weak, capsys, monkeypatch):
    monkeypatch.setattr(module, "load_segmenter", lambda *_: BlockSegmenter())
    assert point_masks(weak) == 0
    records = records_of(weak.parent / "weak.jsonl")
    assert [record["image_id"] for record in records] == [1, 2, 3, 4]
    assert [len(record["instances"]) for record in records] == [2, 0, 0, 3]
    for record in records:
        for row in record["instances"]:
            assert row.keys() == KEYS and row["score"] == pytest.approx(0.7)  # the best of three
            mask = decode_mask(row["segmentation"], record["height"], record["width"])
            y, x = np.nonzero(mask)
            assert row["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
            assert row["area"] == mask.sum()
    first, border = records[0]["instances"], records[3]["instances"][0]
    assert [(row["category_id"], row["point"]) for row in first] == [
        (7, [20, 15]),
        (9, [40.4, 30.2]),
    ]
    assert first[0]["area"] == 17 * 17
    assert border["point"] == [55, 51]  # the center of the last pixel
    lost = json.loads((weak.parent / "weak.unmatched.json").read_text())
    assert lost["counts"] == [{"category_id": 9, "reason": "empty", "count": 1}]
    assert "points without a mask: 1 of class 9 (empty)" in capsys.readouterr().out
    assert point_masks(weak) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_only_point_and_class_of_an_annotation_are_read(weak):
    """What a weak file hides must not matter: masks, boxes and areas next to a point."""
    assert point_masks(weak) == 0
    content = json.loads(weak.read_text())
    for annotation in content["annotations"]:
        annotation |= {"segmentation": [[0, 0, 5, 0, 5, 5]], "bbox": "hidden", "area": -1}
    weak.write_text(json.dumps(content))
    assert point_masks(weak, output="again.jsonl") == 0
    again = (weak.parent / "again.jsonl").read_bytes()
    assert again == (weak.parent / "weak.jsonl").read_bytes()


def test_masks_without_a_point_are_prompted_at_their_center(weak, monkeypatch):
    monkeypatch.setattr(module, "load_segmenter", lambda *_: BlockSegmenter())
    content = json.loads(weak.read_text())
    square = {"segmentation": [[10, 10, 21, 10, 21, 17, 10, 17]], "iscrowd": 0}
    content["annotations"] = [{"id": 1, "image_id": 1, "category_id": 7} | square]
    content["annotations"].append(content["annotations"][0] | {"id": 2, "iscrowd": 1})
    weak.write_text(json.dumps(content))
    assert point_masks(weak) == 0
    (row,) = records_of(weak.parent / "weak.jsonl")[0]["instances"]
    assert row["point"] == pytest.approx([15, 13])


def test_the_refiner_redraws_masks_and_keeps_the_rest(weak, capsys):
    assert point_masks(weak) == 0
    assert refine(weak, output="sam.jsonl") == 0
    before, after = (records_of(weak.parent / f"{name}.jsonl") for name in ("weak", "sam"))
    segmenter, changed = load_segmenter("tiny", "cpu"), 0
    for old, new in zip(before, after, strict=True):
        assert {**old, "instances": 0} == {**new, "instances": 0}
        size = old["height"], old["width"]
        rough = [decode_mask(row["segmentation"], *size).astype(bool) for row in old["instances"]]
        if not rough:
            continue
        image = read_image(weak.parent / "images" / old["file_name"], size)
        points = np.array([row["point"] for row in old["instances"]])
        want = refined_masks(segmenter, image, np.stack(rough), points)
        for a, b, mask in zip(old["instances"], new["instances"], want, strict=True):
            assert b.keys() - {"kept_prior"} == a.keys()
            assert all(a[key] == b[key] for key in ("category_id", "score", "point"))
            redrawn = decode_mask(b["segmentation"], *size).astype(bool)
            if mask.any():
                np.testing.assert_array_equal(redrawn, mask)
            else:
                assert b["kept_prior"]
            changed += a["segmentation"] != b["segmentation"]
    assert changed > 2


@pytest.mark.parametrize("command", ["point-masks", "refine"])
def test_a_killed_run_goes_on_to_the_same_bytes(weak, monkeypatch, command):
    assert point_masks(weak) == 0
    run = point_masks if command == "point-masks" else refine
    assert run(weak, output="whole.jsonl") == 0
    encode, calls = TinySegmenter.encode, []

    def killed(self, image):
        calls.append(1)
        if len(calls) == 2:
            raise SystemError("killed")
        return encode(self, image)

    monkeypatch.setattr(TinySegmenter, "encode", killed)
    with pytest.raises(SystemError):
        run(weak, output="killed.jsonl")
    monkeypatch.undo()
    part = weak.parent / "killed.jsonl.parts" / "rank0of1.jsonl"
    assert part.read_bytes().count(b"\n") == 1
    part.write_bytes(part.read_bytes() + b'{"image_id": 2, "fil')  # a line cut by the kill
    assert run(weak, "--segmenter", "tiny", output="killed.jsonl") == 0
    whole = (weak.parent / "whole.jsonl").read_bytes()
    assert (weak.parent / "killed.jsonl").read_bytes() == whole


def test_parts_of_another_segmenter_are_not_continued(weak, capsys):
    assert point_masks(weak) == 0
    (weak.parent / "images" / "000004.png").rename(weak.parent / "elsewhere.png")
    assert refine(weak, output="sam.jsonl") == 1  # the parts stay
    assert "000004.png" in capsys.readouterr().out
    assert refine(weak, "--segmenter", "grabcut", output="sam.jsonl") == 2
    assert "unfinished run with other settings (network: 'tiny side" in capsys.readouterr().err
    assert point_masks(weak, output="points.jsonl") == 1
    told = capsys.readouterr().err
    assert "not read: " in told and "000004.png" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--segmenter", "grabcut"],
            "takes boxes only; masks of points need one that takes clicks",
        ),
        (["--segmenter", "clicks"], "segmenter 'clicks'; expected one of tiny"),
        (
            ["--segmenter", "segment_anything:vit_h:sam.pth"],
            "sam.pth: no such file. Download https://dl.fbaipublicfiles.com/segment_anything/"
            "sam_vit_h_4b8939.pth (2.6 GB) and give it that name and place",
        ),
        (["--output", "masks.json"], "records are written as .jsonl"),
        (["--annotations", "nowhere.json"], "nowhere.json: no such file"),
    ],
)
def test_points_are_refused_with_a_remedy(weak, capsys, words, message):
    assert point_masks(weak, *words) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not list(weak.parent.glob("weak.jsonl*"))


@pytest.mark.parametrize(
    ("point", "message"),
    [([99, 2], "point is outside"), ([1], "not [x, y]"), (None, "no point and no mask")],
)
def test_points_that_cannot_be(weak, capsys, point, message):
    content = json.loads(weak.read_text())
    content["annotations"][3]["point"] = point
    weak.write_text(json.dumps(content))
    assert point_masks(weak) == 2
    error = capsys.readouterr().err
    assert "weak.json: annotation id 4: " in error and message in error


def test_options_of_the_other_refiner_are_refused(tmp_path, weak, capsys):
    make = partial(RefineSettings, weak, image_root=tmp_path, output=tmp_path / "out.jsonl")
    with pytest.raises(ValueError, match="maskrefinenet needs --weights"):
        make(weights=None)
    with pytest.raises(ValueError, match="w.pth: --refiner sam takes its network from --segmenter"):
        make(weights=tmp_path / "w.pth", refiner="sam")
    for own in ({"segmenter": "tiny"}, {"download": True}):
        with pytest.raises(ValueError, match="are for --refiner sam"):
            make(weights=tmp_path / "w.pth", **own)
    assert point_masks(weak) == 0
    assert refine(weak, "--batch-size", "0", output="sam.jsonl") == 2
    assert "batch_size=0" in capsys.readouterr().err


def test_masks_of_boxes_are_refined_and_become_labels(weak, tmp_path):
    """WeakSAM's masks: a COCO file in, records out, and from them a COCO file again."""
    content = json.loads(weak.read_text())
    for annotation, box in zip(content["annotations"], [[12, 8, 20, 14]] * 6, strict=True):
        del annotation["point"]
        annotation |= {"bbox": box, "score": 0.25, "iscrowd": 0}
    boxes, masks = tmp_path / "boxes.json", tmp_path / "masks.json"
    boxes.write_text(json.dumps(content))
    words = ["--boxes", boxes, "--image-root", tmp_path / "images", "--output", masks]
    assert program("box-masks", [*map(str, words), "--num-gpus", "0"]) == 0
    assert refine(weak, records="masks.json", output="refined.jsonl") == 0
    made, records = json.loads(masks.read_text()), records_of(tmp_path / "refined.jsonl")
    assert [record["image_id"] for record in records] == [1, 2, 3, 4]
    rows = [row for record in records for row in record["instances"]]
    assert len(rows) == len(made["annotations"]) > 2
    for row, annotation in zip(rows, made["annotations"], strict=True):
        assert row["score"] == 0.25 and row["category_id"] == annotation["category_id"]
    labels = tmp_path / "labels.json"
    counts = merge_labels(None, tmp_path / "refined.jsonl", labels, weak_path=masks)
    assert (counts.strong, counts.strong_images, counts.pseudo) == (0, 0, len(rows))
    found = json.loads(labels.read_text())
    assert found["images"] == made["images"] and found["categories"] == made["categories"]
    assert [a["segmentation"] for a in found["annotations"]] == [r["segmentation"] for r in rows]
    with pytest.raises(ValueError, match="categories are not known: give --weak-annotations"):
        merge_labels(None, tmp_path / "refined.jsonl", tmp_path / "other.json")


def test_records_of_a_label_file_need_masks(weak, capsys):
    assert refine(weak, records="weak.json", output="refined.jsonl") == 2
    assert "weak.json: annotation id 1 has no mask" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("command", ["point-masks", "refine"])
def test_two_processes_write_the_same_bytes(weak, command):
    assert point_masks(weak) == 0
    run = point_masks if command == "point-masks" else refine
    for processes in ("1", "2"):
        assert run(weak, "--num-processes", processes, output=f"{processes}.jsonl") == 0
    assert (weak.parent / "1.jsonl").read_bytes() == (weak.parent / "2.jsonl").read_bytes()


def test_the_best_mask_is_not_an_empty_one():
    masks = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    masks[0, 1:, 1, 1] = True
    batch = MaskBatch(torch.arange(2), masks, torch.tensor([[0.9, 0.3, 0.5]] * 2), torch.ones(2, 3))
    found, scores = batch.best()
    assert scores.tolist() == pytest.approx([0.5, 0.9]) and found[0].any() and not found[1].any()
