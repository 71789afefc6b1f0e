"""Structured noise for prior masks, like the mistakes of detectors.

Every function takes and returns an (H, W) uint8 mask of 0 and 1; sizes scale with the instance.
"""

import cv2
import numpy as np

HOLES = (1, 4)  # number of holes, minimum and maximum
HOLE_RADIUS = (0.05, 0.2)  # lengths are relative to the square root of the mask's area
BOUNDARY_SHIFT = (0.03, 0.12)
KEPT_PART = (0.4, 0.85)  # share of the pixels


def add_noise(mask: np.ndarray, neighbor: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply one kind of noise at random; `neighbor`, another instance's mask, may be merged in."""
    if not mask.any():
        return mask
    kinds = [punch_holes, shift_boundary, drop_part]
    if neighbor.any():
        kinds.append(lambda own, _: np.maximum(own, neighbor))
    return kinds[rng.integers(len(kinds))](mask, rng)


def _length(mask: np.ndarray, fractions: tuple[float, float], rng: np.random.Generator) -> int:
    """A random length in pixels, at least 1, in proportion to the instance's size."""
    return max(1, round(float(np.sqrt(mask.sum()) * rng.uniform(*fractions))))


def punch_holes(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Discs cut out around pixels of the mask."""
    rows, columns = np.nonzero(mask)
    result = mask.copy()
    for _ in range(rng.integers(HOLES[0], HOLES[1] + 1)):
        i = rng.integers(len(rows))
        center = (int(columns[i]), int(rows[i]))
        cv2.circle(result, center, _length(mask, HOLE_RADIUS, rng), 0, thickness=-1)
    return result


def shift_boundary(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mask grown, shrunk or moved; unchanged if nothing of it would remain."""
    length = _length(mask, BOUNDARY_SHIFT, rng)
    kind = rng.integers(3)
    if kind == 2:
        angle = rng.uniform(0, 2 * np.pi)
        move = np.float32([[1, 0, length * np.cos(angle)], [0, 1, length * np.sin(angle)]])
        result = cv2.warpAffine(mask, move, mask.shape[::-1], flags=cv2.INTER_NEAREST)
    else:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * length + 1, 2 * length + 1))
        result = (cv2.dilate if kind == 0 else cv2.erode)(mask, kernel)
    return result if result.any() else mask


def drop_part(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The pixels on one side of a random straight line."""
    rows, columns = np.nonzero(mask)
    angle = rng.uniform(0, 2 * np.pi)
    depth = columns * np.cos(angle) + rows * np.sin(angle)
    kept = depth <= np.quantile(depth, rng.uniform(*KEPT_PART))
    result = np.zeros_like(mask)
    result[rows[kept], columns[kept]] = 1
    return result
