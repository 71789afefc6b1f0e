"""Scenes that the tiny segmenter learns from: blobs, ragged polygons and ribbons.

What it learns is where one surface ends, not what a thing is, so nothing here may look like the
things it will meet. tools/shapes_scene.py draws upright regular forms in plain colors, clouds,
stripes, checks and dots; these scenes have irregular outlines at any angle, filled with gradients,
grain, cobbles and marbling.

A scene is labeled at three levels, finest first: the region of one paint, the object that it is
part of, and the group of objects that touch each other and were placed together.
"""

from dataclasses import dataclass

import cv2
import numpy as np

LEVELS = 3  # region, object, group
MIN_DIAMETER, MAX_DIAMETER = 0.1, 0.8  # of the scene's longer side
HOLE_RATE, PART_RATE, COMPANION_RATE = 0.2, 0.35, 0.3
MIN_INSIDE = 0.5  # of an object's area lies in the picture
MIN_PIXELS = 24
MIN_HOLED, MIN_PARTED = 36.0, 24.0  # pixels, diameters of objects that get a hole or a part
MIN_CONTRAST = 45.0  # mean absolute color difference from what an object is painted on


@dataclass(frozen=True)
class Scene:
    """image: (H, W, 3) uint8, RGB.  labels: (3, H, W) int32, region, object, group; 0 is none."""

    image: np.ndarray
    labels: np.ndarray


def draw_scene(rng: np.random.Generator, size: int, max_objects: int = 5) -> Scene:
    """A random scene whose longer side is `size` pixels and whose shorter one is at least 3/4."""
    short = int(rng.integers(size * 3 // 4, size + 1))
    height, width = (short, size) if rng.random() < 0.6 else (size, short)
    image = _paint(rng, height, width)
    _strokes(rng, image)
    labels = np.zeros((LEVELS, height, width), np.int32)
    low, high = np.log(MIN_DIAMETER * size), np.log(MAX_DIAMETER * size)
    diameters = np.exp(low + (high - low) * rng.random(int(rng.integers(1, max_objects + 1))))
    for diameter in sorted(diameters, reverse=True):  # small things lie on large ones
        center = rng.random(2) * (width, height)
        outline = _outline(rng, diameter) + center
        group = int(labels[2].max()) + 1
        if not _add(rng, image, labels, outline, diameter, group):
            continue
        if rng.random() < COMPANION_RATE:
            at = outline[int(rng.integers(len(outline)))]
            other = diameter * (0.4 + 0.6 * rng.random())
            _add(rng, image, labels, _outline(rng, other) + at, other, group)
    return Scene(_photograph(rng, image), labels)


def _add(
    rng: np.random.Generator,
    image: np.ndarray,
    labels: np.ndarray,
    outline: np.ndarray,
    diameter: float,
    group: int,
) -> bool:
    """Paint one object and label it; False, and nothing done, where too little of it is inside."""
    height, width = image.shape[:2]
    contours = [outline]
    if rng.random() < HOLE_RATE and diameter > MIN_HOLED:
        contours.append(_blob(rng) * diameter * (0.1 + 0.12 * rng.random()) + outline.mean(axis=0))
    cover = _cover(contours, height, width)
    mask = cover >= 128
    area = np.count_nonzero(mask)
    if area < max(MIN_PIXELS, MIN_INSIDE * abs(cv2.contourArea(outline.astype(np.float32)))):
        return False
    _lay(rng, image, cover)
    _label(labels, mask, group)
    if rng.random() < PART_RATE and diameter > MIN_PARTED:
        rows, columns = np.nonzero(mask)
        at = int(rng.integers(area))
        part = _outline(rng, diameter * (0.25 + 0.35 * rng.random())) + (columns[at], rows[at])
        inner = np.where(mask, _cover([part], height, width), 0).astype(np.uint8)
        if np.count_nonzero(inner >= 128) >= MIN_PIXELS:
            _lay(rng, image, inner)
            labels[0][inner >= 128] = labels[0].max() + 1
    return True


def _label(labels: np.ndarray, mask: np.ndarray, group: int) -> None:
    labels[0][mask] = labels[0].max() + 1
    labels[1][mask] = labels[1].max() + 1
    labels[2][mask] = group


def _cover(contours: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Coverage (H, W) uint8; a second contour is a hole."""
    canvas = np.zeros((height, width), np.uint8)
    corners = [np.rint((contour - 0.5) * 16).astype(np.int32) for contour in contours]
    cv2.fillPoly(canvas, corners, 255, cv2.LINE_AA, 4)
    return canvas


def _outline(rng: np.random.Generator, diameter: float) -> np.ndarray:
    """An irregular outline (V, 2) around (0, 0), turned and stretched at random."""
    kind = rng.random()
    shape = _blob(rng) if kind < 0.45 else _polygon(rng) if kind < 0.8 else _ribbon(rng)
    angle, stretch = rng.random() * 2 * np.pi, np.exp((rng.random() - 0.5) * 1.2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (shape * (stretch**0.5, stretch**-0.5)) @ turn.T * diameter / 2


def _blob(rng: np.random.Generator) -> np.ndarray:
    """A smooth closed curve whose radius wavers at random, never a circle."""
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    orders = np.arange(2, 6)[:, None]
    sizes = (0.12 + 0.2 * rng.random((4, 1))) / (orders - 1)
    waves = sizes * np.cos(orders * angles + rng.random((4, 1)) * 2 * np.pi)
    radius = np.clip(0.8 + waves.sum(axis=0), 0.3, 1.25)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius[:, None]


def _polygon(rng: np.random.Generator) -> np.ndarray:
    """Five to nine corners at uneven angles and radii."""
    corners = int(rng.integers(5, 10))
    gaps = 0.35 + rng.random(corners)
    angles = np.cumsum(gaps) / gaps.sum() * 2 * np.pi
    radius = 0.5 + 0.55 * rng.random((corners, 1))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius


def _ribbon(rng: np.random.Generator) -> np.ndarray:
    """A bent band with uneven width, as an arm or a handle is."""
    along = np.linspace(-1, 1, 16)
    bend = (rng.random(2) - 0.5) * (1.4, 0.8)
    line = np.stack([along, bend[0] * along**2 + bend[1] * along**3], axis=1)
    slope = np.gradient(line, axis=0)
    normal = np.stack([-slope[:, 1], slope[:, 0]], axis=1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    half = (0.14 + 0.14 * rng.random()) * (1 + 0.5 * (rng.random() - 0.5) * along)[:, None]
    return np.concatenate([line + normal * half, (line - normal * half)[::-1]])


def _lay(rng: np.random.Generator, image: np.ndarray, cover: np.ndarray) -> None:
    """Paint `cover` over `image` (H, W, 3) float32 in a color that differs from what is there."""
    x, y, w, h = cv2.boundingRect(cover)
    window = np.s_[y : y + h, x : x + w]
    patch, opacity = image[window], cover[window][..., None] * np.float32(1 / 255)
    below = (patch * opacity).sum(axis=(0, 1)) / opacity.sum()
    color = _color(rng)
    while np.abs(color - below).mean() < MIN_CONTRAST:
        color = _color(rng)
    patch += opacity * (_paint(rng, h, w, color) - patch)


def _color(rng: np.random.Generator) -> np.ndarray:
    return (rng.random(3) * 235 + 10).astype(np.float32)


def _paint(
    rng: np.random.Generator, height: int, width: int, color: np.ndarray | None = None
) -> np.ndarray:
    """A surface (H, W, 3) float32: two near colors mixed by a gradient, grain, cobbles or veins."""
    first = _color(rng) if color is None else color
    second = first + (rng.random(3).astype(np.float32) - 0.5) * 60
    mix = _TEXTURES[int(rng.integers(len(_TEXTURES)))](rng, height, width)
    return first + (mix - mix.mean())[..., None] * (second - first)


def _gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    angle = rng.random() * 2 * np.pi
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    return np.float32(0.5) + x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))


def _grain(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    noise = rng.random((height, width), dtype=np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 0.6 + rng.random()) * 2 - 0.5


def _cobbles(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Cells around scattered seeds, each of one tone."""
    seeds = rng.random((int(rng.integers(6, 30)), 2)) * (height, width)
    tones = rng.random(len(seeds), dtype=np.float32)
    grid = np.indices((height, width), dtype=np.float32)
    squares = [(grid[0] - r) ** 2 + (grid[1] - c) ** 2 for r, c in seeds.astype(np.float32)]
    return tones[np.argmin(squares, axis=0)]


def _veins(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Marble: level lines of smooth noise."""
    noise = cv2.resize(
        rng.random((6, 6), dtype=np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    return np.float32(0.5) + np.float32(0.5) * np.sin(noise * np.float32(4 + 14 * rng.random()))


_TEXTURES = (_gradient, _gradient, _grain, _cobbles, _veins)


def _strokes(rng: np.random.Generator, image: np.ndarray) -> None:
    """Thin lines on the ground that belong to no object."""
    height, width = image.shape[:2]
    for _ in range(int(rng.integers(0, 4))):
        line = np.rint(rng.random((5, 2)) * (width, height)).astype(np.int32)
        cv2.polylines(image, [line], False, _color(rng).tolist(), int(rng.integers(1, 3)))


def _photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Uneven light, blur at times, and noise: (H, W, 3) uint8."""
    height, width = image.shape[:2]
    image = image * (0.8 + 0.4 * _gradient(rng, height, width))[..., None]
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), 0.4 + 0.6 * rng.random())
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(1 + 5 * rng.random())
    return np.clip(image + noise, 0, 255).astype(np.uint8)
