"""Region proposal network: for each anchor, the score and the box of an object."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, cat
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform, box_regression_losses
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator.build import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from detectron2.utils.memory import retry_if_cuda_oom
from detectron2.utils.registry import Registry

# Called as f(cfg, input_shape: list[ShapeSpec]); maps -> objectness and deltas of each anchor.
RPN_HEAD_REGISTRY = Registry("RPN_HEAD")

BACKGROUND, FOREGROUND, IGNORED = 0, 1, -1


def build_rpn_head(cfg: CfgNode, input_shape: list[ShapeSpec]) -> nn.Module:
    """RPN head `cfg.MODEL.RPN.HEAD_NAME` for feature maps of these shapes."""
    return RPN_HEAD_REGISTRY.get(cfg.MODEL.RPN.HEAD_NAME)(cfg, input_shape)


@RPN_HEAD_REGISTRY.register()
class StandardRPNHead(nn.Module):
    """3x3 convolutions, then 1x1 convolutions for objectness and deltas, shared by all maps."""

    @configurable
    def __init__(
        self, *, in_channels: int, num_anchors: int, box_dim: int = 4, conv_dims: list[int] = (-1,)
    ):
        """
        Args:
            in_channels: channels of every map.
            num_anchors: anchors at each cell of every map.
            box_dim: numbers of one box.
            conv_dims: channels of the 3x3 convolutions; -1 keeps the number.
        """
        super().__init__()
        convs = []
        channels = in_channels
        for conv_dim in conv_dims:
            out_channels = channels if conv_dim == -1 else conv_dim
            if out_channels <= 0:
                raise ValueError(
                    f"RPN conv_dims={list(conv_dims)}: expected numbers above 0, or -1"
                )
            convs.append(
                Conv2d(channels, out_channels, kernel_size=3, padding=1, activation=nn.ReLU())
            )
            channels = out_channels
        # Upstream parity: one convolution has the keys `conv.*`, several have `conv.conv0.*`.
        self.conv = convs[0] if len(convs) == 1 else nn.Sequential()
        if len(convs) != 1:
            for i, conv in enumerate(convs):
                self.conv.add_module(f"conv{i}", conv)
        self.objectness_logits = nn.Conv2d(channels, num_anchors, kernel_size=1)
        self.anchor_deltas = nn.Conv2d(channels, num_anchors * box_dim, kernel_size=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        """Constructor arguments from `MODEL.RPN.CONV_DIMS` and the anchor generator."""
        anchor_generator = build_anchor_generator(cfg, input_shape)
        return {
            "in_channels": _the_same([shape.channels for shape in input_shape], "channels"),
            "num_anchors": _the_same(anchor_generator.num_anchors, "anchors a cell"),
            "box_dim": anchor_generator.box_dim,
            "conv_dims": cfg.MODEL.RPN.CONV_DIMS,
        }

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps (N, C, H, W) -> objectness logits (N, A, H, W) and deltas (N, A * box_dim, H, W)."""
        hidden = [self.conv(x) for x in features]
        return [self.objectness_logits(x) for x in hidden], [self.anchor_deltas(x) for x in hidden]


def _the_same(values: list[int], what: str) -> int:
    if len(set(values)) != 1:
        raise ValueError(f"MODEL.RPN.IN_FEATURES: one head for all maps, but {what} {values}")
    return values[0]


@PROPOSAL_GENERATOR_REGISTRY.register()
class RPN(nn.Module):
    """Propose the anchors with the best scores, moved to the predicted boxes."""

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        head: nn.Module,
        anchor_generator: nn.Module,
        anchor_matcher: Matcher,
        box2box_transform: Box2BoxTransform,
        batch_size_per_image: int,
        positive_fraction: float,
        pre_nms_topk: tuple[int, int],
        post_nms_topk: tuple[int, int],
        nms_thresh: float = 0.7,
        min_box_size: float = 0.0,
        anchor_boundary_thresh: float = -1.0,
        loss_weight: float | dict[str, float] = 1.0,
        box_reg_loss_type: str = "smooth_l1",
        smooth_l1_beta: float = 0.0,
    ):
        """
        Args:
            in_features: names of the maps, from fine to coarse.
            head: maps -> logits and deltas, as in `StandardRPNHead`.
            anchor_generator: maps -> anchors.
            anchor_matcher: labels anchors by their IoU with the ground truth.
            batch_size_per_image: anchors to compute losses on.
            positive_fraction: largest part of these that may be foreground.
            pre_nms_topk, post_nms_topk: for training and for testing, see `find_top_rpn_proposals`.
            nms_thresh, min_box_size: see `find_top_rpn_proposals`.
            anchor_boundary_thresh: in training, ignore anchors that leave the image by more than
                this many pixels; below 0, ignore none.
            loss_weight: of both losses, or of each by its name.
            box_reg_loss_type, smooth_l1_beta: see `box_regression_losses`.
        """
        super().__init__()
        self.in_features = in_features
        self.rpn_head = head
        self.anchor_generator = anchor_generator
        self.anchor_matcher = anchor_matcher
        self.box2box_transform = box2box_transform
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        # Keys are values of self.training.
        self.pre_nms_topk = {True: pre_nms_topk[0], False: pre_nms_topk[1]}
        self.post_nms_topk = {True: post_nms_topk[0], False: post_nms_topk[1]}
        self.nms_thresh = nms_thresh
        self.min_box_size = float(min_box_size)
        self.anchor_boundary_thresh = anchor_boundary_thresh
        if not isinstance(loss_weight, dict):
            loss_weight = {"loss_rpn_cls": loss_weight, "loss_rpn_loc": loss_weight}
        self.loss_weight = loss_weight
        self.box_reg_loss_type = box_reg_loss_type
        self.smooth_l1_beta = smooth_l1_beta

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Constructor arguments from `MODEL.RPN`."""
        node = cfg.MODEL.RPN
        shapes = [input_shape[name] for name in node.IN_FEATURES]
        return {
            "in_features": node.IN_FEATURES,
            "min_box_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
            "nms_thresh": node.NMS_THRESH,
            "batch_size_per_image": node.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": node.POSITIVE_FRACTION,
            "loss_weight": {
                "loss_rpn_cls": node.LOSS_WEIGHT,
                "loss_rpn_loc": node.BBOX_REG_LOSS_WEIGHT * node.LOSS_WEIGHT,
            },
            "anchor_boundary_thresh": node.BOUNDARY_THRESH,
            "box2box_transform": Box2BoxTransform(weights=node.BBOX_REG_WEIGHTS),
            "box_reg_loss_type": node.BBOX_REG_LOSS_TYPE,
            "smooth_l1_beta": node.SMOOTH_L1_BETA,
            "pre_nms_topk": (node.PRE_NMS_TOPK_TRAIN, node.PRE_NMS_TOPK_TEST),
            "post_nms_topk": (node.POST_NMS_TOPK_TRAIN, node.POST_NMS_TOPK_TEST),
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "anchor_matcher": Matcher(
                node.IOU_THRESHOLDS, node.IOU_LABELS, allow_low_quality_matches=True
            ),
            "head": build_rpn_head(cfg, shapes),
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Proposals of each image, and in training the losses.

        Args:
            images: only their sizes are used.
            features: maps by name, (N, C, H, W).
            gt_instances: for training, with `gt_boxes`.

        Returns:
            Instances with `proposal_boxes` and `objectness_logits`, best first, without gradient;
            and `loss_rpn_cls`, `loss_rpn_loc`, or no losses in testing.
        """
        maps = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(maps)
        logits, deltas = self.rpn_head(maps)
        # (N, A, H, W) -> (N, H * W * A), the order of the anchors
        logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]
        # (N, A * 4, H, W) -> (N, H * W * A, 4)
        box_dim = self.anchor_generator.box_dim
        deltas = [
            x.unflatten(1, (-1, box_dim)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in deltas
        ]
        losses = {}
        if self.training:
            if gt_instances is None:
                raise ValueError("training an RPN needs 'instances' in every input")
            gt_labels, gt_boxes = self.label_and_sample_anchors(anchors, gt_instances)
            losses = self.losses(anchors, logits, gt_labels, deltas, gt_boxes)
        return self.predict_proposals(anchors, logits, deltas, images.image_sizes), losses

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Training targets of each image, for a random sample of anchors.

        Args:
            anchors: of each map, R in all.
            gt_instances: of each image, with `gt_boxes`.

        Returns:
            for each image (R,) int8 labels: 1 foreground, 0 background, -1 not trained on; and
            (R, 4) ground-truth boxes, which are meaningless except for foreground.
        """
        all_anchors = Boxes.cat(anchors)
        labels, matched_boxes = [], []
        for instances in gt_instances:
            gt_boxes = instances.gt_boxes
            qualities = retry_if_cuda_oom(pairwise_iou)(gt_boxes, all_anchors)
            matches, own_labels = retry_if_cuda_oom(self.anchor_matcher)(qualities)
            own_labels = own_labels.to(gt_boxes.device)
            if self.anchor_boundary_thresh >= 0:
                inside = all_anchors.inside_box(instances.image_size, self.anchor_boundary_thresh)
                own_labels[~inside] = IGNORED
            positive, negative = subsample_labels(
                own_labels, self.batch_size_per_image, self.positive_fraction, BACKGROUND
            )
            own_labels.fill_(IGNORED)
            own_labels[positive], own_labels[negative] = FOREGROUND, BACKGROUND
            labels.append(own_labels)
            if len(gt_boxes) == 0:
                matched_boxes.append(torch.zeros_like(all_anchors.tensor))
            else:
                matched_boxes.append(gt_boxes[matches.to(gt_boxes.device)].tensor)
        return labels, matched_boxes

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """`loss_rpn_cls` and `loss_rpn_loc`, divided by the number of anchors to sample.

        Args:
            anchors: of each map.
            pred_objectness_logits: for each map (N, A).
            gt_labels: for each image (R,), see `label_and_sample_anchors`.
            pred_anchor_deltas: for each map (N, A, 4).
            gt_boxes: for each image (R, 4).
        """
        labels = torch.stack(gt_labels)  # (N, R)
        foreground, valid = labels == FOREGROUND, labels >= 0
        storage = get_event_storage()
        num_images = len(gt_labels)
        storage.put_scalar("rpn/num_pos_anchors", foreground.sum().item() / num_images)
        storage.put_scalar("rpn/num_neg_anchors", (labels == BACKGROUND).sum().item() / num_images)
        all_anchors = Boxes.cat(anchors).tensor.expand(num_images, -1, -1)
        localization = box_regression_losses(
            cat(pred_anchor_deltas, dim=1)[foreground],
            all_anchors[foreground],
            torch.stack(gt_boxes)[foreground],
            self.box2box_transform,
            self.box_reg_loss_type,
            self.smooth_l1_beta,
        ).sum()
        objectness = F.binary_cross_entropy_with_logits(
            cat(pred_objectness_logits, dim=1)[valid], labels[valid].float(), reduction="sum"
        )
        normalizer = self.batch_size_per_image * num_images
        losses = {
            "loss_rpn_cls": objectness / normalizer,
            "loss_rpn_loc": localization / normalizer,
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """The best proposals of each image; see `find_top_rpn_proposals`.

        Without gradient: the second stage treats the boxes as constants.
        """
        proposals = []
        for own_anchors, deltas in zip(anchors, pred_anchor_deltas, strict=True):
            sources = own_anchors.tensor.expand(len(deltas), -1, -1)
            boxes = self.box2box_transform.apply_deltas(deltas.flatten(0, 1), sources.flatten(0, 1))
            proposals.append(boxes.view_as(deltas))
        return find_top_rpn_proposals(
            proposals,
            pred_objectness_logits,
            image_sizes,
            self.nms_thresh,
            self.pre_nms_topk[self.training],
            self.post_nms_topk[self.training],
            self.min_box_size,
            self.training,
        )
