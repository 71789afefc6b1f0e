"""Read image files."""

from pathlib import Path

import cv2
import numpy as np


def read_image(path: str | Path, size_hw: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 RGB, turned as its EXIF orientation says.

    Args:
        size_hw: the height and width that the labels were made for.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is no image, or one of another size.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such image")
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path}: cannot be read as an image")
    if image.shape[:2] != tuple(size_hw):
        raise ValueError(
            f"{path} has height and width {image.shape[:2]}, its labels {tuple(size_hw)}"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
