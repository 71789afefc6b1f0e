"""Write registered datasets as COCO annotation files."""

import datetime
import json
import logging
import os
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode, PolygonMasks
from weaklabels.files import atomic_text

__all__ = ["convert_to_coco_dict", "convert_to_coco_json"]

_DECIMALS = 3  # of box coordinates
_BOX_LENGTH, _ROTATED_BOX_LENGTH = 4, 5

logger = logging.getLogger(__name__)


def convert_to_coco_dict(dataset_name: str) -> dict[str, Any]:
    """The content of a COCO instance annotation file for a registered dataset.

    Category ids are mapped back by the metadata's `thing_dataset_id_to_contiguous_id`, if it is
    set. An image without `image_id` gets its index in the list. Annotation ids start at 1.
    """
    dataset_dicts = DatasetCatalog.get(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    contiguous_id_of = metadata.get("thing_dataset_id_to_contiguous_id")
    indices = range(len(metadata.thing_classes))
    dataset_id_of = {index: index for index in indices}
    if contiguous_id_of is not None:
        dataset_id_of = {index: id_ for id_, index in contiguous_id_of.items()}

    images, annotations = [], []
    for number, image in enumerate(dataset_dicts):
        image_id = image.get("image_id", number)
        size = {"width": int(image["width"]), "height": int(image["height"])}
        images.append({"id": image_id, **size, "file_name": str(image["file_name"])})
        for annotation in image.get("annotations", ()):
            record = {"id": len(annotations) + 1, "image_id": image_id}
            record["category_id"] = int(dataset_id_of[annotation["category_id"]])
            record["iscrowd"] = int(annotation.get("iscrowd", 0))
            annotations.append(record | _coco_geometry(annotation))
    return {
        "info": {
            "date_created": str(datetime.datetime.now()),
            "description": f"Dataset '{dataset_name}' written in COCO format",
        },
        "images": images,
        "categories": [
            {"id": dataset_id_of[index], "name": name}
            for index, name in zip(indices, metadata.thing_classes, strict=True)
        ],
        "licenses": None,
        "annotations": annotations,
    }


def _coco_geometry(annotation: dict[str, Any]) -> dict[str, Any]:
    """Those of `bbox`, `area`, `segmentation` and `point` that the annotation has."""
    geometry: dict[str, Any] = {}
    if "bbox" in annotation:
        box = _coco_box(annotation)
        geometry["bbox"] = [round(float(value), _DECIMALS) for value in box]
        geometry["area"] = float(box[2] * box[3])
    if "segmentation" in annotation:
        geometry["segmentation"], geometry["area"] = _coco_segmentation(annotation["segmentation"])
    if "point" in annotation:
        geometry["point"] = [float(value) for value in annotation["point"]]
    return geometry


def _coco_box(annotation: dict[str, Any]) -> list[float]:
    """[x, y, width, height], or a rotated box's [center x, center y, width, height, angle]."""
    box = annotation["bbox"]
    box = [float(value) for value in (box.tolist() if isinstance(box, np.ndarray) else box)]
    if len(box) not in (_BOX_LENGTH, _ROTATED_BOX_LENGTH):
        raise ValueError(f"bbox={box}; expected 4 numbers, or 5 of a rotated box")
    mode = BoxMode.XYWH_ABS if len(box) == _BOX_LENGTH else BoxMode.XYWHA_ABS
    return BoxMode.convert(box, annotation["bbox_mode"], mode)


def _coco_segmentation(segmentation: list | dict[str, Any]) -> tuple[list | dict, float]:
    """The segmentation as JSON, and its area in pixels."""
    if isinstance(segmentation, list):
        area = PolygonMasks([segmentation]).area()[0].item()
        return [np.asarray(polygon).tolist() for polygon in segmentation], area
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        if isinstance(counts, list):
            segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
            counts = segmentation["counts"]
        area = float(mask_util.area(segmentation))
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        return {"size": [int(side) for side in segmentation["size"]], "counts": text}, area
    raise TypeError(
        f"segmentation is a {type(segmentation).__name__}; expected a list of polygons or an RLE"
    )


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True) -> None:
    """Write a registered dataset as a COCO annotation file.

    Args:
        allow_cached: keep an existing file.
    """
    if allow_cached and os.path.exists(output_file):
        logger.warning("%s exists and is kept; delete it if the dataset has changed", output_file)
        return
    logger.info("Writing dataset '%s' as %s", dataset_name, output_file)
    content = convert_to_coco_dict(dataset_name)
    with atomic_text(output_file) as file:
        json.dump(content, file)
