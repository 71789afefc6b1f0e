"""Fixtures of the tests of bad input."""

from pathlib import Path

import pytest
import torch

from tests.bad_input.world import World, copy_world, make_pristine


@pytest.fixture(scope="session")
def pristine(tmp_path_factory) -> Path:
    return make_pristine(tmp_path_factory.mktemp("pristine") / "files")


@pytest.fixture
def world(pristine, tmp_path) -> World:
    return copy_world(pristine, tmp_path / "files")


@pytest.fixture(scope="session", autouse=True)
def few_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
