"""Detect on several resized and flipped versions of each image, and merge the detections.

Of `detectron2.data`, this needs only what works on pixels: the transforms and the image reader.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.config import CfgNode, configurable
from detectron2.data.image_utils import read_image
from detectron2.data.transforms import (
    HFlipTransform,
    NoOpTransform,
    RandomFlip,
    ResizeShortestEdge,
    ResizeTransform,
    Transform,
    apply_augmentations,
)
from detectron2.modeling.meta_arch.interface import MetaArchitecture
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference_single_image
from detectron2.structures import Boxes, Instances

# Detections have already passed the score threshold. This one drops the classes with score 0,
# which a box was not detected as.
ABOVE_ZERO = 1e-8


class DatasetMapperTTA:
    """Turn one input of a model into several: each size, with and without a flip."""

    @configurable
    def __init__(self, min_sizes: Sequence[int], max_size: int, flip: bool):
        """
        Args:
            min_sizes: lengths of the shortest edge, in pixels.
            max_size: no edge becomes longer than this.
            flip: also return horizontally flipped images.
        """
        self.min_sizes = min_sizes
        self.max_size = max_size
        self.flip = flip

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from `TEST.AUG`."""
        node = cfg.TEST.AUG
        return {"min_sizes": node.MIN_SIZES, "max_size": node.MAX_SIZE, "flip": node.FLIP}

    def __call__(self, dataset_dict: dict[str, Any]) -> list[dict[str, Any]]:
        """Augmented copies of an input.

        Args:
            dataset_dict: with `image` (C, H, W), and `height`, `width` of the wanted output.

        Returns:
            copies with `transforms`, from the frame of the output to that of their `image`.
        """
        image = dataset_dict["image"].permute(1, 2, 0).numpy()
        output_size = (dataset_dict["height"], dataset_dict["width"])
        first: Transform = NoOpTransform()
        if image.shape[:2] != output_size:
            first = ResizeTransform(*output_size, *image.shape[:2])
        augmented = []
        for min_size in self.min_sizes:
            resize = ResizeShortestEdge(min_size, self.max_size)
            flips = [[], [RandomFlip(prob=1.0)]] if self.flip else [[]]
            for flip in flips:
                new_image, transforms = apply_augmentations([resize, *flip], image.copy())
                tensor = torch.from_numpy(np.ascontiguousarray(new_image.transpose(2, 0, 1)))
                augmented.append(
                    copy.deepcopy(dataset_dict)
                    | {"image": tensor, "transforms": first + transforms}
                )
        return augmented


class GeneralizedRCNNWithTTA(nn.Module):
    """A `GeneralizedRCNN` with test-time augmentation, called in the same way.

    NMS runs over the boxes from all versions of an image. Masks are computed for the remaining
    boxes on every version, and averaged.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        tta_mapper: Callable[[dict], list[dict]] | None = None,
        batch_size: int = 3,
    ):
        """
        Args:
            cfg: of the model.
            model: a GeneralizedRCNN, or one in DistributedDataParallel.
            tta_mapper: input -> versions of it; by default `DatasetMapperTTA(cfg)`.
            batch_size: versions to run at once.
        """
        super().__init__()
        if isinstance(model, DistributedDataParallel):
            model = model.module
        if not (isinstance(model, MetaArchitecture) and hasattr(model, "roi_heads")):
            raise ValueError(
                "test-time augmentation (TEST.AUG.ENABLED) is for GeneralizedRCNN; the model is a "
                f"{type(model).__name__}"
            )
        model.check_tta(cfg)
        self.cfg = cfg.clone()
        self.model = model
        self.tta_mapper = DatasetMapperTTA(cfg) if tta_mapper is None else tta_mapper
        self.batch_size = batch_size

    def __call__(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """A list of {"instances": Instances}, as `GeneralizedRCNN.inference` gives it.

        Args:
            batched_inputs: dicts with `image` (C, H, W) or `file_name`, and optionally `height` and
                `width` of the wanted output.
        """
        return [self._inference_one_image(self._complete(x)) for x in batched_inputs]

    def _complete(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A shallow copy that has an image and an output size."""
        inputs = dict(inputs)
        if "image" not in inputs:
            image = read_image(inputs.pop("file_name"), self.model.input_format)
            inputs["image"] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        height, width = inputs["image"].shape[1:]
        return {"height": height, "width": width} | inputs

    def _inference_one_image(self, inputs: dict[str, Any]) -> dict[str, Instances]:
        size = (inputs["height"], inputs["width"])
        versions = self.tta_mapper(inputs)
        transforms = [version.pop("transforms") for version in versions]
        with self._without_masks():
            detections = self._batch_inference(versions)
        merged = self._merge_detections(detections, transforms, size)
        if not self.model.roi_heads.mask_on:
            return {"instances": merged}
        given = [
            _transformed(merged, transform, tuple(version["image"].shape[1:]))
            for version, transform in zip(versions, transforms, strict=True)
        ]
        merged.pred_masks = _average_masks(self._batch_inference(versions, given), transforms)
        return {"instances": detector_postprocess(merged, *size)}

    @contextmanager
    def _without_masks(self) -> Iterator[None]:
        heads = self.model.roi_heads
        mask_on, heads.mask_on = heads.mask_on, False
        try:
            yield
        finally:
            heads.mask_on = mask_on

    def _batch_inference(
        self, inputs: list[dict[str, Any]], given: list[Instances] | None = None
    ) -> list[Instances]:
        """Results in the frames of the given images, `batch_size` images at a time."""
        results = []
        for start in range(0, len(inputs), self.batch_size):
            part = slice(start, start + self.batch_size)
            results += self.model.inference(
                inputs[part], None if given is None else given[part], do_postprocess=False
            )
        return results

    def _merge_detections(
        self, detections: list[Instances], transforms: list[Transform], size_hw: tuple[int, int]
    ) -> Instances:
        """Detections of all versions in the frame of the output, without duplicates."""
        boxes = [
            _apply_box(transform.inverse(), own.pred_boxes.tensor)
            for own, transform in zip(detections, transforms, strict=True)
        ]
        scores = torch.cat([own.scores for own in detections])
        classes = torch.cat([own.pred_classes for own in detections])
        table = scores.new_zeros(len(scores), self.cfg.MODEL.ROI_HEADS.NUM_CLASSES + 1)
        table[torch.arange(len(scores), device=table.device), classes] = scores
        merged, _ = fast_rcnn_inference_single_image(
            torch.cat(boxes),
            table,
            size_hw,
            ABOVE_ZERO,
            self.cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            self.cfg.TEST.DETECTIONS_PER_IMAGE,
        )
        return merged


def _apply_box(transform: Transform, boxes: Tensor) -> Tensor:
    """(N, 4) boxes after a transform."""
    moved = transform.apply_box(boxes.detach().cpu().numpy())
    return torch.from_numpy(np.asarray(moved)).to(boxes)


def _transformed(instances: Instances, transform: Transform, size_hw: tuple[int, int]) -> Instances:
    return Instances(
        size_hw,
        pred_boxes=Boxes(_apply_box(transform, instances.pred_boxes.tensor)),
        pred_classes=instances.pred_classes,
        scores=instances.scores,
    )


def _average_masks(outputs: list[Instances], transforms: list[Transform]) -> Tensor:
    """(N, 1, M, M) mean probabilities. Flips are undone; resizing does not change M x M masks."""
    masks = []
    for own, transform in zip(outputs, transforms, strict=True):
        flips = sum(isinstance(t, HFlipTransform) for t in transform.transforms)
        masks.append(own.pred_masks.flip(dims=[3]) if flips % 2 else own.pred_masks)
    return torch.stack(masks).mean(dim=0)
