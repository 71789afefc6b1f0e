"""What programs ask of a meta-architecture before they build it."""

import pytest
from torch import nn

import adet.modeling  # noqa: F401 (registers SOLOv2)
from adet.config import get_cfg
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    GeneralizedRCNN,
    GeneralizedRCNNWithTTA,
    MetaArchitecture,
    build_model,
    meta_architecture,
)
from tests.detectron2.modeling.test_rcnn import small_config


def config(name, **options):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = name
    cfg.merge_from_list([item for pair in options.items() for item in pair])
    return cfg


@META_ARCH_REGISTRY.register()
class ForeignNet(nn.Module):
    """An architecture that was not written for this interface."""


@META_ARCH_REGISTRY.register()
def build_foreign_net(cfg):
    return ForeignNet()


@META_ARCH_REGISTRY.register()
class MyRCNN(GeneralizedRCNN):
    """A subclass, which needs to say nothing."""


@pytest.mark.parametrize(
    "name, key",
    [
        ("GeneralizedRCNN", "MODEL.ROI_HEADS.NUM_CLASSES"),
        ("MyRCNN", "MODEL.ROI_HEADS.NUM_CLASSES"),
        ("SOLOv2", "MODEL.SOLOV2.NUM_CLASSES"),
    ],
)
def test_class_count_is_read_and_set_by_its_key(name, key):
    cfg = config(name)
    architecture = meta_architecture(cfg)
    assert architecture.num_classes_key == key and architecture.num_classes(cfg) == 80
    cfg.merge_from_list([architecture.num_classes_key, 7])
    assert architecture.num_classes(cfg) == 7


@pytest.mark.parametrize("name", ["ForeignNet", "build_foreign_net"])
def test_other_architectures_get_the_defaults(name):
    cfg = config(name)
    architecture = meta_architecture(cfg)
    assert architecture is MetaArchitecture
    assert architecture.num_classes_key is architecture.num_classes(cfg) is None
    assert not architecture.reads_prompts(cfg) and architecture.evaluation_mode(cfg) is None
    for ask in (architecture.check_tta, lambda cfg: architecture.with_tta(cfg, ForeignNet())):
        with pytest.raises(ValueError, match=f"{name} has no test-time augmentation.*False"):
            ask(cfg)


def test_an_unknown_architecture_is_named():
    with pytest.raises(KeyError, match="'Nowhere' is not registered"):
        meta_architecture(config("Nowhere"))


def test_detectors_have_test_time_augmentation():
    cfg = small_config()
    architecture = meta_architecture(cfg)
    assert architecture.evaluation_mode(cfg) is None and not architecture.reads_prompts(cfg)
    model = architecture.with_tta(cfg, build_model(cfg))
    assert isinstance(model, GeneralizedRCNNWithTTA)
    cfg.MODEL.LOAD_PROPOSALS = True
    with pytest.raises(ValueError, match="LOAD_PROPOSALS False"):
        architecture.check_tta(cfg)


@pytest.mark.parametrize(
    "prompt, forced, prompted, mode",
    [
        ("none", False, False, None),
        ("none", True, False, "not detector AP: scores forced to 1"),
        ("point", False, True, "pseudo-label quality: prompt=point, scores of the network"),
        ("cls", True, True, "pseudo-label quality: prompt=cls, scores forced to 1"),
    ],
)
def test_solov2_names_its_mode(prompt, forced, prompted, mode):
    options = {"MODEL.SOLOV2.PROMPT": prompt, "MODEL.SOLOV2.EVAL_PSEUDO_LABEL": forced}
    cfg = config("SOLOv2", **options)
    architecture = meta_architecture(cfg)
    assert architecture.reads_prompts(cfg) == prompted
    assert architecture.evaluation_mode(cfg) == mode
    with pytest.raises(ValueError, match="SOLOv2 has no test-time augmentation"):
        architecture.check_tta(cfg)
