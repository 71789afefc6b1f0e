"""Refinement: the same bytes however it is run, interrupted or shared; other refiners; messages."""

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from maskrefinenet import MaskRefineNet, MaskRefiner
from maskrefinenet.checkpoint import NetworkConfig, network_content
from maskrefinenet.predictions import read_predictions
from tests.golden.inputs import fill_state_dict
from weaklabels.coco import load_annotations
from weaklabels.files import dumps
from weaklabels.masks import decode_mask
from wsis.cli.main import program
from wsis.launcher import Job
from wsis.refine import REFINERS, Refiner, RefineSettings
from wsis.refine import refine as refine_file

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[2]
TINYCOCO = ROOT / "tests" / "golden" / "mrn_tinycoco"
CATEGORIES = ({"id": 1, "name": "a"}, {"id": 13, "name": "b"})
main = partial(program, "refine")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Seeded weights that find something in every crop."""
    model = fill_state_dict(MaskRefineNet(2, encoder="resnet18"))
    path = tmp_path_factory.mktemp("model") / "last.pth"
    config = NetworkConfig(2, encoder="resnet18", size=64)
    torch.save(network_content(model.state_dict(), config, CATEGORIES), path)
    return path


@pytest.fixture
def weak(tmp_path) -> Path:
    """40 images, copies of one, with the same three instances; one image has none."""
    annotations = load_annotations(TINYCOCO / "instances_train2017_tiny_w.json")
    (record,) = read_predictions(TINYCOCO / "pred_weak.json", annotations)
    lines = []
    for number in range(40):
        name = f"{number}.jpg"
        shutil.copy(TINYCOCO / record["file_name"], tmp_path / name)
        instances = [] if number == 7 else record["instances"][: 1 + number % 3]
        row = {**record, "image_id": number, "file_name": name, "instances": instances}
        lines.append(dumps(row) + "\n")
    path = tmp_path / "weak.jsonl"
    path.write_text("".join(lines))
    return path


def refine(checkpoint: Path, weak: Path, out: Path, *extra: str) -> list[str]:
    return [
        *("--weights", str(checkpoint), "--records", str(weak)),
        *("--image-root", str(weak.parent), "--output", str(out), "--num-gpus", "0", *extra),
    ]


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
    assert not list(tmp_path.glob("*.parts"))


def test_records_equal_the_library_call(checkpoint, weak, tmp_path):
    assert main(refine(checkpoint, weak, tmp_path / "out.jsonl")) == 0
    old, new = (list(read_predictions(p))[2]["instances"] for p in (weak, tmp_path / "out.jsonl"))
    refined = MaskRefiner.load(checkpoint).refine(
        image_of(weak, 2),
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
    part = tmp_path / "out.jsonl.parts" / "rank0of1.jsonl"
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
    command = [sys.executable, "-m", "wsis", "refine", *refine(checkpoint, weak, out, *options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in this process
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    part, deadline = tmp_path / "out.jsonl.parts" / "rank0of1.jsonl", time.monotonic() + 120
    while not (part.exists() and part.read_bytes().count(b"\n") > 2):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists() and part.exists()
    assert main(refine(checkpoint, weak, out, *options)) == 0
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_two_processes_of_torchrun_write_the_same_bytes_as_one(checkpoint, weak, tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert main(refine(checkpoint, weak, one)) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, "-m", "wsis", "refine", *refine(checkpoint, weak, two)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=300)
    assert two.read_bytes() == one.read_bytes()
    assert not list(tmp_path.glob("*.parts"))


def test_parts_of_something_else_are_refused(checkpoint, weak, tmp_path, capsys):
    out, image = tmp_path / "out.jsonl", tmp_path / "5.jpg"
    image.rename(tmp_path / "elsewhere.jpg")
    assert main(refine(checkpoint, weak, out)) == 1  # the parts stay
    capsys.readouterr()
    assert main(refine(checkpoint, weak, out, "--batch-size", "3")) == 2
    assert "unfinished run with other settings (batch_size: 16 then, 3 now)" in (
        capsys.readouterr().err
    )


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
    assert "5.jpg" in told and "6.jpg': it is no image" in told
    assert [r["image_id"] for r in read_predictions(out)] == [
        i for i in range(40) if i not in (5, 6)
    ]
    image.write_bytes(content)
    (tmp_path / "6.jpg").write_bytes(content)
    assert main(refine(checkpoint, weak, out)) == 0
    assert [r["image_id"] for r in read_predictions(out)] == list(range(40))


def test_kept_priors_are_marked_and_counted(checkpoint, weak, tmp_path, capsys):
    content = torch.load(checkpoint, weights_only=True)
    content["model_state"]["head.bias"] = torch.tensor([9.0, -9.0])
    torch.save(content, tmp_path / "nothing.pth")
    out = tmp_path / "out.jsonl"
    assert main(refine(tmp_path / "nothing.pth", weak, out)) == 0
    instances = [row for record in read_predictions(out) for row in record["instances"]]
    assert f"{len(instances)} kept their prior mask" in capsys.readouterr().out
    assert all(row["kept_prior"] for row in instances)


@pytest.mark.parametrize(
    "junk", [b"", b"junk", b"<html>quota</html>", b"\x80\x02.", b"PK\x03\x04 cut off", b"h\x00."]
)
def test_junk_in_place_of_a_checkpoint_is_named(weak, tmp_path, capsys, junk):
    path = tmp_path / "junk.pth"
    path.write_bytes(junk)
    assert main(refine(path, weak, tmp_path / "out.jsonl")) == 2
    assert "junk.pth: cannot be read" in capsys.readouterr().err


def image_of(weak: Path, number: int) -> np.ndarray:
    return cv2.imread(str(weak.parent / f"{number}.jpg"))[:, :, ::-1]


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["2", "4"])
def test_spawned_processes_write_the_same_bytes_as_one(checkpoint, weak, tmp_path, processes):
    one, more = tmp_path / "one.jsonl", tmp_path / "more.jsonl"
    assert main(refine(checkpoint, weak, one)) == 0
    assert main(refine(checkpoint, weak, more, "--num-processes", processes)) == 0
    assert one.read_bytes() == more.read_bytes()


@pytest.mark.slow
def test_another_number_of_processes_continues(checkpoint, weak, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert main(refine(checkpoint, weak, whole)) == 0
    image = tmp_path / "20.jpg"
    image.rename(tmp_path / "elsewhere.jpg")
    assert main(refine(checkpoint, weak, out, "--num-processes", "2")) == 1
    assert len(list((tmp_path / "out.jsonl.parts").glob("rank*of2.jsonl"))) == 2
    (tmp_path / "elsewhere.jpg").rename(image)
    assert main(refine(checkpoint, weak, out)) == 0
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_the_old_spelling_refines(checkpoint, weak, tmp_path):
    assert main(refine(checkpoint, weak, tmp_path / "new.jsonl")) == 0
    words = ["--checkpoint", str(checkpoint), "--predictions", str(weak), "--device", "cpu"]
    words += ["--image-root", str(weak.parent), f"--out={tmp_path / 'old.jsonl'}"]
    command = [sys.executable, "-m", "maskrefinenet", "refine", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert (tmp_path / "old.jsonl").read_bytes() == (tmp_path / "new.jsonl").read_bytes()


def test_a_complete_output_is_left_alone(checkpoint, weak, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    out.write_text("of the user")
    assert main(refine(checkpoint, weak, out)) == 0
    assert "nothing to do" in capsys.readouterr().out and out.read_text() == "of the user"


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_mistake_is_told_in_one_line(checkpoint, weak, tmp_path, capfd, processes):
    weak.write_text(weak.read_text().replace('"category_id":13', '"category_id":14'))
    words = refine(checkpoint, weak, tmp_path / "out.jsonl", "--num-processes", processes)
    assert main(words) == 2
    error = capfd.readouterr().err
    assert "Traceback" not in error
    line = error.splitlines()[-1]
    assert line.startswith("wsis refine: image ")
    assert "category 14 is none of the network's 2" in line


class Grown(Refiner):
    """A refiner of single images: masks grow by a pixel, those of class 1 are not found."""

    category_ids = (1, 13)

    @classmethod
    def load(cls, settings, device):
        return cls()

    def refine(self, image_rgb, masks, points, class_ids):
        kernel = np.ones((3, 3), np.uint8)
        grown = np.stack([cv2.dilate(mask.astype(np.uint8), kernel) for mask in masks]).astype(bool)
        grown[class_ids == 1] = False
        return grown, np.linspace(0.5, 1, len(masks))


def test_any_refiner_runs_in_the_driver(checkpoint, weak, tmp_path, monkeypatch):
    monkeypatch.setitem(REFINERS, "grown", Grown.load)
    (tmp_path / "9.jpg").unlink()
    settings = RefineSettings(weak, checkpoint, tmp_path, tmp_path / "out.jsonl", refiner="grown")
    report = refine_file(settings, Job(num_gpus=0))
    before, after = list(read_predictions(weak)), list(read_predictions(tmp_path / "out.jsonl"))
    assert (report.images, len(report.unreadable)) == (39, 1)
    assert [r["image_id"] for r in after] == [i for i in range(40) if i != 9]
    kept = 0
    for new in after:
        old = before[new["image_id"]]
        scores = np.linspace(0.5, 1, len(new["instances"])).tolist()
        assert [row["score"] for row in new["instances"]] == scores
        for a, b in zip(old["instances"], new["instances"], strict=True):
            want, mask = (decode_mask(row["segmentation"], 100, 140) for row in (a, b))
            if a["category_id"] == 13:
                assert b["kept_prior"] and (mask == want).all()
                kept += 1
            else:
                assert (mask == cv2.dilate(want, np.ones((3, 3), np.uint8))).all()
    assert report.kept_priors == kept > 0


def test_refining_an_image_equals_refining_records(checkpoint, weak, tmp_path):
    """MaskRefineNet's own way through groups agrees with the protocol's way through one image."""
    settings = RefineSettings(weak, checkpoint, tmp_path, tmp_path / "out.jsonl")
    network = REFINERS["maskrefinenet"](settings, torch.device("cpu"))
    records = list(read_predictions(weak))[:4]
    options = {"workers": 1, "category_ids": None}
    (group,) = network.refine_groups([records], tmp_path, **options)
    (single,) = Refiner.refine_groups(network, [records], tmp_path, **options)
    for one, other in zip(group.records, single.records, strict=True):
        for a, b in zip(one["instances"], other["instances"], strict=True):
            mask, twin = (decode_mask(row["segmentation"], 100, 140) for row in (a, b))
            assert (mask & twin).sum() / (mask | twin).sum() > 0.99


def test_settings_that_cannot_be_used_are_named(weak, tmp_path):
    make = partial(RefineSettings, weak, tmp_path / "w.pth", tmp_path)
    with pytest.raises(ValueError, match="refiner 'sam2'; expected one of maskrefinenet"):
        make(tmp_path / "out.jsonl", refiner="sam2")
    with pytest.raises(ValueError, match="written as .jsonl"):
        make(tmp_path / "out.json")
    with pytest.raises(ValueError, match="--workers 0; at least 1"):
        make(tmp_path / "out.jsonl", workers=0)
