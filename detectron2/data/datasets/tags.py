"""Datasets with image-level labels only, for networks that learn from tags."""

import os
from typing import Any

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from weaklabels.image_root import check_links
from weaklabels.tags import read_tags

__all__ = ["load_tags_json", "register_tags"]


def load_tags_json(
    json_file: str, image_root: str, dataset_name: str | None = None
) -> list[dict[str, Any]]:
    """Load a tag file as dicts in Detectron2's standard dataset format, but without `annotations`.

    Every image gets a dict, in order of image ids, with `file_name`, `height`, `width`, `image_id`
    and `image_labels`: its classes as ascending contiguous ids from 0, maybe none.

    Args:
        image_root: folder of the images.
        dataset_name: puts `thing_classes` and `thing_dataset_id_to_contiguous_id` into the metadata
            of that name.
    """
    tags = read_tags(json_file)
    check_links(image_root, (image.file_name for image in tags.images))
    index_of = tags.index_of
    if dataset_name is not None:
        metadata = MetadataCatalog.get(dataset_name)
        known = metadata.get("thing_classes", tags.class_names)
        if known != tags.class_names:
            raise ValueError(
                f"'{json_file}' has the categories {tags.class_names}, but dataset "
                f"'{dataset_name}' is known to have {known}. Register the file under another name"
            )
        metadata.set(thing_classes=tags.class_names, thing_dataset_id_to_contiguous_id=index_of)
    return [
        {
            "file_name": os.path.join(image_root, image.file_name),
            "height": image.height,
            "width": image.width,
            "image_id": image.id,
            "image_labels": [index_of[number] for number in image.category_ids],
        }
        for image in sorted(tags.images, key=lambda image: image.id)
    ]


def register_tags(name: str, metadata: dict[str, Any], json_file: str, image_root: str) -> None:
    """Register a tag file; it is read when the dataset is first asked for.

    Args:
        metadata: further attributes for `MetadataCatalog`.
    """
    DatasetCatalog.register(name, lambda: load_tags_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, **metadata)
