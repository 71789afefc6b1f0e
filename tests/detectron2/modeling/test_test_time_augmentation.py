"""Test-time augmentation: the versions of an image, and what becomes of their detections."""

import cv2
import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.data.transforms import HFlipTransform
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.structures import Boxes, Instances

BOX = torch.tensor([20.0, 10.0, 60.0, 50.0])
SIZE = (80, 120)


def test_each_size_comes_with_and_without_a_flip():
    mapper = DatasetMapperTTA(min_sizes=[40, 80], max_size=100, flip=True)
    image = torch.randint(0, 256, (3, 80, 120), dtype=torch.uint8)
    versions = mapper({"image": image, "height": 160, "width": 240})
    # the second size is bounded: 120 * 80 / 80 > 100
    assert [v["image"].shape[1:] for v in versions] == [(40, 60)] * 2 + [(67, 100)] * 2
    assert [v["height"] for v in versions] == [160] * 4
    flips = [any(isinstance(t, HFlipTransform) for t in v["transforms"].transforms)
             for v in versions]  # fmt: skip
    assert flips == [False, True, False, True]
    assert torch.equal(versions[1]["image"], versions[0]["image"].flip(dims=[2]))
    for version, flip in zip(versions, flips, strict=True):
        # corners in the frame of the output go to the corners of the version
        (box,) = version["transforms"].apply_box([[0.0, 0, 60, 160]])
        height, width = version["image"].shape[1:]
        want = [width * 3 / 4, 0, width, height] if flip else [0, 0, width / 4, height]
        assert box.tolist() == pytest.approx(want, abs=1e-6)
    without = DatasetMapperTTA(min_sizes=[40], max_size=100, flip=False)
    assert len(without({"image": image, "height": 80, "width": 120})) == 1


class Backbone(nn.Module):
    size_divisibility = 0
    padding_constraints = {}

    def forward(self, x):
        return {"image": x}


def is_flipped(image, width):
    return bool(image[0, 0, width - 1] < image[0, 0, 0])


class Oracle(nn.Module):
    """Finds BOX, surer in flipped images; its masks are the darker half of the box."""

    def __init__(self):
        super().__init__()
        self.mask_on = True

    def forward(self, images, features, proposals, targets=None):
        return [self.detect(*size, image) for size, image in zip(
            images.image_sizes, features["image"], strict=True)], {}  # fmt: skip

    def detect(self, height, width, image):
        scale = torch.tensor([width / SIZE[1], height / SIZE[0]] * 2)
        box = BOX * scale
        flipped = is_flipped(image, width)
        if flipped:
            box = torch.stack([width - box[2], box[1], width - box[0], box[3]])
        score = torch.tensor([0.9 if flipped else 0.6])
        assert not self.mask_on
        return Instances(
            (height, width),
            pred_boxes=Boxes(box[None]),
            scores=score,
            pred_classes=torch.tensor([1]),
        )

    def forward_with_given_boxes(self, features, instances):
        for own, image in zip(instances, features["image"], strict=True):
            masks = torch.zeros(len(own), 1, 4, 4)
            darker_half = slice(0, 2) if not is_flipped(image, own.image_size[1]) else slice(2, 4)
            masks[..., darker_half] = 0.8
            own.pred_masks = masks
        return instances


class NoProposals(nn.Module):
    def forward(self, images, features, gt_instances=None):
        return [None] * len(images), {}


def make_tta(**options):
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE = (40, 80, 160), 400
    cfg.merge_from_list([item for pair in options.items() for item in pair])
    model = GeneralizedRCNN(
        backbone=Backbone(),
        proposal_generator=NoProposals(),
        roi_heads=Oracle(),
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
        input_format="BGR",
    ).eval()
    return GeneralizedRCNNWithTTA(cfg, model, batch_size=2)


def ramp():
    """An image that grows brighter to the right, which shows whether it was flipped."""
    return torch.linspace(0, 255, SIZE[1]).expand(3, *SIZE).to(torch.uint8).contiguous()


@pytest.mark.parametrize("output_size", [SIZE, (160, 240)])
def test_detections_of_all_versions_become_one(output_size):
    tta = make_tta()
    height, width = output_size
    (result,) = tta([{"image": ramp(), "height": height, "width": width}])
    found = result["instances"]
    assert found.image_size == output_size
    # six versions found the box: the best of them stays
    assert found.pred_classes.tolist() == [1] and found.scores.tolist() == pytest.approx([0.9])
    want = BOX * (height / SIZE[0])
    torch.testing.assert_close(found.pred_boxes.tensor[0], want, atol=1e-3, rtol=0)
    # every version, flipped back, says that the left half is the object
    x0, y0, x1, y1 = want.int().tolist()
    mask, middle = found.pred_masks[0], (x0 + x1) // 2
    fade = (x1 - x0) // 6  # half a mask cell is an eighth of the box
    assert mask[y0 + fade : y1 - fade, x0 + fade : middle - fade].all()
    assert not mask[:, middle + fade :].any()
    assert tta.model.roi_heads.mask_on


def test_a_detector_of_boxes_and_files_work_too(tmp_path):
    cv2.imwrite(str(tmp_path / "ramp.png"), ramp().permute(1, 2, 0).numpy())
    tta = make_tta()
    tta.model.roi_heads.mask_on = False
    (result,) = tta([{"file_name": str(tmp_path / "ramp.png")}])
    assert result["instances"].image_size == SIZE and not result["instances"].has("pred_masks")


def test_models_without_the_parts_are_refused():
    with pytest.raises(ValueError, match="the model is a Linear"):
        GeneralizedRCNNWithTTA(get_cfg(), nn.Linear(1, 1))
    with pytest.raises(ValueError, match="LOAD_PROPOSALS False"):
        make_tta(**{"MODEL.LOAD_PROPOSALS": True})
