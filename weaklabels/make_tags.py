"""Make a tag file from any of the sources of `tag_sources`."""

from dataclasses import dataclass
from pathlib import Path

from weaklabels.tag_sources import (
    tags_from_coco,
    tags_from_csv,
    tags_from_folders,
    tags_from_voc,
)
from weaklabels.tags import Tags, write_tags

READS = {  # what each source takes beside its path
    "voc": ("split", "classes", "difficult"),
    "coco": ("split", "difficult"),
    "csv": ("split", "classes", "image_root"),
    "folders": ("split", "classes"),
}
NEEDS = {"voc": ("split",), "csv": ("image_root",)}


@dataclass(frozen=True)
class TagSettings:
    """One tag file.

    source: of READS.  path: its folder or file.  output: the tag file.
    split: name of the images' split; VOC's says which images, elsewhere it is written down.
    image_root: the folder that the images of a CSV file are in.
    classes: in the order of their ids; None takes those of the source.
    difficult: keep a class of which an image has difficult objects (COCO: crowds) only.
    allow_absent: take a class that no image shows.
    """

    source: str
    path: Path
    output: Path
    split: str | None = None
    image_root: Path | None = None
    classes: tuple[str, ...] | None = None
    difficult: bool = False
    allow_absent: bool = False

    def __post_init__(self) -> None:
        if self.source not in READS:
            raise ValueError(f"source={self.source!r}; expected one of {', '.join(READS)}")
        for name in ("split", "classes", "image_root", "difficult"):
            given = getattr(self, name)
            if given and name not in READS[self.source]:
                raise ValueError(
                    f"{name}={given!r}: the source {self.source!r} reads only "
                    f"{', '.join(READS[self.source])}"
                )
            if not given and name in NEEDS.get(self.source, ()):
                raise ValueError(f"the source {self.source!r} ({self.path}) needs {name}")


def make_tags(settings: TagSettings) -> tuple[Tags, Path]:
    """Write the tag file; returns its content, and the path of the list of images without a tag."""
    common = {"split": settings.split, "allow_absent": settings.allow_absent}
    named = common | {"classes": settings.classes}
    if settings.source == "voc":
        if settings.classes is None:
            del named["classes"]
        tags = tags_from_voc(settings.path, difficult=settings.difficult, **named)
    elif settings.source == "coco":
        tags = tags_from_coco(settings.path, difficult=settings.difficult, **common)
    elif settings.source == "csv":
        tags = tags_from_csv(settings.path, settings.image_root, **named)
    else:
        tags = tags_from_folders(settings.path, **named)
    return tags, write_tags(settings.output, tags)
