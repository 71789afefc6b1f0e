"""Options, environment variables, folders and left-over files that no run can use."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bad_input.checks import refused
from tests.bad_input.world import KEPT, World, run

HOLD = """
import sys, time
from weaklabels.locks import output_lock
with output_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(100)
"""
OUTPUTS = {
    "merge": "merged.json",
    "evaluate-labels": "quality.json",
    "generate": "weak.jsonl",
    "refine": "refined.jsonl",
    "train": "train",
    "train-refiner": "refiner",
    "demo": "demo",
    "import-points": "imported.json",
    "convert-bdd100k": "bdd.json",
    "voc-to-coco": "voc.json",
    "split": "train_2i_s.json",
}


@pytest.mark.parametrize("program", OUTPUTS)
def test_a_second_run_on_the_same_output_names_the_first(world: World, capfd, program: str):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(world.out / OUTPUTS[program])],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        lock = next(world.out.glob(".*.lock"))
        message = refused_but_for(lock, world, program, capfd)
        assert f"process {holder.pid} on " in message
    finally:
        holder.kill()
        holder.wait()
    assert run(program, world.words(program)) == 0
    assert not list(world.folder.rglob("*.lock"))


def refused_but_for(lock: Path, world: World, program: str, capfd) -> str:
    """`refused`, where another process holds a lock, which stays."""
    capfd.readouterr()
    before = world.snapshot()
    assert run(program, world.words(program)) == 2
    after = world.snapshot()
    assert lock.exists() and all(after[name] == content for name, content in before.items())
    return capfd.readouterr().err


@pytest.mark.parametrize("program", OUTPUTS)
def test_an_output_below_a_file(world: World, capfd, program: str):
    words = [w.replace(f"{world.out}", f"{world.folder}/train.json") for w in world.words(program)]
    refused(world, program, capfd, "train.json", words=words)


@pytest.mark.parametrize(
    "program", ["merge", "generate", "refine", "train", "split", "train-refiner"]
)
def test_a_full_disk(world: World, capfd, program: str, monkeypatch):
    def fsync(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    refused(world, program, capfd, "No space left on device")


@pytest.mark.parametrize("program", ["generate", "refine"])
@pytest.mark.parametrize("content", ["", "[", "[]", "null", '{"a": 1}', "\x00"])
def test_damaged_settings_of_an_unfinished_run(world: World, capfd, program: str, content: str):
    parts = world.out / f"{OUTPUTS[program]}.parts"
    parts.mkdir()
    (parts / "settings.json").write_text(content)
    refused(world, program, capfd, parts.name)


@pytest.mark.parametrize("line", ["[]", "{}", "no json", '{"image_id": [], "instances": []}', "5"])
def test_damaged_parts_of_an_unfinished_run(world: World, capfd, line: str):
    assert run("generate", world.words("generate")) == 0
    done = (world.out / "weak.jsonl").read_bytes()
    (world.out / "weak.jsonl").unlink()
    world.edit("weak.json", lambda c: c["images"][0].update(file_name="nowhere.png"))
    assert run("generate", world.words("generate")) == 1  # leaves its parts
    part = next((world.out / "weak.jsonl.parts").glob("rank*.jsonl"))
    part.write_bytes(part.read_bytes() + line.encode() + b"\n")
    refused(world, "generate", capfd, part.name)
    assert done


OPTIONS = {
    "train": (
        ["--num-gpus", "x"],
        ["--num-gpus", "-1"],
        ["--num-processes", "0"],
        ["--machine-rank", "5"],
        ["--nothing"],
        ["--config-file", "nowhere.yaml"],
        ["SOLVER.MAX_ITER"],
        ["SOLVER.NOTHING", "5"],
        ["SOLVER.MAX_ITER", "many"],
        ["SOLVER.BASE_LR", "float('nan')"],
        ["DATASETS.TRAIN", "('nothing',)"],
        ["DATASETS.TRAIN", "('a=nowhere.json:images',)"],
        ["DATASETS.TRAIN", "('a b=strong.json:images',)"],
        ["DATASETS.TRAIN", "()"],
    ),
    "generate": (
        ["--prompt", "nothing"],
        ["--keep-unmatched", "nothing"],
        ["--dataset", "nothing"],
        ["--dataset", "a=nowhere.json:b"],
        ["--weights", "nowhere.pth"],
        ["--weights", ""],
        ["--num-gpus", "1"],
    ),
    "refine": (
        ["--batch-size", "0"],
        ["--workers", "0"],
        ["--output", "records.json"],
        ["--records", "nowhere.jsonl"],
        ["--refiner", "nothing"],
        ["--refiner", "sam"],  # with --weights
        ["--segmenter", "tiny"],
        ["--download"],
        ["--annotations", "nowhere.json"],
    ),
    "split": (
        ["--seed", "-1"],
        ["--fold", "99"],
        ["--points", "nothing"],
        ["--points", "jitter:nan"],
        ["--images", "0"],
        ["--images", "99"],
        ["--annotations", "nowhere.json"],
    ),
    "train-refiner": (
        ["--iterations", "0"],
        ["--batch-size", "0"],
        ["--batch-size", "1"],
        ["--noise", "2"],
        ["--color-jitter", "-1"],
        ["--size", "0"],
        ["--lr", "nan"],
        ["--workers", "-1"],
        ["--weights", "nowhere.pth"],
        ["--encoder", "nothing"],
        ["--amp"],
        ["--val-records", "nowhere.jsonl"],
    ),
    "merge": (["--min-score", "x"], ["--min-score", "nan"], ["--records", "nowhere.jsonl"]),
    "evaluate-labels": (["--sheet", "sheet.txt"], ["--sheet", "sheet.png"]),
    "demo": (
        ["--point", "1,2"],
        ["--point", "x,y,box"],
        ["--point", "nan,2,box"],
        ["--point", "999,2,box"],
        ["--point", "1,2,nothing"],
        ["--classes", "a,a"],
    ),
    "import-points": (
        ["--format", "nothing"],
        ["--categories", "x,y"],
        ["--image-root", "nowhere"],
    ),
    "convert-bdd100k": (["--image-root", "nowhere"],),
    "voc-to-coco": (["--split", "nothing"], ["--without", "nothing"], ["--voc", "nowhere"]),
}
CASES = [(program, options) for program, many in OPTIONS.items() for options in many]


@pytest.mark.parametrize(
    ("program", "options"), CASES, ids=lambda v: "_".join(v) if type(v) is list else v
)
def test_options_that_cannot_be_used(world: World, capfd, program: str, options: list[str]):
    words = world.words(program)
    keys = [i for i, w in enumerate(words) if w[0].isupper() and "." in w and "/" not in w]
    at = len(words) if options[0][0].isupper() or not keys else keys[0]
    words = [*words[:at], *options, *words[at:]]
    before = world.snapshot()
    code = run(program, words)
    err = capfd.readouterr().err
    assert code == 2, err[-1500:]
    assert "Traceback" not in err and "wsis " in err
    after = world.snapshot()
    assert all(after.get(name) == content for name, content in before.items())


@pytest.mark.parametrize(
    ("name", "value"),
    [("NUM_GPUS", "x"), ("NUM_GPUS", "-1"), ("NNODES", "x"), ("NNODES", "0"), ("MASTER_PORT", "x")],
)
def test_environment_of_a_recipe(world: World, capfd, monkeypatch, name: str, value: str):
    for key, text in (("NNODES", "2"), ("NODE_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(key, text)
    monkeypatch.setenv("NUM_GPUS", "0")
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("OUTPUT_DIR", str(world.out / "run"))
    assert run("pipeline", ["10p", "--dry-run"]) == 2
    assert f"{name}={value}" in capfd.readouterr().err


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"state": "finished"}', '{"state": 5}', '{"nothing": 1}', "x"]
)
def test_damaged_markers_of_a_run(world: World, capfd, monkeypatch, content: str):
    monkeypatch.setenv("NUM_GPUS", "0")
    monkeypatch.setenv("OUTPUT_DIR", str(world.out / "run"))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(world.folder / "datasets"))
    marker = world.out / "run" / "stages" / "split.json"
    marker.parent.mkdir(parents=True)
    marker.write_text(content)
    assert run("pipeline", ["10p"]) == 2
    err = capfd.readouterr().err
    assert "Traceback" not in err and ("split" in err)
    assert marker.read_text() == content


def test_outputs_of_earlier_runs_survive_all_this(world: World):
    assert (world.out / "merged.json").read_text() == KEPT
    assert json.loads((world.folder / "train.json").read_text())["images"]
