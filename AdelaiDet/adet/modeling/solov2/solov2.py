"""The meta-architecture "SOLOv2": backbone, two branches, losses or (prompted) inference."""

from collections.abc import Sequence
from numbers import Number

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, MetaArchitecture, build_backbone
from detectron2.structures import ImageList

from .grids import MASK_STRIDE, PyramidGrids, flatten_levels
from .heads import SOLOv2InsHead, SOLOv2MaskHead
from .inference import Candidates, InferenceSettings, segment
from .labels import InstanceLabels
from .losses import category_loss, mask_loss
from .predictions import Predictions
from .prompts import get_prompt
from .targets import ImageTargets, image_targets


@META_ARCH_REGISTRY.register()
class SOLOv2(MetaArchitecture, nn.Module):
    """Segment instances by location: each grid cell predicts a class and a mask kernel."""

    num_classes_key = "MODEL.SOLOV2.NUM_CLASSES"
    prompt_key = "MODEL.SOLOV2.PROMPT"

    @classmethod
    def evaluation_mode(cls, cfg: CfgNode) -> str | None:
        node = cfg.MODEL.SOLOV2
        scores = "scores forced to 1" if node.EVAL_PSEUDO_LABEL else "scores of the network"
        if cls.reads_prompts(cfg):
            return f"pseudo-label quality: prompt={node.PROMPT}, {scores}"
        return f"not detector AP: {scores}" if node.EVAL_PSEUDO_LABEL else None

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        ins_head: SOLOv2InsHead,
        mask_head: SOLOv2MaskHead,
        instance_in_features: Sequence[str],
        mask_in_features: Sequence[str],
        grids: PyramidGrids,
        settings: InferenceSettings,
        prompt: str,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        focal_weight: float = 1.0,
        dice_weight: float = 3.0,
    ):
        super().__init__()
        if len(instance_in_features) != len(grids):
            raise ValueError(
                f"MODEL.SOLOV2.INSTANCE_IN_FEATURES {list(instance_in_features)} needs one entry "
                f"a grid of NUM_GRIDS {grids.num_grids}"
            )
        self.backbone = backbone
        self.ins_head = ins_head
        self.mask_head = mask_head
        self.instance_in_features = list(instance_in_features)
        self.mask_in_features = list(mask_in_features)
        self.grids = grids
        self.settings = settings
        self.prompt = get_prompt(prompt)
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.focal_weight = focal_weight
        self.dice_weight = dice_weight
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (pixel_mean, pixel_std))
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Constructor arguments from a configuration."""
        node = cfg.MODEL.SOLOV2
        refuse_unsupported(node)
        grids = PyramidGrids(
            num_grids=tuple(node.NUM_GRIDS),
            scale_ranges=scale_range_pairs(node.FPN_SCALE_RANGES),
            strides=tuple(node.FPN_INSTANCE_STRIDES),
            sigma=node.SIGMA,
        )
        return {
            "backbone": build_backbone(cfg),
            "ins_head": SOLOv2InsHead(
                in_channels=node.INSTANCE_IN_CHANNELS,
                channels=node.INSTANCE_CHANNELS,
                num_convs=node.NUM_INSTANCE_CONVS,
                num_classes=node.NUM_CLASSES,
                num_kernels=node.NUM_KERNELS,
                num_grids=grids.num_grids,
                norm=node.NORM,
                use_coord_conv=node.USE_COORD_CONV,
                prior_prob=node.PRIOR_PROB,
            ),
            "mask_head": SOLOv2MaskHead(
                in_channels=node.MASK_IN_CHANNELS,
                channels=node.MASK_CHANNELS,
                num_masks=node.NUM_MASKS,
                num_levels=len(node.MASK_IN_FEATURES),
                norm=node.NORM,
            ),
            "instance_in_features": node.INSTANCE_IN_FEATURES,
            "mask_in_features": node.MASK_IN_FEATURES,
            "grids": grids,
            "settings": InferenceSettings(
                score_thr=node.SCORE_THR,
                mask_thr=node.MASK_THR,
                update_thr=node.UPDATE_THR,
                nms_pre=node.NMS_PRE,
                max_per_img=node.MAX_PER_IMG,
                nms_type=node.NMS_TYPE,
                nms_kernel=node.NMS_KERNEL,
                nms_sigma=node.NMS_SIGMA,
                prompt_nms=node.PROMPT_NMS,
                eval_pseudo_label=node.EVAL_PSEUDO_LABEL,
            ),
            "prompt": node.PROMPT,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "focal_alpha": node.LOSS.FOCAL_ALPHA,
            "focal_gamma": node.LOSS.FOCAL_GAMMA,
            "focal_weight": node.LOSS.FOCAL_WEIGHT,
            "dice_weight": node.LOSS.DICE_WEIGHT,
        }

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses in training, else one result an input.

        Args:
            batched_inputs: dicts with `image` (C, H, W), in training and with a prompt `instances`
                (gt_* fields in that image's pixels), and optionally `height` and `width` of the
                wanted output.

        Returns:
            {"loss_ins", "loss_cate"}; or a list of {"instances": Instances} with `pred_masks`
            (N, H, W) bool, `pred_boxes`, `pred_classes`, `scores`, and with a prompt also
            `pred_points` (N, 2) x and y in pixels of the output, `prompt_indices` (N,) the input
            instance of each, and beside "instances" the list "unmatched" of
            {"instance", "reason"} for the input instances without a mask, for the reason "nms" also
            "other", the input instance whose mask suppressed it. (`cls_image` has no points and so
            none of these three.)
        """
        images = self.preprocess_image(batched_inputs)
        if self.training:
            return self.losses(images, self.targets(batched_inputs, images))
        return self.inference(batched_inputs, images)

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict], images: ImageList) -> list[dict]:
        """Results of a batch; see `forward`."""
        # Labels are read first: bad input fails before the expensive part.
        labels = self.prompt.read(batched_inputs, self.device)
        predictions = self.extract(images)
        candidates = self.prompt.choose(predictions, labels, self.settings)
        return self.postprocess(batched_inputs, predictions, candidates, labels)

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalized images, padded to one size."""
        images = [x["image"].to(self.device) for x in batched_inputs]
        images = [(x - self.pixel_mean) / self.pixel_std for x in images]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    def targets(self, batched_inputs: list[dict], images: ImageList) -> list[ImageTargets]:
        """Training targets of each image, on the network's device."""
        missing = [
            x.get("file_name", i) for i, x in enumerate(batched_inputs) if "instances" not in x
        ]
        if missing:
            raise ValueError(
                f"training SOLOv2 needs 'instances' in every input; missing: {missing}"
            )
        mask_size = tuple(n // MASK_STRIDE for n in images.tensor.shape[-2:])
        return [
            image_targets(x["instances"], mask_size, self.grids, self.ins_head.num_classes).to(
                self.device
            )
            for x in batched_inputs
        ]

    def losses(self, images: ImageList, targets: list[ImageTargets]) -> dict[str, Tensor]:
        """`loss_ins` (Dice of the masks) and `loss_cate` (focal of the classes)."""
        features = self.backbone(images.tensor)
        category, kernels = self.ins_head([features[f] for f in self.instance_in_features])
        masks = self.mask_head([features[f] for f in self.mask_in_features])
        # In float32 also under autocast: sums over whole masks overflow half precision.
        with torch.autocast(self.device.type, enabled=False):
            loss_ins = mask_loss(flatten_levels(kernels).float(), masks.float(), targets)
            loss_cate = category_loss(
                flatten_levels(category).float(),
                targets,
                alpha=self.focal_alpha,
                gamma=self.focal_gamma,
            )
        return {
            "loss_ins": loss_ins * self.dice_weight,
            "loss_cate": loss_cate * self.focal_weight,
        }

    def extract(self, images: ImageList) -> Predictions:
        """The part of inference that no prompt changes: backbone and mask branch."""
        features = self.backbone(images.tensor)
        return Predictions(
            head=self.ins_head,
            grids=self.grids,
            grid_features=self.ins_head.grid_features(
                [features[f] for f in self.instance_in_features]
            ),
            mask_features=self.mask_head([features[f] for f in self.mask_in_features]).float(),
            image_sizes_hw=[tuple(int(n) for n in size) for size in images.image_sizes],
            frame_hw=tuple(images.tensor.shape[-2:]),
        )

    def postprocess(
        self,
        batched_inputs: list[dict],
        predictions: Predictions,
        candidates: list[Candidates],
        labels: list[InstanceLabels] | None,
    ) -> list[dict]:
        """Results in pixels of the wanted outputs; see `forward`."""
        results = []
        for i, record in enumerate(batched_inputs):
            size = predictions.image_sizes_hw[i]
            output_size = (int(record.get("height", size[0])), int(record.get("width", size[1])))
            instances, unmatched = segment(
                candidates[i],
                predictions.mask_features[i],
                size,
                output_size,
                self.grids,
                self.settings,
            )
            result = {"instances": instances}
            if candidates[i].prompts is not None:
                points = labels[i].points_xy[instances.prompt_indices]
                scale = points.new_tensor([output_size[1] / size[1], output_size[0] / size[0]])
                instances.pred_points = (points * scale).float()
                result["unmatched"] = unmatched
            results.append(result)
        return results


def scale_range_pairs(ranges: Sequence) -> tuple[tuple[float, float], ...]:
    """FPN_SCALE_RANGES as (low, high) pairs, from pairs or from a flat list of both."""
    flat = [x for item in ranges for x in ([item] if isinstance(item, Number) else item)]
    if len(flat) % 2:
        raise ValueError(
            f"MODEL.SOLOV2.FPN_SCALE_RANGES={ranges!r}; expected (low, high) pairs, one a level"
        )
    return tuple(zip(flat[::2], flat[1::2], strict=True))


def refuse_unsupported(node: CfgNode) -> None:
    """Raise on values of `MODEL.SOLOV2` that exist upstream and would change nothing here."""
    if node.USE_DCN_IN_INSTANCE:
        raise ValueError(
            "MODEL.SOLOV2.USE_DCN_IN_INSTANCE=True; deformable convolutions are not implemented; "
            "set it to False"
        )
    if not node.LOSS.FOCAL_USE_SIGMOID:
        raise ValueError(
            "MODEL.SOLOV2.LOSS.FOCAL_USE_SIGMOID=False; only sigmoid focal loss is implemented: "
            "set it to True"
        )
    if node.NUM_MASKS != node.NUM_KERNELS:
        raise ValueError(
            f"MODEL.SOLOV2.NUM_MASKS={node.NUM_MASKS} and NUM_KERNELS={node.NUM_KERNELS} "
            "must be equal: kernels are multiplied with the mask feature"
        )
