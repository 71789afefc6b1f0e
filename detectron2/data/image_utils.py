"""Read images of any color mode and orientation as arrays, and convert formats."""

import numpy as np
import torch
from PIL import Image

from detectron2.utils.file_io import PathManager
from weaklabels.pictures import open_image, to_8_bit

__all__ = ["convert_PIL_to_numpy", "convert_image_to_rgb", "read_image"]

_YUV_FORMAT = "YUV-BT.601"
# ITU-R BT.601: rows give Y, U, V from red, green, blue; below, red, green, blue from Y, U, V
_RGB_TO_YUV = np.array(
    [[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]]
)
_YUV_TO_RGB = np.array([[1.0, 0.0, 1.13983], [1.0, -0.39465, -0.58060], [1.0, 2.03211, 0.0]])


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Read an image file upright, by its EXIF orientation.

    Gray, palette, CMYK, transparent and 16-bit files are converted; 16 bits lose the low byte.

    Args:
        format: "RGB", "BGR", "L" (gray), "YUV-BT.601", a mode of PIL, or None: as stored.

    Returns:
        (H, W, 3) uint8 for RGB and BGR, (H, W, 1) uint8 for L, (H, W, 3) float64 for YUV-BT.601.
    """
    try:
        with PathManager.open(file_name, "rb") as file:
            return convert_PIL_to_numpy(open_image(file, file_name), format)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"image '{file_name}' does not exist; check the dataset's image folder (for builtin "
            "datasets, the environment variable DETECTRON2_DATASETS)"
        ) from error
    except OSError as error:  # a folder, or a file that may not be read
        raise ValueError(
            f"cannot read image '{file_name}': {error.strerror}; replace it"
        ) from error


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:
    """The pixels of a PIL image in `format`; formats and results as in `read_image`."""
    if format is not None:
        image = to_8_bit(image)
        in_rgb = format in ("BGR", _YUV_FORMAT)
        image = image.convert("RGB" if in_rgb else format)
    array = np.asarray(image)
    if format == "BGR":
        return array[:, :, ::-1]
    if format == "L":
        return array[:, :, np.newaxis]
    if format == _YUV_FORMAT:
        return array / 255.0 @ _RGB_TO_YUV.T
    return array


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image whose format is one of those of `read_image`."""
    if isinstance(image, torch.Tensor):
        image = image.cpu().numpy()
    if format == "BGR":
        return image[:, :, ::-1]
    if format == _YUV_FORMAT:
        rgb = image @ _YUV_TO_RGB.T * 255.0
        return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
    if format == "L":
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    image = image.astype(np.uint8)
    return np.asarray(Image.fromarray(image, mode=format).convert("RGB"))
