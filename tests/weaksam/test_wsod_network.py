"""WeakRCNN: heads as data, losses by hand, invariances, DropBlock, superpixels, memory option."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import weaksam.wsod  # noqa: F401 (registers the networks)
from adet.config import get_cfg
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from weaksam.config import add_weaksam_config
from weaksam.wsod.drop_block import ConcreteDropBlock
from weaksam.wsod.predictor import MILPredictor
from weaksam.wsod.settings import HEADS, settings_from_config
from weaksam.wsod.superpixels import superpixel_labels, superpixel_wholeness
from weaksam.wsod.targets import assign_proposals, find_seeds

CLASSES = 3


def small_config(head="mist", **changes):
    cfg = get_cfg()
    add_weaksam_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "WeakRCNN"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.LOAD_PROPOSALS = True
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    cfg.MODEL.BACKBONE.NAME = "build_vgg_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.VGG.OUT_FEATURES = ["conv3"]
    cfg.MODEL.ROI_HEADS.NAME = "MILHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["conv3"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = CLASSES
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_BOX_HEAD.NAME = "DropoutFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 2
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 3
    cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "ROIPool"
    cfg.MODEL.WSOD.HEAD = head
    cfg.MODEL.WSOD.DROPOUT = 0.0
    for key, value in changes.items():
        cfg.MODEL.WSOD[key] = value
    return cfg


def make_input(seed, count=14, size=48, tags=(0, 2)):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * (size / 2)
    high = low + 6 + torch.rand(count, 2, generator=generator) * (size / 2 - 7)
    proposals = Instances((size, size), proposal_boxes=Boxes(torch.cat([low, high], dim=1)))
    proposals.objectness_logits = torch.ones(count)
    image = torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8)
    return {"image": image, "proposals": proposals, "image_labels": list(tags)}


def build(cfg, seed=0):
    torch.manual_seed(seed)
    model = build_model(cfg)
    for layer in model.roi_heads.predictor.children():  # from 0.001 all scores would be alike
        torch.nn.init.normal_(layer.weight, std=0.5)
    return model


@pytest.mark.parametrize("head", HEADS)
def test_every_head_trains_and_detects(head):
    model = build(small_config(head))
    inputs = [make_input(0), make_input(1, count=4, tags=(1,))]
    losses = model(inputs)
    refinements = {f"loss_refine{i}" for i in (1, 2, 3)} if head != "wsddn" else set()
    boxes = {"mist": {f"loss_box{i}" for i in (1, 2, 3)}, "wsod2": {"loss_box"}}.get(head, set())
    assert set(losses) == {"loss_image"} | refinements | boxes
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    with torch.no_grad():
        (result,) = model.eval()(inputs[:1])
    detections = result["instances"]
    assert len(detections) and detections.pred_boxes.tensor.isfinite().all()
    assert set(detections.pred_classes.tolist()) <= set(range(CLASSES))


def test_losses_of_mist_are_those_of_the_specification():
    torch.manual_seed(0)
    transform = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    predictor = MILPredictor(8, CLASSES, HEADS["mist"], transform)
    for layer in predictor.children():
        torch.nn.init.normal_(layer.weight, std=0.7)
    x = make_input(3)
    boxes, tags = x["proposals"].proposal_boxes.tensor, torch.tensor([0, 2])
    predictions = predictor(torch.randn(len(boxes), 8))
    losses = predictor.losses(predictions, boxes, tags)

    scores = predictions.classification.softmax(1) * predictions.detection.softmax(0)
    image_scores = scores.sum(0)
    wanted = [1.0, 0.0, 1.0, 0.0]  # the last one is the background's
    terms = [
        -(t * p.log() + (1 - t) * (1 - p).log()) for p, t in zip(image_scores, wanted, strict=True)
    ]
    torch.testing.assert_close(losses["loss_image"], sum(terms) / 4)

    source = scores
    for i, factor in enumerate((3.0, 1.0, 1.0), start=1):
        rule = HEADS["mist"].seeds
        targets = assign_proposals(boxes, find_seeds(boxes, source, tags, rule), CLASSES, rule)
        logits, deltas = predictions.refinements[i - 1], predictions.deltas[i - 1]
        refine, box = 0.0, 0.0
        for r in range(len(boxes)):
            c, w = int(targets.classes[r]), targets.weights[r]
            refine -= w * logits[r].log_softmax(0)[c]
            if c < CLASSES:
                seed_box = boxes[targets.seeds[r]]
                t = transform.get_deltas(boxes[r : r + 1], seed_box[None])[0]
                box += w * F.smooth_l1_loss(deltas[r, 4 * c : 4 * c + 4], t, reduction="sum")
        torch.testing.assert_close(losses[f"loss_refine{i}"], factor * refine / len(boxes))
        torch.testing.assert_close(losses[f"loss_box{i}"], factor * box / len(boxes))
        source = logits.softmax(1)


@pytest.mark.parametrize("head", HEADS)
def test_losses_do_not_depend_on_the_order_of_proposals(head):
    model = build(small_config(head))
    x = make_input(5)
    order = torch.randperm(len(x["proposals"]), generator=torch.Generator().manual_seed(2))
    plain = model([x])
    if head == "wsod2":
        model.calls.zero_()
    moved = model([x | {"proposals": x["proposals"][order]}])
    for name, value in plain.items():
        torch.testing.assert_close(value, moved[name], msg=name)


@pytest.mark.parametrize("head_batch", [1, 5, 13])
def test_small_head_batches_give_the_same_gradients(head_batch):
    inputs = [make_input(0), make_input(1, count=6, tags=(1,))]
    gradients = []
    for batch in (0, head_batch):
        model = build(small_config(DETACHED_HEAD_BATCH=batch))
        sum(model(inputs).values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, parts, atol=1e-6, rtol=1e-4)


def test_head_batches_and_drop_block_exclude_each_other():
    cfg = small_config(DETACHED_HEAD_BATCH=4)
    cfg.MODEL.WSOD.DROP_BLOCK.ENABLED = True
    with pytest.raises(ValueError, match="DROP_BLOCK"):
        build_model(cfg)


def test_drop_block_hides_blocks_and_keeps_the_mean():
    torch.manual_seed(0)
    block = ConcreteDropBlock(4, probability=0.9)
    features = torch.rand(64, 4, 7, 7) + 0.5
    dropped = block(features)
    hidden = (dropped == 0).all(dim=1)  # (R, 7, 7)
    assert 0.1 < hidden.float().mean() < 0.95
    scale = hidden.numel() / (~hidden).sum()
    torch.testing.assert_close(dropped, features * ~hidden[:, None] * scale)
    # What is hidden is a union of 3 x 3 blocks: opening it changes nothing.
    padded = F.pad(hidden.float(), (1, 1, 1, 1), value=1.0)
    eroded = -F.max_pool2d(-padded[:, None], 3, stride=1)
    opened = F.max_pool2d(eroded, 3, stride=1, padding=1)[:, 0]
    assert torch.equal(opened.bool(), hidden)
    assert torch.equal(block.eval()(features), features)


def test_drop_block_learns_through_what_it_hides_and_not_through_its_input():
    torch.manual_seed(0)
    block = ConcreteDropBlock(4, probability=0.9)
    features = torch.rand(32, 4, 7, 7, requires_grad=True)
    state = torch.get_rng_state()
    block(features).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
    assert block.skip.weight.grad.abs().sum() > 0
    # The features' gradient is that of a fixed mask: 2 * f * (mask * scale)^2.
    torch.set_rng_state(state)
    fixed = block(features.detach()) / features.detach()
    torch.testing.assert_close(features.grad, 2 * features.detach() * fixed.detach() ** 2)


def wholeness_by_loops(labels, boxes):
    values = []
    for x0, y0, x1, y1 in boxes.round().int().tolist():
        cut = 0
        for label in range(int(labels.max()) + 1):
            inside = int((labels[y0:y1, x0:x1] == label).sum())
            cut += min(inside, int((labels == label).sum()) - inside)
        values.append(max(0.0, 1 - cut / ((x1 - x0) * (y1 - y0))))
    return torch.tensor(values)


def test_wholeness_equals_counting_pixels():
    generator = np.random.default_rng(0)
    labels = torch.from_numpy(generator.integers(0, 6, (12, 17)))
    boxes = torch.tensor([[0, 0, 17, 12], [2, 3, 9, 10], [16, 11, 17, 12], [5, 0, 6, 12.0]])
    torch.testing.assert_close(
        superpixel_wholeness(labels, boxes), wholeness_by_loops(labels, boxes)
    )


def test_a_box_around_an_object_keeps_its_superpixels():
    image = torch.zeros(3, 60, 60, dtype=torch.uint8)
    image[:, 20:40, 20:40] = 255
    labels = superpixel_labels(image, region_size=10)
    boxes = torch.tensor([[20, 20, 40, 40.0], [30, 30, 50, 50.0]])
    around, across = superpixel_wholeness(labels, boxes).tolist()
    assert around > 0.9 and across < around - 0.1


def test_the_weight_of_superpixels_fades_and_is_kept_in_the_checkpoint():
    cfg = small_config("wsod2")
    cfg.MODEL.WSOD.SUPERPIXELS.CALLS = 2
    model = build(cfg)
    x = make_input(0)
    proposals = [x["proposals"]]
    weights = [model._foreground_weights([x], proposals)[0] for _ in range(3)]
    torch.testing.assert_close(weights[1], (1 + weights[0]) / 2)
    assert (weights[0] < 1).any() and (weights[2] == 1).all()
    assert model.state_dict()["calls"].item() == 3


def test_keys_replace_values_of_the_head():
    node = small_config("oicr", NUM_REFINE=2, SEEDS="top1", FG_IOU=0.6).MODEL.WSOD
    settings = settings_from_config(node)
    assert settings.num_refine == 2 and settings.loss_weights == (1.0, 1.0)
    assert settings.seeds.name == "top1" and settings.seeds.fg_iou == 0.6
    assert settings.image_loss == "sum"  # still the head's own


@pytest.mark.parametrize(
    "key,value,message",
    [
        ("HEAD", "pcl", "wsddn"),
        ("IMAGE_LOSS", "max", "mean"),
        ("BOX_REG", "all", "agnostic"),
        ("LOSS_WEIGHTS", (1.0,), "NUM_REFINE=3"),
    ],
)
def test_unfit_settings_are_refused(key, value, message):
    with pytest.raises(ValueError, match=message):
        settings_from_config(small_config(**{key: value}).MODEL.WSOD)


def test_inputs_without_tags_or_proposals_are_named():
    model = build(small_config())
    x = make_input(0) | {"file_name": "a.jpg"}
    with pytest.raises(ValueError, match="a.jpg.*image_labels"):
        model([x | {"image_labels": []}])
    del x["proposals"]
    with pytest.raises(ValueError, match="a.jpg.*proposals"):
        model([x])
