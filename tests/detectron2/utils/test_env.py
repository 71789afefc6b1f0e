"""Seeds, the user's environment module, and the description of the machine."""

import random

import cv2
import numpy as np
import pytest
import torch

import detectron2
from detectron2.utils import env
from detectron2.utils.collect_env import collect_env_info


def draws() -> tuple:
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_one_seed_seeds_all_generators(monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "0")  # so that it is restored
    env.seed_all_rng(5)
    first = draws()
    env.seed_all_rng(5)
    assert draws() == first
    env.seed_all_rng()
    assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_torch_version_is_two_numbers():
    assert torch.__version__.startswith(".".join(map(str, env.TORCH_VERSION)))


def test_environment_is_set_up_once_with_the_users_module(tmp_path, monkeypatch):
    file = tmp_path / "custom.py"
    file.write_text(
        "import pathlib\n"
        "def setup_environment():\n"
        "    with open(pathlib.Path(__file__).with_name('calls'), 'a') as f: f.write('x')\n"
    )
    threads = cv2.getNumThreads()
    monkeypatch.setenv("DETECTRON2_ENV_MODULE", str(file))
    monkeypatch.setattr(env, "_environment_is_set_up", False)
    try:
        env.setup_environment()
        env.setup_environment()
        assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(threads)
    assert (tmp_path / "calls").read_text() == "x"
    monkeypatch.syspath_prepend(str(tmp_path))
    env.setup_custom_environment("custom")
    assert (tmp_path / "calls").read_text() == "xx"


def test_environment_module_needs_the_function(tmp_path):
    file = tmp_path / "empty.py"
    file.write_text("")
    with pytest.raises(ValueError, match="empty.py.*setup_environment"):
        env.setup_custom_environment(str(file))


def test_description_of_the_machine(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "some_folder")
    text = collect_env_info()
    for part in (torch.__version__, cv2.__version__, np.__version__, "some_folder", "GPU"):
        assert part in text
    assert detectron2.__version__ in text
