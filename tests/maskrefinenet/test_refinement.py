import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_api

from maskrefinenet import MaskRefineNet, MaskRefiner
from maskrefinenet.__main__ import main
from maskrefinenet.checkpoint import NetworkConfig, load_checkpoint, network_content
from maskrefinenet.crops import CropBox
from maskrefinenet.pipeline import GROUP_IMAGES, GROUP_INSTANCES, make_groups
from maskrefinenet.predictions import read_predictions
from maskrefinenet.refiner import paste
from tests.golden.inputs import fill_state_dict
from weaklabels.coco import load_annotations
from weaklabels.evaluate import records_ap
from weaklabels.files import dumps
from weaklabels.masks import decode_mask, encode_mask, mask_fields

ROOT = Path(__file__).resolve().parents[2]
CATEGORIES = ({"id": 1, "name": "a"}, {"id": 13, "name": "b"})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Seeded weights that find something in every crop."""
    model = fill_state_dict(MaskRefineNet(2, encoder="resnet18"))
    path = tmp_path_factory.mktemp("model") / "last.pth"
    config = NetworkConfig(2, encoder="resnet18", size=64)
    torch.save(network_content(model.state_dict(), config, CATEGORIES), path)
    return path


@pytest.fixture
def weak(tinycoco, tmp_path) -> Path:
    """40 images, copies of one, with the same three instances; one image has none."""
    annotations = load_annotations(tinycoco / "instances_train2017_tiny_w.json")
    (record,) = read_predictions(tinycoco / "pred_weak.json", annotations)
    lines = []
    for number in range(40):
        name = f"{number}.jpg"
        shutil.copy(tinycoco / record["file_name"], tmp_path / name)
        instances = [] if number == 7 else record["instances"][: 1 + number % 3]
        row = {**record, "image_id": number, "file_name": name, "instances": instances}
        lines.append(dumps(row) + "\n")
    path = tmp_path / "weak.jsonl"
    path.write_text("".join(lines))
    return path


def refine(checkpoint: Path, weak: Path, out: Path, *extra: str) -> list[str]:
    return [
        *("refine", "--checkpoint", str(checkpoint), "--predictions", str(weak)),
        *("--image-root", str(weak.parent), "--out", str(out), "--device", "cpu", *extra),
    ]


def test_refinement_equals_the_reference(reference_network, golden, golden_folder, tinycoco):
    """Seeded weights at 128 x 128; the third instance keeps its prior. Boxes there are short."""
    annotations = load_annotations(tinycoco / "instances_train2017_tiny_w.json")
    (record,) = read_predictions(tinycoco / "pred_weak.pth", annotations)
    image, rows = golden["decoded_632"], record["instances"]
    refiner = MaskRefiner(reference_network, size=128)
    masks = np.stack([decode_mask(row["segmentation"], *image.shape[:2]) for row in rows])
    points = np.array([row["point"] for row in rows])
    classes = np.array([annotations.category_ids.index(row["category_id"]) for row in rows])
    refined = refiner.refine(image, masks, points, classes)
    assert refined.dtype == bool and refined.shape == masks.shape
    recorded = json.loads((golden_folder / "mrn_refined.json").read_text())
    for mask, row in zip(refined, recorded, strict=True):
        want = mask_api.decode(row["segmentation"]).astype(bool)
        assert (mask & want).sum() / (mask | want).sum() > 0.99
        x, y, w, h = row["bbox"]  # of the reference: one pixel short
        assert mask_fields(encode_mask(mask))["bbox"] == [x, y, w + 1, h + 1]


def test_refine_twice_is_byte_identical_and_keeps_what_it_must(checkpoint, weak, tmp_path):
    outs = [tmp_path / f"{name}.jsonl" for name in "ab"]
    assert main(refine(checkpoint, weak, outs[0])) == 0
    assert main(refine(checkpoint, weak, outs[1], "--workers", "1")) == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()
    before, after = list(read_predictions(weak)), list(read_predictions(outs[0]))
    assert [r["image_id"] for r in after] == list(range(40))
    changed = 0
    for old, new in zip(before, after, strict=True):
        for a, b in zip(old["instances"], new["instances"], strict=True):
            for key in ("category_id", "point", "score"):
                assert a[key] == b[key]
            mask = decode_mask(b["segmentation"], 100, 140)
            assert b["area"] == mask.sum() > 0
            changed += a["segmentation"] != b["segmentation"]
    assert changed > 40
    assert not list(tmp_path.glob("*.part"))


def test_records_equal_the_library_call(checkpoint, weak, tmp_path, golden):
    assert main(refine(checkpoint, weak, tmp_path / "out.jsonl")) == 0
    old, new = (list(read_predictions(p))[2]["instances"] for p in (weak, tmp_path / "out.jsonl"))
    refined = MaskRefiner.load(checkpoint).refine(
        golden["decoded_632"],
        np.stack([decode_mask(row["segmentation"], 100, 140) for row in old]),
        np.array([row["point"] for row in old]),
        np.array([[1, 13].index(row["category_id"]) for row in old]),
    )
    for mask, row in zip(refined, new, strict=True):
        other = decode_mask(row["segmentation"], 100, 140).astype(bool)
        assert (mask & other).sum() / (mask | other).sum() > 0.99


def test_a_cut_part_is_continued_to_the_same_bytes(checkpoint, weak, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert main(refine(checkpoint, weak, whole)) == 0
    foreground, calls = MaskRefiner.foreground, []

    def killed(self, crops):
        calls.append(len(crops))
        if len(calls) == 5:
            raise SystemError("killed")
        return foreground(self, crops)

    monkeypatch.setattr(MaskRefiner, "foreground", killed)
    with pytest.raises(SystemError):
        main(refine(checkpoint, weak, out))
    monkeypatch.undo()
    (part,) = tmp_path.glob("out.jsonl.rank0of1.part")
    content = part.read_bytes()
    assert 1 < content.count(b"\n") < 40
    part.write_bytes(content[:-30])  # a line cut by the kill
    assert main(refine(checkpoint, weak, out)) == 0
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_kill_9_and_the_same_command_again(checkpoint, weak, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    options = ("--batch-size", "1", "--workers", "1")
    assert main(refine(checkpoint, weak, whole, *options)) == 0
    command = [sys.executable, "-m", "maskrefinenet", *refine(checkpoint, weak, out, *options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in this process
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    part, deadline = tmp_path / "out.jsonl.rank0of1.part", time.monotonic() + 120
    while not (part.exists() and part.read_bytes().count(b"\n") > 2):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists() and part.exists()
    assert main(refine(checkpoint, weak, out, *options)) == 0
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_two_processes_write_the_same_bytes_as_one(checkpoint, weak, tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert main(refine(checkpoint, weak, one)) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, "-m", "maskrefinenet", *refine(checkpoint, weak, two)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=300)
    assert two.read_bytes() == one.read_bytes()
    assert not list(tmp_path.glob("*.part"))


def test_parts_of_something_else_are_refused(checkpoint, weak, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    part = tmp_path / "out.jsonl.rank0of1.part"
    part.write_text('{"made_from": {}}\n')
    assert main(refine(checkpoint, weak, out)) == 2
    assert "was made from another checkpoint" in capsys.readouterr().err
    part.rename(tmp_path / "out.jsonl.rank0of4.part")
    assert main(refine(checkpoint, weak, out)) == 2
    assert "another number of processes than 1" in capsys.readouterr().err


def test_unreadable_images_are_reported_left_out_and_retried(checkpoint, weak, tmp_path, capsys):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert main(refine(checkpoint, weak, whole)) == 0
    image = tmp_path / "5.jpg"
    content = image.read_bytes()
    image.unlink()
    (tmp_path / "6.jpg").write_text("no image")
    assert main(refine(checkpoint, weak, out)) == 1
    told = capsys.readouterr().out
    assert "2 images are left out" in told
    assert "5.jpg: no readable image" in told and "6.jpg: cannot be read" in told
    assert [r["image_id"] for r in read_predictions(out)] == [
        i for i in range(40) if i not in (5, 6)
    ]
    image.write_bytes(content)
    (tmp_path / "6.jpg").write_bytes(content)
    assert main(refine(checkpoint, weak, out)) == 0
    assert [r["image_id"] for r in read_predictions(out)] == list(range(40))


def test_empty_priors_and_empty_results(golden, checkpoint):
    """An empty prior is refined around its point; an empty result keeps the prior."""
    image = golden["decoded_632"]
    refiner = MaskRefiner.load(checkpoint)
    empty = np.zeros((1, *image.shape[:2]), dtype=bool)
    points, classes = np.array([[70.0, 50.0]]), np.array([0])
    assert refiner.refine(image, empty, points, classes).any()
    assert refiner.refine(image, empty[:0], points[:0], classes[:0]).shape == (0, 100, 140)
    prior = empty.copy()
    prior[0, 40:60, 50:90] = True
    refiner.model.head.bias.data[:] = torch.tensor([9.0, -9.0])
    assert (refiner.refine(image, prior, points, classes) == prior).all()


def test_kept_priors_are_marked_and_counted(checkpoint, weak, tmp_path, capsys):
    content = torch.load(checkpoint, weights_only=True)
    content["model_state"]["head.bias"] = torch.tensor([9.0, -9.0])
    torch.save(content, tmp_path / "nothing.pth")
    out = tmp_path / "out.jsonl"
    assert main(refine(tmp_path / "nothing.pth", weak, out)) == 0
    instances = [row for record in read_predictions(out) for row in record["instances"]]
    assert f"{len(instances)} kept their prior mask" in capsys.readouterr().out
    assert all(row["kept_prior"] for row in instances)


def test_groups_depend_on_the_records_alone():
    records = [{"instances": [0] * n} for n in (1, 1, 70, 3, *[0] * 20, 63, 1, 5)]
    sizes = [len(group) for group in make_groups(records)]
    assert sizes == [3, GROUP_IMAGES, 7, 1] and GROUP_INSTANCES == 64


def test_paste_is_none_without_foreground():
    assert paste(np.full((8, 8), 0.5, np.float32), CropBox(1, 1, 3, 3), (5, 5)) is None
    mask = paste(np.ones((8, 8), np.float32), CropBox(1, 1, 3, 4), (6, 5))
    assert mask.sum() == 12 and mask[1:5, 1:4].all()


def test_wrong_arguments_are_named(checkpoint, weak, tmp_path, golden, capsys):
    refiner = MaskRefiner.load(checkpoint)
    image, mask = golden["decoded_632"], np.ones((1, 100, 140), dtype=bool)
    with pytest.raises(ValueError, match="expected .H, W, 3. uint8"):
        refiner.refine(image[..., 0], mask, np.zeros((1, 2)), np.zeros(1))
    with pytest.raises(ValueError, match="1 masks need points"):
        refiner.refine(image, mask, np.zeros((2, 2)), np.zeros(1))
    with pytest.raises(ValueError, match="class 2; the network has 2"):
        refiner.refine(image, mask, np.zeros((1, 2)), np.array([2]))
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        load_checkpoint(tmp_path / "nowhere.pth")
    torch.save({"model": {}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth: expected a MaskRefineNet checkpoint"):
        load_checkpoint(tmp_path / "other.pth")
    text = weak.read_text().replace('"category_id":13', '"category_id":14')
    weak.write_text(text)
    assert main(refine(checkpoint, weak, tmp_path / "out.jsonl")) == 2
    assert "category 14 is none of the network's 2" in capsys.readouterr().err


def test_a_bare_checkpoint_tells_its_architecture(tmp_path):
    """The reference saves no more than its weights."""
    for encoder, agnostic in (("resnet18", False), ("resnet50", True)):
        model = MaskRefineNet(5, encoder=encoder, class_agnostic=agnostic)
        path = tmp_path / "bare.pth"
        state = {f"module.{key}": value for key, value in model.state_dict().items()}
        torch.save({"model_state": state, "epoch": 1, "last_itr": 2, "best_AP": 3.0}, path)
        loaded = load_checkpoint(path)
        assert loaded.config.encoder == encoder and loaded.config.class_agnostic == agnostic
        assert loaded.config.num_classes == (1 if agnostic else 5) and loaded.categories is None
        loaded.build()


@pytest.mark.parametrize("module", ["numpy._core.multiarray", "numpy.core.multiarray"])
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_numpy_figures_in_a_checkpoint_are_read(tmp_path, module, kind):
    """The reference stores `best_AP` as numpy gave it, under the name of that numpy's module."""
    content = {"model_state": MaskRefineNet(2, encoder="resnet18").state_dict(), "best_AP": kind(3)}
    path = tmp_path / "released.pth"
    torch.save(content, path, _use_new_zipfile_serialization=False)  # pickled as it stands
    here = kind(3).__reduce__()[0].__module__.encode()
    written = path.read_bytes()
    assert here + b"\nscalar" in written
    path.write_bytes(written.replace(here + b"\nscalar", module.encode() + b"\nscalar"))
    assert load_checkpoint(path).content["best_AP"] == 3


@pytest.mark.parametrize(
    "junk", [b"", b"junk", b"<html>quota</html>", b"\x80\x02.", b"PK\x03\x04 cut off", b"h\x00."]
)
def test_junk_in_place_of_a_checkpoint_is_named(weak, tmp_path, capsys, junk):
    path = tmp_path / "junk.pth"
    path.write_bytes(junk)
    assert main(refine(path, weak, tmp_path / "out.jsonl")) == 2
    assert "junk.pth: cannot be read" in capsys.readouterr().err


def test_checkpoints_of_something_else_are_named(tmp_path):
    path = tmp_path / "other.pth"
    for content in ({"model_state": 3}, {"model_state": [1]}, {"model_state": {}}, [1]):
        torch.save(content, path)
        with pytest.raises(ValueError, match="other.pth: .*MaskRefineNet"):
            load_checkpoint(path)


def test_evaluation_of_the_truth_is_perfect(tinycoco):
    annotations = load_annotations(tinycoco / "instances_train2017_tiny_w.json")
    rows = [
        {"category_id": row["category_id"], "segmentation": encode_mask(mask)}
        for row in annotations.instances[632]
        for mask in [decode_mask(row["segmentation"], 100, 140)]
    ]
    records = [{"image_id": 632, "instances": rows}]
    assert records_ap(records, annotations)["AP"] == pytest.approx(100)
    assert records_ap([{"image_id": 632, "instances": []}], annotations)["AP"] == 0
    del annotations.instances[632][0]["segmentation"]
    with pytest.raises(ValueError, match="has no mask; evaluation needs masks"):
        records_ap(records, annotations)
