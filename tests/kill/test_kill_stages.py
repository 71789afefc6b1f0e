"""Every long stage, killed at five moments and more: it ends with the bytes of a run in peace."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kill.moments import PRINTED, killed_on_the_way, printed, run
from tests.kill.stages import STAGES, make_files

KILLS = 6
# Times and what is appended by every start: they tell of the run and are no results.
OF_THE_RUN = (PRINTED, "log.txt", "metrics.json", "config.yaml", "train.json", "log.json")


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return make_files(tmp_path_factory.mktemp("kill"))


def results(folder: Path) -> dict[str, Any]:
    """What a stage leaves, by path: tensors of checkpoints, bytes of other files."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name in OF_THE_RUN or "tfevents" in path.name:
            continue
        name = str(path.relative_to(folder))
        if path.suffix == ".pth":
            found |= _tensors(name, torch.load(path, weights_only=False))
        else:
            found[name] = path.read_bytes()
    return found


def _tensors(name: str, value: Any) -> dict[str, Any]:
    """All tensors in a checkpoint: of the network, of the optimizer."""
    if isinstance(value, torch.Tensor):
        return {name: value.numpy().tobytes()}
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list | tuple):
        items = enumerate(value)
    return {k: v for key, item in items for k, v in _tensors(f"{name}/{key}", item).items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_a_killed_stage_ends_as_one_in_peace(files: Path, tmp_path: Path, name: str):
    stage = STAGES[name](files)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, moments = run(stage, whole)
    assert code == 0, printed(whole)
    assert killed_on_the_way(stage, killed, moments, KILLS) >= 5
    expected, found = results(whole), results(killed)
    assert expected and found.keys() == expected.keys()
    different = [key for key in expected if found[key] != expected[key]]
    assert not different
