"""Helpers for unit tests of detectors; nothing outside of tests imports them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detectron2.structures import Boxes, Instances, ROIMasks

__all__ = [
    "assert_instances_allclose",
    "convert_scripted_instances",
    "get_model_no_weights",
    "get_sample_coco_image",
    "min_torch_version",
    "random_boxes",
    "reload_script_model",
]

SAMPLE_SIZE_HW = (480, 640)  # the commonest image size in COCO
# Boxes are around 100 pixels large: their absolute tolerance is that many times the relative one.
BOX_MAGNITUDE = 100


def get_model_no_weights(config_path: str) -> nn.Module:
    """The randomly initialised model of a YAML config file, on the CPU if there is no GPU.

    Args:
        config_path: below the repository's `configs` folder, as `model_zoo.get` takes it.
    """
    from detectron2 import model_zoo

    return model_zoo.get(config_path)


def random_boxes(
    num_boxes: int, max_coord: float = 100, device: torch.device | str = "cpu"
) -> Tensor:
    """(num_boxes, 4) boxes (x0, y0, x1, y1) of sides of at least 1, within [1, max_coord].

    `max_coord` should be above 2. The numbers come from torch's global generator.
    """
    # Corner and size each take half of the range; sides below 1 would be numerically delicate.
    halves = (torch.rand(num_boxes, 4, device=device) * (max_coord / 2)).clamp(min=1.0)
    return torch.cat([halves[:, :2], halves[:, :2] + halves[:, 2:]], dim=1)


def get_sample_coco_image(tensor: bool = True) -> Tensor | np.ndarray:
    """One BGR image: the first of COCO's val2017 if it is on this machine, else a generated one.

    Args:
        tensor: return a (3, H, W) uint8 tensor instead of an (H, W, 3) uint8 array.
    """
    from detectron2.data import MetadataCatalog
    from detectron2.data.detection_utils import read_image

    folder = MetadataCatalog.get("coco_2017_val").get("image_root", None)
    files = sorted(Path(folder).glob("*.jpg")) if folder else []
    image = read_image(str(files[0]), format="BGR") if files else _generated_image()
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))) if tensor else image


def _generated_image() -> np.ndarray:
    """(H, W, 3) uint8: smooth colours, two flat shapes and noise, the same on every call."""
    height, width = SAMPLE_SIZE_HW
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], axis=2)
    image[(x - 200) ** 2 + (y - 180) ** 2 < 90**2] = (40, 90, 200)
    image[300:430, 350:560] = (200, 180, 60)
    image += np.random.RandomState(0).normal(scale=8, size=image.shape)
    return image.clip(0, 255).astype(np.uint8)


def convert_scripted_instances(instances: Any) -> Instances:
    """The `Instances` equal to an object of a TorchScript class made for a fixed set of fields.

    Such an object has `image_size`, `_field_names`, and attribute `_NAME` for each field.
    """
    if not hasattr(instances, "image_size"):
        raise ValueError(f"expected a scripted Instances, got {type(instances).__name__}")
    fields = {name: getattr(instances, "_" + name, None) for name in instances._field_names}
    present = {name: value for name, value in fields.items() if value is not None}
    return Instances(instances.image_size, **present)


def assert_instances_allclose(
    input: Any, other: Any, *, rtol: float = 1e-5, msg: str = "", size_as_tensor: bool = False
) -> None:
    """Fail with AssertionError unless two Instances have equal fields with (nearly) equal values.

    Args:
        input, other: Instances, or scripted ones.
        rtol: tolerance of floating point fields relative to the field's largest magnitude; other
            fields must be equal.
        msg: begins every failure message.
        size_as_tensor: compare image sizes that may be tensors.
    """
    if not isinstance(input, Instances):
        input = convert_scripted_instances(input)
    if not isinstance(other, Instances):
        other = convert_scripted_instances(other)
    msg = (msg or "Two Instances are different!").rstrip()
    sizes = (input.image_size, other.image_size)
    if size_as_tensor:
        sizes = tuple(torch.as_tensor(size).tolist() for size in sizes)
    assert sizes[0] == sizes[1], f"{msg} image_size is {sizes[0]} vs. {sizes[1]}!"

    names, other_names = sorted(input.get_fields()), sorted(other.get_fields())
    assert names == other_names, f"{msg} Fields are {names} vs. {other_names}!"
    for name in names:
        value, other_value = input.get(name), other.get(name)
        assert _values_are_close(value, other_value, rtol), (
            f"{msg} Field '{name}' differs: {value} vs. {other_value}!"
        )


def _values_are_close(first: Any, second: Any, rtol: float) -> bool:
    if isinstance(first, Boxes | ROIMasks):
        same_shape = first.tensor.shape == second.tensor.shape
        atol = BOX_MAGNITUDE * rtol
        return same_shape and torch.allclose(first.tensor, second.tensor, atol=atol)
    if not isinstance(first, Tensor):
        raise ValueError(f"cannot compare fields of type {type(first).__name__}")
    if first.shape != second.shape or not first.is_floating_point():
        return torch.equal(first, second)
    magnitude = first.abs().max().item() if first.numel() else 0.0
    return torch.allclose(first, second, atol=magnitude * rtol)


def reload_script_model(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """A TorchScript module after it was saved and loaded again, in memory."""
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def min_torch_version(min_version: str) -> bool:
    """Whether torch is at least this version, such as "2.1"."""
    return torch.torch_version.TorchVersion(torch.__version__.split("+")[0]) >= min_version
