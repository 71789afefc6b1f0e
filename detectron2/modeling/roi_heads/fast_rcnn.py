"""The last layers of Fast R-CNN: classes and boxes of regions, losses and detections."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, batched_nms, nonzero_tuple
from detectron2.modeling.box_regression import (
    BOX_REG_LOSS_TYPES,
    Box2BoxTransform,
    box_regression_losses,
)
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from detectron2.utils.registry import Registry

# Called as f(cfg, input_shape: ShapeSpec); work as `FastRCNNOutputLayers` does.
ROI_BOX_PREDICTOR_REGISTRY = Registry("ROI_BOX_PREDICTOR")


def build_box_predictor(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """Box predictor `cfg.MODEL.ROI_BOX_HEAD.PREDICTOR` on features of this shape."""
    return ROI_BOX_PREDICTOR_REGISTRY.get(cfg.MODEL.ROI_BOX_HEAD.PREDICTOR)(cfg, input_shape)


def fast_rcnn_inference(
    boxes: list[Tensor],
    scores: list[Tensor],
    image_shapes: list[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[Tensor]]:
    """`fast_rcnn_inference_single_image` for each image: detections and regions of all."""
    results = [
        fast_rcnn_inference_single_image(
            own_boxes, own_scores, shape, score_thresh, nms_thresh, topk_per_image
        )
        for own_boxes, own_scores, shape in zip(boxes, scores, image_shapes, strict=True)
    ]
    return [instances for instances, _ in results], [indices for _, indices in results]


def fast_rcnn_inference_single_image(
    boxes: Tensor,
    scores: Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[Instances, Tensor]:
    """Detections of one image: scores above a threshold, after NMS within each class.

    Args:
        boxes: (R, K * 4) boxes for each class, or (R, 4) for all, in input pixels. Regions with
            infinite or NaN values are dropped.
        scores: (R, K + 1) probabilities, the background last.
        image_shape: (height, width) to clip boxes to.
        score_thresh: keep detections with a higher score.
        nms_thresh: drop a detection if a better one of its class overlaps it by a larger IoU.
        topk_per_image: number of best detections to keep; all if negative.

    Returns:
        Instances with `pred_boxes`, `scores` and `pred_classes` (int64), best first, and the index
        (int64) of the region of each.
    """
    regions = torch.arange(len(scores), device=scores.device)
    finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
    regions, boxes, scores = regions[finite], boxes[finite], scores[finite, :-1]
    clipped = Boxes(boxes.reshape(-1, 4))
    clipped.clip(image_shape)
    boxes = clipped.tensor.view(-1, boxes.shape[1] // 4, 4)  # (R, K or 1, 4)

    rows, classes = nonzero_tuple(scores > score_thresh)
    scores = scores[rows, classes]
    boxes = boxes[rows, classes if boxes.shape[1] > 1 else 0]
    kept = batched_nms(boxes, scores, classes, nms_thresh)
    if topk_per_image >= 0:
        kept = kept[:topk_per_image]
    instances = Instances(
        image_shape,
        pred_boxes=Boxes(boxes[kept]),
        scores=scores[kept],
        pred_classes=classes[kept],
    )
    return instances, regions[rows[kept]]


def _log_classification_stats(
    pred_logits: Tensor, gt_classes: Tensor, prefix: str = "fast_rcnn"
) -> None:
    """Record the accuracy, that of foreground, and the part of foreground that is missed."""
    if gt_classes.numel() == 0:
        return
    background = pred_logits.shape[1] - 1
    predicted = pred_logits.argmax(dim=1)
    is_right = predicted == gt_classes
    stats = {"cls_accuracy": is_right.float().mean().item()}
    foreground = (gt_classes >= 0) & (gt_classes < background)
    if count := int(foreground.sum()):
        stats["fg_cls_accuracy"] = is_right[foreground].sum().item() / count
        stats["false_negative"] = (predicted[foreground] == background).sum().item() / count
    for name, value in stats.items():
        get_event_storage().put_scalar(f"{prefix}/{name}", value)


@ROI_BOX_PREDICTOR_REGISTRY.register()
class FastRCNNOutputLayers(nn.Module):
    """Two linear layers: scores of K classes and the background, and deltas of boxes.

    Predictions are (R, K + 1) logits and (R, K * 4) or (R, 4) deltas for the regions of all images,
    in order. Override `losses_per_roi` to weight or drop regions in the losses, and
    `predict_boxes`, `predict_probs` or `inference` to change the detections.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec | int,
        *,
        box2box_transform: Box2BoxTransform,
        num_classes: int,
        test_score_thresh: float = 0.0,
        test_nms_thresh: float = 0.5,
        test_topk_per_image: int = 100,
        cls_agnostic_bbox_reg: bool = False,
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
        loss_weight: float | dict[str, float] = 1.0,
    ):
        """
        Args:
            input_shape: shape or number of the features of a region.
            num_classes: K, without the background.
            test_score_thresh, test_nms_thresh, test_topk_per_image: see
                `fast_rcnn_inference_single_image`.
            cls_agnostic_bbox_reg: predict one box for all classes.
            smooth_l1_beta, box_reg_loss_type: see `box_regression_losses`.
            loss_weight: of both losses, or of each by its name.
        """
        super().__init__()
        if isinstance(input_shape, int):
            input_shape = ShapeSpec(channels=input_shape)
        if box_reg_loss_type not in BOX_REG_LOSS_TYPES:
            raise ValueError(
                f"box_reg_loss_type={box_reg_loss_type!r}: expected one of {BOX_REG_LOSS_TYPES}"
            )
        self.num_classes = num_classes
        input_size = input_shape.channels * (input_shape.width or 1) * (input_shape.height or 1)
        num_boxes = 1 if cls_agnostic_bbox_reg else num_classes
        self.cls_score = nn.Linear(input_size, num_classes + 1)
        self.bbox_pred = nn.Linear(input_size, num_boxes * len(box2box_transform.weights))
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        for layer in (self.cls_score, self.bbox_pred):
            nn.init.zeros_(layer.bias)

        self.box2box_transform = box2box_transform
        self.smooth_l1_beta = smooth_l1_beta
        self.test_score_thresh = test_score_thresh
        self.test_nms_thresh = test_nms_thresh
        self.test_topk_per_image = test_topk_per_image
        self.box_reg_loss_type = box_reg_loss_type
        if not isinstance(loss_weight, dict):
            loss_weight = {"loss_cls": loss_weight, "loss_box_reg": loss_weight}
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Constructor arguments from `MODEL.ROI_BOX_HEAD`, `MODEL.ROI_HEADS` and `TEST`."""
        node = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "box2box_transform": Box2BoxTransform(weights=node.BBOX_REG_WEIGHTS),
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "cls_agnostic_bbox_reg": node.CLS_AGNOSTIC_BBOX_REG,
            "smooth_l1_beta": node.SMOOTH_L1_BETA,
            "test_score_thresh": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "test_nms_thresh": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "box_reg_loss_type": node.BBOX_REG_LOSS_TYPE,
            "loss_weight": {"loss_box_reg": node.BBOX_REG_LOSS_WEIGHT},
        }

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, features) or (R, C, H, W) -> predictions: logits and deltas."""
        x = x.flatten(start_dim=1)
        return self.cls_score(x), self.bbox_pred(x)

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """`loss_cls` and `loss_box_reg`: sums over regions, divided by the number of regions.

        Args:
            proposals: of each image, with `proposal_boxes`, `gt_classes` (K for background) and,
                if there is foreground, `gt_boxes`.
        """
        losses = self.losses_per_roi(predictions, proposals)
        return {
            # Upstream parity: the box loss is also divided by all regions, so that the weight of a
            # region does not depend on the number of foreground regions.
            name: values.sum() / max(len(values), 1) * self.loss_weight.get(name, 1.0)
            for name, values in losses.items()
        }

    def losses_per_roi(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """(R,) values of each loss: cross entropy, and box regression (0 for background)."""
        scores, deltas = predictions
        if not proposals:
            nothing = (scores.sum() + deltas.sum()) * 0  # zero, with a gradient
            return {"loss_cls": nothing[None], "loss_box_reg": nothing[None]}
        gt_classes = torch.cat([p.gt_classes for p in proposals])
        proposal_boxes = torch.cat([p.proposal_boxes.tensor for p in proposals])
        gt_boxes = torch.cat(
            [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
        )
        _log_classification_stats(scores, gt_classes)
        return {
            "loss_cls": F.cross_entropy(scores, gt_classes, reduction="none"),
            "loss_box_reg": self.box_reg_losses(proposal_boxes, gt_boxes, deltas, gt_classes),
        }

    def box_reg_losses(
        self, proposal_boxes: Tensor, gt_boxes: Tensor, pred_deltas: Tensor, gt_classes: Tensor
    ) -> Tensor:
        """(R,) regression losses, 0 for background.

        Args:
            proposal_boxes, gt_boxes: (R, 4).
            pred_deltas: (R, K * 4) or (R, 4).
            gt_classes: (R,).
        """
        foreground = nonzero_tuple((gt_classes >= 0) & (gt_classes < self.num_classes))[0]
        deltas = pred_deltas[foreground].unflatten(1, (-1, 4))  # (F, K or 1, 4)
        if deltas.shape[1] > 1:
            deltas = deltas[torch.arange(len(deltas)), gt_classes[foreground]]
        losses = box_regression_losses(
            deltas.reshape(-1, 4),
            proposal_boxes[foreground],
            gt_boxes[foreground],
            self.box2box_transform,
            self.box_reg_loss_type,
            self.smooth_l1_beta,
        )
        return losses.new_zeros(len(gt_classes)).index_put((foreground,), losses)

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Detections of each image, and their regions; see `fast_rcnn_inference_single_image`."""
        return fast_rcnn_inference(
            self.predict_boxes(predictions, proposals),
            self.predict_probs(predictions, proposals),
            [p.image_size for p in proposals],
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )

    def predict_boxes_for_gt_classes(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> list[Tensor]:
        """For each image (R, 4) boxes for the true classes; for background, of any class.

        Args:
            proposals: of each image, with `proposal_boxes` and `gt_classes`.
        """
        if not proposals:
            return []
        boxes = torch.cat(self.predict_boxes(predictions, proposals)).unflatten(1, (-1, 4))
        if boxes.shape[1] > 1:
            classes = torch.cat([p.gt_classes for p in proposals]).clamp(0, boxes.shape[1] - 1)
            boxes = boxes[torch.arange(len(boxes)), classes]
        return list(boxes.reshape(-1, 4).split([len(p) for p in proposals]))

    def predict_boxes(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> list[Tensor]:
        """For each image (R, K * 4) or (R, 4) boxes in input pixels."""
        if not proposals:
            return []
        proposal_boxes = torch.cat([p.proposal_boxes.tensor for p in proposals])
        boxes = self.box2box_transform.apply_deltas(predictions[1], proposal_boxes)
        return list(boxes.split(_numbers_of_boxes(proposals)))

    def predict_probs(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> list[Tensor]:
        """For each image (R, K + 1) probabilities, the background last."""
        probabilities = F.softmax(predictions[0], dim=-1)
        return list(probabilities.split(_numbers_of_boxes(proposals)))


def _numbers_of_boxes(proposals: list[Instances]) -> list[int]:
    """Boxes of each image. Unlike `len`, `shape` stays variable in a trace."""
    return [p.proposal_boxes.tensor.shape[0] for p in proposals]
