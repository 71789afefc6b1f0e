"""Meta's SAM through the package `segment-anything` and its official files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detectron2.checkpoint.safe_files import read_torch_file
from weaksam.segmenters.extras import (
    ALL_PARTS,
    click_labels,
    inner_cells,
    require_extra,
    small_masks,
    weights_digest,
)
from weaksam.segmenters.protocol import CombiningSegmenter, PromptBatch

URL = "https://dl.fbaipublicfiles.com/segment_anything/"
FILES = {  # model: (file, size, blocks of its image encoder, their width)
    "vit_b": ("sam_vit_b_01ec64.pth", "375 MB", 12, 768),
    "vit_l": ("sam_vit_l_0b3195.pth", "1.2 GB", 24, 1024),
    "vit_h": ("sam_vit_h_4b8939.pth", "2.6 GB", 32, 1280),
}


class SegmentAnything(CombiningSegmenter):
    """A `segment_anything` model behind the protocol.

    Args:
        model: a `Sam`, in evaluation mode, on its device.
        identity: see `Segmenter`.
    """

    combines = ALL_PARTS

    def __init__(self, model: Any, identity: str):
        super().__init__()
        require_extra("segment_anything", "segment-anything")
        from segment_anything import SamPredictor

        self.identity = identity
        self._predictor = SamPredictor(model)

    def encode(self, image: np.ndarray) -> None:
        self._predictor.set_image(image)

    def draw_combined(self, prompts: PromptBatch, multimask: bool) -> tuple[Tensor, Tensor]:
        size_hw = self._predictor.original_size
        resize, device = self._predictor.transform, self._predictor.device
        points = labels = corners = masks = None
        if prompts.clicks is not None:
            points = torch.as_tensor(resize.apply_coords(prompts.clicks, size_hw), device=device)
            labels = torch.as_tensor(click_labels(prompts), device=device)
        if prompts.boxes is not None:
            indices = prompts.boxes - [0, 0, 1, 1]  # SAM's corners are pixels, the last one inside
            corners = torch.as_tensor(resize.apply_boxes(indices, size_hw), device=device).float()
        if prompts.masks is not None:
            encoder = self._predictor.model.prompt_encoder
            inner = self._predictor.input_size
            masks = small_masks(prompts.masks, inner, resize.target_length, encoder.mask_input_size)
            masks = masks.to(device)
        logits, predicted_iou, _ = self._predictor.predict_torch(
            points, labels, corners, masks, multimask_output=multimask, return_logits=True
        )
        return logits, predicted_iou

    def embedding(self) -> np.ndarray:
        predictor = self._predictor
        return inner_cells(
            predictor.features[0], predictor.input_size, predictor.model.image_encoder.img_size
        )


def load_segment_anything(model: str, path: Path, device: str = "cpu") -> SegmentAnything:
    """SAM of a size (vit_b, vit_l, vit_h) with the weights of its official file.

    Raises:
        FileNotFoundError: no such file; the message says where to get it.
        ValueError: an unknown size, or the file is of another one, or no SAM file.
    """
    if model not in FILES:
        raise ValueError(f"SAM {model!r} is unknown; expected one of {sorted(FILES)}")
    if not path.is_file():
        name, size, _, _ = FILES[model]
        raise FileNotFoundError(
            f"{path}: no such file. Download {URL}{name} ({size}) and give it that name and place"
        )
    require_extra("segment_anything", "segment-anything")
    state = read_torch_file(str(path))
    check_state(state, model, path)
    from segment_anything import sam_model_registry

    network = sam_model_registry[model]()
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit SAM {model}: {error}") from error
    identity = f"segment_anything {model} {weights_digest(network)}"
    return SegmentAnything(network.eval().to(device), identity)


def check_state(state: Any, model: str, path: Path) -> None:
    """ValueError that says what the file is, where it is not a SAM file of that size."""
    first = "image_encoder.pos_embed"
    if not isinstance(state, Mapping) or not isinstance(state.get(first), Tensor):
        raise ValueError(
            f"{path} is no SAM file: it has no {first!r}. The official one of {model} is "
            f"{URL}{FILES[model][0]}"
        )
    blocks = {key.split(".")[2] for key in state if key.startswith("image_encoder.blocks.")}
    found = (len(blocks), state[first].shape[-1])
    if found != FILES[model][2:]:
        fits = [name for name, facts in FILES.items() if facts[2:] == found]
        hint = f"it is of {fits[0]}: say segment_anything:{fits[0]}:{path}" if fits else "no SAM"
        raise ValueError(
            f"{path} has an encoder of {found[0]} blocks of width {found[1]}, {model} has "
            f"{FILES[model][2]} of {FILES[model][3]}; {hint}"
        )
