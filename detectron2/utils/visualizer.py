"""Draw instances (masks, boxes, points, labels) on an image."""

from collections.abc import Sequence
from enum import Enum, unique
from typing import Any

import cv2
import numpy as np
import torch

from detectron2.structures import BitMasks, Boxes, BoxMode, PolygonMasks

from .colormap import change_brightness, jitter, random_color, readable_on_black
from .generic_mask import GenericMask, without_specks
from .vis_image import VisImage
from .vis_labels import _create_text_labels, label_place

__all__ = ["ColorMode", "GenericMask", "VisImage", "Visualizer"]

_LARGE_MASK_AREA = 120000  # pixels; every part of a mask above it gets the text
_DEFAULT_AREA_THRESHOLD = 10  # pixels; smaller parts of a mask are specks
_OPAQUE_ALPHA = 0.8  # from here on, edges need another shade than the area


@unique
class ColorMode(Enum):
    """How to color instances.

    IMAGE: at random.  SEGMENTATION: by class, with the metadata's `thing_colors`.
    IMAGE_BW: as IMAGE, and predictions turn what no mask covers gray.
    """

    IMAGE = 0
    SEGMENTATION = 1
    IMAGE_BW = 2


class Visualizer:
    """Draw on one image; each method returns the `VisImage` so far, for `get_image` or `save`.

    Coordinates are (x, y) pixels of `img_rgb`. Colors are matplotlib's: names or RGB in [0, 1].

    Args:
        img_rgb: (H, W, 3), RGB in [0, 255].
        metadata: the dataset's, for its `thing_classes` and `thing_colors`.
        scale: enlarges the picture.
    """

    def __init__(
        self,
        img_rgb: np.ndarray,
        metadata: Any = None,
        scale: float = 1.0,
        instance_mode: ColorMode = ColorMode.IMAGE,
    ):
        self.img = np.asarray(img_rgb).clip(0, 255).astype(np.uint8)
        if self.img.ndim != 3 or self.img.shape[2] != 3:
            raise ValueError(f"an image of shape {self.img.shape}; expected (H, W, 3), RGB")
        self.metadata = {} if metadata is None else metadata
        self.output = VisImage(self.img, scale=scale)
        self.cpu_device = torch.device("cpu")
        self._default_font_size = max(np.sqrt(self.img[..., 0].size) / 45, 10 / scale)
        self._line_width = max(self._default_font_size / 10, 1)
        self._instance_mode = instance_mode

    def draw_instance_predictions(self, predictions: Any) -> VisImage:
        """Draw `Instances` on the CPU that have any of a model's output fields.

        These are `pred_boxes`, `pred_classes`, `scores`, `pred_masks` (N, H, W) and `pred_points`
        (N, 2).
        """
        fields = predictions.get_fields()
        classes = fields["pred_classes"].tolist() if "pred_classes" in fields else None
        labels = _create_text_labels(
            classes, fields.get("scores"), self.metadata.get("thing_classes", None)
        )
        masks = fields.get("pred_masks")
        colors, alpha = self._colors_of_classes(classes), 0.5
        if colors is not None:
            alpha = _OPAQUE_ALPHA
        if self._instance_mode == ColorMode.IMAGE_BW:
            covered = None if masks is None else np.asarray(masks, dtype=bool).any(axis=0)
            self.output.reset_image(self._create_grayscale_image(covered))
            alpha = 0.3
        return self.overlay_instances(
            masks=masks,
            boxes=fields.get("pred_boxes"),
            labels=labels,
            points=fields.get("pred_points"),
            assigned_colors=colors,
            alpha=alpha,
        )

    def draw_dataset_dict(self, dic: dict[str, Any]) -> VisImage:
        """Draw the annotations of a dict in Detectron2's dataset format."""
        annotations = dic.get("annotations", None)
        if not annotations:
            return self.output
        nothing = [np.nan] * 4
        boxes = [
            BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) if "bbox" in a else nothing
            for a in annotations
        ]
        has_masks = any("segmentation" in a for a in annotations)
        masks = [a.get("segmentation", []) for a in annotations] if has_masks else None
        points = [a.get("point", nothing[:2]) for a in annotations]
        classes = [a["category_id"] for a in annotations]
        is_crowd = [a.get("iscrowd", 0) for a in annotations]
        names = self.metadata.get("thing_classes", None)
        labels = _create_text_labels(classes, None, names, is_crowd)
        return self.overlay_instances(
            labels=labels,
            boxes=np.array([np.asarray(box, dtype=np.float64) for box in boxes]),
            masks=masks,
            points=np.array(points, dtype=np.float64),
            assigned_colors=self._colors_of_classes(classes),
        )

    def overlay_instances(
        self,
        *,
        boxes: Any = None,
        labels: Sequence[str] | None = None,
        masks: Any = None,
        points: Any = None,
        assigned_colors: Sequence[Any] | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw N instances, large ones first.

        Args:
            boxes: `Boxes` or an (N, 4) array x0, y0, x1, y1; a row of NaN for none.
            masks: `BitMasks`, `PolygonMasks`, an (N, H, W) tensor, or a list of N masks, each as
                `GenericMask` takes it.
            points: (N, 2) array x, y; a row of NaN for none.
            assigned_colors: N colors; random by default.
            alpha: opacity of the masks, in [0, 1].
        """
        box_rows = None if boxes is None else self._convert_boxes(boxes)
        mask_list = None if masks is None else self._convert_masks(masks)
        point_rows = None
        if points is not None:
            point_rows = np.asarray(_as_array(points), dtype=np.float64).reshape(-1, 2)
        given = {
            "boxes": box_rows,
            "masks": mask_list,
            "points": point_rows,
            "labels": labels,
            "assigned_colors": assigned_colors,
        }
        lengths = {name: len(value) for name, value in given.items() if value is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"need one of each per instance, got {lengths}")
        num_instances = next(iter(lengths.values()), 0)
        if assigned_colors is None:
            assigned_colors = [random_color(rgb=True, maximum=1) for _ in range(num_instances)]
        for i in _largest_first(num_instances, box_rows, mask_list):
            color = assigned_colors[i]
            mask = None if mask_list is None else mask_list[i]
            box, point = _row(box_rows, i), _row(point_rows, i)
            if mask is not None:
                self._draw_generic_mask(mask, color, alpha=alpha)
            if box is not None:
                self.draw_box(box, edge_color=color)
            if point is not None:
                self.draw_point(point, color=color)
            if labels is not None:
                place = label_place(box, mask, point, self.img.shape[:2], self._default_font_size)
                if place is not None:
                    self.draw_text(labels[i], color=color, **place)
        return self.output

    def draw_text(
        self,
        text: str,
        position: Sequence[float],
        *,
        font_size: float | None = None,
        color: Any = "g",
        horizontal_alignment: str = "center",
    ) -> VisImage:
        """Write text on a dark box whose top is at `position`."""
        self.output.draw_text(
            text,
            position,
            font_size=self._default_font_size if font_size is None else font_size,
            color=readable_on_black(color),
            horizontal_alignment=horizontal_alignment,
        )
        return self.output

    def draw_box(
        self, box_coord: Sequence[float], alpha: float = 0.5, edge_color: Any = "g"
    ) -> VisImage:
        """Draw the outline of a box x0, y0, x1, y1."""
        x0, y0, x1, y1 = (float(v) for v in box_coord)
        outline = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        self.output.draw_lines([outline], edge_color, alpha, width=self._line_width, closed=True)
        return self.output

    def draw_circle(self, circle_coord: Sequence[float], color: Any, radius: float = 3) -> VisImage:
        """Draw a filled circle around (x, y)."""
        self.output.fill_circle(circle_coord, radius, color)
        return self.output

    def draw_point(self, point: Sequence[float], color: Any) -> VisImage:
        """Draw a labeled point (x, y): a dot with a white rim, visible on a mask of its color."""
        radius = 2 * self._line_width
        self.draw_circle(point, "black", radius + 1.5 * self._line_width)
        self.draw_circle(point, "white", radius + self._line_width)
        return self.draw_circle(point, color, radius)

    def draw_line(
        self,
        x_data: Sequence[float],
        y_data: Sequence[float],
        color: Any,
        *,
        linewidth: float | None = None,
    ) -> VisImage:
        """Draw a line through points."""
        line = np.stack([np.asarray(x_data, float), np.asarray(y_data, float)], axis=1)
        width = self._line_width if linewidth is None else linewidth
        self.output.draw_lines([line], color, width=width)
        return self.output

    def draw_polygon(
        self, segment: np.ndarray, color: Any, edge_color: Any = None, alpha: float = 0.5
    ) -> VisImage:
        """Fill an (N, 2) polygon and draw its edge."""
        points = np.asarray(segment, dtype=np.float64).reshape(-1, 2)
        self.output.fill_polygons([points], color, alpha)
        if edge_color is None:
            edge_color = self._edge_color(color, alpha)
        self.output.draw_lines([points], edge_color, width=self._line_width, closed=True)
        return self.output

    def draw_binary_mask(
        self,
        binary_mask: np.ndarray,
        color: Any = None,
        *,
        edge_color: Any = None,
        text: str | None = None,
        alpha: float = 0.5,
        area_threshold: int | None = _DEFAULT_AREA_THRESHOLD,
    ) -> VisImage:
        """Color an (H, W) binary mask, with an edge unless it has holes.

        Args:
            color: random by default.
            text: written on the mask.
            area_threshold: leaves out connected parts with fewer pixels; None or 0: keeps all.
        """
        color = random_color(rgb=True, maximum=1) if color is None else color
        pixels = np.asarray(binary_mask).astype(np.uint8)
        if area_threshold:
            pixels = without_specks(pixels, area_threshold)
        mask = GenericMask(pixels, *self.img.shape[:2])
        self._draw_generic_mask(mask, color, edge_color=edge_color, alpha=alpha)
        if text is not None:
            self._draw_text_in_mask(mask.mask, text, color)
        return self.output

    def get_output(self) -> VisImage:
        return self.output

    def _draw_generic_mask(
        self, mask: GenericMask, color: Any, *, edge_color: Any = None, alpha: float
    ) -> None:
        self.output.blend_mask(mask.mask, color, alpha)
        if not mask.has_holes:
            edges = [polygon.reshape(-1, 2) for polygon in mask.polygons]
            edge_color = self._edge_color(color, alpha) if edge_color is None else edge_color
            self.output.draw_lines(edges, edge_color, width=self._line_width, closed=True)

    def _edge_color(self, color: Any, alpha: float) -> Any:
        return change_brightness(color, -0.7) if alpha >= _OPAQUE_ALPHA else color

    def _draw_text_in_mask(self, mask: np.ndarray, text: str, color: Any) -> None:
        """Write on the largest connected part of a mask, and on any other part that is large."""
        _, labels = cv2.connectedComponents(mask, connectivity=8)
        parts, areas = np.unique(labels[labels > 0], return_counts=True)  # 0 is the background
        for part in parts[areas >= min(areas.max(initial=0), _LARGE_MASK_AREA)]:
            rows, columns = np.nonzero(labels == part)
            self.draw_text(text, (np.median(columns), np.median(rows)), color=color)

    def _colors_of_classes(self, classes: Sequence[int] | None) -> list[Any] | None:
        """In mode SEGMENTATION, a shade of the class color for each instance."""
        class_colors = self.metadata.get("thing_colors", None)
        if self._instance_mode != ColorMode.SEGMENTATION or not class_colors or classes is None:
            return None
        return [jitter([value / 255 for value in class_colors[c]]) for c in classes]

    def _create_grayscale_image(self, mask: np.ndarray | None = None) -> np.ndarray:
        """The image in gray except where the (H, W) mask is true."""
        gray = self.img.astype(np.float32).mean(axis=2, keepdims=True).astype(np.uint8)
        image = np.repeat(gray, 3, axis=2)
        if mask is not None:
            image[mask] = self.img[mask]
        return image

    def _convert_boxes(self, boxes: Any) -> np.ndarray:
        """(N, 4) float array from `Boxes`, a tensor or an array."""
        rows = _as_array(boxes.tensor if isinstance(boxes, Boxes) else boxes)
        return np.asarray(rows, dtype=np.float64).reshape(-1, 4)

    def _convert_masks(self, masks_or_polygons: Any) -> list[GenericMask]:
        items = masks_or_polygons
        if isinstance(items, PolygonMasks):
            items = items.polygons
        elif isinstance(items, BitMasks):
            items = items.tensor
        height, width = self.img.shape[:2]
        return [
            item if isinstance(item, GenericMask) else GenericMask(_as_array(item), height, width)
            for item in _as_array(items)
        ]


def _as_array(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value


def _row(rows: np.ndarray | None, index: int) -> np.ndarray | None:
    """A row of an array, or None without an array or if the row has NaN."""
    return None if rows is None or np.isnan(rows[index]).any() else rows[index]


def _largest_first(
    num_instances: int, boxes: np.ndarray | None, masks: list[GenericMask] | None
) -> np.ndarray:
    """(N,) int64 order that puts small instances on top of large ones."""
    areas = np.zeros(num_instances)
    if masks is not None:
        areas = np.array([mask.area() for mask in masks], dtype=np.float64)
    if boxes is not None:
        box_areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        areas = np.where(np.isnan(box_areas), areas, box_areas)
    return np.argsort(-areas, kind="stable")
