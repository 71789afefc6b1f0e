"""A canvas to draw half-transparent shapes and text on, in the coordinates of the image below."""

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
# Lengths of stroke, gap, stroke, gap in line widths, by matplotlib's names of line styles; round
# line ends take about one and a half widths of each gap.
_DASHES: dict[str, tuple[float, ...]] = {
    "-": (),
    "--": (4.0, 4.0),
    "-.": (6.0, 4.0, 1.0, 4.0),
    ":": (1.0, 4.0),
}


class VisImage:
    """An RGB image, enlarged by `scale`, with drawings on it.

    All coordinates are (x, y) pixels of the image before scaling, where (0, 0) is the outer corner
    of the first pixel and (0.5, 0.5) its centre. Colours are matplotlib's: names, "#rrggbb", or
    RGB triples in [0, 1].

    Args:
        img: (H, W, 3) uint8, RGB.
    """

    def __init__(self, img: np.ndarray, scale: float = 1.0):
        self.img = img
        self.scale = scale
        self.height, self.width = img.shape[:2]
        self._size_wh = (max(round(self.width * scale), 1), max(round(self.height * scale), 1))
        self.reset_image(img)

    def reset_image(self, img: np.ndarray) -> None:
        """Put another (H, W, 3) uint8 image below; what was drawn is gone."""
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
        """Colour an (H, W) mask: bool, or float in [0, 1] as a factor on `alpha`."""
        coverage = np.asarray(mask, dtype=np.float32)
        coverage = cv2.resize(coverage, self._size_wh, interpolation=cv2.INTER_NEAREST)
        rows = np.flatnonzero(coverage.any(axis=1))
        columns = np.flatnonzero(coverage.any(axis=0))
        if len(rows):
            top, left = rows[0], columns[0]
            part = coverage[top : rows[-1] + 1, left : columns[-1] + 1]
            self._blend(part, (left, top), color, alpha)

    def fill_polygons(self, polygons: Sequence[np.ndarray], color: Any, alpha: float) -> None:
        """Colour the inside of (N, 2) polygons; where an even number of them overlap is outside."""
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
        style: str = "-",
    ) -> None:
        """Draw (N, 2) polylines; `width` is in pixels of the image before scaling."""
        if style not in _DASHES:
            raise ValueError(f"line style {style!r}; expected one of {sorted(_DASHES)}")
        if closed:
            lines = [np.concatenate([line, line[:1]]) for line in lines]
        if _DASHES[style]:
            dashes = np.array(_DASHES[style]) * width
            lines = [dash for line in lines for dash in _split_into_dashes(line, dashes)]
        width_px = max(round(width * self.scale), 1)
        points, origin_xy, coverage = self._start(lines, margin=width_px + 1)
        cv2.polylines(coverage, points, False, 255, width_px, cv2.LINE_AA, _SHIFT)
        self._blend(coverage / np.float32(255), origin_xy, color, alpha)

    def fill_circle(self, center_xy: Sequence[float], radius: float, color: Any) -> None:
        """Draw a filled circle."""
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
            font_size: pixels of the image before scaling.
            horizontal_alignment: which part of the text is at the position: "left", "center" or
                "right".
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
        """The part of the canvas with the shapes: fixed-point shapes in it, its (x, y), zeros."""
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
        """Mix a colour into the part of the canvas at `origin_xy`, by coverage (h, w) * alpha."""
        if not coverage.size:
            return
        x, y = origin_xy
        part = self._canvas[y : y + coverage.shape[0], x : x + coverage.shape[1]]
        weight = coverage[..., None] * np.float32(alpha)
        rgb = np.array(mplc.to_rgb(color), dtype=np.float32) * 255
        part[:] = np.round(part + weight * (rgb - part)).astype(np.uint8)


def _split_into_dashes(line: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """The strokes of an (N, 2) line; `lengths` of strokes and gaps take turns along it."""
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])
    borders = [0.0]
    while borders[-1] < along[-1]:
        borders.append(borders[-1] + lengths[(len(borders) - 1) % len(lengths)])
    strokes = []
    for start, end in zip(borders[::2], borders[1::2], strict=False):
        end = min(end, along[-1])
        inner = along[(along > start) & (along < end)]
        at = np.concatenate([[start], inner, [end]])
        strokes.append(np.stack([np.interp(at, along, line[:, i]) for i in (0, 1)], axis=1))
    return strokes


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # comes with matplotlib, so that pictures do not depend on the fonts of the machine
    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(path, size)
