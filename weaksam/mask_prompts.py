"""Prompts for a segmenter from a rough mask, as SAMRefiner makes them (arXiv 2502.06756).

A click where the mask is thickest, one on the background where its box is emptiest, a box that is
enlarged where the ground beyond a side looks like the object, and the mask itself as logits that
fade away from its middle. Points are x, y of pixel centers, boxes x0, y0, x1, y1, half-open.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np

from weaksam.segmenters.protocol import CombiningSegmenter, MaskBatch, PromptBatch, Segmenter


@dataclass(frozen=True)
class PromptSettings:
    """How prompts are made. The paper says what each part is; these numbers are ours.

    step: how far a side of the box moves at once, relative to the mask's box.
    steps: how often it may.  share: of the pixels passed over, how many have to look like the
    object.
    amplitude: logit at the middle.  span: how fast it falls: exp(-span d^2 / area).
    """

    step: float = 0.1
    steps: int = 3
    share: float = 0.1
    amplitude: float = 15.0
    span: float = 4.0


SETTINGS = PromptSettings()
CROP_SCALE = 2.0  # of a crop's sides to the longer one of the mask's box, as in MaskRefineNet


def mask_box(mask: np.ndarray) -> np.ndarray:
    """Tight box (4,) float64 of a mask (H, W) bool that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)


def inner_point(mask: np.ndarray) -> tuple[float, float]:
    """The pixel of a mask that is farthest from all others; beyond the image there are such, too.

    The first one by rows where several are.
    """
    padded = np.pad(mask.astype(np.uint8), 1)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    y, x = np.unravel_index(distance.argmax(), mask.shape)
    return float(x), float(y)


def background_point(mask: np.ndarray) -> tuple[float, float] | None:
    """The pixel of a mask's box that is farthest from the mask; None where it fills its box."""
    x0, y0, x1, y1 = mask_box(mask).astype(int)
    inside = mask[y0:y1, x0:x1]
    if inside.all():
        return None
    distance = cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    y, x = np.unravel_index(distance.argmax(), inside.shape)
    return float(x + x0), float(y + y0)


def faded_mask(
    mask: np.ndarray, middle: tuple[float, float], settings: PromptSettings
) -> np.ndarray:
    """Logits (H, W) float32, above 0 inside the mask, which fade with the distance to `middle`."""
    y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
    squared = (x - middle[0]) ** 2 + (y - middle[1]) ** 2
    fading = np.exp(-settings.span * squared / mask.sum())
    return (settings.amplitude * np.where(mask, fading, -fading)).astype(np.float32)


def unit_features(embedding: np.ndarray) -> np.ndarray:
    """Features (C, h, w) of length 1."""
    return embedding / np.maximum(np.linalg.norm(embedding, axis=0), 1e-12)


def likeness(mask: np.ndarray, features: np.ndarray) -> np.ndarray:
    """(H, W) bool: which pixels look at least as much like the mask as its own do on average.

    How alike is the cosine of a pixel's features and the mask's mean ones.

    Args:
        features: (C, h, w) of length 1, whose cells share the image evenly.
    """
    cells = features.shape[1:]
    share = cv2.resize(mask.astype(np.float32), cells[::-1], interpolation=cv2.INTER_AREA)
    mean = np.tensordot(features, share, 2)
    cosines = np.tensordot(mean / max(np.linalg.norm(mean), 1e-12), features, 1)
    pixels = cv2.resize(cosines, mask.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return pixels >= pixels[mask].mean()


def elastic_box(mask: np.ndarray, alike: np.ndarray, settings: PromptSettings) -> np.ndarray:
    """The mask's box (4,), each side moved outward while the ground that it passes looks alike."""
    x0, y0, x1, y1 = (int(side) for side in mask_box(mask))
    across, along = alike[y0:y1], alike[:, x0:x1]
    left = _reach(across[:, :x0][:, ::-1].T, x1 - x0, settings)
    right = _reach(across[:, x1:].T, x1 - x0, settings)
    up = _reach(along[:y0][::-1], y1 - y0, settings)
    down = _reach(along[y1:], y1 - y0, settings)
    return np.array([x0 - left, y0 - up, x1 + right, y1 + down], np.float64)


def _reach(beyond: np.ndarray, side: int, settings: PromptSettings) -> int:
    """How many rows of what is beyond a side of the box it moves; the nearest row is the first."""
    size, far = max(1, round(settings.step * side)), 0
    for _ in range(settings.steps):
        strip = beyond[far : far + size]
        if not strip.size or strip.mean() < settings.share:
            break
        far += len(strip)
    return far


def mask_prompts(
    masks: np.ndarray,
    parts: frozenset[str],
    features: np.ndarray | None = None,
    settings: PromptSettings = SETTINGS,
) -> PromptBatch:
    """What each of N rough masks (N, H, W) bool says; none of them is empty.

    Args:
        parts: those of a `PromptBatch` that are wanted. With "background" there is a second click:
            on the background or, where the mask fills its box, on the object again.
        features: see `likeness`; without them each side of the boxes moves by one step.
    """
    inner = [inner_point(mask) for mask in masks]
    clicks, background = np.array(inner)[:, None], None
    if "background" in parts:
        outer = [background_point(mask) for mask in masks]
        second = [point or own for point, own in zip(outer, inner, strict=True)]
        clicks = np.stack([inner, second], axis=1)
        background = np.array([[False, point is not None] for point in outer])
    boxes = faded = None
    if "boxes" in parts and features is not None:
        boxes = np.stack([elastic_box(m, likeness(m, features), settings) for m in masks])
    elif "boxes" in parts:
        once, anything = replace(settings, steps=1), np.ones(masks.shape[1:], bool)
        boxes = np.stack([elastic_box(mask, anything, once) for mask in masks])
    if "masks" in parts:
        pairs = zip(masks, inner, strict=True)
        faded = np.stack([faded_mask(mask, middle, settings) for mask, middle in pairs])
    return PromptBatch(clicks if "clicks" in parts else None, background, boxes, faded)


def refined_masks(
    segmenter: Segmenter,
    image: np.ndarray,
    masks: np.ndarray,
    points: np.ndarray,
    at_once: int = 16,
    settings: PromptSettings = SETTINGS,
) -> np.ndarray:
    """The segmenter's mask of each rough mask, of three the one of the highest predicted IoU.

    Of the prompts of a mask it gets those that it takes; where it combines none, the box. An empty
    mask is prompted by its point alone. A segmenter with a `crop_side` sees each mask of a larger
    image in a crop of its own.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: (N, H, W) bool.
        points: (N, 2) x, y.
        at_once: masks whose prompts are made together.

    Returns:
        (N, H, W) bool; empty where nothing was found, or an empty mask's point cannot be asked for.

    Raises:
        ValueError: the segmenter takes neither combined prompts nor boxes.
    """
    refined, rough = np.zeros_like(masks), masks.any(axis=(1, 2))
    rows, crop_side = np.flatnonzero(rough), getattr(segmenter, "crop_side", None)
    if crop_side is not None and max(image.shape[:2]) > crop_side:
        for row in rows:
            window = crop_window(masks[row])
            found = refined[row][window]  # a view
            found[:] = _whole(segmenter, image[window], masks[row][window][None], 1, settings)[0]
    elif len(rows):
        refined[rows] = _whole(segmenter, image, masks[rows], at_once, settings)
    rows = np.flatnonzero(~rough)
    if len(rows) and "points" in segmenter.prompts:
        segmenter.set_image(image)
        _draw(refined, rows, segmenter.points(points[rows]))
    return refined


def crop_window(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of a square around a mask's box, twice as large, within the image."""
    box = mask_box(mask)
    middle, reach = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]).max() * CROP_SCALE / 2
    low = np.maximum(np.floor(middle - reach), 0).astype(int)
    high = np.ceil(middle + reach).astype(int)  # slices end with the image
    return slice(low[1], high[1]), slice(low[0], high[0])


def _whole(
    segmenter: Segmenter,
    image: np.ndarray,
    masks: np.ndarray,
    at_once: int,
    settings: PromptSettings,
) -> np.ndarray:
    """The segmenter's masks of rough ones, none of them empty, in one image."""
    segmenter.set_image(image)
    refined, features = np.zeros_like(masks), None
    if isinstance(segmenter, CombiningSegmenter) and "boxes" in segmenter.combines:
        features = unit_features(segmenter.embedding())
    for start in range(0, len(masks), at_once):
        rows = np.arange(start, min(start + at_once, len(masks)))
        _draw(refined, rows, prompted(segmenter, masks[rows], features, settings))
    return refined


def prompted(
    segmenter: Segmenter,
    masks: np.ndarray,
    features: np.ndarray | None,
    settings: PromptSettings = SETTINGS,
) -> Iterator[MaskBatch]:
    """Ask a segmenter, whose image is set, by all parts of the masks' prompts that it takes."""
    if isinstance(segmenter, CombiningSegmenter):
        return segmenter.combined(mask_prompts(masks, segmenter.combines, features, settings))
    return segmenter.boxes(mask_prompts(masks, frozenset({"boxes"}), None, settings).boxes)


def require_boxes(segmenter: Segmenter) -> None:
    """ValueError where a segmenter cannot be prompted by masks."""
    if not isinstance(segmenter, CombiningSegmenter) and "boxes" not in segmenter.prompts:
        raise ValueError(
            f"segmenter {segmenter.identity} takes {' and '.join(sorted(segmenter.prompts))} only; "
            "masks need one that takes boxes, such as grabcut, tiny or segment_anything"
        )


def _draw(refined: np.ndarray, rows: np.ndarray, batches: Iterator[MaskBatch]) -> None:
    """Put the best mask of each prompt into its row."""
    for batch in batches:
        refined[rows[batch.prompts.numpy()]] = batch.best()[0].cpu().numpy()
