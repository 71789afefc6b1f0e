"""A contact sheet of pseudo labels: image and points, pseudo masks, true masks, side by side."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from weaklabels.image_root import image_path
from weaklabels.matching import Label
from weaklabels.pictures import read_image
from weaklabels.statistics import ImageLabels

PANEL_WIDTH = 320
HEADER_HEIGHT = 24
GAP = 4
OPACITY = 0.5
GOLDEN_RATIO = 0.618034  # hues this far apart stay far apart, however many there are
NO_TRUTH_COLOR = (255, 255, 255)  # of pseudo labels that belong to no true instance
TITLES = ("image and points", "pseudo labels", "true masks")


@dataclass(frozen=True)
class SheetRow:
    """One image of a sheet; a label and the true instance that it belongs to share a number.

    picture: (H, W, 3) uint8 BGR.
    points: (x, y) pixel indices of true instance 0, 1, ...
    columns: for each panel after the first, its labels as pairs (number, label); the number is that
        of the true instance, None where there is none.
    """

    picture: np.ndarray
    points: list[tuple[int, tuple[float, float]]]
    columns: list[list[tuple[int | None, Label]]]


def draw_sheet(images: list[ImageLabels], image_root: Path) -> np.ndarray:
    """(H, W, 3) uint8 BGR, one row per image: its points, pseudo labels and true masks."""
    rows = []
    for entry in images:
        picture = read_picture(image_root, entry.image)
        columns = [numbered_pseudo(entry), numbered_truth(entry)]
        rows.append(SheetRow(picture, true_points(entry), columns))
    return draw_rows(TITLES, rows)


def numbered_pseudo(entry: ImageLabels) -> list[tuple[int | None, Label]]:
    """Pseudo labels with the numbers of their true instances."""
    owner = {pseudo: truth for truth, pseudo in entry.matches.items()}
    return [(owner.get(number), label) for number, label in enumerate(entry.pseudo)]


def numbered_truth(entry: ImageLabels) -> list[tuple[int | None, Label]]:
    """True instances but crowds."""
    return [(number, label) for number, label in enumerate(entry.truth) if not label.crowd]


def true_points(entry: ImageLabels) -> list[tuple[int, tuple[float, float]]]:
    """Number and point of each true instance but crowds."""
    return [(number, label.point) for number, label in numbered_truth(entry)]


def draw_rows(titles: Sequence[str], rows: Sequence[SheetRow]) -> np.ndarray:
    """(H, W, 3) uint8 BGR: a header, and for each row its points and one panel a column."""
    parts = [_header(titles)]
    for row in rows:
        scale = PANEL_WIDTH / row.picture.shape[1]
        size = (PANEL_WIDTH, max(1, round(row.picture.shape[0] * scale)))
        panels = [cv2.resize(row.picture, size, interpolation=cv2.INTER_AREA) for _ in titles]
        for number, point in row.points:
            _draw_point(panels[0], point, scale, _color(number))
        for panel, labels in zip(panels[1:], row.columns, strict=True):
            for number, label in labels:
                color = NO_TRUTH_COLOR if number is None else _color(number)
                _draw_mask(panel, label, color)
        parts.append(_join(panels))
    gap = np.zeros((GAP, parts[0].shape[1], 3), np.uint8)
    return np.vstack([part for row in parts for part in (row, gap)][:-1])


def read_picture(image_root: Path, image: dict) -> np.ndarray:
    """The image of a COCO entry, (H, W, 3) uint8 BGR, of the size that the entry says."""
    path = image_path(image_root, image["file_name"])
    picture = read_image(path, (image["height"], image["width"]))
    return cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)


def _join(panels: list[np.ndarray]) -> np.ndarray:
    gap = np.zeros((panels[0].shape[0], GAP, 3), np.uint8)
    return np.hstack([part for panel in panels for part in (panel, gap)][:-1])


def _header(titles: Sequence[str]) -> np.ndarray:
    panels = []
    for title in titles:
        panel = np.full((HEADER_HEIGHT, PANEL_WIDTH, 3), 32, np.uint8)
        where = (8, HEADER_HEIGHT - 8)
        cv2.putText(
            panel, title, where, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (240, 240, 240), 1, cv2.LINE_AA
        )
        panels.append(panel)
    return _join(panels)


def _color(index: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(index * GOLDEN_RATIO % 1, 0.85, 1.0)
    return int(255 * blue), int(255 * green), int(255 * red)


def _draw_point(
    panel: np.ndarray, point: tuple[float, float], scale: float, color: tuple[int, int, int]
) -> None:
    center = tuple(int((v + 0.5) * scale) for v in point)  # + 0.5: indices to pixel corners
    cv2.circle(panel, center, 5, (0, 0, 0), -1, cv2.LINE_AA)
    cv2.circle(panel, center, 4, color, -1, cv2.LINE_AA)


def _draw_mask(panel: np.ndarray, label: Label, color: tuple[int, int, int]) -> None:
    height, width = panel.shape[:2]
    mask = mask_utils.decode(label.rle)
    mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    inside = mask > 0
    panel[inside] = ((1 - OPACITY) * panel[inside] + OPACITY * np.array(color)).astype(np.uint8)
    outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(panel, outlines, -1, color, 1)
