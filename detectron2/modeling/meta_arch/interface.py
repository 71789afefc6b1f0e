"""What a program may ask of a network before it builds it, without knowing the network's name."""

from functools import reduce
from typing import Any, ClassVar

from torch import nn

from detectron2.config import CfgNode
from detectron2.modeling.meta_arch.build import get_meta_arch


class MetaArchitecture:
    """Base of whole networks that answers with defaults; inherit from it beside `nn.Module`.

    Attributes:
        num_classes_key: config key with the number of classes; None if there is no such key.
        prompt_key: config key that names the labels read at test time ("none" for none); None if
            the network never reads any.
        supervision: what training reads of a dataset: "instances" (boxes, masks), or "tags" (the
            classes of an image) only.
        adversary: a part of the network that is trained to raise the loss, with an optimizer of its
            own; None if there is none.
    """

    num_classes_key: ClassVar[str | None] = None
    prompt_key: ClassVar[str | None] = None
    supervision: ClassVar[str] = "instances"
    adversary: nn.Module | None = None

    @classmethod
    def num_classes(cls, cfg: CfgNode) -> int | None:
        """Number of classes in the config; set it by `merge_from_list([num_classes_key, n])`."""
        return None if cls.num_classes_key is None else _value(cfg, cls.num_classes_key)

    @classmethod
    def reads_prompts(cls, cfg: CfgNode) -> bool:
        """Whether the network reads labels, such as points, at test time."""
        return cls.prompt_key is not None and _value(cfg, cls.prompt_key) != "none"

    @classmethod
    def evaluation_mode(cls, cfg: CfgNode) -> str | None:
        """Why the results are not a detector's AP, in words for reports; None if they are."""
        return None

    @staticmethod
    def convert_weights(weights: dict[str, Any]) -> dict[str, Any]:
        """Weights of a checkpoint by the names of the network; by default they have them."""
        return weights

    @classmethod
    def prepare_dataset(
        cls, cfg: CfgNode, dataset_dicts: list[dict[str, Any]], is_train: bool
    ) -> list[dict[str, Any]]:
        """The images that the network trains or is tested on, given all; by default those."""
        return dataset_dicts

    @classmethod
    def check_tta(cls, cfg: CfgNode) -> None:
        """Raise ValueError if the network has no test-time augmentation with this config."""
        name = cfg.MODEL.META_ARCHITECTURE
        raise ValueError(f"{name} has no test-time augmentation: set TEST.AUG.ENABLED False")

    @classmethod
    def with_tta(cls, cfg: CfgNode, model: nn.Module) -> nn.Module:
        """`model` with the test-time augmentation of `TEST.AUG`, called in the same way."""
        cls.check_tta(cfg)
        raise NotImplementedError(f"{cls.__name__} passes check_tta but has no with_tta")


def meta_architecture(cfg: CfgNode) -> type[MetaArchitecture]:
    """Class of `MODEL.META_ARCHITECTURE`; the base, with its defaults, if it is not a subclass."""
    found = get_meta_arch(cfg)
    is_known = isinstance(found, type) and issubclass(found, MetaArchitecture)
    return found if is_known else MetaArchitecture


def _value(cfg: CfgNode, key: str) -> Any:
    return reduce(lambda node, name: node[name], key.split("."), cfg)
