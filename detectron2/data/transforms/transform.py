"""Transforms that fvcore lacks. Coordinates are continuous: pixel i spans [i, i + 1]."""

from collections.abc import Callable

import cv2
import numpy as np
import torch
from fvcore.transforms import transform as fvcore_transforms
from fvcore.transforms.transform import NoOpTransform, Transform, TransformList
from PIL import Image
from torch.nn import functional as F

from .polygon_clip import clip_polygon

_TORCH_MODES = {
    Image.NEAREST: ("nearest", None),
    Image.BILINEAR: ("bilinear", False),
    Image.BICUBIC: ("bicubic", False),
}


def _original_size(transform: Transform) -> np.ndarray:
    """(2,) width and height of the image that a crop or padding was made for."""
    size_wh = (transform.orig_w, transform.orig_h)
    assert None not in size_wh, (
        f"only a {type(transform).__name__} made with orig_w and orig_h has an inverse"
    )
    return np.array(size_wh)


class CropTransform(fvcore_transforms.CropTransform):
    """fvcore's crop, which cuts polygons at the border without shapely."""

    def apply_polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        """Cut (N, 2) polygons to the window; one may give several pieces, or none."""
        window = (self.x0, self.y0, self.x0 + self.w, self.y0 + self.h)
        return [
            self.apply_coords(piece)
            for polygon in polygons
            for piece in clip_polygon(polygon, *window)
        ]

    def inverse(self) -> Transform:
        """Padding back to the original size."""
        end_xy = np.add((self.x0, self.y0), (self.w, self.h))
        right_bottom = (_original_size(self) - end_xy).tolist()
        return PadTransform(self.x0, self.y0, *right_bottom, self.w, self.h)


class PadTransform(fvcore_transforms.PadTransform):
    """fvcore's padding, with the crop above as its inverse."""

    def inverse(self) -> Transform:
        """Cropping back to the original size."""
        size_wh = _original_size(self)
        padded_wh = size_wh + (self.x0 + self.x1, self.y0 + self.y1)
        return CropTransform(self.x0, self.y0, *size_wh.tolist(), *padded_wh.tolist())


def _through_pil(img: np.ndarray, function: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """The result of a function of PIL images; (H, W, 1) arrays keep their third axis."""
    is_flat = img.ndim == 3 and img.shape[2] == 1
    result = np.asarray(function(Image.fromarray(img[..., 0] if is_flat else img)))
    return result[..., None] if is_flat else result


class ExtentTransform(Transform):
    """Scale `src_rect` of the image, which may reach beyond it, to `output_size`."""

    def __init__(
        self,
        src_rect: tuple[float, float, float, float],
        output_size: tuple[int, int],
        interp: int = Image.BILINEAR,
        fill: int = 0,
    ):
        """
        Args:
            src_rect: x0, y0, x1, y1 in pixels of the input.
            output_size: height, width.
            interp: PIL's interpolation for images; masks always use nearest.
            fill: value outside the input.
        """
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """(H, W), (H, W, 1) or (H, W, 3) uint8 -> the same at `output_size`."""
        size_wh = self.output_size[::-1]
        interp = self.interp if interp is None else interp
        extent = (Image.EXTENT, self.src_rect, interp, self.fill)
        return _through_pil(img, lambda image: image.transform(size_wh, *extent))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) x, y -> (N, 2) float32, as upstream's."""
        height, width = self.output_size
        x0, y0, x1, y1 = self.src_rect
        coords = coords.astype(np.float32)
        coords[:, 0] = (coords[:, 0] - x0) * (width / (x1 - x0))
        coords[:, 1] = (coords[:, 1] - y0) * (height / (y1 - y0))
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Label map (H, W) -> (output height, output width), nearest."""
        return self.apply_image(segmentation, interp=Image.NEAREST)


class ResizeTransform(Transform):
    """Resize from (h, w) to (new_h, new_w): PIL for uint8 (antialiased), torch for other types."""

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None):
        super().__init__()
        if interp is None:
            interp = Image.BILINEAR
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """(h, w), (h, w, C) -> (new_h, new_w[, C]) of the same dtype."""
        if img.shape[:2] != (self.h, self.w):
            raise ValueError(f"{self} was made for images of {self.h, self.w}, got {img.shape[:2]}")
        interp = self.interp if interp is None else interp
        if img.dtype == np.uint8 and (img.ndim == 2 or img.shape[2] in (1, 3, 4)):
            return _through_pil(img, lambda image: image.resize((self.new_w, self.new_h), interp))
        return self._resize_by_torch(img, interp)

    def _resize_by_torch(self, img: np.ndarray, interp: int) -> np.ndarray:
        if interp not in _TORCH_MODES:
            raise ValueError(
                f"interpolation {interp} is not available for {img.dtype} images of shape "
                f"{img.shape}; use PIL's NEAREST, BILINEAR or BICUBIC"
            )
        mode, align_corners = _TORCH_MODES[interp]
        planes = img[:, :, None] if img.ndim == 2 else img
        dtype = img.dtype if img.dtype in (np.float32, np.float64) else np.float64
        tensor = torch.from_numpy(np.ascontiguousarray(planes.transpose(2, 0, 1), dtype=dtype))
        resized = F.interpolate(
            tensor[None], (self.new_h, self.new_w), mode=mode, align_corners=align_corners
        )
        result = resized[0].permute(1, 2, 0).numpy().astype(img.dtype)
        return result[:, :, 0] if img.ndim == 2 else result

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) x, y, changed in place as fvcore's transforms do; integers are truncated."""
        for axis, scale in enumerate((self.new_w / self.w, self.new_h / self.h)):
            coords[:, axis] = coords[:, axis] * scale
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Label map or mask (h, w) -> (new_h, new_w), nearest."""
        return self.apply_image(segmentation, interp=Image.NEAREST)

    def inverse(self) -> Transform:
        """Resize back."""
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class RotationTransform(Transform):
    """Rotate by `angle` degrees, counterclockwise on screen, about `center`."""

    def __init__(
        self,
        h: int,
        w: int,
        angle: float,
        expand: bool = True,
        center: tuple[float, float] | None = None,
        interp: int | None = None,
    ):
        """
        Args:
            h, w: size of the input image.
            expand: enlarge the output to fit the whole rotated image; the center is then unused.
            center: x, y in continuous coordinates; None: the image's center.
            interp: OpenCV's interpolation for images, by default linear.
        """
        super().__init__()
        interp = cv2.INTER_LINEAR if interp is None else interp
        self._set_attributes(
            dict(h=h, w=w, angle=angle, expand=expand, center=center, interp=interp)
        )
        cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        turn = np.array([[cos, sin], [-sin, cos]])
        size_wh = np.array((w, h))
        bound_wh = np.rint(np.abs(turn) @ size_wh).astype(int) if expand else size_wh
        self.bound_w, self.bound_h = bound_wh.tolist()
        if expand or center is None:
            pivot, target = size_wh / 2, bound_wh / 2
        else:
            pivot = target = np.asarray(center, dtype=float)
        # Affine matrices (2, 3) that turn about the pivot and move it to the target. That of images
        # acts on pixel indices, where the center of a pixel is i, not i + 0.5.
        self.rm_coords, self.rm_image = (
            np.column_stack([turn, target + offset - turn @ (pivot + offset)])
            for offset in (0.0, -0.5)
        )

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """(h, w[, C]) -> (bound_h, bound_w[, C]), 0 outside the input."""
        if len(img) == 0 or self.angle % 360 == 0:
            return img
        if img.shape[:2] != (self.h, self.w):
            raise ValueError(f"{self} was made for images of {self.h, self.w}, got {img.shape[:2]}")
        interp = self.interp if interp is None else interp
        source = img.astype(np.uint8) if img.dtype == bool else img
        size = (self.bound_w, self.bound_h)
        result = cv2.warpAffine(np.ascontiguousarray(source), self.rm_image, size, flags=interp)
        return result.reshape(*result.shape[:2], *img.shape[2:]).astype(img.dtype, copy=False)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) x, y -> rotated (N, 2)."""
        coords = np.asarray(coords, dtype=float)
        if len(coords) == 0 or self.angle % 360 == 0:
            return coords
        return coords @ self.rm_coords[:, :2].T + self.rm_coords[:, 2]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Label map or mask (h, w) -> (bound_h, bound_w), nearest."""
        return self.apply_image(segmentation, interp=cv2.INTER_NEAREST)

    def inverse(self) -> Transform:
        """Rotating back and cropping what both rotations have added; needs `expand`."""
        if not self.expand:
            raise NotImplementedError(
                "a rotation loses the image's corners unless it is made with expand=True"
            )
        size_hw, rotated_hw = np.array((self.h, self.w)), (self.bound_h, self.bound_w)
        back = RotationTransform(*rotated_hw, -self.angle, interp=self.interp)
        top, left = ((back.bound_h, back.bound_w) - size_hw) // 2
        return TransformList([back, CropTransform(int(left), int(top), self.w, self.h)])


class ColorTransform(Transform):
    """Change pixel values with a function of the image and keep the geometry."""

    def __init__(self, op: Callable[[np.ndarray], np.ndarray]):
        if not callable(op):
            raise ValueError(f"op={op!r}; expected a function from image to image")
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self.op(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def inverse(self) -> Transform:
        return NoOpTransform()  # the geometry is unchanged


class PILColorTransform(ColorTransform):
    """A `ColorTransform` whose function takes and gives PIL images."""

    def __init__(self, op: Callable[[Image.Image], Image.Image]):
        super().__init__(op)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(H, W, C) uint8 -> the function's result as an array."""
        return np.asarray(self.op(Image.fromarray(img)))
