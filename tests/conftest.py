"""Fixtures shared by the tests of several packages."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.weaklabels.coco_samples import make_coco

LOGGERS = ("detectron2", "adet", "fvcore", "weaksam")


@pytest.fixture(autouse=True)
def fresh_loggers() -> Iterator[None]:
    """A training in this process sets loggers up; each test finds them as a new process does."""
    _reset_loggers()
    yield
    _reset_loggers()


def _reset_loggers() -> None:
    for logger in map(logging.getLogger, LOGGERS):
        logger.propagate, logger.handlers = True, []
        logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def one_thread():
    """Threads only get in each other's way on tensors as small as those of the tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def coco() -> dict[str, Any]:
    return make_coco(num_images=40)


@pytest.fixture
def coco_path(coco: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(coco))
    return path
