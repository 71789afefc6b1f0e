"""Image files: read in the size that their labels have, written whole or not at all."""

from pathlib import Path

import cv2
import numpy as np

from weaklabels.files import atomic_bytes


def read_image(path: str | Path, size_hw: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 RGB, turned as its EXIF orientation says.

    Args:
        size_hw: the height and width that the labels were made for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, or one of another size.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no readable image; is the image root right?")
    try:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    except cv2.error as error:  # the header states more pixels than OpenCV takes
        raise ValueError(f"{path}: cannot be read as an image ({error.err})") from error
    if image is None:
        raise ValueError(f"{path}: cannot be read as an image; make or fetch it again")
    if image.shape[:2] != tuple(size_hw):
        raise ValueError(
            f"{path}: {image.shape[0]} x {image.shape[1]} pixels, but its labels are for "
            f"{size_hw[0]} x {size_hw[1]} (height x width)"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write (H, W, 3) uint8 BGR as PNG; folders are made where they are missing."""
    encoded = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1]
    with atomic_bytes(path) as handle:
        handle.write(encoded.tobytes())
