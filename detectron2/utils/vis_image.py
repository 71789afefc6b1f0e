"""A canvas for half-transparent shapes and text, in the coordinates of the image below."""

import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib import colors as mplc
from PIL import Image, ImageDraw, ImageFont

from weaklabels.files import atomic_bytes

__all__ = ["VisImage"]

_SHIFT = 4  # OpenCV's fixed-point coordinates: 1/16 of a pixel


class VisImage:
    """An (H, W, 3) uint8 RGB image, enlarged by `scale`, with drawings on it.

    Coordinates and lengths are in pixels of the image before scaling, (x, y) with (0.5, 0.5) at the
    center of the first pixel. Colors are matplotlib's: names, "#rrggbb", or RGB in [0, 1].
    """

    def __init__(self, img: np.ndarray, scale: float = 1.0):
        self.img = img
        self.scale = scale
        self.height, self.width = img.shape[:2]
        self._size_wh = (max(round(self.width * scale), 1), max(round(self.height * scale), 1))
        self.reset_image(img)

    def reset_image(self, img: np.ndarray) -> None:
        """Start again from another (H, W, 3) uint8 image."""
        self._canvas = cv2.resize(img, self._size_wh, interpolation=cv2.INTER_NEAREST)

    def get_image(self) -> np.ndarray:
        """(round(H * scale), round(W * scale), 3) uint8, RGB."""
        return self._canvas.copy()

    def save(self, filepath: str) -> None:
        """Write the picture to a file; the extension tells the format."""
        extension = os.path.splitext(filepath)[1].lower()
        kind = Image.registered_extensions().get(extension)
        if kind is None:
            raise ValueError(f"{filepath}: no image format has the extension {extension!r}")
        with atomic_bytes(filepath) as file:
            Image.fromarray(self._canvas).save(file, format=kind)

    def blend_mask(self, mask: np.ndarray, color: Any, alpha: float) -> None:
        """Color an (H, W) binary mask."""
        coverage = np.asarray(mask, dtype=np.float32)
        coverage = cv2.resize(coverage, self._size_wh, interpolation=cv2.INTER_NEAREST)
        rows = np.flatnonzero(coverage.any(axis=1))
        columns = np.flatnonzero(coverage.any(axis=0))
        if len(rows):
            top, left = rows[0], columns[0]
            part = coverage[top : rows[-1] + 1, left : columns[-1] + 1]
            self._blend(part, (left, top), color, alpha)

    def fill_polygons(self, polygons: Sequence[np.ndarray], color: Any, alpha: float) -> None:
        """Color the inside of (N, 2) polygons by the even-odd rule."""
        points, origin_xy, coverage = self._start(polygons, margin=1)
        cv2.fillPoly(coverage, points, 255, shift=_SHIFT)
        self._blend(coverage / np.float32(255), origin_xy, color, alpha)

    def draw_lines(
        self,
        lines: Sequence[np.ndarray],
        color: Any,
        alpha: float = 1.0,
        *,
        width: float = 1.0,
        closed: bool = False,
    ) -> None:
        """Draw (N, 2) polylines."""
        if closed:
            lines = [np.concatenate([line, line[:1]]) for line in lines]
        width_px = max(round(width * self.scale), 1)
        points, origin_xy, coverage = self._start(lines, margin=width_px + 1)
        cv2.polylines(coverage, points, False, 255, width_px, cv2.LINE_AA, _SHIFT)
        self._blend(coverage / np.float32(255), origin_xy, color, alpha)

    def fill_circle(self, center_xy: Sequence[float], radius: float, color: Any) -> None:
        center = np.asarray([center_xy], dtype=np.float64)
        points, origin_xy, coverage = self._start([center], margin=round(radius * self.scale) + 2)
        radius_fixed = round(radius * self.scale * 2**_SHIFT)
        center_fixed = tuple(int(v) for v in points[0][0])
        cv2.circle(coverage, center_fixed, radius_fixed, 255, -1, cv2.LINE_AA, _SHIFT)
        self._blend(coverage / np.float32(255), origin_xy, color, 1.0)

    def draw_text(
        self,
        text: str,
        position_xy: Sequence[float],
        *,
        font_size: float,
        color: Any,
        horizontal_alignment: str = "left",
    ) -> None:
        """Write text on a dark box whose top is at `position_xy`, moved to lie inside the image.

        Args:
            horizontal_alignment: the part of the text at the position: "left", "center", "right".
        """
        shifts = {"left": 0.0, "center": 0.5, "right": 1.0}
        if horizontal_alignment not in shifts:
            raise ValueError(f"{horizontal_alignment=}; expected one of {sorted(shifts)}")
        font = _font(max(round(font_size * self.scale), 1))
        left, top, right, bottom = (round(v) for v in font.getbbox(text))
        pad = max(round(font.size / 8), 1)
        box_wh = np.array([right - left, bottom - top]) + 2 * pad
        position = np.asarray(position_xy, dtype=np.float64) * self.scale
        position[0] -= shifts[horizontal_alignment] * box_wh[0]
        corner = np.clip(position.round(), 0, np.maximum(self._size_wh - box_wh, 0)).astype(int)

        glyphs = Image.new("L", tuple(int(v) for v in box_wh))
        ImageDraw.Draw(glyphs).text((pad - left, pad - top), text, fill=255, font=font)
        coverage = np.asarray(glyphs, dtype=np.float32) / 255
        visible = coverage[: self._size_wh[1] - corner[1], : self._size_wh[0] - corner[0]]
        self._blend(np.ones_like(visible), tuple(corner), "black", 0.7)
        self._blend(visible, tuple(corner), color, 1.0)

    def _start(
        self, shapes: Sequence[np.ndarray], margin: int
    ) -> tuple[list[np.ndarray], tuple[int, int], np.ndarray]:
        """The canvas around shapes: the shapes in fixed point, its (x, y), and zeros."""
        scaled = [np.asarray(shape, dtype=np.float64) * self.scale - 0.5 for shape in shapes]
        size_wh = np.array(self._size_wh)
        corners = np.concatenate(scaled) if scaled else np.zeros((1, 2))
        first = np.clip(np.floor(corners.min(axis=0)) - margin, 0, size_wh).astype(int)
        last = np.clip(np.ceil(corners.max(axis=0)) + margin + 1, first, size_wh).astype(int)
        coverage = np.zeros((last - first)[::-1], dtype=np.uint8)
        fixed = [np.round((shape - first) * 2**_SHIFT).astype(np.int32) for shape in scaled]
        return fixed, (int(first[0]), int(first[1])), coverage

    def _blend(
        self, coverage: np.ndarray, origin_xy: tuple[int, int], color: Any, alpha: float
    ) -> None:
        """Mix a color into the part of the canvas at `origin_xy`, by coverage (h, w) * alpha."""
        if not coverage.size:
            return
        x, y = origin_xy
        part = self._canvas[y : y + coverage.shape[0], x : x + coverage.shape[1]]
        weight = coverage[..., None] * np.float32(alpha)
        rgb = np.array(mplc.to_rgb(color), dtype=np.float32) * 255
        part[:] = np.round(part + weight * (rgb - part)).astype(np.uint8)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib's own font: pictures do not depend on the fonts of the machine
    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(path, size)
