"""DINO, a detector without anchors and without NMS (Zhang et al. 2023), on four scales."""

from typing import Any

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.backbone import Backbone, build_backbone
from detectron2.modeling.meta_arch.interface import MetaArchitecture
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from weaksam.dino.attention import FlatMaps
from weaksam.dino.data import leave_out_small
from weaksam.dino.denoising import Denoising, DenoisingSettings
from weaksam.dino.head import BoxHead
from weaksam.dino.losses import (
    DropSettings,
    LayerLosses,
    LossSettings,
    layer_losses,
    mean_count,
)
from weaksam.dino.maps import ChannelMapper, flatten_maps, padding_mask
from weaksam.dino.matching import MatchCosts, Targets, match
from weaksam.dino.names import from_mmdetection, is_mmdetection
from weaksam.dino.positions import cxcywh_to_xyxy, xyxy_to_cxcywh
from weaksam.dino.selection import Selection, place_boxes, select_queries
from weaksam.dino.transformer import Decoder, Encoder, TransformerSizes, xavier_linear
from weaksam.dino.tta import DinoWithTTA

__all__ = ["DINO"]


@META_ARCH_REGISTRY.register()
class DINO(MetaArchitecture, nn.Module):
    """Backbone, deformable encoder, queries from its best places, decoder.

    Called as `GeneralizedRCNN` is: a list of dicts with `image` and in training `instances`; losses
    in training, else a list of {"instances": Instances} with `pred_boxes`, `scores` and
    `pred_classes`. Names of its parts are those of mmdetection's checkpoints, which load as they
    are.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: list[str],
        num_classes: int,
        num_queries: int,
        sizes: TransformerSizes,
        position_temperature: float,
        denoising: DenoisingSettings,
        costs: MatchCosts,
        losses: LossSettings,
        drop: DropSettings,
        max_detections: int,
        pixel_mean: list[float],
        pixel_std: list[float],
    ):
        """
        Args:
            in_features: names of the backbone's maps, of rising stride.
            max_detections: of an image.
            pixel_mean, pixel_std: of each channel, to normalize pixels.
        """
        super().__init__()
        dim = sizes.dim
        self.backbone = backbone
        self.in_features = in_features
        shapes = backbone.output_shape()
        channels = [shapes[name].channels for name in in_features]
        self.neck = ChannelMapper(channels, dim, sizes.levels)
        self.encoder = Encoder(sizes)
        self.decoder = Decoder(sizes)
        self.level_embed = nn.Parameter(torch.randn(sizes.levels, dim))
        self.memory_trans_fc = xavier_linear(dim, dim)
        self.memory_trans_norm = nn.LayerNorm(dim)
        self.query_embedding = nn.Embedding(num_queries, dim)
        self.bbox_head = BoxHead(dim, num_classes, sizes.decoder_layers)
        self.dn_query_generator = Denoising(num_classes, dim, denoising)
        self.position_temperature = position_temperature
        self.costs, self.loss_settings, self.drop = costs, losses, drop
        self.max_detections = max_detections
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from `MODEL` and `TEST.DETECTIONS_PER_IMAGE`."""
        node = cfg.MODEL.DINO
        focal = {"alpha": node.FOCAL_ALPHA, "gamma": node.FOCAL_GAMMA}
        drop = node.INSTANCE_DROP
        return {
            "backbone": build_backbone(cfg),
            "in_features": list(node.IN_FEATURES),
            "num_classes": node.NUM_CLASSES,
            "num_queries": node.NUM_QUERIES,
            "sizes": TransformerSizes(
                dim=node.HIDDEN_DIM,
                heads=node.NUM_HEADS,
                levels=node.NUM_LEVELS,
                points=node.NUM_POINTS,
                ffn_dim=node.FFN_DIM,
                dropout=node.DROPOUT,
                encoder_layers=node.ENC_LAYERS,
                decoder_layers=node.DEC_LAYERS,
            ),
            "position_temperature": node.PE_TEMPERATURE,
            "denoising": DenoisingSettings(node.DN_QUERIES, node.DN_LABEL_NOISE, node.DN_BOX_NOISE),
            "costs": MatchCosts(node.COST_CLASS, node.COST_BBOX, node.COST_GIOU, **focal),
            "losses": LossSettings(node.CLASS_WEIGHT, node.BBOX_WEIGHT, node.GIOU_WEIGHT, **focal),
            "drop": DropSettings(drop.ISON, drop.QUANTILE, drop.OPERATE_ITER),
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    num_classes_key = "MODEL.DINO.NUM_CLASSES"

    @classmethod
    def prepare_dataset(
        cls, cfg: CfgNode, dataset_dicts: list[dict[str, Any]], is_train: bool
    ) -> list[dict[str, Any]]:
        node = cfg.MODEL.DINO
        if not is_train:
            return dataset_dicts
        return leave_out_small(dataset_dicts, node.MIN_IMAGE_SIDE, node.MIN_BOX_SIDE)

    @classmethod
    def check_tta(cls, cfg: CfgNode) -> None:
        if cfg.TEST.AUG.MERGE != "union":
            raise ValueError(
                f"TEST.AUG.MERGE={cfg.TEST.AUG.MERGE!r}: DINO joins the detections of all versions "
                "of an image; set it to 'union'"
            )
        threshold = cfg.MODEL.DINO.NMS_THRESH_TTA
        if not 0 < threshold <= 1:
            raise ValueError(f"MODEL.DINO.NMS_THRESH_TTA={threshold}: expected an IoU in (0, 1]")

    @classmethod
    def with_tta(cls, cfg: CfgNode, model: nn.Module) -> nn.Module:
        cls.check_tta(cfg)
        return DinoWithTTA(cfg, model)

    @staticmethod
    def convert_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a file by the names of this network."""
        return from_mmdetection(weights) if is_mmdetection(weights) else weights

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict]:
        """Losses in training, else one result for each input; see `inference`."""
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        maps = self.encode(images)
        selection = self.select(maps)
        targets = [targets_of(x["instances"].to(self.device)) for x in batched_inputs]
        return self.losses(maps, selection, targets)

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalized images, padded to one size."""
        images = [x["image"].to(self.device) for x in batched_inputs]
        return ImageList.from_tensors(
            [(x - self.pixel_mean) / self.pixel_std for x in images],
            self.backbone.size_divisibility,
        )

    def encode(self, images: ImageList) -> FlatMaps:
        """The encoder's output for a batch."""
        features = self.backbone(images.tensor)
        maps = self.neck([features[name] for name in self.in_features])
        is_padding = padding_mask(images.image_sizes, images.tensor)
        flat = flatten_maps(maps, is_padding, self.level_embed, self.position_temperature)
        return self.encoder(flat)

    def select(self, maps: FlatMaps) -> Selection:
        """The places that the encoder's branches like best."""
        box_logits, is_used = place_boxes(maps)
        memory = torch.where(is_used[..., None], maps.values, 0)
        memory = self.memory_trans_norm(self.memory_trans_fc(memory))
        logits = self.bbox_head.cls_branches[-1](memory)
        boxes = (self.bbox_head.reg_branches[-1](memory) + box_logits).sigmoid()
        return select_queries(logits, boxes, self.query_embedding.num_embeddings)

    def decode(
        self,
        maps: FlatMaps,
        content: Tensor,
        starts: Tensor,
        is_hidden: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(layers, B, Q, classes) logits and (layers, B, Q, 4) boxes of queries; see `Decoder`."""
        branches = self.bbox_head.reg_branches
        return self.bbox_head(*self.decoder(content, starts, maps, branches, is_hidden))

    def losses(
        self, maps: FlatMaps, selection: Selection, targets: list[Targets]
    ) -> dict[str, Tensor]:
        """Losses of classes and boxes: of the last decoder layer, of the others (`_aux`, summed),
        of the encoder's places (`_enc`) and of denoising (`_dn`, summed over layers)."""
        starts = selection.boxes.detach()
        noisy = self.dn_query_generator(targets, starts.shape[1])
        content = torch.cat([noisy.content, self.learned_content(starts)], dim=1)
        starts = torch.cat([noisy.boxes, starts], dim=1)
        logits, boxes = self.decode(maps, content, starts, noisy.is_hidden)
        count = len(noisy)
        # The encoder's places are one more layer, with matches of its own.
        own = self.matching_losses(
            torch.cat([logits[:, :, count:], selection.logits[None]]),
            torch.cat([boxes[:, :, count:], selection.boxes[None]]),
            targets,
        )
        matches = noisy.matches
        denoising = layer_losses(
            *(logits[:, :, :count], boxes[:, :, :count], targets, matches),
            count=mean_count(matches.query.shape[1], self.device),
            settings=self.loss_settings,
        )
        return (
            own.named("", slice(-2, -1))
            | own.named("_aux", slice(-2))
            | own.named("_enc", slice(-1, None))
            | denoising.named("_dn", slice(None))
        )

    def matching_losses(self, logits: Tensor, boxes: Tensor, targets: list[Targets]) -> LayerLosses:
        """Losses of layers that are matched to the labels, without what is dropped."""
        matches = match(logits, boxes, targets, self.costs)
        share = self.drop.share(get_event_storage().iter) if self.drop.is_on else 0.0
        count = mean_count(matches.query.shape[1], self.device)
        own = layer_losses(logits, boxes, targets, matches, count, self.loss_settings, share)
        if self.drop.is_on:
            dropped = own.dropped[-2].sum().item()  # of the last decoder layer
            get_event_storage().put_scalar("dino/dropped", dropped)
        return own

    def learned_content(self, starts: Tensor) -> Tensor:
        """(B, Q, C) content of the queries, which is the same for every image."""
        return self.query_embedding.weight[: starts.shape[1]].expand(len(starts), -1, -1)

    def inference(
        self, batched_inputs: list[dict[str, Any]], do_postprocess: bool = True
    ) -> list[dict[str, Instances]] | list[Instances]:
        """Detect objects.

        Args:
            do_postprocess: rescale boxes to the wanted output sizes. Otherwise a list of Instances
                in the frame of the network's input.
        """
        if self.training:
            raise ValueError("inference needs the model in evaluation mode: call `eval()` first")
        images = self.preprocess_image(batched_inputs)
        maps = self.encode(images)
        starts = self.select(maps).boxes.detach()
        logits, boxes = self.decode(maps, self.learned_content(starts), starts)
        results = [
            detections(own_logits, own_boxes, size, self.max_detections)
            for own_logits, own_boxes, size in zip(
                logits[-1], boxes[-1], images.image_sizes, strict=True
            )
        ]
        if not do_postprocess:
            return results
        return [
            {"instances": detector_postprocess(own, x.get("height", h), x.get("width", w))}
            for own, x, (h, w) in zip(results, batched_inputs, images.image_sizes, strict=True)
        ]


def targets_of(instances: Instances) -> Targets:
    """Labels of an image, relative to its size."""
    height, width = instances.image_size
    boxes = instances.gt_boxes.tensor
    return Targets(
        instances.gt_classes,
        xyxy_to_cxcywh(boxes) / boxes.new_tensor([width, height, width, height]),
    )


def detections(
    logits: Tensor, boxes: Tensor, size_hw: tuple[int, int], max_detections: int
) -> Instances:
    """The best pairs of a query and a class; a query may be in several.

    Args:
        logits: (Q, classes).
        boxes: (Q, 4), center and size in [0, 1].
    """
    probabilities = logits.float().sigmoid().flatten()
    scores, pairs = probabilities.topk(min(max_detections, len(probabilities)))
    height, width = size_hw
    corners = cxcywh_to_xyxy(boxes[pairs // logits.shape[1]].float())
    found = Boxes(corners * corners.new_tensor([width, height, width, height]))
    found.clip(size_hw)
    return Instances(size_hw, pred_boxes=found, scores=scores, pred_classes=pairs % logits.shape[1])
