"""The helpers for unit tests do what their names say."""

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances, ROIMasks
from detectron2.utils.testing import (
    assert_instances_allclose,
    convert_scripted_instances,
    get_model_no_weights,
    get_sample_coco_image,
    min_torch_version,
    random_boxes,
    reload_script_model,
)


def test_random_boxes_have_sides_of_at_least_one_within_the_range():
    torch.manual_seed(0)
    boxes = random_boxes(500, max_coord=30)
    assert boxes.shape == (500, 4)
    assert (boxes[:, 2:] - boxes[:, :2]).min() > 1 - 1e-5
    assert boxes.min() >= 1 and boxes.max() <= 30
    assert random_boxes(0).shape == (0, 4)


def make_instances(**changes) -> Instances:
    fields = {
        "boxes": Boxes([[0.0, 0.0, 50.0, 60.0]]),
        "scores": torch.tensor([100.0]),
        "classes": torch.tensor([3]),
        "masks": ROIMasks(torch.zeros(1, 2, 2)),
    }
    return Instances((10, 20), **{**fields, **changes})


def test_nearly_equal_instances_pass():
    nearly = make_instances(
        boxes=Boxes([[0.0005, 0.0, 50.0, 60.0]]), scores=torch.tensor([100.001])
    )
    assert_instances_allclose(nearly, make_instances())
    assert_instances_allclose(make_instances()[:0], make_instances()[:0])
    tensor_size = Instances(torch.tensor([10, 20]), **make_instances().get_fields())
    assert_instances_allclose(tensor_size, make_instances(), size_as_tensor=True)


@pytest.mark.parametrize(
    "changes,word",
    [
        ({"boxes": Boxes([[0.1, 0.0, 50.0, 60.0]])}, "boxes"),
        ({"scores": torch.tensor([100.1])}, "scores"),
        ({"classes": torch.tensor([4])}, "classes"),
        ({"more": torch.zeros(1)}, "Fields"),
    ],
)
def test_different_instances_fail_by_name(changes, word):
    with pytest.raises(AssertionError, match=f"Mine! .*{word}"):
        assert_instances_allclose(make_instances(**changes), make_instances(), msg="Mine!")


def test_different_sizes_and_unknown_types_fail():
    other = Instances((10, 21), **make_instances().get_fields())
    with pytest.raises(AssertionError, match="image_size"):
        assert_instances_allclose(make_instances(), other)
    with pytest.raises(AssertionError, match="scores"):
        assert_instances_allclose(make_instances(), make_instances(scores=torch.ones(1, 1)))
    names = make_instances(names=["a"])
    with pytest.raises(ValueError, match="list"):
        assert_instances_allclose(names, names)


def test_scripted_instances_are_converted():
    class Scripted:
        image_size = (10, 20)
        _field_names = ("scores", "classes")
        _scores = torch.ones(2)
        _classes = None

    converted = convert_scripted_instances(Scripted())
    assert converted.image_size == (10, 20) and list(converted.get_fields()) == ["scores"]
    assert_instances_allclose(Scripted(), converted)
    with pytest.raises(ValueError, match="int"):
        convert_scripted_instances(3)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_script_model_survives_saving():
    model = torch.jit.trace(torch.nn.Linear(3, 2), torch.zeros(1, 3))
    x = torch.rand(4, 3)
    assert torch.equal(reload_script_model(model)(x), model(x))


def test_torch_versions_compare_by_number():
    assert min_torch_version("1.10") and min_torch_version("2.0")
    assert not min_torch_version("1000.0")


def test_sample_image_is_generated_without_coco_and_read_with_it(tmp_path, monkeypatch):
    from detectron2.data import MetadataCatalog

    metadata = MetadataCatalog.get("coco_2017_val")
    monkeypatch.setitem(metadata.__dict__, "image_root", str(tmp_path))
    generated = get_sample_coco_image()
    assert generated.shape == (3, 480, 640) and generated.dtype == torch.uint8
    assert torch.equal(generated, get_sample_coco_image())
    assert len(generated.unique()) > 200

    Image.fromarray(np.full((5, 6, 3), (250, 0, 0), dtype=np.uint8)).save(tmp_path / "1.jpg")
    image = get_sample_coco_image(tensor=False)
    assert image.shape == (5, 6, 3)
    assert image[..., 2].min() > 200 and image[..., 0].max() < 50  # BGR


def test_model_of_a_config(tmp_path, monkeypatch):
    @META_ARCH_REGISTRY.register()
    class OnlyForThisTest(torch.nn.Module):
        def __init__(self, cfg):
            super().__init__()
            self.device_name = cfg.MODEL.DEVICE

    (tmp_path / "tiny.yaml").write_text("MODEL:\n  META_ARCHITECTURE: OnlyForThisTest\n")
    monkeypatch.setattr("detectron2.model_zoo.model_zoo.CONFIG_DIR", tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    model = get_model_no_weights("tiny.yaml")
    assert isinstance(model, OnlyForThisTest) and model.device_name == "cpu"
