"""WeakRCNN: a detector that is trained on images with tags and precomputed proposals."""

from typing import Any

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.structures import ImageList, Instances
from weaksam.wsod.averaging import AveragedProposals
from weaksam.wsod.data import prepare_weak_dataset
from weaksam.wsod.superpixels import superpixel_labels, superpixel_wholeness

__all__ = ["WeakRCNN"]


@META_ARCH_REGISTRY.register()
class WeakRCNN(GeneralizedRCNN):
    """Backbone and `MILHeads`; called as `GeneralizedRCNN` is.

    In training an input has `image`, `proposals` and `image_labels` (contiguous class indices of
    the image), and no annotation is read. Images without a tag or a proposal add nothing.
    """

    supervision = "tags"

    @configurable
    def __init__(
        self,
        *,
        superpixel_calls: int = 0,
        superpixel_size: int = 20,
        superpixel_stride: int = 4,
        **kwargs: Any,
    ):
        """
        Args:
            superpixel_calls: see `MILSettings`.
            superpixel_size, superpixel_stride: see `superpixel_labels`.
            kwargs: of `GeneralizedRCNN`.
        """
        super().__init__(**kwargs)
        self.superpixel_calls = superpixel_calls
        self.superpixel_size, self.superpixel_stride = superpixel_size, superpixel_stride
        if superpixel_calls:
            # In the checkpoint, so that a resumed training goes on where it was.
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments; the proposals must come with the inputs."""
        if not cfg.MODEL.LOAD_PROPOSALS:
            raise ValueError(
                "WeakRCNN needs proposals: set MODEL.LOAD_PROPOSALS True and "
                "DATASETS.PROPOSAL_FILES_TRAIN and _TEST"
            )
        arguments = super().from_config(cfg)
        if arguments["proposal_generator"] is not None:
            raise ValueError(
                f"MODEL.PROPOSAL_GENERATOR.NAME={cfg.MODEL.PROPOSAL_GENERATOR.NAME!r}: WeakRCNN "
                "takes proposals from files; set it to 'PrecomputedProposals'"
            )
        if cfg.MODEL.ROI_HEADS.NAME != "MILHeads":
            raise ValueError(
                f"MODEL.ROI_HEADS.NAME={cfg.MODEL.ROI_HEADS.NAME!r}: WeakRCNN needs 'MILHeads'"
            )
        node = cfg.MODEL.WSOD.SUPERPIXELS
        return arguments | {
            "superpixel_calls": arguments["roi_heads"].predictor.settings.superpixel_calls,
            "superpixel_size": node.REGION_SIZE,
            "superpixel_stride": node.STRIDE,
        }

    @property
    def adversary(self) -> nn.Module | None:
        """The part that is trained to raise the loss, if any."""
        return self.roi_heads.drop_block

    @classmethod
    def prepare_dataset(
        cls, cfg: CfgNode, dataset_dicts: list[dict[str, Any]], is_train: bool
    ) -> list[dict[str, Any]]:
        return prepare_weak_dataset(dataset_dicts, cfg.MODEL.WSOD.MIN_BOX_SIDE, is_train)

    @classmethod
    def check_tta(cls, cfg: CfgNode) -> None:
        if cfg.TEST.AUG.MERGE != "average" or cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST:
            raise ValueError(
                f"TEST.AUG.MERGE={cfg.TEST.AUG.MERGE!r} with "
                f"DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST="
                f"{cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST}: test-time augmentation of "
                "WeakRCNN averages over all proposals; set them to 'average' and 0"
            )

    @classmethod
    def with_tta(cls, cfg: CfgNode, model: nn.Module) -> nn.Module:
        cls.check_tta(cfg)
        return AveragedProposals(cfg, model)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict]:
        """Losses in training, else one result an input; see `inference`."""
        if not self.training:
            return self.inference(batched_inputs)
        for x in batched_inputs:
            missing = [key for key in ("image_labels", "proposals") if not len(x.get(key, ()))]
            if missing:
                name = x.get("file_name", "an image")
                raise ValueError(
                    f"the input of {name} has no {' and no '.join(missing)}"
                    ": WeakRCNN trains on images with tags and proposals (DATASETS.TRAIN names a "
                    "tag file, DATASETS.PROPOSAL_FILES_TRAIN its proposals)"
                )
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        proposals = [x["proposals"].to(self.device) for x in batched_inputs]
        tags = [
            torch.as_tensor(sorted(set(map(int, x["image_labels"]))), device=self.device)
            for x in batched_inputs
        ]
        weights = self._foreground_weights(batched_inputs, proposals)
        return self.roi_heads.losses(features, proposals, tags, weights)

    def _foreground_weights(
        self, batched_inputs: list[dict[str, Any]], proposals: list[Instances]
    ) -> list[Tensor] | None:
        """a + (1 - a) * wholeness, a going from 0 to 1 over `superpixel_calls` training calls."""
        if not self.superpixel_calls:
            return None
        share = min(1.0, self.calls.item() / self.superpixel_calls)
        self.calls += 1
        weights = []
        for x, own in zip(batched_inputs, proposals, strict=True):
            if share == 1.0:
                weights.append(torch.ones(len(own), device=self.device))
                continue
            labels = superpixel_labels(x["image"], self.superpixel_size, self.superpixel_stride)
            boxes = own.proposal_boxes.tensor / self.superpixel_stride
            wholeness = superpixel_wholeness(labels.to(self.device), boxes)
            weights.append(share + (1 - share) * wholeness)
        return weights

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict[str, Instances]] | list[Instances]:
        """Detections, as `GeneralizedRCNN.inference` gives them.

        Args:
            detected_instances: must be None: the network predicts nothing else for known boxes.
        """
        if detected_instances is not None:
            raise ValueError("WeakRCNN predicts boxes only: detected_instances must be None")
        images, predictions = self._predict(batched_inputs)
        results = [
            self.roi_heads.detections(boxes, scores, size)
            for (boxes, scores), size in zip(predictions, images.image_sizes, strict=True)
        ]
        if not do_postprocess:
            return results
        return self._postprocess(results, batched_inputs, images.image_sizes)

    def predict_proposals(
        self, batched_inputs: list[dict[str, Any]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Boxes and probabilities of each input's proposals, row by row; see `MILHeads.predict`."""
        return self._predict(batched_inputs)[1]

    def _predict(
        self, batched_inputs: list[dict[str, Any]]
    ) -> tuple[ImageList, list[tuple[Tensor, Tensor]]]:
        if self.training:
            raise ValueError("inference needs the model in evaluation mode: call `eval()` first")
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        proposals, _ = self._propose(batched_inputs, images, features, None)
        return images, self.roi_heads.predict(features, proposals)
