"""Draw one scene of the shapes dataset: textured, lit, noisy, with occlusion, holes and crowds.

Classes differ by shape only; color, texture, size, tilt and stretch are drawn independently of
the class. Shapes stand upright but for a tilt, as most things in photographs do: a small network
then learns the classes within minutes.

Points are (x, y) in pixels with pixel corners at integers, as in COCO polygons.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

CLASSES = ("disc", "square", "triangle", "star", "ring", "cross", "crescent")
DIAMETER_RANGE = (0.18, 0.6)  # of the scene's size, log-uniform: every pyramid level gets some
MIN_DIAMETER = 9.0  # pixels; smaller shapes cannot be told apart
MIN_VISIBLE = 0.6  # of a shape's area: what is hidden more than that has no clear label
MIN_VISIBLE_PIXELS = 24
MIN_INSIDE = 0.6  # of a shape's area lies inside the image
MAX_FORMS = 6
PLACE_ATTEMPTS = 6
EMPTY_RATE = 0.02  # scenes with clutter only
CROWD_RATE = 0.05
CROWD_DIAMETER = 0.12
CROWD_MEMBERS = (10, 22)
MAX_TILT = 0.15  # radians
MAX_STRETCH = 0.075  # logarithm of the change of either side
MAX_SHEAR = 0.04
MIN_CONTRAST = 75.0  # mean absolute color difference between a shape and the background
SUBPIXEL_BITS = 4  # cv2 draws at 1/16 pixel


@dataclass
class Item:
    """One labeled thing: a shape, or a crowd of shapes of one class.

    contours: polygons (V, 2) of a single shape, the second one is a hole; empty for a crowd.
    visible: (H, W) bool, what later items leave of it.
    """

    class_index: int
    contours: list[np.ndarray]
    visible: np.ndarray
    area: int
    crowd: bool = False
    alphas: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class Scene:
    """image: (H, W, 3) uint8, BGR.  items: back to front."""

    image: np.ndarray
    items: list[Item]


def draw_scene(
    rng: np.random.Generator,
    size: int,
    max_forms: int = MAX_FORMS,
    classes_per_image: int | None = None,
    min_forms: int = 1,
) -> Scene:
    """A random scene whose longer side is `size` pixels and whose shorter one is at least 3/4.

    Args:
        max_forms, min_forms: a scene is to have that many forms; a crowd is counted apart. Where
            no free place is found for one, the scene has fewer.
        classes_per_image: draw a scene's forms from this many classes; None: from all of them.
    """
    short = int(rng.integers(size * 3 // 4, size + 1))
    height, width = (short, size) if rng.random() < 0.6 else (size, short)
    classes = np.arange(len(CLASSES))
    if classes_per_image is not None:  # without it, no number is drawn: old seeds keep their scenes
        classes = rng.permutation(len(CLASSES))[:classes_per_image]
    items = _arrange(rng, height, width, size, (min_forms, max_forms), classes)
    image = _background(rng, height, width, size)
    backdrop = image.reshape(-1, 3).mean(axis=0)
    light = _direction(rng)
    for item in items:
        for alpha in item.alphas:
            _paint(rng, image, alpha, backdrop, light, size)
    return Scene(_photograph(rng, image, light), items)


def form_contours(rng: np.random.Generator, class_index: int) -> list[np.ndarray]:
    """Outline (and hole) of a class in a unit circle around (0, 0), with its own proportions."""
    name, shape = CLASSES[class_index], rng.random()
    if name == "square":
        return [_regular(4)]
    if name == "triangle":
        return [_regular(3)]
    if name == "star":
        outline = _regular(10)
        outline[1::2] *= 0.38 + 0.14 * shape
        return [outline]
    if name == "ring":
        return [_regular(40), _regular(32) * (0.45 + 0.2 * shape)]
    if name == "cross":
        a = 0.24 + 0.12 * shape
        return [
            np.array(
                [(a, 1), (a, a), (1, a), (1, -a), (a, -a), (a, -1)]
                + [(-a, -1), (-a, -a), (-1, -a), (-1, a), (-a, a), (-a, 1)]
            )
        ]
    if name == "crescent":
        return [_crescent(offset=0.42 + 0.16 * shape, radius=0.82)]
    return [_regular(40)]


def _regular(sides: int) -> np.ndarray:
    return _arc(0.0, 2 * np.pi * (1 - 1 / sides), sides)


def _arc(start: float, stop: float, count: int) -> np.ndarray:
    angles = np.linspace(start, stop, count)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _crescent(offset: float, radius: float) -> np.ndarray:
    """The unit disc less a disc of `radius` whose center is (offset, 0)."""
    x = (offset**2 + 1 - radius**2) / (2 * offset)  # the circles cross at (x, +-y)
    y = np.sqrt(1 - x**2)
    outer, inner = np.arctan2(y, x), np.arctan2(y, x - offset)
    bite = _arc(2 * np.pi - inner, inner, 20)[1:-1] * radius + (offset, 0)
    return np.concatenate([_arc(outer, 2 * np.pi - outer, 28), bite])


def _place(
    rng: np.random.Generator, class_index: int, diameter: float, center: np.ndarray
) -> list[np.ndarray]:
    """Contours of a form of about `diameter` pixels, turned, stretched and sheared."""
    angle = (2 * rng.random() - 1) * MAX_TILT
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.exp((2 * rng.random() - 1) * MAX_STRETCH)
    shear = np.array([[stretch, (2 * rng.random() - 1) * MAX_SHEAR], [0, 1 / stretch]])
    matrix = (shear @ turn).T * diameter / 2
    return [contour @ matrix + center for contour in form_contours(rng, class_index)]


def _alpha(contours: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Coverage (H, W) uint8 of a form; antialiased; 128 and more counts as the form."""
    canvas = np.zeros((height, width), np.uint8)
    corners = [np.rint((c - 0.5) * 2**SUBPIXEL_BITS).astype(np.int32) for c in contours]
    cv2.fillPoly(canvas, corners, 255, cv2.LINE_AA, SUBPIXEL_BITS)
    return canvas


def _polygon_area(contours: list[np.ndarray]) -> float:
    areas = [abs(cv2.contourArea(contour.astype(np.float32))) for contour in contours]
    return areas[0] - sum(areas[1:])


def _arrange(
    rng: np.random.Generator,
    height: int,
    width: int,
    size: int,
    forms: tuple[int, int],
    classes: np.ndarray,
) -> list[Item]:
    """Items back to front; each keeps enough of itself visible to deserve its label."""
    items: list[Item] = []
    if rng.random() < EMPTY_RATE:
        return items
    if rng.random() < CROWD_RATE:
        items.append(_crowd(rng, height, width, size, classes))
    low, high = np.log(max(DIAMETER_RANGE[0], MIN_DIAMETER / size)), np.log(DIAMETER_RANGE[1])
    wanted = int(rng.integers(forms[0], forms[1] + 1))
    diameters = np.exp(low + (high - low) * rng.random(wanted)) * size
    for diameter in diameters:
        class_index = int(classes[rng.integers(len(classes))])
        for _ in range(PLACE_ATTEMPTS):
            center = rng.random(2) * (width, height)
            contours = _place(rng, class_index, diameter, center)
            alpha = _alpha(contours, height, width)
            mask = alpha >= 128
            if _fits(mask, _polygon_area(contours), items):
                for item in items:
                    item.visible &= ~mask
                items.append(Item(class_index, contours, mask, int(mask.sum()), alphas=[alpha]))
                break
    return items


def _fits(mask: np.ndarray, full_area: float, items: list[Item]) -> bool:
    area = np.count_nonzero(mask)
    if area < max(MIN_INSIDE * full_area, MIN_VISIBLE_PIXELS):
        return False
    for item in items:
        left = np.count_nonzero(item.visible & ~mask)
        if left < max(MIN_VISIBLE * item.area, MIN_VISIBLE_PIXELS):
            return False
    return True


def _crowd(
    rng: np.random.Generator, height: int, width: int, size: int, classes: np.ndarray
) -> Item:
    """Many small shapes of one class side by side, labeled as one crowd."""
    class_index = int(classes[rng.integers(len(classes))])
    diameter = max(MIN_DIAMETER, CROWD_DIAMETER * size)
    middle = (0.3 + 0.4 * rng.random(2)) * (width, height)
    alphas = []
    for _ in range(int(rng.integers(*CROWD_MEMBERS))):
        center = middle + (rng.random(2) + rng.random(2) - 1) * diameter * 3
        alphas.append(_alpha(_place(rng, class_index, diameter, center), height, width))
    union = np.maximum.reduce(alphas) >= 128
    return Item(class_index, [], union, int(union.sum()), crowd=True, alphas=alphas)


def _direction(rng: np.random.Generator) -> np.ndarray:
    angle = rng.random() * 2 * np.pi
    return np.array([np.cos(angle), np.sin(angle)], np.float32)


def _color(rng: np.random.Generator) -> np.ndarray:
    """A BGR color, float32 0..255: any hue, seldom gray, seldom very dark."""
    hue, saturation, value = rng.random(3) * (179, 190, 150) + (0, 40, 90)
    pixel = np.array([[[hue, saturation, value]]], np.uint8)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)


def _cloud(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Smooth noise (H, W) float32 in about 0..1 with `cells` bumps along a side."""
    grid = rng.random((cells, cells), dtype=np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)


def _pattern(rng: np.random.Generator, height: int, width: int, period: float) -> np.ndarray:
    """A texture (H, W) float32 in about 0..1: plain, clouds, stripes, checks or dots."""
    kind = int(rng.integers(5))
    if kind == 0:
        return np.zeros((height, width), np.float32)
    if kind == 1:
        return _cloud(rng, height, width, max(2, int(max(height, width) / period)))
    (cos, sin), (phase_u, phase_v) = _direction(rng), rng.random(2, dtype=np.float32)
    x = np.arange(width, dtype=np.float32) / np.float32(period)
    y = np.arange(height, dtype=np.float32)[:, None] / np.float32(period)
    u = (x * cos + y * sin + phase_u) % 1
    if kind == 2:
        return (u < 0.5).astype(np.float32)
    v = (y * cos - x * sin + phase_v) % 1
    if kind == 3:
        return ((u < 0.5) ^ (v < 0.5)).astype(np.float32)
    return ((u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.08).astype(np.float32)


def _background(rng: np.random.Generator, height: int, width: int, size: int) -> np.ndarray:
    """A textured ground with clutter that is no class: strokes, arcs and ragged blobs."""
    base, other = _color(rng), _color(rng)
    mix = 0.1 * _pattern(rng, height, width, size * (0.05 + 0.15 * rng.random()))
    mix += 0.3 * _cloud(rng, height, width, 4) + 0.1 * _cloud(rng, height, width, 24)
    ground = base + mix[..., None] * (other - base)
    image = np.clip(ground, 0, 255).astype(np.uint8)  # cv2 smooths the edges of bytes only
    for _ in range(int(rng.integers(1, 4))):
        _clutter(rng, image, (0.65 * base + 0.35 * _color(rng)).tolist(), size)
    return image.astype(np.float32)


def _clutter(rng: np.random.Generator, image: np.ndarray, color: list[float], size: int) -> None:
    """Draw one bent stroke, open arc or ragged blob into `image` (H, W, 3) uint8."""
    height, width = image.shape[:2]
    center = rng.random(2) * (width, height)
    thickness = int(rng.integers(1, 2 + size // 60))
    kind = int(rng.integers(3))
    if kind == 0:
        points = np.rint(center + (rng.random((4, 2)) - 0.5) * size * 0.4).astype(np.int32)
        cv2.polylines(image, [points], False, color, thickness, cv2.LINE_AA)
    elif kind == 1:
        axes = rng.integers(size // 30, size // 6, 2).tolist()
        start, sweep = rng.integers(360), rng.integers(60, 200)
        middle = tuple(int(v) for v in center)
        end = float(start + sweep)
        cv2.ellipse(image, middle, axes, 0, float(start), end, color, thickness, cv2.LINE_AA)
    else:
        ragged = _regular(9) * (0.3 + 0.7 * rng.random((9, 1)))
        blob = ragged * size * (0.03 + 0.1 * rng.random()) + center
        cv2.fillPoly(image, [np.rint(blob).astype(np.int32)], color, cv2.LINE_AA)


def _paint(
    rng: np.random.Generator,
    image: np.ndarray,
    alpha: np.ndarray,
    backdrop: np.ndarray,
    light: np.ndarray,
    size: int,
) -> None:
    """Paint one form into `image` (H, W, 3) float32: cast shadow, texture, bevelled edge."""
    color = _color(rng)
    while np.abs(color - backdrop).mean() < MIN_CONTRAST:
        color = _color(rng)
    reach = 3 + size // 40
    x, y, w, h = cv2.boundingRect(alpha)
    x0, y0 = max(x - reach, 0), max(y - reach, 0)
    window = np.s_[y0 : y + h + reach, x0 : x + w + reach]
    patch, cover = image[window], alpha[window]
    height, width = cover.shape
    shift = np.array([[1, 0, -light[0] * reach / 2], [0, 1, -light[1] * reach / 2]], np.float32)
    shadow = cv2.blur(cv2.warpAffine(cover, shift, (width, height)), (reach, reach))
    patch *= 1 - shadow[..., None] * np.float32(0.45 / 255)
    texture = _pattern(rng, height, width, max(3.0, min(w, h) * (0.12 + 0.2 * rng.random())))
    second = 0.7 * color + 0.3 * _color(rng)
    paint = color + (0.2 * texture)[..., None] * (second - color)
    depth = np.minimum(
        cv2.distanceTransform((cover >= 128).astype(np.uint8), cv2.DIST_L2, 3), reach
    )
    slope_x, slope_y = (cv2.Sobel(depth, cv2.CV_32F, dx, 1 - dx, scale=0.125) for dx in (1, 0))
    paint *= (1 - 0.35 * (slope_x * -light[0] + slope_y * -light[1]))[..., None]
    opacity = cover[..., None] * np.float32(1 / 255)
    patch += opacity * (paint - patch)


def _photograph(rng: np.random.Generator, image: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Light falling off across the scene, lens blur and sensor noise: (H, W, 3) uint8."""
    height, width = image.shape[:2]
    x = np.linspace(-1, 1, width, dtype=np.float32)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    strength = np.float32(0.1 + 0.25 * rng.random())
    image = image * (np.float32(1) + strength * (x * light[0] + y * light[1]))[..., None]
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (3, 3), 0.4 + 0.5 * rng.random())
    amount = np.float32(3 + 7 * rng.random())
    noise = rng.random(image.shape, dtype=np.float32) + rng.random(image.shape, dtype=np.float32)
    return np.clip(image + amount * (noise - 1), 0, 255).astype(np.uint8)
