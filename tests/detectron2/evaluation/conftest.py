"""A registered data set of a few images, and the golden COCO evaluation of 12 images."""

import json
from pathlib import Path

import pytest

from detectron2.data import DatasetCatalog, MetadataCatalog

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture
def register_json(tmp_path):
    """Write a COCO dict and register it: `register_json(dict, **metadata) -> name`."""
    names = []

    def register(dataset, **metadata):
        name = f"evaluation_test_{len(names)}"
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(dataset))
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(json_file=str(path), **metadata)
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(scope="session")
def golden_gt():
    return json.loads((GOLDEN / "cocoeval_gt.json").read_text())


@pytest.fixture(scope="session")
def golden_detections():
    return json.loads((GOLDEN / "cocoeval_dets.json").read_text())


@pytest.fixture(scope="session")
def golden_stats():
    return json.loads((GOLDEN / "cocoeval_stats.json").read_text())
