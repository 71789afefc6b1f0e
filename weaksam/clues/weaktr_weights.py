"""Start WeakTr from DeiT, and read the published WeakTr files."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from detectron2.checkpoint.safe_files import read_torch_file

from .weaktr import WeakTr, WeakTrConfig

OURS = ("head.", "fusion.")  # what DeiT does not have
COCO_TOKENS = 90  # of the published COCO files: category id - 1, ten of them never used


def initialize_from_deit(model: WeakTr, source: str) -> None:
    """Load an ImageNet DeiT into `model`: its class token is repeated for each class.

    Args:
        source: a file of `torch.save` with timm's names, or the name of a timm model with weights,
            such as "deit_small_patch16_224", which timm fetches.
    """
    state = dict(_deit_state(source))
    for key in [key for key in state if key.startswith("head")]:
        del state[key]  # of other classes; WeakTr's is a convolution, too
    if "pos_embed" not in state or "cls_token" not in state:
        raise ValueError(f"{source}: no pos_embed and cls_token; expected a DeiT with timm's names")
    count = model.config.num_outputs
    position, patches = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
    grid = int(patches.shape[1] ** 0.5)
    if grid != model.grid:
        square = patches.mT.unflatten(2, (grid, grid))
        resized = F.interpolate(square, size=(model.grid, model.grid), mode="bicubic")
        patches = resized.flatten(2).mT
    state["pos_embed"] = torch.cat([position.expand(-1, count, -1), patches], dim=1)
    state["cls_token"] = state["cls_token"].expand(-1, count, -1)
    own = model.state_dict()
    absent = [key for key in own if key not in state and not key.startswith(OURS)]
    _check_shapes(source, state, {key: own[key] for key in state if key in own}, absent)
    if foreign := sorted(set(state) - set(own)):
        raise ValueError(f"{source}: {foreign[:3]} are not part of a DeiT of this size")
    model.load_state_dict(state, strict=False)


def _deit_state(source: str) -> dict[str, Tensor]:
    if Path(source).is_file():
        content = read_torch_file(source)
        return content["model"] if isinstance(content, dict) and "model" in content else content
    if Path(source).suffix in (".pth", ".pt", ".bin") or "/" in source:
        raise FileNotFoundError(f"{source}: no such file with the weights of a DeiT")
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            f"{source}: a model of timm, which is not installed (pip install timm); or give a file"
        ) from error
    if not timm.is_model(source):
        raise FileNotFoundError(f"{source}: neither a file nor the name of a timm model")
    try:
        return timm.create_model(source, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{source}: timm has no weights of it here and could not fetch them ({error}); give a "
            "file of this model"
        ) from error


def read_weaktr(path: str | Path, category_ids: Sequence[int], pool: str = "avg") -> WeakTr:
    """The network of a published WeakTr file, with one class for each of `category_ids`.

    Files with as many class tokens as there are categories have these in ascending order of ids.
    Files with 90 tokens have COCO's category id - 1. The two matrices of the attention fusion are
    known by their shape, whatever their names.

    Raises:
        ValueError: the file has other keys, other shapes or another number of classes.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file with WeakTr's weights")
    # Training scripts put their arguments, a plain namespace, beside the weights.
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = read_torch_file(str(path))
    state = _weaktr_state(path, content)
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    tokens, dim = state["cls_token"].shape[1:]
    fusion = {key: value for key, value in state.items() if _is_fusion(key, value)}
    if len(fusion) != 2:
        raise ValueError(
            f"{path}: expected the two matrices of the attention fusion, found {sorted(fusion)}"
        )
    for key in fusion:
        del state[key]
    first, second = sorted(fusion.values(), key=lambda value: value.shape[0])  # hidden < maps
    state["fusion.0.weight"], state["fusion.2.weight"] = first, second
    hidden, num_maps = first.shape
    config = WeakTrConfig(
        num_outputs=tokens,
        outputs=_outputs(path, tokens, category_ids),
        embed_dim=dim,
        depth=depth,
        num_heads=max(num_maps // max(depth, 1), 1),
        patch_size=state["patch_embed.proj.weight"].shape[-1],
        image_size=_image_size(path, state),
        mlp_ratio=_mlp_ratio(path, state, dim),
        pool=pool,
        reduction=num_maps // hidden,
    )
    model = config.build()
    own = model.state_dict()
    _check_shapes(path, state, own, [key for key in own if key not in state])
    if foreign := sorted(set(state) - set(own)):
        raise ValueError(f"{path}: {foreign[:3]} are not part of WeakTr")
    model.load_state_dict(state)
    return model


def _weaktr_state(path: str | Path, content: Any) -> dict[str, Tensor]:
    state = content.get("model", content) if isinstance(content, dict) else content
    needed = ("cls_token", "pos_embed", "patch_embed.proj.weight", "head.weight")
    if not isinstance(state, dict) or any(key not in state for key in needed):
        raise ValueError(
            f"{path}: no weights of WeakTr, which have {', '.join(needed)}: give a classifier of "
            "`wsis clues train`, or a published WeakTr file"
        )
    return dict(state)


def _is_fusion(key: str, value: Tensor) -> bool:
    return value.dim() == 2 and not key.startswith("blocks.") and not key.startswith("head.")


def _image_size(path: str | Path, state: dict[str, Tensor]) -> int:
    patches = state["pos_embed"].shape[1] - state["cls_token"].shape[1]
    grid = int(max(patches, 0) ** 0.5)
    if grid**2 != patches or grid == 0:
        raise ValueError(
            f"{path}: pos_embed of shape {tuple(state['pos_embed'].shape)} does not hold "
            f"{state['cls_token'].shape[1]} class tokens and a square of patches"
        )
    return grid * state["patch_embed.proj.weight"].shape[-1]


def _mlp_ratio(path: str | Path, state: dict[str, Tensor], dim: int) -> int:
    key = "blocks.0.mlp.fc1.weight"
    if key not in state:
        raise ValueError(f"{path} lacks {key}: no weights of WeakTr")
    return state[key].shape[0] // dim


def _outputs(path: str | Path, tokens: int, ids: Sequence[int]) -> tuple[int, ...] | None:
    if len(ids) == tokens:
        return None
    if tokens == COCO_TOKENS and all(1 <= number <= COCO_TOKENS for number in ids):
        return tuple(number - 1 for number in ids)
    raise ValueError(
        f"{path} has {tokens} classes, the dataset {len(ids)}; take the file that was trained on "
        f"this dataset's classes (a COCO file has {COCO_TOKENS}, by category id)"
    )


def _check_shapes(
    path: str | Path, state: dict[str, Tensor], own: dict[str, Tensor], absent: list[str]
) -> None:
    if absent:
        raise ValueError(f"{path} lacks {absent[:3]} ({len(absent)} of the network's tensors)")
    for key, value in own.items():
        if state[key].shape != value.shape:
            raise ValueError(
                f"{path}: {key} has the shape {tuple(state[key].shape)}; expected "
                f"{tuple(value.shape)}"
            )
