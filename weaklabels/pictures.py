"""Image files: one reader for all programs, and pictures that are written whole or not at all.

A file is an error where it is cut off, is no image, or states more pixels than the limit, which
the environment variable WEAKLABELS_MAX_IMAGE_PIXELS raises.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from weaklabels.files import atomic_bytes
from weaklabels.image_root import is_file
from weaklabels.limits import max_image_pixels, too_many_pixels

EXIF_ORIENTATION = 0x0112
UPRIGHT = {  # how to undo each orientation, by its EXIF number
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TURNED = (5, 6, 7, 8)  # orientations that exchange height and width
MAX_16_BIT = 65535
BYTE_SHIFT = 8


class UnreadableImage(ValueError):
    """An image file is missing, damaged or too large; the message names it."""


# What PIL raises for files that are damaged in one way or another.
PIL_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def read_image(path: str | Path, size_hw: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 RGB, turned as its EXIF orientation says.

    Args:
        size_hw: the height and width that the labels were made for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no whole image, or one of another size.
    """
    if not is_file(Path(path)):
        raise FileNotFoundError(f"{path}: no readable image; is the image root right?")
    with open(path, "rb") as file:
        image = np.array(to_8_bit(open_image(file, path)).convert("RGB"))
    if image.shape[:2] != tuple(size_hw):
        raise ValueError(
            f"{path}: {image.shape[0]} x {image.shape[1]} pixels, but its labels are for "
            f"{size_hw[0]} x {size_hw[1]} (height x width)"
        )
    return image


def open_image(file: BinaryIO, name: str | Path) -> Image.Image:
    """The decoded, upright image in an open file; ValueError with its `name` where it has none."""
    try:
        image = _opened(file)
        image.load()
        method = UPRIGHT.get(image.getexif().get(EXIF_ORIENTATION))
        return image if method is None else image.transpose(method)
    except PIL_ERRORS as error:
        raise _unreadable(name, error) from error


def image_size_hw(path: Path, where: str) -> tuple[int, int]:
    """Height and width of the upright image, from its header; `where` says what names the image."""
    if not is_file(path):
        raise FileNotFoundError(f"{where} names the image {path}, which is not there: add it")
    try:
        with open(path, "rb") as file:
            image = _opened(file)
            turned = image.getexif().get(EXIF_ORIENTATION) in TURNED
            return (image.width, image.height) if turned else (image.height, image.width)
    except PIL_ERRORS as error:
        raise UnreadableImage(
            f"{where}: the image {path} is not readable: {_reason(error)}; replace it"
        ) from error


@contextlib.contextmanager
def passed_over(skipped: list[str] | None) -> Iterator[None]:
    """Where there is a list, an image that cannot be read ends the block and is put on it.

    A file that is not there is an error all the same: then the folder is another one, or not whole.
    """
    try:
        yield
    except UnreadableImage as error:
        if skipped is None:
            raise
        skipped.append(str(error))


def refuse_all_skipped(skipped: list[str], images: int) -> None:
    """ValueError where no image is left."""
    if skipped and not images:
        raise UnreadableImage(f"none of {len(skipped)} images can be read; the first: {skipped[0]}")


def to_8_bit(image: Image.Image) -> Image.Image:
    """The high byte of 16-bit gray values, which PIL's own conversion would clip all above 255."""
    if not image.mode.startswith("I"):
        return image
    values = np.clip(np.asarray(image), 0, MAX_16_BIT).astype(np.uint16)
    return Image.fromarray((values >> BYTE_SHIFT).astype(np.uint8))


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write (H, W, 3) uint8 BGR as PNG; folders are made where they are missing."""
    encoded = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1]
    with atomic_bytes(path) as handle:
        handle.write(encoded.tobytes())


def _opened(file: BinaryIO) -> Image.Image:
    """The image of a file whose header states no more pixels than the limit."""
    limit = Image.MAX_IMAGE_PIXELS = max_image_pixels()
    try:
        image = Image.open(file)
    except Image.DecompressionBombError as error:
        raise ValueError(too_many_pixels(error)) from error
    if image.width * image.height > limit:
        raise ValueError(too_many_pixels(f"{image.height} x {image.width} pixels"))
    return image


def _reason(error: Exception) -> str:
    return "it is no image" if isinstance(error, UnidentifiedImageError) else str(error)


def _unreadable(name: str | Path, error: Exception) -> UnreadableImage:
    return UnreadableImage(
        f"cannot read image '{name}': {_reason(error)}. The file is damaged or not an image: "
        "replace it, or remove it from the annotations"
    )
