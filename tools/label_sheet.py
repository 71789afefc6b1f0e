"""A contact sheet of pseudo labels: image and points, pseudo masks, true masks, side by side."""

import colorsys
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from tools.label_quality import ImageLabels, Label

PANEL_WIDTH = 320
HEADER_HEIGHT = 24
GAP = 4
OPACITY = 0.5
GOLDEN_RATIO = 0.618034  # hues this far apart stay far apart, however many there are
NO_TRUTH_COLOUR = (255, 255, 255)  # of pseudo labels that belong to no true instance
TITLES = ("image and points", "pseudo labels", "true masks")


def draw_sheet(images: list[ImageLabels], image_root: Path) -> np.ndarray:
    """(H, W, 3) uint8 BGR, one row an image; a label and its true instance share a colour."""
    rows = [_header()]
    for entry in images:
        picture = read_picture(image_root, entry.image)
        colours = [_colour(index) for index in range(len(entry.truth))]
        pseudo_colours = [NO_TRUTH_COLOUR] * len(entry.pseudo)
        for truth, pseudo in entry.matches.items():
            pseudo_colours[pseudo] = colours[truth]
        scale = PANEL_WIDTH / picture.shape[1]
        size = (PANEL_WIDTH, max(1, round(picture.shape[0] * scale)))
        panels = [cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for _ in TITLES]
        for label, colour in zip(entry.truth, colours, strict=True):
            if not label.crowd:
                _draw_point(panels[0], label.point, scale, colour)
        for label, colour in zip(entry.pseudo, pseudo_colours, strict=True):
            _draw_mask(panels[1], label, colour)
        for label, colour in zip(entry.truth, colours, strict=True):
            if not label.crowd:
                _draw_mask(panels[2], label, colour)
        rows.append(_join(panels))
    gap = np.zeros((GAP, rows[0].shape[1], 3), np.uint8)
    return np.vstack([part for row in rows for part in (row, gap)][:-1])


def read_picture(image_root: Path, image: dict) -> np.ndarray:
    """The image of a COCO entry, (H, W, 3) uint8 BGR, of the size that the entry says."""
    path = image_root / image["file_name"]
    picture = cv2.imread(str(path))
    if picture is None:
        raise FileNotFoundError(f"{path}: no readable image; is the image root right?")
    if picture.shape[:2] != (image["height"], image["width"]):
        raise ValueError(
            f"{path}: {picture.shape[0]} x {picture.shape[1]} pixels, "
            f"but image id {image['id']} is {image['height']} x {image['width']}"
        )
    return picture


def _join(panels: list[np.ndarray]) -> np.ndarray:
    gap = np.zeros((panels[0].shape[0], GAP, 3), np.uint8)
    return np.hstack([part for panel in panels for part in (panel, gap)][:-1])


def _header() -> np.ndarray:
    panels = []
    for title in TITLES:
        panel = np.full((HEADER_HEIGHT, PANEL_WIDTH, 3), 32, np.uint8)
        where = (8, HEADER_HEIGHT - 8)
        cv2.putText(
            panel, title, where, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (240, 240, 240), 1, cv2.LINE_AA
        )
        panels.append(panel)
    return _join(panels)


def _colour(index: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(index * GOLDEN_RATIO % 1, 0.85, 1.0)
    return int(255 * blue), int(255 * green), int(255 * red)


def _draw_point(
    panel: np.ndarray, point: tuple[float, float], scale: float, colour: tuple[int, int, int]
) -> None:
    centre = tuple(int((v + 0.5) * scale) for v in point)  # + 0.5: indices to pixel corners
    cv2.circle(panel, centre, 5, (0, 0, 0), -1, cv2.LINE_AA)
    cv2.circle(panel, centre, 4, colour, -1, cv2.LINE_AA)


def _draw_mask(panel: np.ndarray, label: Label, colour: tuple[int, int, int]) -> None:
    height, width = panel.shape[:2]
    mask = mask_utils.decode(label.rle)
    mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    inside = mask > 0
    panel[inside] = ((1 - OPACITY) * panel[inside] + OPACITY * np.array(colour)).astype(np.uint8)
    outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(panel, outlines, -1, colour, 1)
