"""Read and write checkpoints: ours, and the reference's (`{"model_state": ...}` and no more)."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from weaklabels.files import atomic_bytes, read_json, refuse_inflated_zip
from weaklabels.model_folder import CONFIG, is_model_folder, read_card, weights_file

from .model import IMAGE_CHANNELS, MaskRefineNet
from .recipe import Recipe

DEFAULT_SIZE, DEFAULT_BOX_SCALE = 256, 2.0
# (has bottlenecks, blocks of layer3) of each encoder, to recognize a bare state dict.
ENCODER_SIGNS = {
    (False, 2): "resnet18",
    (False, 6): "resnet34",
    (True, 6): "resnet50",
    (True, 23): "resnet101",
}
# The reference stores `best_AP` as a numpy scalar, pickled under the name of its numpy's module.
NUMPY_SCALARS = [
    *[
        (np.float64(0).__reduce__()[0], f"{core}.multiarray.scalar")
        for core in ("numpy.core", "numpy._core")
    ],
    *[np.dtype, *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64))],
]


@dataclass(frozen=True)
class NetworkConfig:
    """How to build a network and crop its inputs; stored in checkpoints.

    size: side of the square network input, pixels.
    box_scale: ratio of a crop's sides to those of the prior mask's box at inference.
    """

    num_classes: int
    encoder: str = "resnet101"
    class_agnostic: bool = False
    size: int = DEFAULT_SIZE
    box_scale: float = DEFAULT_BOX_SCALE

    def build(self) -> MaskRefineNet:
        return MaskRefineNet(
            self.num_classes, encoder=self.encoder, class_agnostic=self.class_agnostic
        )


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    categories: `id` and `name`, in class order; None if unknown.
    recipe: what it was trained with; None if unknown. The released ones are of the paper's.
    """

    path: Path
    config: NetworkConfig
    model_state: dict[str, Tensor]
    categories: tuple[dict[str, Any], ...] | None
    recipe: Recipe | None
    content: dict[str, Any]

    def build(self) -> MaskRefineNet:
        """The network with its weights."""
        model = self.config.build()
        try:
            missing, unexpected = model.load_state_dict(self.model_state, strict=False)
        except RuntimeError as error:  # a tensor of another shape
            missing, unexpected = [], str(error).splitlines()[1:]
        if missing or unexpected:
            raise ValueError(
                f"{self.path} does not fit MaskRefineNet ({self.config}): "
                f"missing {missing[:3]}, unexpected {unexpected[:3]}; give the checkpoint of a "
                "MaskRefineNet"
            )
        return model


def read_torch_file(path: str | Path) -> Any:
    """Content of a file of `torch.save`, tensors on the CPU; no code in it is run.

    Raises:
        ValueError: naming the file, if it is truncated or of another kind.
    """
    refuse_inflated_zip(path)
    try:
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or foreign file may raise anything
        raise ValueError(
            f"{path}: cannot be read; expected a complete file of torch.save with tensors, "
            f"numbers, strings and plain containers. Download it or make it again ({error!r})"
        ) from error


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of ours or of the reference, or a folder of `wsis package`.

    Raises:
        ValueError: naming the file, where it is something else.
    """
    path = Path(path)
    if not path.is_file() and not is_model_folder(path):
        raise FileNotFoundError(f"{path}: no such checkpoint; download it or make it")
    content = read_model_folder(path) if path.is_dir() else read_torch_file(path)
    if not isinstance(content, dict) or not isinstance(content.get("model_state"), dict):
        raise ValueError(f"{path}: expected a MaskRefineNet checkpoint, with the key model_state")
    state = {key.removeprefix("module."): value for key, value in content["model_state"].items()}
    if "layer0.0.weight" not in state:
        raise ValueError(
            f"{path}: no layer0.0.weight in model_state: give the checkpoint of a MaskRefineNet"
        )
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{path}: {name} is a {type(value).__name__}; expected a tensor")
        if value.is_floating_point() and value.isnan().any():
            raise ValueError(
                f"{path}: {name} holds NaN: the training diverged; use an earlier checkpoint"
            )
    try:
        found = NetworkConfig(**content["config"]) if "config" in content else None
    except TypeError as error:
        raise ValueError(f"{path}: expected the config of MaskRefineNet: {error}") from error
    config = found or _recognize(path, state)
    categories = tuple(content["categories"]) if "categories" in content else None
    try:
        recipe = Recipe(**content["recipe"]) if "recipe" in content else None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: trained by a recipe that is not known here: {error}") from error
    return Checkpoint(path, config, state, categories, recipe, content)


def read_model_folder(folder: Path) -> dict[str, Any]:
    """A published MaskRefineNet, as a checkpoint of ours holds it."""
    card = read_card(folder)
    if card.kind != MaskRefineNet.__name__:
        raise ValueError(f"{folder}: its card says {card.kind}, so it is no MaskRefineNet")
    try:
        state = load_file(weights_file(str(folder)))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder}: its weights cannot be read ({error})") from error
    config = NetworkConfig(**read_json(folder / CONFIG))
    return network_content(state, config, card.categories)


def _recognize(path: Path, state: dict[str, Tensor]) -> NetworkConfig:
    """The architecture behind a bare state dict."""
    point_channels = state["layer0.0.weight"].shape[1] - IMAGE_CHANNELS - 1
    blocks = {key.split(".")[1] for key in state if key.startswith("layer3.")}
    sign = ("layer1.1.0.conv3.weight" in state, len(blocks))
    if sign not in ENCODER_SIGNS or point_channels < 1:
        raise ValueError(f"{path}: not a known MaskRefineNet ({point_channels=}, {sign=})")
    agnostic = point_channels == 1
    return NetworkConfig(max(point_channels - 1, 1), ENCODER_SIGNS[sign], agnostic)


def network_content(
    model_state: dict[str, Tensor],
    config: NetworkConfig,
    categories: tuple[dict[str, Any], ...],
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """The part of a checkpoint that refinement needs, and the recipe of its training."""
    return {
        "model_state": model_state,
        "config": asdict(config),
        "categories": list(categories),
        **({} if recipe is None else {"recipe": asdict(recipe)}),
    }


def save_atomically(content: Any, path: Path) -> None:
    """`torch.save` under a temporary name, then rename: a killed run leaves no partial file."""
    with atomic_bytes(path) as file:
        torch.save(content, file)


def load_encoder(model: MaskRefineNet, source: str, stem: str = "pretrained") -> None:
    """Initialize the encoder from ImageNet weights.

    The channels of the point map and the prior mask have no pretrained counterpart and keep their
    random initialization.

    Args:
        stem: "pretrained": its image channels get the pretrained kernels. "random": the whole
            first convolution stays as it is, as in the reference; its batch norm does not.
        source: "imagenet" (torchvision's download), "none", or the path of a ResNet state dict
            with torchvision's names.
    """
    if source == "none":
        return
    if source == "imagenet":
        weights = torchvision.models.get_model_weights(model.encoder).IMAGENET1K_V1
        try:
            state = weights.get_state_dict(progress=False, check_hash=True)
        except OSError as error:
            raise ValueError(
                f"ImageNet weights of {model.encoder} cannot be downloaded ({error}); give a "
                "file with --weights PATH, or --weights none for a random encoder"
            ) from error
    elif Path(source).is_file():
        state = read_torch_file(source)
        if not isinstance(state, dict):
            raise ValueError(f"--weights {source}: expected a state dict of a {model.encoder}")
    else:
        raise FileNotFoundError(
            f"--weights {source}: no such file; expected a path, imagenet or none"
        )
    renamed = {"conv1": "layer0.0", "bn1": "layer0.1", "layer1": "layer1.1"}
    target = model.state_dict()
    for key, value in state.items():
        head, _, tail = key.partition(".")
        if head == "fc" or (head == "conv1" and stem == "random"):
            continue
        name = f"{renamed.get(head, head)}.{tail}"
        if name == "layer0.0.weight":
            value = torch.cat([value, target[name][:, IMAGE_CHANNELS:]], dim=1)
        if name not in target or target[name].shape != value.shape:
            raise ValueError(f"--weights {source}: {key} does not fit a {model.encoder}")
        target[name] = value
    model.load_state_dict(target)
