"""Names and shapes of weights as Detectron2 publishes them; loading of its and Caffe2's files."""

import pickle

import pytest
import torch

from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}  # of ResNet-50


def norm(name, channels):
    return {f"{name}.norm.{part}": (channels,) for part in (
        "weight", "bias", "running_mean", "running_var"
    )}  # fmt: skip


def layer(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def mask_rcnn_r50_fpn():
    """{name: shape} of mask_rcnn_R_50_FPN_3x, from the published structure."""
    shapes = {}
    stem = "backbone.bottom_up.stem.conv1"
    shapes |= {f"{stem}.weight": (64, 3, 7, 7)} | norm(stem, 64)
    in_channels = 64
    for stage, count in BLOCKS.items():
        width = 64 * 2 ** (stage - 2)
        for i in range(count):
            block = f"backbone.bottom_up.res{stage}.{i}"
            convs = {
                "conv1": (width, in_channels, 1, 1),
                "conv2": (width, width, 3, 3),
                "conv3": (4 * width, width, 1, 1),
            }
            if i == 0:
                convs["shortcut"] = (4 * width, in_channels, 1, 1)
            for conv, shape in convs.items():
                shapes |= {f"{block}.{conv}.weight": shape} | norm(f"{block}.{conv}", shape[0])
            in_channels = 4 * width
        shapes |= layer(f"backbone.fpn_lateral{stage}", 256, in_channels, 1, 1)
        shapes |= layer(f"backbone.fpn_output{stage}", 256, 256, 3, 3)
    shapes |= layer("proposal_generator.rpn_head.conv", 256, 256, 3, 3)
    shapes |= layer("proposal_generator.rpn_head.objectness_logits", 3, 256, 1, 1)
    shapes |= layer("proposal_generator.rpn_head.anchor_deltas", 12, 256, 1, 1)
    shapes |= layer("roi_heads.box_head.fc1", 1024, 256 * 7 * 7)
    shapes |= layer("roi_heads.box_head.fc2", 1024, 1024)
    shapes |= layer("roi_heads.box_predictor.cls_score", 81, 1024)
    shapes |= layer("roi_heads.box_predictor.bbox_pred", 320, 1024)
    for i in range(1, 5):
        shapes |= layer(f"roi_heads.mask_head.mask_fcn{i}", 256, 256, 3, 3)
    shapes |= layer("roi_heads.mask_head.deconv", 256, 256, 2, 2)
    shapes |= layer("roi_heads.mask_head.predictor", 80, 256, 1, 1)
    return shapes


def test_weights_have_the_published_names_and_shapes():
    cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml")
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    got = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert got == mask_rcnn_r50_fpn()


@pytest.fixture
def small_config():
    """A Mask R-CNN whose weights have all names of the published one, in few channels."""
    cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    model = cfg.MODEL
    model.DEVICE = "cpu"
    model.RESNETS.STEM_OUT_CHANNELS, model.RESNETS.RES2_OUT_CHANNELS = 4, 8
    model.RESNETS.WIDTH_PER_GROUP, model.FPN.OUT_CHANNELS = 2, 4
    model.ROI_BOX_HEAD.FC_DIM, model.ROI_MASK_HEAD.CONV_DIM = 6, 4
    model.ROI_HEADS.NUM_CLASSES = 3
    return cfg


def random_weights(cfg):
    torch.manual_seed(0)
    return {name: torch.randn_like(v) for name, v in build_model(cfg).state_dict().items()}


def load(cfg, path):
    model = build_model(cfg)
    checkpointer = DetectionCheckpointer(model)
    checkpointer.load(str(path))
    return model.state_dict(), checkpointer.load_report


def test_a_pickle_of_the_model_zoo_loads(small_config, tmp_path):
    weights = random_weights(small_config)
    # Published files also hold what is now computed.
    extra = {
        "pixel_mean": torch.zeros(3, 1, 1),
        "proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(3, 4),
    }
    content = {name: value.numpy() for name, value in (weights | extra).items()}
    with open(tmp_path / "model_final.pkl", "wb") as file:
        pickle.dump({"model": content, "__author__": "Detectron2 Model Zoo"}, file)
    got, report = load(small_config, tmp_path / "model_final.pkl")
    assert not report.missing and not report.mismatched
    assert all(torch.equal(got[name], value) for name, value in weights.items())


CAFFE2_NAMES = {
    "proposal_generator.rpn_head.conv": "conv_rpn_fpn2",
    "proposal_generator.rpn_head.objectness_logits": "rpn_cls_logits_fpn2",
    "proposal_generator.rpn_head.anchor_deltas": "rpn_bbox_pred_fpn2",
    "roi_heads.box_head.fc1": "fc6",
    "roi_heads.box_head.fc2": "fc7",
    "roi_heads.box_predictor.cls_score": "cls_score",
    "roi_heads.box_predictor.bbox_pred": "bbox_pred",
    "roi_heads.mask_head.deconv": "conv5_mask",
    "roi_heads.mask_head.predictor": "mask_fcn_logits",
} | {f"roi_heads.mask_head.mask_fcn{i}": f"_[mask]_fcn{i}" for i in range(1, 5)}
CAFFE2_CONVS = {"conv1": "2a", "conv2": "2b", "conv3": "2c", "shortcut": "1"}


def caffe2_name(name):
    """Detectron's name of a weight: its numbers are those of the Caffe2 model zoo."""
    layer_name, _, kind = name.rpartition(".")
    suffix = {"weight": "_w", "bias": "_b"}[kind]
    if layer_name in CAFFE2_NAMES:
        return CAFFE2_NAMES[layer_name] + suffix
    parts = layer_name.split(".")[1:]
    if parts[0].startswith("fpn_"):
        stage = int(parts[0][-1])
        block = f"res{stage}_{BLOCKS[stage] - 1}_sum"
        if "output" in parts[0]:
            return f"fpn_{block}{suffix}"
        return f"fpn_inner_{block}{'' if stage == 5 else '_lateral'}{suffix}"
    is_norm = parts[-1] == "norm"
    suffix = {"weight": "_bn_s", "bias": "_bn_b"}[kind] if is_norm else suffix
    if parts[1] == "stem":
        return f"res_conv1{suffix}" if is_norm else f"conv1{suffix}"
    return f"{parts[1]}_{parts[2]}_branch{CAFFE2_CONVS[parts[3]]}{suffix}"


def test_a_caffe2_mask_rcnn_loads(small_config, tmp_path):
    weights = {n: v for n, v in random_weights(small_config).items() if "running" not in n}
    blobs = {}
    for name, value in weights.items():
        if "cls_score" in name:  # Caffe2 has the background first
            value = torch.cat([value[-1:], value[:-1]])
        elif "bbox_pred" in name:
            value = torch.cat([torch.zeros_like(value[:4]), value])
        elif "predictor" in name and "mask" in name:
            value = torch.cat([torch.zeros_like(value[:1]), value])
        blobs[caffe2_name(name)] = value.numpy()
    with open(tmp_path / "caffe2.pkl", "wb") as file:
        pickle.dump({"blobs": blobs}, file)
    got, _ = load(small_config, tmp_path / "caffe2.pkl")
    wrong = [name for name, value in weights.items() if not torch.equal(got[name], value)]
    assert not wrong
