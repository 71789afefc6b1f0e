"""A small COCO-format dataset on disk, made from what a test asks for."""

import json

import numpy as np
import pytest
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]


@pytest.fixture
def coco_file(tmp_path):
    """A function that writes annotations (with images 1 of 40 x 30 and 2 of 20 x 50) to a file."""

    def write(annotations, name="annotations.json", **overrides):
        images = [
            {"id": 2, "file_name": "b.png", "width": 20, "height": 50},
            {"id": 1, "file_name": "a.png", "width": 40, "height": 30},
        ]
        numbered = [{"id": i + 1, "image_id": 1} | a for i, a in enumerate(annotations)]
        content = {"images": images, "annotations": numbered, "categories": CATEGORIES}
        path = tmp_path / name
        path.write_text(json.dumps(content | overrides))
        return str(path)

    return write


@pytest.fixture
def image_folder(tmp_path):
    """A folder with random images a.png (40 x 30) and b.png (20 x 50)."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, (width, height) in {"a.png": (40, 30), "b.png": (20, 50)}.items():
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return str(folder)


@pytest.fixture(autouse=True)
def clean_catalogs():
    """Forget the datasets that a test registers."""
    datasets, metadata = set(DatasetCatalog.list()), set(MetadataCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - datasets:
        DatasetCatalog.remove(name)
    for name in set(MetadataCatalog.list()) - metadata:
        MetadataCatalog.remove(name)
