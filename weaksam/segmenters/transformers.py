"""SAM, SAM 2 and SAM-HQ through the package `transformers`."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from weaksam.segmenters.extras import (
    ALL_PARTS,
    click_labels,
    inner_cells,
    require_extra,
    small_masks,
    weights_digest,
)
from weaksam.segmenters.protocol import CombiningSegmenter, PromptBatch

PIXEL_MEAN = (123.675, 116.28, 103.53)  # RGB; those of all three families
PIXEL_STD = (58.395, 57.12, 57.375)
CLASSES = {  # model type in config.json: class of transformers
    "sam": "SamModel",
    "sam_hq": "SamHQModel",
    "sam2": "Sam2Model",
    "sam2_video": "Sam2Model",  # SAM 2's files are published as those of its video model
}


class TransformersSegmenter(CombiningSegmenter):
    """A SAM-like model of `transformers` behind the protocol.

    SAM and SAM-HQ see the image with its longer side resized and the rest padded, SAM 2 sees it
    stretched to a square. SAM-HQ sorts its masks by predicted IoU; here they are put in order of
    their area, so that the first one is the finest, as it is with the others.

    Args:
        model: SamModel, SamHQModel or Sam2Model, in evaluation mode, on its device.
        identity: see `Segmenter`.
    """

    combines = ALL_PARTS

    def __init__(self, model: Any, identity: str):
        super().__init__()
        kind = model.config.model_type
        if kind not in CLASSES:
            raise ValueError(f"a model of type {kind!r}; expected one of {sorted(CLASSES)}")
        self.identity = identity
        self._model = model
        self._square = kind.startswith("sam2")
        prompting = model.config.prompt_encoder_config
        self._side: int = prompting.image_size
        self._mask_hw = (4 * prompting.image_size // prompting.patch_size,) * 2

    def encode(self, image: np.ndarray) -> None:
        self._size_hw = image.shape[:2]
        scale = self._side / max(self._size_hw)
        inner = tuple(int(side * scale + 0.5) for side in self._size_hw)
        self._inner = (self._side, self._side) if self._square else inner
        resized = Image.fromarray(image).resize(self._inner[::-1], Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
        pixels = (pixels - mean) / std
        bottom, right = (self._side - side for side in self._inner)
        pixels = F.pad(pixels, (0, right, 0, bottom))[None].to(self._model.device)
        encoded = self._model.get_image_embeddings(pixels)
        if self._model.config.model_type == "sam_hq":
            embeddings, intermediate = encoded
            self._encoded = {
                "image_embeddings": embeddings,
                "intermediate_embeddings": intermediate,
            }
        else:
            self._encoded = {"image_embeddings": encoded}

    def draw_combined(self, prompts: PromptBatch, multimask: bool) -> tuple[Tensor, Tensor]:
        scale = np.array([self._inner[1] / self._size_hw[1], self._inner[0] / self._size_hw[0]])
        parts = {}
        if prompts.clicks is not None:
            parts["input_points"] = self._tensor(prompts.clicks * scale)
            labels = torch.from_numpy(click_labels(prompts))
            parts["input_labels"] = labels[None].to(self._model.device)
        if prompts.boxes is not None:
            corners = prompts.boxes - [0, 0, 1, 1]  # SAM's corners are pixels, the last one inside
            parts["input_boxes"] = self._tensor(corners * np.tile(scale, 2))
        encoded = self._encoded
        if prompts.masks is not None:
            # One mask an image is all that it takes: each prompt comes with an image of its own.
            parts = {name: value[0, :, None] for name, value in parts.items()}
            encoded = {name: _repeated(value, len(prompts)) for name, value in encoded.items()}
            masks = small_masks(prompts.masks, self._inner, self._side, self._mask_hw)
            parts["input_masks"] = masks.to(self._model.device, self._model.dtype)
        output = self._model(**encoded, **parts, multimask_output=multimask)
        logits, predicted_iou = output.pred_masks.float(), output.iou_scores
        logits, predicted_iou = logits.flatten(0, 1), predicted_iou.flatten(0, 1)
        if not self._square:  # (G, M, S/4, S/4) until here
            logits = _resize(logits, (self._side, self._side))
            logits = logits[..., : self._inner[0], : self._inner[1]]
        logits = _resize(logits, self._size_hw)
        if self._model.config.model_type == "sam_hq" and multimask:
            order = (logits > 0).sum((-2, -1)).argsort(dim=1, stable=True)
            logits = logits.gather(1, order[..., None, None].expand_as(logits))
            predicted_iou = predicted_iou.gather(1, order)
        return logits, predicted_iou

    def embedding(self) -> np.ndarray:
        features = self._encoded["image_embeddings"]
        features = features[-1] if isinstance(features, list) else features
        return inner_cells(features[0], self._inner, self._side)

    def _tensor(self, values: np.ndarray) -> Tensor:
        """Of one image, in the type and place of the model."""
        return torch.from_numpy(values)[None].to(self._model.device, self._model.dtype)


def _repeated(value: Tensor | list[Tensor] | tuple[Tensor, ...], count: int) -> Any:
    """Features of one image (1, ...), or several such, for `count` images."""
    if isinstance(value, Tensor):
        return value.expand(count, *[-1] * (value.ndim - 1))
    return [_repeated(part, count) for part in value]


def _resize(logits: Tensor, size_hw: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size=size_hw, mode="bilinear", align_corners=False)


def load_transformers(
    place: str, device: str = "cpu", download: bool = False
) -> TransformersSegmenter:
    """The model of a folder of `save_pretrained`, or of a name on the Hugging Face hub.

    Args:
        download: fetch what is not on this machine; without it nothing is fetched.

    Raises:
        FileNotFoundError: it is not here.
        ValueError: it is of another type, or lacks weights.
    """
    require_extra("transformers", "transformers")
    import transformers

    options = {"local_files_only": not download}
    try:
        kind = transformers.AutoConfig.from_pretrained(place, **options).model_type
    except (OSError, ValueError) as error:
        raise FileNotFoundError(_not_here(place, error)) from error
    if kind not in CLASSES:
        raise ValueError(f"{place} is a model of type {kind!r}; expected one of {sorted(CLASSES)}")
    loader = getattr(transformers, CLASSES[kind])
    try:
        model, info = loader.from_pretrained(place, output_loading_info=True, **options)
    except OSError as error:
        raise FileNotFoundError(_not_here(place, error)) from error
    except RuntimeError as error:
        raise ValueError(f"{place} does not fit {CLASSES[kind]}: {error}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"{place} lacks {len(missing)} weights of {CLASSES[kind]}: {missing[:5]}")
    identity = f"transformers {kind} {weights_digest(model)}"
    return TransformersSegmenter(model.eval().to(device), identity)


def _not_here(place: str, error: Exception) -> str:
    return (
        f"{place} holds no model that transformers reads. Give a folder of save_pretrained, or "
        "fetch a model of the Hugging Face hub first: hf download facebook/sam-vit-huge (2.6 GB), "
        f"then say transformers:facebook/sam-vit-huge. transformers says: {error}"
    )
