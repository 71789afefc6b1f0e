"""Picture files that appear whole or not at all."""

from pathlib import Path

import cv2
import numpy as np


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write (H, W, 3) uint8 BGR as PNG; folders are made where they are missing.

    Raises:
        OSError: it could not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial.png")
    if not cv2.imwrite(str(partial), picture, [cv2.IMWRITE_PNG_COMPRESSION, 9]):
        raise OSError(f"{path}: could not be written; is the disk full or read-only?")
    partial.replace(path)
