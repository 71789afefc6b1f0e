"""A model of two layers and the loop pieces around it, shared by the trainer tests."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn


class ToyModel(nn.Module):
    """Regression on (N, 3) inputs; the loss of a batch is a mean of squares."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 1)

    def forward(self, x):
        y = self.second(torch.tanh(self.first(x)))
        return {"loss_fit": (y - x.sum(1, keepdim=True)).square().mean(), "loss_size": y.mean() * 0}


def endless_batches(seed=0):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.rand(2, 3, generator=generator)


@pytest.fixture
def toy_model():
    torch.manual_seed(0)
    return ToyModel()


@pytest.fixture
def batches():
    return endless_batches


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory):
    """Ten small random images of several shapes, each with one to three boxes, in COCO format."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for image_id in range(1, 11):
        width, height = (int(n) for n in rng.integers(20, 40, 2))
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{image_id}.png")
        images.append(
            {"id": image_id, "file_name": f"{image_id}.png", "width": width, "height": height}
        )
        for _ in range(int(rng.integers(1, 4))):
            x, y = (int(n) for n in rng.integers(0, 10, 2))
            w, h = (int(n) for n in rng.integers(5, 10, 2))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
    dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "box"}],
    }
    (folder / "instances.json").write_text(json.dumps(dataset))
    return folder
