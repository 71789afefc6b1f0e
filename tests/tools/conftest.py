"""Fixtures shared by the tests of the tools."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tools.coco_samples import make_coco


@pytest.fixture
def coco() -> dict[str, Any]:
    return make_coco(num_images=40)


@pytest.fixture
def coco_path(coco: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(coco))
    return path
