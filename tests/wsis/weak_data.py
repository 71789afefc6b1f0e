"""Six small images as VOC has them, and the commands that lead from their tags to proposals."""

from pathlib import Path

import numpy as np
from PIL import Image

from wsis.cli.main import program

COLORS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (230, 40, 40)}
SIZE_HW = (40, 56)
SMALL_NETWORK = (
    *("--network", "cam", "--feature", "res2", "--size", "32", "--epochs", "2"),
    *("--batch-size", "3", "--workers", "0", "--num-gpus", "0"),
    *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.FREEZE_AT", "0"),
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.NORM", "BN"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "8"),
    *("MODEL.RESNETS.OUT_FEATURES", "['res2']", "MODEL.PIXEL_STD", "[57.0, 57.0, 57.0]"),
)
CPU = ("--num-gpus", "0")


def wsis(command: str, *words: object) -> int:
    return program(command, [str(word) for word in words])


def make_voc(root: Path) -> Path:
    """Six images as VOC has them, each with a square of one color, its box and its mask."""
    for name in ("Annotations", "JPEGImages", "SegmentationObject", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(6):
        image = rng.integers(90, 150, (*SIZE_HW, 3)).astype(np.uint8)
        x, y, side = int(rng.integers(0, 38)), int(rng.integers(0, 22)), 18
        image[y : y + side, x : x + side] = list(COLORS.values())[number % 3]
        mask = np.zeros(SIZE_HW, np.uint8)
        mask[y : y + side, x : x + side] = 1
        name = f"{number + 1:06d}"
        Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
        Image.fromarray(mask).save(root / "SegmentationObject" / f"{name}.png")
        corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + side, "ymax": y + side}
        box = "".join(f"<{key}>{value}</{key}>" for key, value in corners.items())
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><size><width>{SIZE_HW[1]}</width><height>{SIZE_HW[0]}</height>"
            f"<depth>3</depth></size><object><name>{list(COLORS)[number % 3]}</name>"
            f"<bndbox>{box}</bndbox></object></annotation>"
        )
    names = "".join(f"{number + 1:06d}\n" for number in range(6))
    (root / "ImageSets/Main/trainval.txt").write_text(names)
    (root / "ImageSets/Main/test.txt").write_text(names)
    return root


def make_tags(voc: Path, output: Path, split: str = "trainval") -> Path:
    assert wsis("tags", "--voc", voc, "--split", split, "--classes", *COLORS, "-o", output) == 0
    return output


def run_stages(tags: Path, images: Path, folder: Path) -> dict[str, bytes]:
    """Every stage from tags to proposals; the files that it leaves for the next ones."""
    data = ("--tags", tags, "--image-root", images)
    points, clusters = folder / "points/points_coarse.npz", folder / "clusters.npz"
    classifier = folder / "classifier"
    assert wsis("clues", "train", *data, "--output", classifier, *SMALL_NETWORK) == 0
    weights = ("--weights", classifier / "classifier.pth", "--kernel", "7", *CPU)
    assert wsis("clues", "points", *data, *weights, "--output", folder / "points") == 0
    assert wsis("clues", "cluster", "--points", points, "--output", clusters) == 0
    search, sam, both = (folder / f"{name}.npz" for name in ("search", "sam", "both"))
    kind = ("--kind", "selective_search", "--min-side", "4", *CPU)
    assert wsis("proposals", "grid", *data, *kind, "--output", search) == 0
    clicks = ("--coarse", points, "--cross", clusters, "--grid", "3", *CPU)
    assert wsis("proposals", "points", *data, *clicks, "--output", sam) == 0
    merge = ("--proposals", search, sam, "--output", both)
    assert wsis("proposals", "merge", "--tags", tags, *merge) == 0
    return {path.name: path.read_bytes() for path in (points, clusters, search, sam, both)}
