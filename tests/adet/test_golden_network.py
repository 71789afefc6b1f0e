"""Network, targets and losses against recorded figures of the reference.

The figures of `tests/golden/solov2_*.npz` and the two `cfg_*.yaml` there were made by PointWSSIS
bd3156e on a CPU in float32, with the weights and images of `tests/golden/inputs.py`. Of large
tensors every n-th value is recorded.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from adet.config import get_cfg
from adet.modeling.solov2.grids import PyramidGrids
from adet.modeling.solov2.targets import image_targets
from detectron2.modeling import build_model

ROOT = Path(__file__).resolve().parents[2]


def assert_figure(figures, name, tensor, tolerance=1e-4):
    """Compare with a stored sample: relative to the largest value of the figure."""
    assert tuple(figures[f"{name}__shape"]) == tuple(tensor.shape)
    got = tensor.detach().flatten()[:: int(figures[f"{name}__stride"])].numpy()
    want = figures[f"{name}__sub"]
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


@pytest.mark.parametrize("depth", [50, 101])
def test_state_dict_keys_equal_those_of_released_checkpoints(depth):
    cfg = get_cfg()
    cfg.merge_from_file(str(ROOT / "configs" / "SOLOv2" / f"R{depth}_3x.yaml"))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    got = {k: (tuple(v.shape), str(v.dtype)) for k, v in model.state_dict().items()}
    lines = (ROOT / "tests" / "golden" / f"keys_solov2_r{depth}.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    want = {
        key: (tuple(int(n) for n in shape.split(",") if n), f"torch.{dtype}")
        for key, shape, dtype in rows
    }
    assert got == want


@torch.no_grad()
def assert_heads(figures, model, features):
    """Compare all outputs of both heads."""
    category, kernels = model.ins_head([features[f] for f in model.instance_in_features])
    for level in range(5):
        assert_figure(figures, f"eval/cate_pred{level}", category[level])
        assert_figure(figures, f"eval/kernel_pred{level}", kernels[level])
    mask_feature = model.mask_head([features[f] for f in model.mask_in_features])
    assert_figure(figures, "eval/mask_pred", mask_feature)


def test_heads_equal_the_reference(reference_r50, golden, golden_records):
    model = reference_r50
    with torch.no_grad():
        features = model.backbone(model.preprocess_image(golden_records()).tensor)
    assert_heads(golden("solov2_r50.npz"), model, features)


def test_losses_and_gradients_equal_the_reference(reference_r50, golden, golden_records):
    figures = golden("solov2_r50.npz")
    model = reference_r50
    model.zero_grad()
    losses = model.train()(golden_records())
    model.eval()
    for name in ("loss_ins", "loss_cate"):
        assert losses[name].item() == pytest.approx(float(figures[f"train/{name}"][0]), rel=1e-5)
    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    names = [name.decode() for name in figures["train/grad_names"]]
    assert names == [name for name, p in parameters.items() if p.grad is not None]
    norms = np.array([parameters[name].grad.norm().item() for name in names])
    np.testing.assert_allclose(norms, figures["train/grad_norm"], rtol=1e-3)
    frozen = [name.decode() for name in figures["train/frozen_names"]]
    assert frozen == [name for name, p in parameters.items() if not p.requires_grad]


@pytest.mark.parametrize("depth", [50, 101])
def test_targets_equal_the_reference_to_the_bit(depth, golden, golden_records):
    figures = golden(f"solov2_r{depth}_targets.npz")
    classes = None
    num_classes = 4
    if depth == 101:
        inputs = golden("solov2_r101.npz")
        classes, num_classes = [inputs[f"in/img{i}/classes"] for i in range(2)], 80
    grids = {50: (40, 36, 24, 16, 12), 101: (80, 64, 32, 24, 12)}[depth]
    pyramid = get_pyramid(grids)
    for i, record in enumerate(golden_records(classes)):
        targets = image_targets(record["instances"], (64, 80), pyramid, num_classes)
        for level, (grid, offset) in enumerate(zip(grids, pyramid.offsets, strict=True)):
            key = f"train/img{i}/lvl{level}"
            here = pyramid.levels_of(targets.cells) == level
            assert (targets.cells[here] - offset).tolist() == figures[f"{key}/grid_order"].tolist()
            areas = targets.masks[targets.instances[here]].flatten(1).sum(1)
            assert areas.tolist() == figures[f"{key}/ins_area"].tolist()
            level_classes = targets.classes[offset : offset + grid**2]
            positive = torch.nonzero(level_classes < num_classes).flatten()
            assert positive.tolist() == figures[f"{key}/cells"].tolist()
            assert level_classes[positive].tolist() == figures[f"{key}/labels"].tolist()


def get_pyramid(grids):
    ranges = ((1, 72), (72, 144), (144, 288), (288, 584), (584, 2048))
    return PyramidGrids(num_grids=grids, scale_ranges=ranges, strides=(8, 8, 16, 32, 32), sigma=0.2)


@pytest.mark.slow
def test_r101_losses_and_heads_equal_the_reference(make_reference_model, golden, golden_records):
    figures = golden("solov2_r101.npz")
    records = golden_records([figures[f"in/img{i}/classes"] for i in range(2)])
    model = make_reference_model(101).train()
    with torch.no_grad():
        losses = model(records)
        features = model.backbone(model.preprocess_image(records).tensor)
    for name in ("p2", "p3", "p4", "p5", "p6"):
        assert_figure(figures, f"eval/{name}", features[name])
    assert_heads(figures, model, features)
    for name in ("loss_ins", "loss_cate"):
        assert losses[name].item() == pytest.approx(float(figures[f"train/{name}"][0]), rel=1e-5)
