"""Checkpoints and config files that cannot be used."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.bad_input.checks import refused
from tests.bad_input.world import World


class Harmful:
    """A pickled object that makes a file when it is read."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def with_weights(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        change(content.get("model") or content["model_state"])
        torch.save(content, path)

    return edit


def nan(state: dict) -> None:
    next(v for k, v in state.items() if k.endswith("weight")).view(-1)[0] = float("nan")


def drop(state: dict) -> None:
    del state[next(k for k in state if k.endswith("weight"))]


def reshape(state: dict) -> None:
    key = next(k for k in state if k.endswith("weight"))
    state[key] = torch.zeros(3)


def encrypted(path: Path) -> None:
    """Set the bit of encryption in every member's headers."""
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(mark)
        while at >= 0:
            content[at + offset] |= 1
            at = content.find(mark, at + 4)
    path.write_bytes(content)


def other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")


def bits_flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for at in range(0, 4000, 50):
        content[at] ^= 0xFF
    path.write_bytes(content)


CHECKPOINTS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no checkpoint"),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-5000]),
    "bits flipped": bits_flipped,
    "encrypted": encrypted,
    "another zip": other_zip,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pickle": lambda path: path.write_bytes(pickle.dumps([1, 2])),
    "runs code": lambda path: torch.save({"model": Harmful(path.parent / "harm")}, path),
    "a list": lambda path: torch.save([1, 2], path),
    "texts": lambda path: torch.save({"model": {"a": "b"}, "model_state": {"a": "b"}}, path),
    "NaN weights": with_weights(nan),
    "a weight is missing": with_weights(drop),
    "a weight of another shape": with_weights(reshape),
}
READERS = {"generate": "tiny.pth", "refine": "refiner.pth"}


@pytest.mark.parametrize("fault", CHECKPOINTS)
@pytest.mark.parametrize("program", READERS)
def test_checkpoints_that_cannot_be_used(world: World, capfd, program: str, fault: str):
    path = world.own(READERS[program])
    CHECKPOINTS[fault](path)
    refused(world, program, capfd, path.name)
    assert not (world.folder / "harm").exists()


@pytest.mark.parametrize("fault", ["missing", "text", "cut off", "runs code", "NaN weights"])
@pytest.mark.parametrize("program", ["train", "evaluate", "demo"])
def test_checkpoints_of_the_other_programs(world: World, capfd, program: str, fault: str):
    path = world.own("tiny.pth")
    CHECKPOINTS[fault](path)
    refused(world, program, capfd, path.name, words=_with_weights(world, program))
    assert not (world.folder / "harm").exists()


def _with_weights(world: World, program: str) -> list[str]:
    more = ["MODEL.WEIGHTS", str(world.folder / "tiny.pth")] if program == "train" else []
    return [*world.words(program), *more]


class Arrays:
    """Pickled as a numpy array of Python objects, which would point where the file says."""

    def __reduce__(self):
        array = np.empty(1, object)
        return array.__reduce__()


PICKLES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(pickle.dumps({"a": np.zeros(9)})[:-9]),
    "runs code": lambda path: path.write_bytes(pickle.dumps(Harmful(path.parent / "harm"))),
    "objects in an array": lambda path: path.write_bytes(
        pickle.dumps({"blobs": {"w": np.array([{}, []], object)}})
    ),
    "objects in a structure": lambda path: path.write_bytes(
        pickle.dumps({"blobs": {"w": np.zeros(2, [("a", "O")])}})
    ),
    "a list": lambda path: path.write_bytes(pickle.dumps([1])),
}


@pytest.mark.parametrize("fault", PICKLES)
def test_pickles_of_model_zoos(world: World, capfd, fault: str):
    path = world.folder / "R-50.pkl"
    PICKLES[fault](path)
    words = [*world.words("train"), "MODEL.WEIGHTS", str(path)]
    refused(world, "train", capfd, path.name, words=words)
    assert not (world.folder / "harm").exists()


CONFIGS = {
    "empty key": ": 5",
    "no YAML": "MODEL: [",
    "a list": "- 5",
    "a text": "hello",
    "unknown key": "MODEL: {NO_SUCH_KEY: 5}",
    "unknown section": "NOTHING: {A: 5}",
    "value of another type": "SOLVER: {MAX_ITER: many}",
    "section is a number": "MODEL: 5",
    "section is null": "MODEL: null",
    "key is a section": "SEED: {A: 5}",
    "its own base": '_BASE_: "tiny.yaml"',
    "base in a circle": '_BASE_: "other.yaml"',
    "base is missing": '_BASE_: "nowhere.yaml"',
    "base is a number": "_BASE_: 5",
    "base by http": '_BASE_: "http://127.0.0.1:9/../../x.yaml"',
    "python objects": "SEED: !!python/object/apply:os.system ['true']",
    "deep nesting": "[" * 5000,
    "aliases of aliases": "A0: &a0 {x: 1, y: 2}\n"
    + "".join(f"A{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}\n" for n in range(1, 40)),
    "not utf-8": b"SEED: \xff\xfe\n",
    "control characters": "SEED: \x00",
    "unknown architecture": "MODEL: {META_ARCHITECTURE: Nothing}",
    "unknown backbone": "MODEL: {BACKBONE: {NAME: nothing}}",
    "version of the future": "VERSION: 99",
    "batch of 0": "SOLVER: {IMS_PER_BATCH: 0}",
    "negative iterations": "SOLVER: {MAX_ITER: -1}",
    "depth 7": "MODEL: {RESNETS: {DEPTH: 7}}",
    "sampler": "DATALOADER: {SAMPLER_TRAIN: nothing}",
    "optimizer": "SOLVER: {OPTIMIZER: nothing}",
    "scheduler": "SOLVER: {LR_SCHEDULER_NAME: nothing}",
    "learning rate NaN": "SOLVER: {BASE_LR: .nan}",
    "learning rate negative": "SOLVER: {BASE_LR: -1.0}",
    "mask format": "INPUT: {MASK_FORMAT: nothing}",
    "image format": "INPUT: {FORMAT: nothing}",
    "size 0": "INPUT: {MIN_SIZE_TRAIN: [0]}",
    "workers": "DATALOADER: {NUM_WORKERS: -1}",
    "prompt": "MODEL: {SOLOV2: {PROMPT: nothing}}",
}


@pytest.mark.parametrize("fault", CONFIGS)
def test_configs_that_cannot_be_used(world: World, capfd, fault: str):
    content = CONFIGS[fault]
    bad = world.folder / "bad.yaml"
    (world.folder / "other.yaml").write_text('_BASE_: "bad.yaml"')
    base = b"" if "base" in fault or fault in WHOLE else b'_BASE_: "tiny.yaml"\n'
    text = content if isinstance(content, bytes) else content.encode()
    bad.write_bytes(base + text.replace(b'"tiny.yaml"', b'"bad.yaml"'))
    words = [w.replace("tiny.yaml", "bad.yaml") for w in world.words("train")]
    words += ["SOLVER.STEPS", "()"]
    refused(world, "train", capfd, words=words)


WHOLE = ("empty key", "no YAML", "a list", "a text", "deep nesting", "control characters")
