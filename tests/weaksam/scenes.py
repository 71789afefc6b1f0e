"""Small images whose class is the colour of a square, as a tagged dataset on disk."""

from pathlib import Path

import numpy as np
from PIL import Image

from weaklabels.tags import TaggedImage, Tags, write_tags
from weaksam.clues.data import TaggedDataset

COLOURS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (230, 40, 40)}


def make_dataset(folder: Path, count: int, seed: int = 0, split: str | None = "train", untagged=()):
    """Images of 40 x 56 with a square of one colour each; those in `untagged` have no tag.

    Returns the dataset and each square's box (x1, y1, x2, y2).
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    images, boxes = [], []
    for number in range(count):
        picture = rng.integers(90, 150, (40, 56, 3)).astype(np.uint8)
        x, y, side = int(rng.integers(0, 38)), int(rng.integers(0, 22)), 18
        picture[y : y + side, x : x + side] = list(COLOURS.values())[number % 3]
        Image.fromarray(picture).save(folder / f"{number}.png")
        ids = () if number in untagged else (number % 3 + 1,)
        images.append(TaggedImage(number + 10, f"{number}.png", 40, 56, ids))
        boxes.append((x, y, x + side, y + side))
    tags = Tags(tuple(images), tuple(enumerate(COLOURS, start=1)), split)
    write_tags(folder / "tags.json", tags)
    return TaggedDataset.load(folder / "tags.json", folder), boxes
