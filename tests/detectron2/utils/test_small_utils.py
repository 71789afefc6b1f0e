"""Registry lookup, paths, memory fallback, pickling of closures, colors."""

import multiprocessing
import os
import pickle

import numpy as np
import pytest
import torch

from detectron2.structures import Boxes
from detectron2.utils import colormap
from detectron2.utils.file_io import PathManager
from detectron2.utils.memory import retry_if_cuda_oom
from detectron2.utils.registry import Registry, locate
from detectron2.utils.serialize import PicklableWrapper


def test_registry_finds_by_name():
    registry = Registry("THINGS")

    @registry.register()
    def build_thing():
        return 1

    assert registry.get("build_thing") is build_thing and "build_thing" in registry
    with pytest.raises(KeyError, match="'other'.*'THINGS'"):
        registry.get("other")
    with pytest.raises(AssertionError, match="already registered"):
        registry.register(build_thing)


@pytest.mark.parametrize("target", [Boxes, Boxes.clip, os.path.join])
def test_locate_finds_objects_by_module_and_name(target):
    assert locate(f"{target.__module__}.{target.__qualname__}") is target


def test_wrong_names_are_refused():
    with pytest.raises(ImportError, match="'detectron2.structures.Nothing'"):
        locate("detectron2.structures.Nothing")


def test_detectron2_names_map_to_the_public_url(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    cached = tmp_path / "detectron2" / "Some" / "weights.pkl"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"put there by hand")
    assert PathManager.get_local_path("detectron2://Some/weights.pkl") == str(cached)
    with PathManager.open("detectron2://Some/weights.pkl", "rb") as file:
        assert file.read() == b"put there by hand"


def test_without_a_network_the_message_says_where_to_put_the_file(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    monkeypatch.setattr("iopath.common.download.request.urlretrieve", unreachable)
    with pytest.raises(FileNotFoundError) as error:
        PathManager.get_local_path("detectron2://Other/weights.pkl")
    message = str(error.value)
    assert "https://dl.fbaipublicfiles.com/detectron2/Other/weights.pkl" in message
    assert str(tmp_path / "detectron2" / "Other" / "weights.pkl") in message
    assert not list(tmp_path.rglob("weights.pkl"))


def test_out_of_memory_is_tried_again_then_moved_to_the_cpu():
    calls = []

    @retry_if_cuda_oom
    def add(a, b=None, fail=0):
        """Doc."""
        calls.append(a.device.type)
        if len(calls) <= fail:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return a + b

    one = torch.ones(2)
    for fail in (0, 1, 2):
        calls.clear()
        assert add(one, b=one, fail=fail).tolist() == [2, 2]
        assert len(calls) == fail + 1
    calls.clear()
    with pytest.raises(torch.cuda.OutOfMemoryError):
        add(one, b=one, fail=3)
    assert add.__doc__ == "Doc."
    with pytest.raises(TypeError):
        add(one, b="text")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_tensors_are_moved_after_two_failures():
    @retry_if_cuda_oom
    def double(a):
        if a.is_cuda:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return 2 * a

    assert double(torch.ones(1, device="cuda")).device.type == "cpu"


def test_closures_cross_process_borders():
    offset = 5
    wrapped = PicklableWrapper(PicklableWrapper(lambda x: x + offset))
    copy = pickle.loads(pickle.dumps(wrapped))
    assert copy(1) == wrapped(1) == 6
    assert PicklableWrapper(Boxes).cat is not None and copy.__name__ == "<lambda>"
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map(wrapped, [1, 2]) == [6, 7]


def test_colors_are_distinct_and_in_range():
    rgb, bgr = colormap.colormap(rgb=True), colormap.colormap()
    assert rgb.dtype == np.float32 and rgb.min() >= 0 and 200 < rgb.max() <= 255
    np.testing.assert_array_equal(bgr[:, ::-1], rgb)
    np.testing.assert_allclose(colormap.colormap(rgb=True, maximum=1) * 255, rgb, rtol=1e-6)
    distances = np.abs(rgb[:, None] - rgb[None]).max(axis=2) + 255 * np.eye(len(rgb))
    assert distances.min() > 5
    with pytest.raises(ValueError, match="maximum=100"):
        colormap.colormap(maximum=100)
    drawn = colormap.random_color()
    assert any((drawn == color).all() for color in bgr)
    chosen = colormap.random_colors(20, rgb=True, maximum=1)
    assert len({tuple(color) for color in chosen}) == 20 and max(map(max, chosen)) <= 1
    with pytest.raises(ValueError, match="1000"):
        colormap.random_colors(1000)


def test_shades():
    assert colormap.change_brightness("red", -0.5) == (0.5, 0, 0)
    assert colormap.change_brightness("red", 0.5) == (1, 0.5, 0.5)
    assert colormap.change_brightness("red", 0.0) == (1, 0, 0)
    with pytest.raises(ValueError, match="factor=2"):
        colormap.change_brightness("red", 2)
    assert min(colormap.readable_on_black("black")) > 0.3
    near = np.array(colormap.jitter((0.5, 0.5, 0.5)))
    assert 0 < np.linalg.norm(near - 0.5) <= 0.5 + 1e-6
