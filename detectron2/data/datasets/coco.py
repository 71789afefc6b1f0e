"""Read COCO-format instance annotations, and write datasets in that format.

One extension: an annotation may have `"point": [x, y]` in pixel indices of the image (the center
of pixel i is at i). It then needs no `bbox`, `segmentation` or `area`.
"""

import contextlib
import gc
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from weaklabels.coco import checked_categories, checked_images, read_whole
from weaklabels.files import missing_keys
from weaklabels.image_root import check_links
from weaklabels.masks import (
    check_segmentation,
    drawable_polygons,
    is_finite_number,
    segmentation_rle,
)
from weaklabels.points import checked_point

from .coco_writer import convert_to_coco_dict, convert_to_coco_json
from .tags import load_tags_json

__all__ = [
    "convert_to_coco_dict",
    "convert_to_coco_json",
    "load_coco_json",
    "register_coco_instances",
]

_SHOWN_IDS = 1000

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def _paused_garbage_collection() -> Iterator[None]:
    """Garbage collection takes half as long again as loading, which frees nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_paused_garbage_collection()
def load_coco_json(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    extra_annotation_keys: Sequence[str] | None = None,
    *,
    skip_invalid: bool = False,
    points_only: bool = False,
) -> list[dict[str, Any]]:
    """Load a COCO instance annotation file as dicts in Detectron2's standard dataset format.

    Every image gets a dict, in order of image ids, with `file_name`, `height`, `width`, `image_id`
    and `annotations`. These have the keys `iscrowd`, `bbox`, `bbox_mode`, `category_id`,
    `segmentation` (RLEs compressed) and `point` that the file has.

    A tag file gives dicts with `image_labels` and without `annotations`, see `load_tags_json`.

    Polygons of fewer than three corners are left out. So are instances that lose all polygons and
    have no point; a warning counts them.

    Args:
        image_root: folder of the images.
        dataset_name: sets `thing_classes` and `thing_dataset_id_to_contiguous_id` in the metadata
            of this name, and maps category ids, in ascending order, to 0, 1, ... . None: keeps the
            category ids of the file.
        extra_annotation_keys: further keys of annotations to keep, such as "id".
        skip_invalid: leave out invalid annotations (unknown category, point outside the image,
            duplicate id, ...) and log them; False: raise a ValueError.
        points_only: ignore the mask and box of annotations with a point.
    """
    content = _read_json(json_file)
    if "annotations" not in content and any(
        not missing_keys(i, ("category_ids",)) for i in content["images"]
    ):
        return load_tags_json(json_file, image_root, dataset_name)
    images = checked_images(content["images"], json_file)
    check_links(image_root, (image["file_name"] for image in images.values()))
    category_ids = _load_categories(content, json_file, dataset_name)
    annotations_of, faults = _annotations_by_image(content, images, json_file, skip_invalid)
    keys = ("iscrowd", "bbox", "category_id", *(extra_annotation_keys or ()))
    reader = _AnnotationReader(category_ids, dataset_name is not None, keys, points_only)

    dataset_dicts = []
    for image_id in sorted(images):
        image = images[image_id]
        record = {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image_id,
            "annotations": [],
        }
        for annotation in annotations_of.get(image_id, ()):
            try:
                instance = reader.read(annotation, image)
            except ValueError as error:
                if not skip_invalid:
                    raise ValueError(_message(json_file, annotation, error)) from error
                faults[str(error).partition(":")[0]].append(annotation.get("id"))
                continue
            if instance is not None:
                record["annotations"].append(instance)
        dataset_dicts.append(record)
    _log_faults(json_file, faults, reader.without_valid_polygon)
    logger.info("%s lists %d images", json_file, len(images))
    return dataset_dicts


def _read_json(json_file: str) -> dict[str, Any]:
    try:
        return read_whole(PathManager.get_local_path(json_file))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"annotation file '{json_file}' does not exist. Builtin datasets are expected in the "
            "folder that the environment variable DETECTRON2_DATASETS names (default: ./datasets)"
        ) from error


def _load_categories(
    content: dict[str, Any], json_file: str, dataset_name: str | None
) -> dict[int, int] | None:
    """Contiguous index by category id; None without categories and without a dataset name."""
    categories = checked_categories(content.get("categories", []), json_file)
    index_of = {number: index for index, number in enumerate(sorted(categories))}
    if dataset_name is None:
        return index_of or None
    if not index_of:
        raise ValueError(f"'{json_file}' has no 'categories', which dataset '{dataset_name}' needs")
    ids = list(index_of)
    if ids != list(range(1, len(ids) + 1)) and "coco" not in dataset_name:
        logger.warning(
            "%s has category ids other than 1 to %d; they become 0, 1, ... in ascending order",
            *(json_file, len(ids)),
        )
    names = [categories[number]["name"] for number in index_of]
    metadata = MetadataCatalog.get(dataset_name)
    known = metadata.get("thing_classes", names)
    if known != names:
        raise ValueError(
            f"'{json_file}' has the categories {names}, but dataset '{dataset_name}' is known to "
            f"have {known}. Register the file under another name"
        )
    metadata.set(thing_classes=names, thing_dataset_id_to_contiguous_id=index_of)
    return index_of


def _annotations_by_image(
    content: dict[str, Any], images: dict[Any, dict], json_file: str, skip_invalid: bool
) -> tuple[dict[Any, list[dict]], dict[str, list]]:
    """Annotations by image id, and the ids of invalid ones by fault."""
    by_image: dict[Any, list[dict]] = defaultdict(list)
    faults: dict[str, list] = defaultdict(list)
    # COCO's minival file has duplicate ids
    seen: set | None = None if "minival" in json_file else set()
    num_unknown_images = 0
    for number, annotation in enumerate(content.get("annotations", ())):
        if missing_keys(annotation, ("id", "image_id")) or not all(
            type(annotation[key]) is int for key in ("id", "image_id")
        ):
            name = annotation.get("id") if isinstance(annotation, dict) else None
            raise ValueError(
                f"'{json_file}': entry {number} of 'annotations' (annotation id {name}) needs "
                "whole numbers as 'id' and 'image_id'"
            )
        if annotation["image_id"] not in images:
            num_unknown_images += 1
            continue
        if seen is not None and annotation["id"] in seen:
            if not skip_invalid:
                raise ValueError(
                    f"'{json_file}' has two annotations with id {annotation['id']}; number them "
                    "anew, or load the file with skip_invalid=True"
                )
            faults["duplicate id"].append(annotation["id"])
            continue
        if seen is not None:
            seen.add(annotation["id"])
        by_image[annotation["image_id"]].append(annotation)
    if num_unknown_images:
        logger.warning(
            "%s: left out %d of %d annotations, whose image_id is not in 'images'",
            *(json_file, num_unknown_images, len(content["annotations"])),
        )
    return by_image, faults


class _AnnotationReader:
    """Turns annotations of one file into instances; counts those without a valid polygon."""

    def __init__(
        self,
        index_of: dict[int, int] | None,
        maps_ids: bool,
        keys: Sequence[str],
        points_only: bool,
    ):
        self._index_of = index_of
        self._maps_ids = maps_ids
        self._keys = keys
        self._points_only = points_only
        self.without_valid_polygon = 0

    def read(self, annotation: dict[str, Any], image: dict[str, Any]) -> dict[str, Any] | None:
        """The instance; None if it has no valid polygon. Raises ValueError("fault: detail")."""
        if annotation.get("ignore", 0) != 0:
            raise ValueError(f"'ignore' is not supported: {annotation['ignore']}")
        instance = {key: annotation[key] for key in self._keys if key in annotation}
        instance["category_id"] = self._category(annotation.get("category_id"))
        has_point = annotation.get("point") is not None
        if has_point:
            size_hw = (image["height"], image["width"])
            instance["point"] = list(checked_point(annotation["point"], *size_hw))
        if has_point and self._points_only:
            instance.pop("bbox", None)
            return instance
        if not instance.get("bbox"):
            if "bbox" in instance and not has_point:
                raise ValueError("empty 'bbox': COCO's is [x, y, width, height]")
            instance.pop("bbox", None)
        elif not _is_box(instance["bbox"]):
            raise ValueError(f"'bbox' is not a list of 4 finite numbers: {instance['bbox']}")
        segmentation = annotation.get("segmentation")
        if segmentation:
            segmentation = _checked_segmentation(segmentation, image)
            if segmentation:
                instance["segmentation"] = segmentation
            elif not has_point:
                self.without_valid_polygon += 1
                return None
        if "bbox" in instance:
            instance["bbox_mode"] = BoxMode.XYWH_ABS
        elif not has_point and "segmentation" not in instance:
            raise ValueError("none of 'bbox', 'segmentation' and 'point': needs one")
        return instance

    def _category(self, category_id: Any) -> Any:
        if self._index_of is None:
            return category_id
        if type(category_id) is not int or category_id not in self._index_of:
            raise ValueError(f"category_id not in 'categories': {category_id}")
        return self._index_of[category_id] if self._maps_ids else category_id


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(map(is_finite_number, box))


def _checked_segmentation(segmentation: Any, image: dict[str, Any]) -> list | dict:
    """The polygons that have at least three corners, or a compressed RLE."""
    size_hw = (image["height"], image["width"])
    if isinstance(segmentation, list):
        return drawable_polygons(segmentation, *size_hw)
    check_segmentation(segmentation, *size_hw)
    compressed = not isinstance(segmentation["counts"], list)
    return segmentation if compressed else segmentation_rle(segmentation, *size_hw)


def _message(json_file: str, annotation: dict[str, Any], error: Exception) -> str:
    return (
        f"'{json_file}', annotation id {annotation['id']} (image id {annotation['image_id']}): "
        f"{error}. Correct the file, or load it with skip_invalid=True"
    )


def _log_faults(json_file: str, faults: dict[str, list], without_valid_polygon: int) -> None:
    if without_valid_polygon:
        logger.warning(
            "%s: left out %d instances, none of whose polygons has three corners",
            *(json_file, without_valid_polygon),
        )
    for fault, ids in faults.items():
        logger.warning(
            "%s: skipped %d annotations (%s), ids %s%s",
            *(json_file, len(ids), fault, ", ".join(map(str, ids[:_SHOWN_IDS]))),
            f" and {len(ids) - _SHOWN_IDS} more" if len(ids) > _SHOWN_IDS else "",
        )


def register_coco_instances(
    name: str, metadata: dict[str, Any], json_file: str, image_root: str
) -> None:
    """Register a COCO-format instance dataset; its files are read on first use.

    Args:
        metadata: further attributes for `MetadataCatalog`.
        json_file: the annotation file.
        image_root: the folder of the images.
    """
    for value in (name, json_file, image_root):
        assert isinstance(value, str | os.PathLike), f"expected a name or a path, got {value!r}"
    DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(
        json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata
    )
