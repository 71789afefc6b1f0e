"""Training and testing of weak detectors: two optimizers, several versions of an image, data."""

import copy

import numpy as np
import pytest
import torch

from detectron2.data.transforms import HFlipTransform, NoOpTransform, ResizeTransform, TransformList
from detectron2.modeling import meta_architecture
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from tests.weaksam.test_wsod_network import build, make_input, small_config
from weaksam.wsod.adversarial import build_adversarial_loop, build_detector_optimizer
from weaksam.wsod.averaging import AveragedProposals, apply_box
from weaksam.wsod.data import prepare_weak_dataset


def drop_block_config():
    cfg = small_config()
    cfg.MODEL.WSOD.DROP_BLOCK.ENABLED = True
    cfg.MODEL.WSOD.DROP_BLOCK.BASE_LR = 0.01
    cfg.MODEL.WSOD.DROP_BLOCK.PROB = 0.9
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR = "ADAM", 1e-3
    cfg.SOLVER.STEPS = (2,)
    return cfg


def make_loop(cfg, batches):
    model = build(cfg)
    optimizer = build_detector_optimizer(cfg, model)
    return build_adversarial_loop(cfg, model, batches, optimizer)


def run(loop, count, start=0):
    with EventStorage(start) as storage:
        loop.storage = storage
        for i in range(start, start + count):
            loop.iter = storage.iter = i
            torch.manual_seed(i)
            loop.run_step()


def test_each_optimizer_moves_its_own_part():
    loop = make_loop(drop_block_config(), [[make_input(i)] for i in range(4)])
    adversary = set(loop.model.adversary.parameters())
    mine = {p for g in loop.optimizer.param_groups for p in g["params"]}
    assert not adversary & mine
    assert adversary | mine == {p for p in loop.model.parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in loop.model.named_parameters()}
    run(loop, 1)
    assert all(
        not torch.equal(p, before[name])
        for name, p in loop.model.named_parameters()
        if p.grad is not None and p.grad.abs().max() > 1e-6
    )


def test_the_adversary_gets_the_negative_gradient_of_the_updated_detector():
    loop = make_loop(drop_block_config(), [[make_input(0)]])
    twin, states = copy.deepcopy(loop.model), []
    loop.model.register_forward_pre_hook(lambda *_: states.append(torch.get_rng_state()))
    run(loop, 1)
    assert len(states) == 2
    detector = {n: v for n, v in loop.model.state_dict().items() if "drop_block" not in n}
    twin.load_state_dict(detector, strict=False)
    torch.set_rng_state(states[1])
    (-0.01 * sum(twin([make_input(0)]).values())).backward()
    for got, want in zip(
        loop.model.adversary.parameters(), twin.adversary.parameters(), strict=True
    ):
        torch.testing.assert_close(got.grad, want.grad)
    assert loop.model.adversary.skip.weight.grad.abs().max() > 0


def test_a_resumed_run_ends_with_the_same_weights():
    cfg, batches = drop_block_config(), [[make_input(i)] for i in range(4)]
    whole = make_loop(cfg, batches)
    run(whole, 4)
    first = make_loop(cfg, batches[:2])
    run(first, 2)
    state = copy.deepcopy((first.state_dict(), first.model.state_dict()))
    second = make_loop(cfg, batches[2:])
    second.load_state_dict(state[0])
    second.model.load_state_dict(state[1])
    run(second, 2, start=2)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    # 0.01, times 3 from the step on
    assert second.adversary_optimizer.param_groups[0]["lr"] == pytest.approx(0.03)


def test_mixed_precision_is_refused():
    cfg = drop_block_config()
    cfg.SOLVER.AMP.ENABLED = True
    with pytest.raises(ValueError, match="SOLVER.AMP.ENABLED False"):
        build_adversarial_loop(cfg, build(cfg), [], None)


def versions_of(inputs):
    """The image as it is, flipped, and at twice the size."""
    height, width = inputs["image"].shape[1:]
    larger = torch.nn.functional.interpolate(inputs["image"][None].float(), scale_factor=2)[0]
    return [
        inputs | {"transforms": NoOpTransform()},
        inputs | {"image": inputs["image"].flip(2), "transforms": HFlipTransform(width)},
        inputs
        | {
            "image": larger,
            "transforms": TransformList(
                [ResizeTransform(height, width, 2 * height, 2 * width), HFlipTransform(2 * width)]
            ),
        },
    ]


def test_versions_are_averaged_proposal_by_proposal():
    cfg = small_config()
    cfg.TEST.AUG.MERGE = "average"
    cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST = 0
    model = build(cfg).eval()
    inputs = make_input(0)
    averaged = AveragedProposals(cfg, model, versions_of)
    (got,) = averaged([inputs])

    boxes, scores = [], []
    for version in versions_of(inputs):
        transform = version.pop("transforms")
        proposals = copy.deepcopy(inputs["proposals"])
        proposals._image_size = tuple(version["image"].shape[1:])
        proposals.proposal_boxes.tensor = apply_box(transform, proposals.proposal_boxes.tensor)
        with torch.no_grad():
            ((own_boxes, own_scores),) = model.predict_proposals(
                [version | {"proposals": proposals}]
            )
        rows = [apply_box(transform.inverse(), row.reshape(-1, 4)) for row in own_boxes]
        boxes.append(torch.stack([row.reshape(-1) for row in rows]))
        scores.append(own_scores)
    want = model.roi_heads.detections(
        torch.stack(boxes).mean(0), torch.stack(scores).mean(0), (48, 48)
    )
    torch.testing.assert_close(got["instances"].scores, want.scores)
    torch.testing.assert_close(got["instances"].pred_boxes.tensor, want.pred_boxes.tensor)


def test_one_version_is_plain_inference_at_the_output_size():
    cfg = small_config()
    model = build(cfg).eval()
    inputs = make_input(2) | {"height": 96, "width": 144}
    identity = AveragedProposals(
        cfg, model, lambda x: [x | {"transforms": ResizeTransform(96, 144, 48, 48)}]
    )
    with torch.no_grad():
        (got,), (want,) = identity([inputs]), model([inputs])
    torch.testing.assert_close(got["instances"].scores[:5], want["instances"].scores[:5])
    assert got["instances"].image_size == want["instances"].image_size == (96, 144)


def test_flipping_twice_is_nothing():
    boxes = make_input(0)["proposals"].proposal_boxes.tensor
    flip = HFlipTransform(48)
    torch.testing.assert_close(apply_box(flip, apply_box(flip, boxes)), boxes)


def test_the_interface_says_that_tags_are_enough():
    cfg = small_config()
    architecture = meta_architecture(cfg)
    assert architecture.supervision == "tags"
    with pytest.raises(ValueError, match="'average' and 0"):
        architecture.check_tta(cfg)


def record(image_id, boxes, tags=(0,)):
    return {
        "image_id": image_id,
        "file_name": f"{image_id}.jpg",
        "height": 40,
        "width": 60,
        "image_labels": list(tags),
        "proposal_boxes": np.array(boxes, dtype=np.float32).reshape(-1, 4),
        "proposal_objectness_logits": np.arange(len(boxes), dtype=np.float32),
        "proposal_bbox_mode": BoxMode.XYXY_ABS,
    }


def test_data_without_use_is_left_out_and_counted(caplog):
    boxes = [[0, 0, 30, 30], [5, 5, 9, 30], [0, 0, 30, 30], [30, 10, 99, 50]]
    records = [record(1, boxes), record(2, boxes[1:2]), record(3, boxes, tags=()), record(4, boxes)]
    with caplog.at_level("INFO"):
        kept = prepare_weak_dataset(records, 20, is_train=True)
    assert [r["image_id"] for r in kept] == [1, 4]
    assert kept[0]["proposal_boxes"].tolist() == [[0, 0, 30, 30], [30, 10, 60, 40]]
    assert kept[0]["proposal_objectness_logits"].tolist() == [0, 3]
    assert "1 without tags, 1 without proposals" in caplog.text
    assert len(records[0]["proposal_boxes"]) == 4  # the input is not changed
    assert len(prepare_weak_dataset(records, 20, is_train=False)) == 4
    with pytest.raises(ValueError, match="MIN_BOX_SIDE"):
        prepare_weak_dataset(records, 35, is_train=True)
    del records[0]["image_labels"]
    with pytest.raises(ValueError, match="1.jpg has no image_labels"):
        prepare_weak_dataset(records, 20, is_train=True)
