"""Pyramid outputs of seeded networks against figures of the reference code.

`tests/golden/solov2_r50_fpn.npz` has every n-th output value of Detectron2 at ecb786cc, float32
on a CPU, with the weights and images of `tests/golden/inputs.py`. What is too large to keep here is
read from the folder `shared/golden` beside the repository, where there is one.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone
from detectron2.structures import ImageList
from tests.golden.inputs import IMAGES, gen_weight, make_image

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = (ROOT / "tests" / "golden", ROOT.parent / "shared" / "golden")
LEVELS = ("p2", "p3", "p4", "p5", "p6")


def resnet_fpn_config(depth: int) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    return cfg


def seeded_backbone(depth: int) -> torch.nn.Module:
    backbone = build_backbone(resnet_fpn_config(depth)).eval()
    weights = {
        name: torch.from_numpy(gen_weight(f"backbone.{name}", value.shape))
        for name, value in backbone.state_dict().items()
    }
    backbone.load_state_dict(weights)
    return backbone


def padded_images(size_divisibility: int) -> Tensor:
    mean = torch.tensor(get_cfg().MODEL.PIXEL_MEAN).view(3, 1, 1)
    images = [torch.from_numpy(make_image(spec)["image"]).float() - mean for spec in IMAGES]
    return ImageList.from_tensors(images, size_divisibility).tensor


def golden(name: str) -> Path:
    for folder in FOLDERS:
        if (folder / name).is_file():
            return folder / name
    pytest.skip(f"needs the golden figures {name} in shared/golden beside the repository")


@pytest.mark.parametrize("depth", [50, 101])
def test_state_dict_has_the_reference_names_and_shapes(depth):
    rows = [
        line.split("\t") for line in golden(f"keys_solov2_r{depth}.tsv").read_text().splitlines()
    ]
    want = [(name, shape) for name, shape, _ in rows if name.startswith("backbone.")]
    state = build_backbone(resnet_fpn_config(depth)).state_dict()
    got = [(f"backbone.{k}", ",".join(map(str, v.shape))) for k, v in state.items()]
    assert got == want


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "file"), [(50, "solov2_r50_fpn.npz"), (101, "solov2_r101.npz")])
def test_pyramid_matches_the_reference(depth, file):
    figures = np.load(golden(file))
    backbone = seeded_backbone(depth)
    images = padded_images(backbone.size_divisibility)
    with torch.no_grad():
        outputs = backbone(images)
    assert tuple(outputs) == LEVELS
    for name, value in outputs.items():
        assert value.shape == tuple(figures[f"eval/{name}__shape"])
        got = value.flatten()[:: int(figures[f"eval/{name}__stride"])].numpy()
        want = figures[f"eval/{name}__sub"]
        assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max(), name
        # Relative to the typical size of a value, most are far closer than the worst one.
        assert np.abs(got - want).mean() <= 1e-5 * np.abs(want).mean(), name
