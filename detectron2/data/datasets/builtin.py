"""The builtin datasets, registered on import; their files are read on first use.

The environment variable DETECTRON2_DATASETS names their folder, by default `datasets`.
"""

import os

from detectron2.data.catalog import MetadataCatalog

from .builtin_meta import bdd100k_metadata, coco_metadata
from .coco import register_coco_instances
from .pascal_voc import register_pascal_voc
from .tags import register_tags

__all__ = [
    *("register_all_bdd100k", "register_all_coco", "register_all_pascal_voc"),
    *("register_all_pseudo_labels", "register_all_tags"),
]

_PERCENTAGES = (1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90)
_KINDS = (
    "s",  # strong: full masks of that percentage of the images
    "w",  # weak: the other images
    "sw",  # strong, and pseudo labels for the others
    "sw_refined",  # the same, refined by MaskRefineNet
)
_SUBSETS = tuple(f"{percent}p_{kind}" for percent in _PERCENTAGES for kind in _KINDS)

_COCO_SPLITS = {  # dataset name: (image folder, annotation file), both below coco/
    "coco_2014_train": ("train2014", "instances_train2014"),
    "coco_2014_val": ("val2014", "instances_val2014"),
    "coco_2014_minival": ("val2014", "instances_minival2014"),
    "coco_2014_valminusminival": ("val2014", "instances_valminusminival2014"),
    "coco_2017_train": ("train2017", "instances_train2017"),
    "coco_2017_val": ("val2017", "instances_val2017"),
    "coco_2017_test": ("test2017", "image_info_test2017"),
    "coco_2017_test-dev": ("test2017", "image_info_test-dev2017"),
    "coco_2017_val_100": ("val2017", "instances_val2017_100"),
} | {
    f"coco_2017_train_{subset}": ("train2017", f"instances_train2017_{subset}")
    for subset in _SUBSETS
}

_BDD100K_SPLITS = {
    f"bdd100k_{split}": (split.split("_")[0], f"bdd100k_ins_labels_{split}")
    for split in ("train", "val", *(f"train_{subset}" for subset in _SUBSETS))
}

_PASCAL_VOC_SPLITS = {
    2007: ("trainval", "train", "val", "test"),
    2012: ("trainval", "train", "val", "test"),
}
# Instance masks of VOC 2012, as tools/voc_to_coco.py writes them; "train_aug" includes SBD's.
_PASCAL_VOC_MASK_SPLITS = ("train", "val", "train_aug")
# Weakly supervised instance segmentation reports AP at these, in addition to COCO's.
_PASCAL_VOC_MASK_IOU_THRESHOLDS = (0.25, 0.7)
# Pseudo labels of WeakSAM, and its masks of VOC 2012: the reference's names and files.
_PSEUDO_SPLITS = {  # dataset name: (image folder, annotation file), both below `root`
    "voc_2007_trainval_wsl": ("VOC2007/JPEGImages", "VOC2007/pseudo_voc_2007_trainval"),
    "voc_2012_trainval_wsl": ("VOC2012/JPEGImages", "VOC2012/pseudo_voc_2012_trainval"),
    "coco_2014_pseudo_train": ("coco/train2014", "coco/annotations/pseudo_coco_2014_train"),
    "coco_2017_train_wsss": ("coco/train2017", "coco/annotations/instances_train2017_wsss"),
    "instances_train2017_wsss": ("coco/train2017", "coco/annotations/instances_train2017_wsss"),
} | {
    name: ("VOC2012/JPEGImages", f"VOC2012/{name}")
    for name in ("voc_2012_train_aug_cocostyle_wsss", "voc_2012_val_cocostyle")
}


_TAG_SPLITS = {  # dataset name: (image folder, tag file)
    f"voc_{year}_{split}_tags": (f"VOC{year}/JPEGImages", f"VOC{year}/annotations/tags_{split}")
    for year, splits in _PASCAL_VOC_SPLITS.items()
    for split in splits
} | {
    f"coco_{year}_train_tags": (f"coco/train{year}", f"coco/annotations/tags_train{year}")
    for year in (2014, 2017)
}


def register_all_tags(root: str) -> None:
    """Register the tag files that `wsis tags` wrote beside the annotations of VOC and COCO."""
    for name, (images, json_file) in _TAG_SPLITS.items():
        register_tags(name, {}, os.path.join(root, f"{json_file}.json"), os.path.join(root, images))


def register_all_coco(root: str) -> None:
    """Register COCO's splits and PointWSSIS's subsets of train2017, in `root`/coco."""
    _register_all(os.path.join(root, "coco"), _COCO_SPLITS, coco_metadata())


def register_all_bdd100k(root: str) -> None:
    """Register BDD100K's splits and PointWSSIS's subsets of its training set, in `root`/BDD100K."""
    _register_all(os.path.join(root, "BDD100K"), _BDD100K_SPLITS, bdd100k_metadata())


def register_all_pascal_voc(root: str) -> None:
    """Register Pascal VOC's boxes, in `root`/VOC2007 and VOC2012, and the masks of VOC 2012."""
    for year, splits in _PASCAL_VOC_SPLITS.items():
        for split in splits:
            name = f"voc_{year}_{split}"
            register_pascal_voc(name, os.path.join(root, f"VOC{year}"), split, year)
            MetadataCatalog.get(name).evaluator_type = "pascal_voc"
    folder = os.path.join(root, "VOC2012")
    masks = {
        f"voc_2012_instances_{split}": ("JPEGImages", f"instances_{split}")
        for split in _PASCAL_VOC_MASK_SPLITS
    }
    _register_all(folder, masks, {"extra_iou_thresholds": _PASCAL_VOC_MASK_IOU_THRESHOLDS})


def register_all_pseudo_labels(root: str) -> None:
    """Register the labels that WeakSAM makes from image tags, in `root`, and its masks to judge."""
    for name, (images, annotations) in _PSEUDO_SPLITS.items():
        metadata = coco_metadata() if annotations.startswith("coco/") else {}
        if "_cocostyle" in name:
            metadata = {"extra_iou_thresholds": _PASCAL_VOC_MASK_IOU_THRESHOLDS}
        json_file = os.path.join(root, f"{annotations}.json")
        register_coco_instances(name, metadata, json_file, os.path.join(root, images))


def _register_all(folder: str, splits: dict[str, tuple[str, str]], metadata: dict) -> None:
    for name, (images, annotations) in splits.items():
        json_file = os.path.join(folder, "annotations", f"{annotations}.json")
        register_coco_instances(name, metadata, json_file, os.path.join(folder, images))


_ROOT = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
register_all_coco(_ROOT)
register_all_bdd100k(_ROOT)
register_all_pascal_voc(_ROOT)
register_all_tags(_ROOT)
register_all_pseudo_labels(_ROOT)
