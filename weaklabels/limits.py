"""How many pixels an image may have: one limit for image files and for the sizes that labels state.

A small file can state a size that fills the memory of whoever opens it, and pycocotools asks for
four bytes a pixel to join the polygons of one mask.
"""

import os

MAX_PIXELS_VARIABLE = "WEAKLABELS_MAX_IMAGE_PIXELS"
MAX_PIXELS = 178_956_970  # where PIL, too, refuses an image: half a GB in RGB


def max_image_pixels() -> int:
    """The limit, which the environment variable WEAKLABELS_MAX_IMAGE_PIXELS changes."""
    text = os.environ.get(MAX_PIXELS_VARIABLE)
    if text and not text.isdecimal():
        raise ValueError(f"{MAX_PIXELS_VARIABLE}={text}: must be a whole number of pixels")
    return int(text or MAX_PIXELS)


def too_many_pixels(stated: object) -> str:
    """What to say of an image above the limit."""
    return f"{stated}; the limit is {max_image_pixels()} pixels, {MAX_PIXELS_VARIABLE}=N raises it"
