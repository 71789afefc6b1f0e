"""RoI drop: the masks by hand and by a loop, the losses, and what stays as it was."""

import logging

import pytest
import torch
from torch.nn import functional as F

from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from tests.detectron2.modeling.test_rcnn import make_input, small_config
from weaksam.config import add_weaksam_config
from weaksam.roi_drop import MODES, DropSettings, InstanceDropOutputLayers, drop_masks
from wsis.benchmarks.roi_drop import measure

CLASSES = 3
TRANSFORM = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))


def tensors(*rows):
    return [torch.tensor(row) for row in rows]


@pytest.mark.parametrize(
    "mode, class_loss, box_loss",
    [("intersection", 2.24, 3.2), ("union", 0.04, 0.2), ("separate", 1.04, 0.2)],
)
def test_losses_of_the_golden_example(mode, class_loss, box_loss):
    """SPEC_WEAKSAM A8; a loss equal to its threshold stays."""
    cls, reg = tensors([5, 1, 6, 0.2, 4], [5, 6, 0, 1, 9])
    foreground = torch.tensor([True, True, False, True, True])
    masks = drop_masks(cls, reg, foreground, DropSettings(mode=mode))
    sums = [v.masked_fill(m, 0).sum() / 5 for v, m in zip((cls, reg), masks, strict=True)]
    assert sums == pytest.approx([class_loss, box_loss])


def slow_masks(cls, reg, foreground, mode, limits):
    """The rule, one region at a time."""
    rows = []
    for one, other, is_object in zip(cls, reg, foreground, strict=True):
        high = (one > limits[0], is_object and other > limits[1])
        if mode == "intersection":
            rows.append((all(high), all(high)))
        elif mode == "union":
            rows.append((any(high), any(high)))
        else:
            rows.append(high)
    return [list(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("mode", MODES)
def test_masks_equal_a_loop(mode):
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        cls, reg = (torch.randint(0, 8, (30,), generator=generator).float() for _ in range(2))
        foreground = torch.rand(30, generator=generator) < 0.5
        masks = drop_masks(cls, reg, foreground, DropSettings(3.0, 5.0, 0, mode))
        want = slow_masks(cls.tolist(), reg.tolist(), foreground.tolist(), mode, (3.0, 5.0))
        assert [mask.tolist() for mask in masks] == want


def make_layers(drop, seed=0):
    torch.manual_seed(seed)
    return InstanceDropOutputLayers(4, box2box_transform=TRANSFORM, num_classes=CLASSES, drop=drop)


def make_batch(seed=0, count=24):
    """Predictions with a gradient, large enough for large losses, and proposals of two images."""
    generator = torch.Generator().manual_seed(seed)
    scores = (6 * torch.randn(count, CLASSES + 1, generator=generator)).requires_grad_()
    deltas = (6 * torch.randn(count, 4 * CLASSES, generator=generator)).requires_grad_()
    corners = torch.rand(count, 2, 2, generator=generator) * 50
    boxes = torch.cat([corners[:, 0], corners[:, 0] + 5 + corners[:, 1]], dim=1)
    classes = torch.randint(0, CLASSES + 1, (count,), generator=generator)
    proposals = [
        Instances(
            (120, 120),
            proposal_boxes=Boxes(boxes[rows]),
            gt_boxes=Boxes(boxes[rows] + 3),
            gt_classes=classes[rows],
        )
        for rows in (slice(0, count // 2), slice(count // 2, count))
    ]
    return (scores, deltas), proposals


@pytest.mark.parametrize("mode", MODES)
def test_sums_are_divided_by_all_regions(mode):
    predictions, proposals = make_batch()
    plain = make_layers(None)
    with EventStorage(5):
        per_region = plain.losses_per_roi(predictions, proposals)
        got = make_layers(DropSettings(4.0, 20.0, 5, mode)).losses(predictions, proposals)
    classes = torch.cat([p.gt_classes for p in proposals])
    columns = [per_region[name].tolist() for name in ("loss_cls", "loss_box_reg")]
    masks = slow_masks(*columns, (classes < CLASSES).tolist(), mode, (4.0, 20.0))
    assert sum(masks[0]) > 0
    for name, values, mask in zip(got, columns, masks, strict=True):
        kept = [value for value, is_dropped in zip(values, mask, strict=True) if not is_dropped]
        assert got[name].item() == pytest.approx(sum(kept) / len(classes), rel=1e-5)


def test_nothing_changes_before_the_first_iteration_to_the_bit():
    plain = FastRCNNOutputLayers(4, box2box_transform=TRANSFORM, num_classes=CLASSES)
    for drop, iteration in ((None, 999), (DropSettings(0.1, 0.1, 7, "union"), 6)):
        results = []
        for layers in (plain, make_layers(drop)):
            predictions, proposals = make_batch()
            with EventStorage(iteration):
                losses = layers.losses(predictions, proposals)
            gradients = torch.autograd.grad(sum(losses.values()), predictions)
            results.append([*losses.values(), *gradients])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    with EventStorage(7):
        dropped = make_layers(drop).losses(*make_batch())
    assert all(dropped[name] < losses[name] for name in losses)


def test_what_is_dropped_depends_on_the_iteration_alone():
    layers = make_layers(DropSettings(4.0, 4.0, 3))
    batches = [make_batch(seed) for seed in range(6)]

    def run(iterations, layers):
        found = []
        with EventStorage(iterations[0]) as storage:
            for at in iterations:
                found.append([v.item() for v in layers.losses(*batches[at]).values()])
                storage.step()
        return found

    assert run(range(6), layers)[2:] == run(range(2, 6), make_layers(DropSettings(4.0, 4.0, 3)))
    plain = FastRCNNOutputLayers(4, box2box_transform=TRANSFORM, num_classes=CLASSES)
    assert layers.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("worst", [1e3, 3e38])
def test_all_regions_dropped_give_zero_and_finite_gradients(worst):
    (scores, deltas), proposals = make_batch()
    for own in proposals:
        own.gt_classes = own.gt_classes.clamp(max=CLASSES - 1)
    with torch.no_grad():
        classes = torch.cat([p.gt_classes for p in proposals])
        scores[torch.arange(len(scores)), classes] = -1e3
        deltas[:] = worst  # the sum of four large ones is infinite
    with EventStorage(0) as storage:
        losses = make_layers(DropSettings(4.0, 4.0, 0)).losses((scores, deltas), proposals)
    assert [loss.item() for loss in losses.values()] == [0, 0]
    for gradient in torch.autograd.grad(sum(losses.values()), (scores, deltas)):
        assert not gradient.any() and gradient.isfinite().all()
    assert storage.latest()["instance_drop/cls"][0] == 1


def test_dropped_shares_are_recorded_by_class():
    predictions, proposals = make_batch()
    layers = make_layers(DropSettings(4.0, 20.0, 0, "separate"))
    with EventStorage(0) as storage:
        per_region = make_layers(None).losses_per_roi(predictions, proposals)
        layers.losses(predictions, proposals)
    classes = torch.cat([p.gt_classes for p in proposals])
    high = [per_region["loss_cls"] > 4, per_region["loss_box_reg"] > 20]
    latest = {name: value for name, (value, _) in storage.latest().items()}
    foreground = classes < CLASSES
    for name, mask in zip(("cls", "reg"), high, strict=True):
        want = mask[foreground].float().mean().item()
        assert 0 < latest[f"instance_drop/{name}"] < 1
        assert latest[f"instance_drop/{name}"] == pytest.approx(want)
    for index in range(CLASSES):
        own = (high[0] | high[1])[classes == index]
        assert latest[f"instance_drop/class_{index}"] == pytest.approx(own.float().mean().item())


def test_batches_without_proposals_or_foreground_work():
    layers = make_layers(DropSettings(first_iteration=0))
    with EventStorage(0) as storage:
        nothing = layers.losses(layers(torch.zeros(0, 4)), [])
        assert [v.item() for v in nothing.values()] == [0, 0]
        predictions, proposals = make_batch()
        for own in proposals:
            own.gt_classes[:] = CLASSES
        losses = layers.losses(predictions, proposals)
        assert losses["loss_box_reg"].item() == 0
        assert "instance_drop/cls" not in storage.latest()
    want = F.cross_entropy(predictions[0], torch.full((24,), CLASSES))
    torch.testing.assert_close(losses["loss_cls"], want)


def weaksam_config(*options):
    cfg = small_config()
    add_weaksam_config(cfg)
    cfg.merge_from_list(list(options))
    return cfg


def training_losses(cfg, iteration):
    torch.manual_seed(0)
    model = build_model(cfg)
    inputs = [make_input() for _ in range(2)]
    torch.manual_seed(1)
    with EventStorage(iteration):
        return model(inputs)


def test_a_detector_drops_by_the_references_keys():
    drop = ["MODEL.INSTANCE_DROP.ISON", True, "MODEL.INSTANCE_DROP.OPERATE_ITER", 10]
    limits = ["MODEL.INSTANCE_DROP.THRESH_CLS", 1e-3, "MODEL.INSTANCE_DROP.THRESH_REG", 1e-6]
    cfg = weaksam_config(*drop, *limits)
    plain = training_losses(small_config(), 10)
    for other in (training_losses(weaksam_config(*limits), 10), training_losses(cfg, 9)):
        assert all(torch.equal(plain[name], other[name]) for name in plain)
    dropped = training_losses(cfg, 10)
    assert dropped["loss_box_reg"].item() == 0 and dropped["loss_cls"] < plain["loss_cls"]
    for name in ("loss_rpn_cls", "loss_rpn_loc", "loss_mask"):
        assert torch.equal(dropped[name], plain[name])


def test_heads_on_one_map_drop_as_well():
    cfg = get_cfg()
    add_weaksam_config(cfg)
    cfg.MODEL.DEVICE, cfg.MODEL.INSTANCE_DROP.ISON = "cpu", True
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 50, 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 4
    predictor = build_model(cfg).roi_heads.box_predictor
    assert predictor.drop == DropSettings(4.0, 4.0, 2000, "intersection")


def test_the_unused_key_of_the_reference_is_dropped_with_a_warning(caplog):
    cfg = weaksam_config()
    with caplog.at_level(logging.WARNING):
        cfg.merge_from_list(["MODEL.INSTANCE_DROP.RPN_DROP", True])
    assert "MODEL.INSTANCE_DROP.RPN_DROP" in caplog.text and "no effect" in caplog.text
    assert "RPN_DROP" not in cfg.MODEL.INSTANCE_DROP


@pytest.mark.parametrize(
    "option, message",
    [
        (("MODE", "both"), "MODE='both'; expected one of"),
        (("THRESH_CLS", 0.0), "THRESH_CLS=0.0; expected a loss above 0"),
        (("THRESH_REG", -1.0), "THRESH_REG=-1.0"),
    ],
)
def test_wrong_settings_are_refused_even_when_off(option, message):
    cfg = weaksam_config(f"MODEL.INSTANCE_DROP.{option[0]}", option[1])
    with pytest.raises(ValueError, match=message):
        build_model(cfg)


def test_the_benchmark_times_losses_that_drop():
    (row,) = measure(size_hw=(64, 64), repeats=1)
    assert 0.5 < row.figure < 2 and "without and" in row.what
