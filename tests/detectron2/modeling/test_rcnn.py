"""Whole two-stage detectors: training, inference, given boxes, given proposals, odd inputs."""

import pytest
import torch

from detectron2.config import get_cfg
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage


def small_config():
    """Mask R-CNN on a pyramid, small enough for tests."""
    cfg = get_cfg()
    model = cfg.MODEL
    model.DEVICE, model.MASK_ON = "cpu", True
    model.BACKBONE.NAME, model.BACKBONE.FREEZE_AT = "build_resnet_fpn_backbone", 0
    model.RESNETS.DEPTH, model.RESNETS.NORM = 18, "BN"
    model.RESNETS.STEM_OUT_CHANNELS = model.RESNETS.RES2_OUT_CHANNELS = 4
    model.RESNETS.OUT_FEATURES = model.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    model.FPN.OUT_CHANNELS = 8
    model.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128]]
    model.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    model.RPN.POST_NMS_TOPK_TRAIN = model.RPN.POST_NMS_TOPK_TEST = 30
    model.ROI_HEADS.NAME, model.ROI_HEADS.IN_FEATURES = "StandardROIHeads", ["p2", "p3"]
    model.ROI_HEADS.NUM_CLASSES, model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 4, 16
    model.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    model.ROI_BOX_HEAD.NAME, model.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 1
    model.ROI_BOX_HEAD.FC_DIM, model.ROI_BOX_HEAD.POOLER_RESOLUTION = 16, 4
    model.ROI_MASK_HEAD.CONV_DIM, model.ROI_MASK_HEAD.POOLER_RESOLUTION = 8, 7
    return cfg


def small_model(**options):
    torch.manual_seed(0)
    cfg = small_config()
    cfg.merge_from_list([item for pair in options.items() for item in pair])
    return build_model(cfg)


def make_instances(size_hw, count=2):
    truth = Instances(size_hw)
    truth.gt_boxes = Boxes(torch.tensor([[5.0, 8, 40, 30], [30, 30, 60, 55]])[:count])
    truth.gt_classes = torch.tensor([3, 0])[:count]
    truth.gt_masks = BitMasks(torch.rand(count, *size_hw) > 0.5)
    return truth


def make_input(size_hw=(60, 70), count=2):
    image = torch.randint(0, 256, (3, *size_hw), dtype=torch.uint8)
    return {"image": image, "instances": make_instances(size_hw, count)}


@pytest.mark.parametrize("counts", [(2, 2), (0, 2), (0, 0)])
def test_training_gives_five_losses_with_gradients(counts):
    model = small_model()
    with EventStorage():
        losses = model([make_input(count=counts[0]), make_input((64, 50), counts[1])])
    assert losses.keys() == {
        *("loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc")
    }
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_few_steps_lower_the_losses():
    model, batch = small_model(), [make_input(), make_input((64, 50))]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    totals = []
    with EventStorage():
        for _ in range(12):
            losses = model(batch)
            totals.append(sum(losses.values()).item())
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
    assert totals[-1] < 0.7 * totals[0]


def test_results_come_in_the_wanted_size():
    model = small_model().eval()
    inputs = [make_input(), make_input((64, 50)) | {"height": 128, "width": 100}]
    first, second = (x["instances"] for x in model(inputs))
    assert first.image_size == (60, 70) and second.image_size == (128, 100)
    for found in (first, second):
        assert 0 < len(found) <= 100
        assert found.pred_masks.shape == (len(found), *found.image_size)
        assert found.pred_masks.dtype == torch.bool
        assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
        assert found.pred_boxes.inside_box([side + 1 for side in found.image_size]).all()
    raw = model.inference(inputs, do_postprocess=False)
    assert raw[1].image_size == (64, 50) and raw[1].pred_masks.shape[1:] == (1, 14, 14)


def test_an_image_gets_the_same_result_alone_and_in_a_batch():
    model = small_model().eval()
    inputs = [make_input((64, 64)), make_input((64, 64))]
    together = model(inputs)[1]["instances"]
    alone = model(inputs[1:])[0]["instances"]
    assert together.pred_classes.tolist() == alone.pred_classes.tolist()
    torch.testing.assert_close(together.scores, alone.scores)


def test_given_boxes_get_masks():
    model = small_model().eval()
    inputs = [make_input()]
    (found,) = model.inference(inputs, do_postprocess=False)
    given = Instances(
        found.image_size, pred_boxes=found.pred_boxes, pred_classes=found.pred_classes
    )
    (again,) = model.inference(inputs, [given], do_postprocess=False)
    torch.testing.assert_close(again.pred_masks, found.pred_masks)
    model.train()
    with pytest.raises(ValueError, match="evaluation mode"):
        model.inference(inputs)


def test_precomputed_proposals_take_the_place_of_the_rpn():
    model = small_model(**{"MODEL.PROPOSAL_GENERATOR.NAME": "PrecomputedProposals"})
    assert model.proposal_generator is None
    inputs = make_input()
    with pytest.raises(ValueError, match="no 'proposals'"):
        model([inputs])
    inputs["proposals"] = Instances(
        (60, 70),
        proposal_boxes=Boxes(torch.tensor([[4.0, 8, 41, 30], [0, 0, 20, 20]])),
        objectness_logits=torch.tensor([1.0, 0.0]),
    )
    with EventStorage():
        losses = model([inputs])
    assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_mask"}
    assert len(model.eval()([inputs])[0]["instances"]) > 0
    inputs["proposals"] = inputs["proposals"][:0]
    assert len(model([inputs])[0]["instances"]) == 0


def test_training_is_drawn_every_so_often():
    model = small_model(VIS_PERIOD=1)
    with EventStorage() as storage:
        model([make_input()])
    names = [name for name, _, _ in storage._vis_data]
    assert any("GT bounding boxes" in name for name in names)
    assert any("mask prediction" in name for name in names)
    arguments = {"backbone": model.backbone, "proposal_generator": None, "roi_heads": None}
    with pytest.raises(ValueError, match="vis_period=5 needs the input_format"):
        GeneralizedRCNN(**arguments, pixel_mean=[0.0], pixel_std=[1.0], vis_period=5)
    with pytest.raises(ValueError, match="equal length"):
        GeneralizedRCNN(**arguments, pixel_mean=[0.0], pixel_std=[1.0, 1.0])


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_broken_features_give_no_detections(bad):
    model = small_model().eval()
    features = {name: torch.full((1, 8, 16, 16), bad) for name in ("p2", "p3", "p4", "p5")}
    images = model.preprocess_image([make_input((64, 64))])
    proposals, _ = model.proposal_generator(images, features)
    assert len(proposals[0]) == 0
    proposals = Instances(
        (64, 64),
        proposal_boxes=Boxes(torch.tensor([[10.0, 10, 20, 20]])),
        objectness_logits=torch.ones(1),
    )
    detections, _ = model.roi_heads(images, features, [proposals])
    assert len(detections[0]) == 0
