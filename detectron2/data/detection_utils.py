"""Parts of dataset mappers: read images, transform annotations, make `Instances`.

Boxes, polygons and transforms use continuous coordinates (pixel i spans [i, i + 1]). Points, like
centers of mass, are in pixel indices (pixel i is at i); transforms see them half a pixel shifted.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch

from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from detectron2.structures.masks import polygons_to_bitmask
from weaklabels.masks import center_of_mass

from . import transforms as T
from .catalog import MetadataCatalog
from .image_utils import convert_image_to_rgb, convert_PIL_to_numpy, read_image

__all__ = [
    "SizeMismatchError",
    "annotations_to_instances",
    "build_augmentation",
    "build_crop",
    "build_transform_gen",
    "check_image_size",
    "check_metadata_consistency",
    "convert_PIL_to_numpy",
    "convert_image_to_rgb",
    "filter_empty_instances",
    "read_image",
    "transform_instance_annotations",
    "transform_proposals",
    "uses_jittering",
]

PIXEL_CENTER = 0.5  # continuous position of pixel index 0
_BOX_SIDES = 4


class SizeMismatchError(ValueError):
    """An image's size is not the one in the annotation file."""


def check_image_size(dataset_dict: dict[str, Any], image: np.ndarray) -> None:
    """Raise `SizeMismatchError` unless the image has the dict's size, which is added if absent."""
    height, width = image.shape[:2]
    expected = dataset_dict.get("height", height), dataset_dict.get("width", width)
    if expected != (height, width):
        name = f" '{dataset_dict['file_name']}'" if "file_name" in dataset_dict else ""
        raise SizeMismatchError(
            f"image{name} is {height} x {width} (height x width), but its annotations say "
            f"{expected[0]} x {expected[1]}; correct them"
        )
    dataset_dict["height"], dataset_dict["width"] = height, width


def transform_proposals(
    dataset_dict: dict[str, Any],
    image_shape: tuple[int, int],
    transforms: T.Transform,
    *,
    proposal_topk: int,
    min_box_size: float = 0,
) -> None:
    """Replace precomputed proposals in a dataset dict, if any, with transformed ones, in place.

    `proposal_boxes` (N, 4) in `proposal_bbox_mode` and `proposal_objectness_logits` (N,), sorted by
    score, become `proposals`: `Instances` of the first `proposal_topk` boxes whose sides exceed
    `min_box_size` after clipping to `image_shape` (height, width). A `proposal_topk` of 0 keeps
    every row, so that a row is the same box in every augmented copy of an image.
    """
    if "proposal_boxes" not in dataset_dict:
        return
    mode = dataset_dict.pop("proposal_bbox_mode")
    boxes = BoxMode.convert(dataset_dict.pop("proposal_boxes"), mode, BoxMode.XYXY_ABS)
    boxes = Boxes(torch.as_tensor(transforms.apply_box(boxes), dtype=torch.float32))
    boxes.clip(image_shape)
    logits = np.asarray(dataset_dict.pop("proposal_objectness_logits"), dtype=np.float32)
    proposals = Instances(
        image_shape, proposal_boxes=boxes, objectness_logits=torch.as_tensor(logits)
    )
    if proposal_topk:
        proposals = proposals[boxes.nonempty(threshold=min_box_size)][:proposal_topk]
    dataset_dict["proposals"] = proposals


def transform_instance_annotations(
    annotation: dict[str, Any],
    transforms: T.Transform | Sequence[T.Transform],
    image_size: tuple[int, int],
) -> dict[str, Any]:
    """Transform one instance's box, segmentation and point; changes and returns the dict.

    `bbox` becomes XYXY_ABS, clipped to the image. Polygons become flat float64 arrays, an RLE an
    (H, W) uint8 mask. `point` may leave the image.

    Args:
        image_size: (height, width) after the transforms.
    """
    if isinstance(transforms, tuple | list):
        transforms = T.TransformList(transforms)
    if "keypoints" in annotation:
        raise ValueError("keypoints are not supported: remove 'keypoints' from the annotation")
    if "bbox" in annotation:
        annotation["bbox"] = _transform_box(annotation, transforms, image_size)
        annotation["bbox_mode"] = BoxMode.XYXY_ABS
    if "segmentation" in annotation:
        annotation["segmentation"] = _transform_segmentation(
            annotation["segmentation"], transforms, image_size
        )
    if "point" in annotation:
        point = np.array(annotation["point"], dtype=np.float64).reshape(1, 2) + PIXEL_CENTER
        annotation["point"] = transforms.apply_coords(point)[0] - PIXEL_CENTER
    return annotation


def _transform_box(
    annotation: dict[str, Any], transforms: T.Transform, image_size: tuple[int, int]
) -> np.ndarray:
    box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    height, width = image_size
    box = transforms.apply_box(np.array([box], dtype=np.float64))[0]
    return np.clip(box, 0, (width, height, width, height))


def _transform_segmentation(
    segmentation: list | dict[str, Any], transforms: T.Transform, image_size: tuple[int, int]
) -> list[np.ndarray] | np.ndarray:
    if isinstance(segmentation, list):
        polygons = [np.array(p, dtype=np.float64).reshape(-1, 2) for p in segmentation]
        return [polygon.reshape(-1) for polygon in transforms.apply_polygons(polygons)]
    if isinstance(segmentation, dict):
        mask = transforms.apply_segmentation(_decode_rle(segmentation))
        if tuple(mask.shape[:2]) != tuple(image_size):
            raise ValueError(
                f"the RLE of size {segmentation['size']} becomes a mask of {mask.shape[:2]} under "
                f"{transforms}, the image becomes {tuple(image_size)}: the RLE may be that of "
                "another image"
            )
        return mask
    raise ValueError(_unsupported(segmentation))


def _unsupported(segmentation: Any) -> str:
    return (
        f"a segmentation of type {type(segmentation).__name__}; expected a list of polygons "
        "[x0, y0, x1, y1, ...] or an RLE dict"
    )


def _decode_rle(rle: dict[str, Any]) -> np.ndarray:
    """(H, W) uint8 mask of a compressed or uncompressed COCO RLE."""
    if isinstance(rle["counts"], list):
        rle = mask_util.frPyObjects(rle, *rle["size"])
    return mask_util.decode(rle)


def annotations_to_instances(
    annos: list[dict[str, Any]], image_size: tuple[int, int], mask_format: str = "polygon"
) -> Instances:
    """Make the `Instances` that models train on from annotations in the network's frame.

    Fields:
        gt_boxes: without `bbox` the bounds of the mask, without mask a box of zero size at `point`.
        gt_classes: int64.
        gt_masks: if any annotation has a segmentation; the others get an empty mask.
        gt_points: (N, 2) float32 x, y in pixel indices, if any annotation has a point. Without a
            point, or if it was cropped off, the mask's center of mass, or without mask the box's
            center. Points on the outer half pixel of the image move inside to the nearest center.

    Args:
        annos: from `transform_instance_annotations`.
        image_size: (height, width).
        mask_format: "polygon" or "bitmask", for `PolygonMasks` or `BitMasks`.
    """
    target = Instances(image_size)
    masks = _masks_of(annos, image_size, mask_format)
    boxes = _boxes_of(annos, masks)
    if any("point" in anno for anno in annos):
        points = _points_of(annos, masks, boxes, image_size)
        target.gt_points = torch.from_numpy(points.astype(np.float32))
        is_point_only = [_is_point_only(anno) for anno in annos]
        boxes[is_point_only] = np.tile(points[is_point_only], 2)
    target.gt_boxes = Boxes(torch.from_numpy(boxes.astype(np.float32)))
    target.gt_classes = torch.tensor([int(a["category_id"]) for a in annos], dtype=torch.int64)
    if masks is not None:
        target.gt_masks = masks
    return target


def _is_point_only(anno: dict[str, Any]) -> bool:
    return "bbox" not in anno and "segmentation" not in anno


def _masks_of(
    annos: list[dict[str, Any]], image_size: tuple[int, int], mask_format: str
) -> PolygonMasks | BitMasks | None:
    """One mask per annotation, empty without a segmentation; None if no annotation has one."""
    if mask_format not in ("polygon", "bitmask"):
        raise ValueError(f"mask_format={mask_format!r}; expected 'polygon' or 'bitmask'")
    if not any("segmentation" in anno for anno in annos):
        return None
    segmentations = [anno.get("segmentation", []) for anno in annos]
    if mask_format == "polygon":
        if not all(isinstance(segmentation, list) for segmentation in segmentations):
            raise ValueError(
                "mask_format='polygon', but some annotations are RLEs; set INPUT.MASK_FORMAT to "
                "'bitmask'"
            )
        return PolygonMasks(segmentations)
    bitmasks = [_to_bitmask(segmentation, image_size) for segmentation in segmentations]
    return BitMasks(torch.from_numpy(np.stack(bitmasks)))


def _to_bitmask(
    segmentation: list | dict[str, Any] | np.ndarray, image_size: tuple[int, int]
) -> np.ndarray:
    """(H, W) mask of polygons, drawn into `image_size`, of an RLE, or of a mask."""
    if isinstance(segmentation, list):
        return polygons_to_bitmask(segmentation, *image_size)
    mask = _decode_rle(segmentation) if isinstance(segmentation, dict) else segmentation
    if not isinstance(mask, np.ndarray) or mask.ndim != 2:
        raise ValueError(f"{_unsupported(segmentation)}, or an (H, W) array")
    return mask


def _boxes_of(annos: list[dict[str, Any]], masks: PolygonMasks | BitMasks | None) -> np.ndarray:
    """(N, 4) float64 XYXY of the annotations; without a box the mask's bounds, or zeros."""
    boxes = np.zeros((len(annos), _BOX_SIDES))
    if masks is not None and not all("bbox" in anno for anno in annos):
        boxes[:] = masks.get_bounding_boxes().tensor.numpy()
    for box, anno in zip(boxes, annos, strict=True):
        if "bbox" in anno:
            box[:] = BoxMode.convert(anno["bbox"], anno["bbox_mode"], BoxMode.XYXY_ABS)
    return boxes


def _points_of(
    annos: list[dict[str, Any]],
    masks: PolygonMasks | BitMasks | None,
    boxes: np.ndarray,
    image_size: tuple[int, int],
) -> np.ndarray:
    """(N, 2) float64 x, y in pixel indices, by the rules of `annotations_to_instances`."""
    height, width = image_size
    points = (boxes[:, :2] + boxes[:, 2:]) / 2 - PIXEL_CENTER
    has_mask = [False] * len(annos) if masks is None else masks.nonempty().tolist()
    for i, (point, anno) in enumerate(zip(points, annos, strict=True)):
        if "point" in anno:
            point[:] = anno["point"]
        if has_mask[i] and ("point" not in anno or not _contains(image_size, point)):
            mask = masks.tensor[i].numpy() if isinstance(masks, BitMasks) else masks.polygons[i]
            center = center_of_mass(_to_bitmask(mask, image_size))
            if center is not None:
                point[:] = center
        if _contains(image_size, point):
            point[:] = np.clip(point, 0, (width - 1, height - 1))
    return points


def _contains(image_size: tuple[int, int], point: np.ndarray) -> bool:
    """Whether a point in pixel indices lies in the image."""
    height, width = image_size
    low, high = -PIXEL_CENTER, np.array([width, height]) - PIXEL_CENTER
    return bool(((point >= low) & (point <= high)).all())


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
) -> Instances | tuple[Instances, torch.Tensor]:
    """Drop instances that have left the image.

    A point-only instance (a box of zero size at its point, see `annotations_to_instances`) is kept
    if the point lies in the image.

    Args:
        by_box: drop boxes with a side of at most `box_threshold` pixels.
        by_mask: drop empty masks, if there are masks.
        return_mask: also return which were kept, (N,) bool.
    """
    if not (by_box or by_mask):
        raise ValueError("filter_empty_instances needs by_box or by_mask")
    keep = torch.ones(len(instances), dtype=torch.bool, device=instances.gt_boxes.device)
    if by_box:
        keep &= instances.gt_boxes.nonempty(threshold=box_threshold)
    if by_mask and instances.has("gt_masks"):
        keep &= instances.gt_masks.nonempty()
    if instances.has("gt_points"):
        points, boxes = instances.gt_points, instances.gt_boxes.tensor
        is_point_only = (boxes == points.repeat(1, 2)).all(dim=1)
        height, width = instances.image_size
        limit = points.new_tensor([width, height]) - PIXEL_CENTER
        is_inside = ((points >= -PIXEL_CENTER) & (points <= limit)).all(dim=1)
        keep = torch.where(is_point_only, is_inside, keep)
    kept = instances if keep.all() else instances[keep]  # masks are large: copy only if needed
    return (kept, keep) if return_mask else kept


def build_crop(cfg: CfgNode) -> T.Augmentation:
    """The crop of `INPUT.CROP`, before all other augmentations."""
    node = cfg.INPUT.CROP
    if not 0 <= node.PROB <= 1:
        raise ValueError(f"INPUT.CROP.PROB={node.PROB}: expected a probability in [0, 1]")
    crop: T.Augmentation = T.RandomCrop(node.TYPE, node.SIZE)
    if node.MIN_SIZES:
        resize = T.ResizeShortestEdge(node.MIN_SIZES, sample_style="choice")
        crop = T.AugmentationList([resize, crop])
    return crop if node.PROB == 1 else T.RandomApply(crop, node.PROB)


def check_metadata_consistency(key: str, dataset_names: Sequence[str]) -> None:
    """Raise ValueError unless the metadata of all datasets agree in `key`."""
    if len(dataset_names) == 0:
        raise ValueError("check_metadata_consistency() needs at least one dataset name")
    first, *others = dataset_names
    expected = getattr(MetadataCatalog.get(first), key)
    for name in others:
        value = getattr(MetadataCatalog.get(name), key)
        if value != expected:
            raise ValueError(
                f"datasets with different {key!r} cannot be joined: '{first}' has {expected}, "
                f"'{name}' has {value}"
            )


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """The config's augmentations: resizing; in training also random flips and color noise.

    With large-scale jittering (`uses_jittering`) the resized image is cropped or padded last.
    """
    flip = cfg.INPUT.RANDOM_FLIP
    if flip not in ("horizontal", "vertical", "none"):
        raise ValueError(f"INPUT.RANDOM_FLIP={flip!r}; expected 'horizontal', 'vertical', 'none'")
    if not is_train:
        sizes, max_size, style = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice"
        return [T.ResizeShortestEdge(sizes, max_size, style)]
    sizes, max_size = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN
    side, scales = cfg.INPUT.IMAGE_SIZE, (cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE)
    jitters = uses_jittering(cfg)
    augmentations: list[T.Augmentation] = [
        T.ResizeScale(*scales, side, side)
        if jitters
        else T.ResizeShortestEdge(sizes, max_size, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
    ]
    is_horizontal = flip == "horizontal"
    if flip != "none" and (cfg.INPUT.HFLIP_TRAIN or not is_horizontal):
        augmentations.append(T.RandomFlip(horizontal=is_horizontal, vertical=not is_horizontal))
    if cfg.INPUT.PCA_NOISE > 0:
        augmentations.append(T.RandomLighting(255 * cfg.INPUT.PCA_NOISE, cfg.INPUT.FORMAT))
    return [*augmentations, T.FixedSizeCrop((side, side))] if jitters else augmentations


def uses_jittering(cfg: CfgNode) -> bool:
    """Whether `INPUT.DATASET_MAPPER_NAME` asks for large-scale jittering."""
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name and not name.endswith("lsj"):
        raise ValueError(
            f"INPUT.DATASET_MAPPER_NAME={name!r}; expected '' or a name that ends with 'lsj', such "
            "as 'coco_instance_lsj'"
        )
    return bool(name)


build_transform_gen = build_augmentation  # its name in older code
