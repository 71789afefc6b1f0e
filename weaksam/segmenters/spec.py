"""Segmenters by name, as command lines and recipes give them.

tiny                              our own network, weights in the package
tiny:FILE                         its weights from another training
segment_anything:vit_h:FILE       Meta's SAM, official file (vit_b, vit_l, vit_h)
transformers:FOLDER_OR_NAME       SAM, SAM 2 or SAM-HQ of transformers
grabcut                           OpenCV, boxes only
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from weaksam.segmenters.protocol import Segmenter

DEFAULT_SEGMENTER = "tiny"
FORMS = (
    "tiny, tiny:FILE, segment_anything:{vit_b,vit_l,vit_h}:FILE, transformers:FOLDER_OR_NAME, "
    "grabcut"
)


@dataclass(frozen=True)
class SegmenterSpec:
    """kind: the word before the first colon.  model: a size, or ''.  place: file or name, or ''."""

    kind: str
    model: str = ""
    place: str = ""


def parse_spec(text: str) -> SegmenterSpec:
    """Take a segmenter's name apart; ValueError with the possible forms where it has none."""
    kind, _, rest = text.partition(":")
    if kind == "tiny":
        return SegmenterSpec(kind, place=rest)
    if kind == "grabcut" and not rest:
        return SegmenterSpec(kind)
    if kind == "transformers" and rest:
        return SegmenterSpec(kind, place=rest)
    model, _, place = rest.partition(":")
    if kind == "segment_anything" and model and place:
        return SegmenterSpec(kind, model, place)
    raise ValueError(f"segmenter {text!r}; expected one of {FORMS}")


def load_segmenter(text: str, device: str = "auto", download: bool = False) -> Segmenter:
    """The segmenter of a name; packages of the extra `[sam]` are imported here, if needed.

    Args:
        device: of torch; "auto" is cuda where there is one, else cpu.
        download: let transformers fetch a model by name.
    """
    spec = parse_spec(text)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if spec.kind == "tiny":
        from weaksam.segmenters.tiny import WEIGHTS, load_tiny

        return load_tiny(Path(spec.place) if spec.place else WEIGHTS, device)
    if spec.kind == "segment_anything":
        from weaksam.segmenters.segment_anything import load_segment_anything

        return load_segment_anything(spec.model, Path(spec.place), device)
    if spec.kind == "transformers":
        from weaksam.segmenters.transformers import load_transformers

        return load_transformers(spec.place, device, download)
    from weaksam.segmenters.grabcut import GrabCut

    return GrabCut()
