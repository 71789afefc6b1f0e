"""Pictures of what each stage of WeakSAM found in an image."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from weaklabels.pictures import write_picture
from weaklabels.tags import Tags, read_tags
from weaksam.clues import read_points
from weaksam.detections import read_detections
from weaksam.proposals.files import SOURCES, read_proposal_file
from weaksam.proposals.images import read_images, read_rgb
from weaksam.pseudo_box_quality import read_true_boxes
from wsis.recipes.weaksam_plan import WeakPlan

SHOWN_IMAGES = 10
SHOWN_DETECTIONS = 5  # of an image, the best ones
SIDE = 300  # pixels of the longer side of a panel
GAP = 6
GRID_COLOR, POINT_COLOR = (200, 120, 30), (40, 40, 220)  # BGR
COLORS = (  # of classes, BGR, in turn
    *((40, 40, 220), (60, 160, 40), (200, 120, 30), (20, 140, 230)),
    *((160, 50, 150), (140, 140, 20), (90, 90, 90)),
)


def draw_pictures(plan: WeakPlan, detections: Path, folder: Path) -> list[Path]:
    """A picture for each of the first test images: clues, proposals, detections, truth.

    Args:
        plan: its proposals are shown.
        detections: COCO results on the test images.
    """
    tags, records = read_tags(plan.tags("test")), read_images(plan.tags("test"))
    proposals = read_proposal_file(plan.proposal_file("test"), records)
    points = read_points(plan.output / "points_test" / "points_coarse.npz")
    found = read_detections(detections, tags)
    truth = read_true_boxes(plan.source.test.truth["annotations"], tags)
    pictures = []
    shown = [place for place, image in enumerate(tags.images) if image.category_ids][:SHOWN_IMAGES]
    for place in shown:
        record = records[place]
        image = read_rgb(record, plan.source.test.images)[:, :, ::-1]
        clues = points.of_image(record.id)
        rows = proposals.rows(place)
        best = np.flatnonzero(found.images == place)
        best = best[np.argsort(-found.scores[best], kind="stable")][:SHOWN_DETECTIONS]
        true = [
            (box, index) for (row, index), own in truth.items() if row == place for box in own.boxes
        ]
        panels = [
            draw_points(image, clues.xy, clues.cls, tags),
            draw_proposals(image, proposals.boxes[rows], proposals.source[rows]),
            draw_boxes(image, found.boxes[best], found.classes[best], tags),
            draw_boxes(image, [box for box, _ in true], [index for _, index in true], tags),
        ]
        path = folder / f"{record.id}.png"
        write_picture(path, beside(panels))
        pictures.append(path)
    return pictures


def enlarged(image: np.ndarray) -> tuple[np.ndarray, float]:
    """A copy whose longer side is SIDE, and the factor."""
    scale = SIDE / max(image.shape[:2])
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    return cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_LINEAR), scale


def draw_points(image: np.ndarray, xy: np.ndarray, classes: np.ndarray, tags: Tags) -> np.ndarray:
    """Points with the names of their classes."""
    canvas, scale = enlarged(image)
    for (x, y), index in zip(xy, classes.tolist(), strict=True):
        center = (round((x + 0.5) * scale), round((y + 0.5) * scale))
        color = COLORS[index % len(COLORS)]
        cv2.circle(canvas, center, 5, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(canvas, center, 4, color, -1, cv2.LINE_AA)
        label(canvas, tags.class_names[index], (center[0] + 7, center[1] + 4), color)
    return canvas


def draw_proposals(image: np.ndarray, boxes: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Boxes x0, y0, x1, y1, those of points over those of the grid."""
    canvas, scale = enlarged(image)
    of_grid = sources == SOURCES.index("grid")
    for rows, color in ((of_grid, GRID_COLOR), (~of_grid, POINT_COLOR)):
        for box in boxes[rows]:
            x0, y0, x1, y1 = (box * scale).round().astype(int).tolist()
            cv2.rectangle(canvas, (x0, y0), (x1, y1), color, 1, cv2.LINE_AA)
    return canvas


def draw_boxes(
    image: np.ndarray, boxes: Sequence[np.ndarray], classes: Sequence[int], tags: Tags
) -> np.ndarray:
    """Boxes x, y, width, height with the names of their classes."""
    canvas, scale = enlarged(image)
    for box, index in zip(boxes, classes, strict=True):
        x, y, width, height = (np.asarray(box) * scale).round().astype(int).tolist()
        color = COLORS[int(index) % len(COLORS)]
        cv2.rectangle(canvas, (x, y), (x + width, y + height), color, 2, cv2.LINE_AA)
        label(canvas, tags.class_names[int(index)], (x + 2, y + 12), color)
    return canvas


def label(canvas: np.ndarray, text: str, at: tuple[int, int], color: tuple[int, int, int]) -> None:
    for tint, width in (((255, 255, 255), 3), (color, 1)):
        cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, tint, width, cv2.LINE_AA)


def beside(panels: Sequence[np.ndarray]) -> np.ndarray:
    """The panels in a row with white gaps."""
    gap = np.full((panels[0].shape[0], GAP, 3), 255, np.uint8)
    parts = [part for panel in panels for part in (panel, gap)]
    return np.hstack(parts[:-1])
