"""The categories of the builtin datasets; those of others come from annotation files."""

import colorsys
from typing import Any

__all__ = ["BDD100K_CATEGORIES", "COCO_CATEGORIES", "bdd100k_metadata", "coco_metadata"]

_COCO_IDS_AND_NAMES = """
1 person, 2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat,
10 traffic light, 11 fire hydrant, 13 stop sign, 14 parking meter, 15 bench, 16 bird, 17 cat,
18 dog, 19 horse, 20 sheep, 21 cow, 22 elephant, 23 bear, 24 zebra, 25 giraffe, 27 backpack,
28 umbrella, 31 handbag, 32 tie, 33 suitcase, 34 frisbee, 35 skis, 36 snowboard, 37 sports ball,
38 kite, 39 baseball bat, 40 baseball glove, 41 skateboard, 42 surfboard, 43 tennis racket,
44 bottle, 46 wine glass, 47 cup, 48 fork, 49 knife, 50 spoon, 51 bowl, 52 banana, 53 apple,
54 sandwich, 55 orange, 56 broccoli, 57 carrot, 58 hot dog, 59 pizza, 60 donut, 61 cake, 62 chair,
63 couch, 64 potted plant, 65 bed, 67 dining table, 70 toilet, 72 tv, 73 laptop, 74 mouse,
75 remote, 76 keyboard, 77 cell phone, 78 microwave, 79 oven, 80 toaster, 81 sink, 82 refrigerator,
84 book, 85 clock, 86 vase, 87 scissors, 88 teddy bear, 89 hair drier, 90 toothbrush
"""
_BDD100K_IDS_AND_NAMES = """
1 pedestrian, 2 rider, 3 car, 4 truck, 5 bus, 6 train, 7 motorcycle, 8 bicycle
"""

_GOLDEN_RATIO = 0.618033988749895  # hues at steps of it stay far apart
_SATURATIONS = (0.9, 0.6, 0.75)
_VALUES = (0.95, 0.75)
_MAX_BYTE = 255


def _parse(table: str) -> list[dict[str, Any]]:
    """Category dicts with `id`, `name`, `isthing` and a distinct `color` (RGB, 0 to 255)."""
    categories = []
    for index, entry in enumerate(table.replace("\n", " ").split(",")):
        number, _, name = entry.strip().partition(" ")
        rgb = colorsys.hsv_to_rgb(
            index * _GOLDEN_RATIO % 1,
            _SATURATIONS[index % len(_SATURATIONS)],
            _VALUES[index % len(_VALUES)],
        )
        color = [round(_MAX_BYTE * channel) for channel in rgb]
        categories.append({"id": int(number), "name": name, "isthing": 1, "color": color})
    return categories


COCO_CATEGORIES = _parse(_COCO_IDS_AND_NAMES)
BDD100K_CATEGORIES = _parse(_BDD100K_IDS_AND_NAMES)


def _metadata(categories: list[dict[str, Any]]) -> dict[str, Any]:
    ids = [category["id"] for category in categories]
    return {
        "thing_dataset_id_to_contiguous_id": {id_: index for index, id_ in enumerate(ids)},
        "thing_classes": [category["name"] for category in categories],
        "thing_colors": [category["color"] for category in categories],
    }


def coco_metadata() -> dict[str, Any]:
    """Metadata of COCO's 80 thing categories."""
    return _metadata(COCO_CATEGORIES)


def bdd100k_metadata() -> dict[str, Any]:
    """Metadata of BDD100K's 8 instance categories."""
    return _metadata(BDD100K_CATEGORIES)
