"""Segmenters that stages name: their files have to be there before anything long runs."""

from collections.abc import Mapping
from pathlib import Path

from weaksam.segmenters.segment_anything import FILES, URL
from weaksam.segmenters.spec import parse_spec
from wsis.runner import FlagValue, PipelineError


def segmenter_file(name: str) -> Path | None:
    """The segmenter's own file, where it has one that has to be there."""
    spec = parse_spec(name)
    return Path(spec.place) if spec.place and spec.kind != "transformers" else None


def segmenter_file_of(flags: Mapping[str, FlagValue]) -> Path | None:
    """The same of the segmenter that a command's flags name, if any."""
    name = flags.get("segmenter")
    return segmenter_file(str(name)) if name else None


def how_to_get_segmenter(path: Path) -> str:
    """What to do where the file of a segmenter is missing."""
    known = {name: size for name, size, *_ in FILES.values()}
    if path.name not in known:
        return "give --segmenter the path of its file"
    return (
        f"download it ({known[path.name]}) from {URL}{path.name}, give its path by --segmenter, or "
        "take the small one of this package, --segmenter tiny"
    )


def require_segmenter(name: str) -> None:
    """PipelineError where the segmenter's file is missing."""
    path = segmenter_file(name)
    if path is not None and not path.is_file():
        raise PipelineError(f"{path} is missing: {how_to_get_segmenter(path)}")


def require_clicks(name: str) -> None:
    """PipelineError for a segmenter that takes no points."""
    if parse_spec(name).kind == "grabcut":
        raise PipelineError(
            f"--segmenter {name} takes boxes only, and --teacher sam prompts by points: take tiny, "
            "segment_anything:{vit_b,vit_l,vit_h}:FILE or transformers:FOLDER_OR_NAME"
        )
