"""Turn one dataset dict into what a model takes: read, augment, make tensors."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from detectron2.config import CfgNode, configurable
from detectron2.structures import Boxes, Instances

from . import detection_utils as utils
from . import transforms as T

__all__ = ["DatasetMapper"]


class DatasetMapper:
    """A callable from a dataset dict to a model's input dict.

    Reads `file_name`, applies the same random transforms to the image and its annotations, and
    returns the dict with `image` (C, H, W) uint8 and, if annotations are kept, `instances` (see
    `detection_utils.annotations_to_instances`) and `sem_seg` (H, W) int64. `height` and `width`
    stay those of the file.

    Crowds are always left out. In training, so are instances that the transforms move off the
    image: empty boxes or masks, and points without a mask.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        use_instance_mask: bool = False,
        instance_mask_format: str = "polygon",
        precomputed_proposal_topk: int | None = None,
        recompute_boxes: bool = False,
        keep_annotations: bool = False,
    ):
        """
        Args:
            augmentations: applied in order.
            image_format: see `detection_utils.read_image`.
            use_instance_mask: make `gt_masks`; False ignores segmentations.
            instance_mask_format: "polygon" or "bitmask".
            precomputed_proposal_topk: how many of a dict's proposals to keep; None: ignore them.
            recompute_boxes: take boxes from the transformed masks, which are tighter after crops.
            keep_annotations: make `instances` even if `is_train` is False, of all but crowds, for
                models that need points or to check predictions.
        """
        if recompute_boxes and not use_instance_mask:
            raise ValueError("recompute_boxes=True needs use_instance_mask=True")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_instance_mask = use_instance_mask
        self.instance_mask_format = instance_mask_format
        self.proposal_topk = precomputed_proposal_topk
        self.recompute_boxes = recompute_boxes
        self.keep_annotations = keep_annotations
        mode = "training" if is_train else "inference"
        logging.getLogger(__name__).info("Images for %s pass %s", mode, self.augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Constructor arguments from INPUT.*, MODEL.MASK_ON and MODEL.LOAD_PROPOSALS."""
        augmentations = utils.build_augmentation(cfg, is_train)
        crops = cfg.INPUT.CROP.ENABLED and is_train
        if crops:
            augmentations.insert(0, utils.build_crop(cfg))
        crops |= is_train and utils.uses_jittering(cfg)
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "instance_mask_format": cfg.INPUT.MASK_FORMAT,
            "recompute_boxes": crops and cfg.MODEL.MASK_ON,
            "precomputed_proposal_topk": _proposal_topk(cfg, is_train),
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dict in Detectron2's standard dataset format; it is not changed."""
        dataset_dict = dict(dataset_dict)  # its values are replaced, never changed in place
        image = utils.read_image(dataset_dict["file_name"], format=self.image_format)
        utils.check_image_size(dataset_dict, image)
        sem_seg_file = dataset_dict.pop("sem_seg_file_name", None)
        annotations = dataset_dict.pop("annotations", None)
        wants_annotations = self.is_train or self.keep_annotations

        sem_seg = None
        if sem_seg_file is not None and wants_annotations:
            sem_seg = utils.read_image(sem_seg_file, "L").squeeze(2)
        aug_input = T.AugInput(image, sem_seg=sem_seg)
        transforms = self.augmentations(aug_input)
        size_hw = aug_input.image.shape[:2]

        dataset_dict["image"] = torch.from_numpy(_channels_first(aug_input.image))
        if aug_input.sem_seg is not None:
            dataset_dict["sem_seg"] = torch.as_tensor(aug_input.sem_seg.astype(np.int64))
        if self.proposal_topk is not None:
            utils.transform_proposals(
                dataset_dict, size_hw, transforms, proposal_topk=self.proposal_topk
            )
        if annotations is not None and wants_annotations:
            kept = [dict(a) for a in annotations if a.get("iscrowd", 0) == 0]
            _clamp_points(kept, image.shape[:2])
            dataset_dict["instances"] = self._make_instances(kept, transforms, size_hw)
        return dataset_dict

    def _make_instances(
        self, annotations: list[dict], transforms: T.Transform, size_hw: tuple[int, int]
    ) -> Instances:
        """The instances of annotations without crowds; changes the dicts."""
        unused = {"keypoints"} if self.use_instance_mask else {"keypoints", "segmentation"}
        for annotation in annotations:
            for key in unused & annotation.keys():
                del annotation[key]
            utils.transform_instance_annotations(annotation, transforms, size_hw)
        instances = utils.annotations_to_instances(
            annotations, size_hw, mask_format=self.instance_mask_format
        )
        if self.recompute_boxes and instances.has("gt_masks"):
            has_mask = instances.gt_masks.nonempty()[:, None]
            tight, given = instances.gt_masks.get_bounding_boxes(), instances.gt_boxes
            instances.gt_boxes = Boxes(torch.where(has_mask, tight.tensor, given.tensor))
        return utils.filter_empty_instances(instances) if self.is_train else instances


def _proposal_topk(cfg: CfgNode, is_train: bool) -> int | None:
    if not cfg.MODEL.LOAD_PROPOSALS:
        return None
    datasets = cfg.DATASETS
    if is_train:
        return datasets.PRECOMPUTED_PROPOSAL_TOPK_TRAIN
    return datasets.PRECOMPUTED_PROPOSAL_TOPK_TEST


def _channels_first(image: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, C) -> (C, H, W), contiguous and writable."""
    planes = image[:, :, None] if image.ndim == 2 else image
    return np.array(planes.transpose(2, 0, 1), order="C")


def _clamp_points(annotations: list[dict], size_hw: tuple[int, int]) -> None:
    """Move points on the image's border to the centers of the outermost pixels.

    Label tools give points up to x = width, half a pixel outside in pixel indices. They would be
    dropped as if cropped off.
    """
    height, width = size_hw
    for annotation in annotations:
        if "point" in annotation:
            annotation["point"] = np.clip(annotation["point"], 0, (width - 1, height - 1)).tolist()
