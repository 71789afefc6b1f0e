"""What dataset mappers are made of: reading images, carrying annotations through transforms.

Frames: boxes and polygons are continuous (pixel i spans [i, i + 1]); the transforms act in that
frame. A point is in pixel indices, as a mask's centre of mass is, so pixel i is at i: it is shifted
by half a pixel for the transforms and back after them. A flipped point is then the centre of the
flipped mask.
"""

import logging
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
    "build_transform_gen",
    "check_image_size",
    "check_metadata_consistency",
    "convert_PIL_to_numpy",
    "convert_image_to_rgb",
    "filter_empty_instances",
    "gen_crop_transform_with_instance",
    "read_image",
    "transform_instance_annotations",
    "transform_proposals",
]

PIXEL_CENTER = 0.5  # continuous position of pixel index 0
_BOX_SIDES = 4


class SizeMismatchError(ValueError):
    """An image file does not have the size that its annotation file says."""


def check_image_size(dataset_dict: dict[str, Any], image: np.ndarray) -> None:
    """Raise `SizeMismatchError` unless the image has the dict's size; add that if absent."""
    height, width = image.shape[:2]
    expected = dataset_dict.get("height", height), dataset_dict.get("width", width)
    if expected != (height, width):
        name = f" '{dataset_dict['file_name']}'" if "file_name" in dataset_dict else ""
        raise SizeMismatchError(
            f"Mismatched image shape{name}: got height x width {height} x {width}, expected "
            f"{expected[0]} x {expected[1]}. Check the annotations' width and height"
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
    """Replace precomputed proposals in a dataset dict, if any, by transformed ones, in place.

    `proposal_boxes` (N, 4) in `proposal_bbox_mode` and `proposal_objectness_logits` (N,), sorted by
    score, become `proposals`, an `Instances` of the first `proposal_topk` boxes that, clipped to
    `image_shape` (height, width), have sides above `min_box_size`.
    """
    if "proposal_boxes" not in dataset_dict:
        return
    mode = dataset_dict.pop("proposal_bbox_mode")
    boxes = BoxMode.convert(dataset_dict.pop("proposal_boxes"), mode, BoxMode.XYXY_ABS)
    boxes = Boxes(torch.as_tensor(transforms.apply_box(boxes), dtype=torch.float32))
    boxes.clip(image_shape)
    logits = np.asarray(dataset_dict.pop("proposal_objectness_logits"), dtype=np.float32)
    keep = boxes.nonempty(threshold=min_box_size)
    dataset_dict["proposals"] = Instances(
        image_shape,
        proposal_boxes=boxes[keep][:proposal_topk],
        objectness_logits=torch.as_tensor(logits)[keep][:proposal_topk],
    )


def transform_instance_annotations(
    annotation: dict[str, Any],
    transforms: T.Transform | Sequence[T.Transform],
    image_size: tuple[int, int],
) -> dict[str, Any]:
    """Apply transforms to one instance's box, segmentation and point; changes and returns the dict.

    `bbox` becomes XYXY_ABS, clipped to the image. A polygon segmentation stays one, as flat float64
    arrays; an RLE becomes an (H, W) uint8 mask. `point` may come to lie outside the image.

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
                f"{transforms}, but the image becomes {tuple(image_size)}: was it made for "
                "another image?"
            )
        return mask
    raise ValueError(
        f"Cannot transform segmentation of type '{type(segmentation)}'! Supported are polygons as "
        "list[list[float] or ndarray], and COCO-style RLE as a dict"
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

    Fields: `gt_boxes` (from the mask where there is no `bbox`, of zero size at the point where
    there is no mask either), `gt_classes` int64, `gt_masks` if any annotation has a segmentation
    (empty for those without), `gt_points` (N, 2) float32 x, y in pixel indices if any has a point.
    For an annotation without a point, or whose point was cropped off, that is the mask's centre of
    mass, or the box's centre where there is no mask. Points inside the image are moved to the
    nearest pixel centre if they are beyond the outermost ones, so that they always index a pixel.

    Args:
        annos: as `transform_instance_annotations` returns them.
        image_size: (height, width).
        mask_format: "polygon" or "bitmask": `gt_masks` is a `PolygonMasks` or a `BitMasks`.
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
    """One mask per annotation, empty where it has no segmentation; None if none has one."""
    if mask_format not in ("polygon", "bitmask"):
        raise ValueError(f"mask_format={mask_format!r}; expected 'polygon' or 'bitmask'")
    if not any("segmentation" in anno for anno in annos):
        return None
    segmentations = [anno.get("segmentation", []) for anno in annos]
    if mask_format == "polygon":
        if not all(isinstance(segmentation, list) for segmentation in segmentations):
            raise ValueError(
                "Failed to use mask_format=='polygon' from the given annotations! Some are RLE: "
                "set INPUT.MASK_FORMAT to 'bitmask'"
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
        raise ValueError(
            f"Cannot convert segmentation of type '{type(segmentation)}' to BitMasks! Supported "
            "are polygons as list[list[float] or ndarray], COCO-style RLE as a dict, or a binary "
            "mask as a 2D numpy array"
        )
    return mask


def _boxes_of(annos: list[dict[str, Any]], masks: PolygonMasks | BitMasks | None) -> np.ndarray:
    """(N, 4) float64 XYXY of the annotations; the masks' bounds, or zeros, where they have none."""
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
    """Whether a point in pixel indices lies in the image, its outer half pixels included."""
    height, width = image_size
    return bool((point >= -PIXEL_CENTER).all()) and bool(
        (point <= (width - PIXEL_CENTER, height - PIXEL_CENTER)).all()
    )


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
) -> Instances | tuple[Instances, torch.Tensor]:
    """Drop instances of which nothing is left in the image.

    A point-only instance (a box of zero size at its own point, see `annotations_to_instances`) is
    kept as long as the point lies in the image.

    Args:
        by_box: drop those whose box has a side of at most `box_threshold` pixels.
        by_mask: drop those whose mask is empty, if there are masks.
        return_mask: also return which were kept, (N,) bool.
    """
    if not (by_box or by_mask):
        raise ValueError("filter_empty_instances needs by_box or by_mask (or both)")
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
    kept = instances if keep.all() else instances[keep]  # masks are large: copy only if need be
    return (kept, keep) if return_mask else kept


def gen_crop_transform_with_instance(
    crop_size: tuple[int, int], image_size: tuple[int, int], instance: dict[str, Any]
) -> T.CropTransform:
    """A random crop that contains the centre of the instance's box.

    Args:
        crop_size, image_size: (height, width).
        instance: an annotation with `bbox` and `bbox_mode`.
    """
    box = BoxMode.convert(instance["bbox"], instance["bbox_mode"], BoxMode.XYXY_ABS)
    crop, size = np.asarray(crop_size, dtype=int), np.asarray(image_size, dtype=int)
    center = np.array([box[1] + box[3], box[0] + box[2]]) / 2  # y, x
    assert (size >= center).all(), (
        f"The centre (y, x) = {tuple(center)} of the annotation's box lies outside the image of "
        f"{tuple(image_size)}"
    )
    assert (size >= crop).all(), f"crop_size {crop_size} is larger than the image {image_size}"
    low = np.maximum(np.floor(center).astype(int) - crop, 0)
    high = np.minimum(np.maximum(size - crop, 0), np.ceil(center).astype(int))
    top = np.random.randint(low[0], high[0] + 1)
    left = np.random.randint(low[1], high[1] + 1)
    return T.CropTransform(left, top, int(crop[1]), int(crop[0]), int(size[1]), int(size[0]))


def check_metadata_consistency(key: str, dataset_names: Sequence[str]) -> None:
    """Raise ValueError unless the datasets' metadata agree in `key` (AttributeError if unset)."""
    if len(dataset_names) == 0:
        raise ValueError("check_metadata_consistency() needs at least one dataset name")
    first, *others = dataset_names
    expected = getattr(MetadataCatalog.get(first), key)
    for name in others:
        value = getattr(MetadataCatalog.get(name), key)
        if value != expected:
            logging.getLogger(__name__).error(
                "Datasets '%s' and '%s' differ in '%s': %s, %s", first, name, key, expected, value
            )
            raise ValueError(
                f"Datasets have different metadata '{key}': '{first}' has {expected}, '{name}' "
                f"has {value}. They cannot be used together"
            )


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """The config's augmentations: resizing, and random flipping in training."""
    flip = cfg.INPUT.RANDOM_FLIP
    if flip not in ("horizontal", "vertical", "none"):
        raise ValueError(f"INPUT.RANDOM_FLIP={flip!r}; expected 'horizontal', 'vertical', 'none'")
    if not is_train:
        sizes, max_size, style = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice"
        return [T.ResizeShortestEdge(sizes, max_size, style)]
    sizes, max_size = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN
    augmentations: list[T.Augmentation] = [
        T.ResizeShortestEdge(sizes, max_size, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
    ]
    if flip != "none":
        is_horizontal = flip == "horizontal"
        augmentations.append(T.RandomFlip(horizontal=is_horizontal, vertical=not is_horizontal))
    return augmentations


build_transform_gen = build_augmentation  # the name in older code
