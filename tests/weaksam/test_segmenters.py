"""Segmenters by name, and those that need no extra package."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from weaksam.segmenters import tiny, tiny_training
from weaksam.segmenters.grabcut import GrabCut
from weaksam.segmenters.protocol import Segmenter
from weaksam.segmenters.spec import SegmenterSpec, load_segmenter, parse_spec
from weaksam.segmenters.tiny import WEIGHTS, load_tiny
from weaksam.segmenters.tiny_network import Prompts, TinyNetwork, prompt_maps
from weaksam.segmenters.tiny_scenes import draw_scene
from weaksam.segmenters.tiny_training import TinyTraining, mask_box, train_network, train_tiny


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def disc_picture(size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """A red disc on grey ground, and its mask: a shape that is in no training scene."""
    y, x = np.indices((size, size))
    mask = (x - 0.6 * size) ** 2 + (y - 0.4 * size) ** 2 < (0.22 * size) ** 2
    image = np.where(mask[..., None], (200, 50, 60), (120, 125, 118))
    noise = np.random.default_rng(0).integers(-6, 7, image.shape)
    return (image + noise).astype(np.uint8), mask


@pytest.mark.parametrize(
    "text,spec",
    [
        ("tiny", SegmenterSpec("tiny")),
        ("tiny:a.safetensors", SegmenterSpec("tiny", place="a.safetensors")),
        (
            r"segment_anything:vit_b:C:\x",
            SegmenterSpec("segment_anything", "vit_b", r"C:\x"),
        ),
        (
            "transformers:facebook/sam",
            SegmenterSpec("transformers", "", "facebook/sam"),
        ),
        ("grabcut", SegmenterSpec("grabcut")),
    ],
)
def test_names_are_taken_apart(text, spec):
    assert parse_spec(text) == spec


@pytest.mark.parametrize(
    "text", ["", "sam", "segment_anything", "segment_anything:vit_b", "transformers:", "grabcut:x"]
)
def test_other_names_say_what_is_possible(text):
    with pytest.raises(ValueError, match="segment_anything:{vit_b,vit_l,vit_h}:FILE"):
        parse_spec(text)


def test_missing_packages_say_how_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"transformers.*\[sam\]"):
        load_segmenter("transformers:some/where")


@pytest.fixture(scope="module")
def segmenter():
    return load_segmenter("tiny", device="cpu")


def test_weights_in_the_package_are_small_and_described():
    assert WEIGHTS.stat().st_size <= 4 * 2**20
    report = json.loads(WEIGHTS.with_suffix(".json").read_text())
    assert report["command"] == tiny_training.COMMAND
    want = json.loads(json.dumps(TinyTraining().__dict__))
    assert report["settings"] == want


def test_tiny_finds_a_disc_by_click_group_and_box(segmenter):
    image, mask = disc_picture()
    assert isinstance(segmenter, Segmenter)
    segmenter.set_image(image)
    (click,) = segmenter.points([[58, 38]])
    assert click.masks.shape == (1, 3, 96, 96)
    assert max(iou(m, mask) for m in click.masks[0].numpy()) > 0.85
    (group,) = segmenter.points([[50, 38], [64, 44], [58, 30]], np.zeros(3, int))
    assert group.masks.shape == (1, 3, 96, 96)
    assert max(iou(m, mask) for m in group.masks[0].numpy()) > 0.85
    (box,) = segmenter.boxes(mask_box(mask)[None])
    assert box.masks.shape == (1, 1, 96, 96) and iou(box.masks[0, 0].numpy(), mask) > 0.85
    assert ((click.predicted_iou > 0) & (click.predicted_iou < 1)).all()
    assert click.stability.min() > 0.5


def test_tiny_expects_little_of_the_ground(segmenter):
    image, _ = disc_picture()
    segmenter.set_image(image)
    clicks = list(segmenter.points([[58, 38], [8, 85]]))
    scores = torch.cat([batch.predicted_iou for batch in clicks]).amax(1)
    assert scores[0] > scores[1] + 0.2


@pytest.mark.parametrize("size_hw", [(17, 230), (300, 40), (1, 1), (160, 160)])
def test_tiny_takes_images_of_any_shape(segmenter, size_hw):
    segmenter.set_image(np.zeros((*size_hw, 3), np.uint8))
    (batch,) = segmenter.points([[0, 0]])
    assert batch.masks.shape == (1, 3, *size_hw)


def test_enlarging_twice_is_bilinear_interpolation():
    maps = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    for size in ((11, 30), (5, 8), (3, 20)):
        want = torch.nn.functional.interpolate(maps, size=size, mode="bilinear")
        got = tiny.enlarging(5, size[0]) @ maps @ tiny.enlarging(8, size[1]).T
        torch.testing.assert_close(got, want)


def test_tiny_weights_that_do_not_fit(tmp_path: Path):
    state = load_file(WEIGHTS)
    state.popitem()
    save_file(state, tmp_path / "less.safetensors")
    with pytest.raises(ValueError, match=r"less\.safetensors does not fit"):
        load_tiny(tmp_path / "less.safetensors")
    (tmp_path / "text.safetensors").write_text("none")
    with pytest.raises(ValueError, match=r"text\.safetensors does not fit"):
        load_tiny(tmp_path / "text.safetensors")
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        load_segmenter(f"tiny:{tmp_path / 'none.safetensors'}")


def test_prompts_of_a_batch_do_not_see_each_other():
    torch.manual_seed(0)
    network = TinyNetwork().eval()
    images = torch.rand(2, 3, 64, 64) * 255
    nan = torch.full((3, 4), torch.nan)
    nan[2] = torch.tensor([5.0, 6, 40, 30])
    prompts = Prompts(
        torch.tensor([[[9.0, 9], [30, 20]], [[50, 50], [0, 0]], [[22, 18], [0, 0]]]),
        torch.tensor([[True, True], [True, False], [True, False]]),
        nan,
        torch.tensor([0, 1, 1]),
    )
    with torch.no_grad():
        features = network.encode(images)
        together, qualities = network(features, prompts)
        for i, count in enumerate((2, 1, 1)):
            alone = Prompts(
                prompts.clicks[i : i + 1, :count],
                prompts.valid[i : i + 1, :count],
                prompts.boxes[i : i + 1],
                torch.zeros(1, dtype=torch.int64),
            )
            logits, quality = network(network.encode(images[prompts.images[i]][None]), alone)
            torch.testing.assert_close(logits[0], together[i], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(quality[0], qualities[i], rtol=1e-3, atol=1e-4)


def test_maps_of_a_prompt_by_a_loop():
    clicks = torch.tensor([[[9.0, 3.0], [20.0, 14.0]]])
    box = torch.tensor([[2.0, 1.0, 18.0, 13.0]])
    prompts = Prompts(clicks, torch.tensor([[True, True]]), box, torch.tensor([0]))
    maps = prompt_maps(prompts, torch.Size((4, 6)))[0].numpy()
    for row in range(4):
        for column in range(6):
            x, y = column * 4 + 1.5, row * 4 + 1.5
            gaps = [(x - a, y - b) for a, b in clicks[0].tolist()]
            dx, dy = min(gaps, key=lambda gap: gap[0] ** 2 + gap[1] ** 2)
            squared = dx**2 + dy**2
            depth = min(x - 2, 18 - x, y - 1, 13 - y)
            want = [
                np.tanh(dx / 64),
                np.tanh(dy / 64),
                np.exp(-squared / 128),
                np.exp(-squared / 3200),
                np.tanh(depth / 8),
                1,
            ]
            np.testing.assert_allclose(maps[:, row, column], want, rtol=1e-4, atol=1e-6)


def test_scenes_nest_region_object_and_group():
    for seed in range(10):
        scene = draw_scene(np.random.default_rng(seed), 96)
        region, thing, group = scene.labels
        assert scene.image.shape[:2] == region.shape and scene.image.dtype == np.uint8
        assert ((thing > 0) == (region > 0)).all() and ((group > 0) == (thing > 0)).all()
        for fine, coarse in ((region, thing), (thing, group)):
            pairs = np.unique(np.stack([fine.ravel(), coarse.ravel()]), axis=1)
            assert len(np.unique(pairs[0])) == pairs.shape[1]  # each lies in one of the next level


def test_training_repeats_itself_and_writes_what_loads(tmp_path: Path, monkeypatch):
    settings = TinyTraining(steps=3, batch=1, prompts=4, sizes=(64,), validation_scenes=1)
    first, second = train_network(settings), train_network(settings)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    other = train_network(replace(settings, seed=1))
    assert not torch.equal(other.draw.masks.weight, first.draw.masks.weight)
    report = train_tiny(settings, tmp_path / "tiny.safetensors")
    assert json.loads((tmp_path / "tiny.json").read_text())["figures"] == report["figures"]
    loaded = load_tiny(tmp_path / "tiny.safetensors")
    assert torch.equal(loaded.network.draw.masks.weight, first.draw.masks.weight)


def test_grabcut_cuts_a_disc_out_of_its_box():
    image, mask = disc_picture()
    segmenter = load_segmenter("grabcut")
    assert isinstance(segmenter, GrabCut) and isinstance(segmenter, Segmenter)
    segmenter.set_image(image)
    boxes = np.stack([mask_box(mask), [0, 0, 96, 96]])
    first, second = segmenter.boxes(boxes)
    assert iou(first.masks[0, 0].numpy(), mask) > 0.95
    assert second.masks.all()  # nothing around the box to compare with
    with pytest.raises(ValueError, match="boxes only"):
        segmenter.points([[1, 2]])
    with pytest.raises(ValueError, match="one mask a box"):
        list(segmenter.boxes(boxes, multimask=True))


def test_tiny_module_needs_no_extra_package():
    """`tiny` is what the quick start uses, so that it may not import what is optional."""
    for module in (tiny, tiny_training):
        source = Path(module.__file__).read_text()
        assert "import transformers" not in source and "segment_anything" not in source
