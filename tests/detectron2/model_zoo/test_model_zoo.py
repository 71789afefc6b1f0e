"""Configs and published weights by name."""

import pytest
import torch
from torch import nn

from detectron2 import model_zoo
from detectron2.model_zoo import model_zoo as implementation
from detectron2.modeling import META_ARCH_REGISTRY, build_model

TINY = """
MODEL:
  META_ARCHITECTURE: TinyNetForZooTest
  WEIGHTS: not-there.pth
"""


@META_ARCH_REGISTRY.register()
class TinyNetForZooTest(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.layer = nn.Linear(2, len(cfg.MODEL.PIXEL_MEAN))


@pytest.fixture
def config_dir(tmp_path, monkeypatch):
    (tmp_path / "Tests").mkdir()
    (tmp_path / "Tests" / "tiny.yaml").write_text(TINY)
    monkeypatch.setattr(implementation, "CONFIG_DIR", tmp_path)
    return tmp_path


def test_config_by_name(config_dir):
    assert model_zoo.get_config_file("Tests/tiny.yaml") == str(config_dir / "Tests/tiny.yaml")
    assert model_zoo.get_config("Tests/tiny.yaml").MODEL.WEIGHTS == "not-there.pth"


def test_model_by_name_has_new_weights(config_dir):
    model = model_zoo.get("Tests/tiny.yaml", device="cpu")
    assert isinstance(model, TinyNetForZooTest) and model.training
    assert next(model.parameters()).device == torch.device("cpu")


def test_trained_model_loads_what_is_published(config_dir, monkeypatch):
    weights = config_dir / "trained.pth"
    torch.save({"layer.weight": torch.ones(3, 2), "layer.bias": torch.ones(3)}, weights)
    monkeypatch.setattr(implementation, "get_checkpoint_url", lambda path: str(weights))
    model = model_zoo.get("Tests/tiny.yaml", trained=True, device="cpu")
    assert (model.layer.weight == 1).all()


def test_unknown_names_list_the_known(config_dir):
    with pytest.raises(RuntimeError, match=r"Invalid/config.yaml is not in .*'Tests/tiny.yaml'"):
        model_zoo.get("Invalid/config.yaml")
    with pytest.raises(RuntimeError, match="no weights are published for Tests/tiny.yaml"):
        model_zoo.get_config("Tests/tiny.yaml", trained=True)


@pytest.mark.parametrize("suffix", [".yaml", ".py"])
def test_url(suffix):
    url = model_zoo.get_checkpoint_url("Misc/scratch_mask_rcnn_R_50_FPN_3x_gn" + suffix)
    assert url == (
        "https://dl.fbaipublicfiles.com/detectron2/Misc/scratch_mask_rcnn_R_50_FPN_3x_gn/"
        "138602908/model_final_01ca85.pkl"
    )


def test_unknown_architecture_is_named(config_dir):
    cfg = model_zoo.get_config("Tests/tiny.yaml")
    cfg.MODEL.META_ARCHITECTURE = "NoSuchNet"
    with pytest.raises(KeyError, match="'NoSuchNet' is not registered.*TinyNetForZooTest"):
        build_model(cfg)


def test_configs_of_this_repository():
    path = model_zoo.get_config_file("SOLOv2/R50_3x.yaml")
    assert path.endswith("configs/SOLOv2/R50_3x.yaml")
    assert model_zoo.get_config("SOLOv2/R50_3x.yaml").MODEL.RESNETS.DEPTH == 50
