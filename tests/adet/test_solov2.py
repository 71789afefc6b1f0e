"""The meta-architecture on small networks: shapes, batches, errors, labels it must not read."""

import math

import pytest
import torch

from adet.modeling.solov2 import PROMPTS
from adet.modeling.solov2.heads import SOLOv2InsHead, SOLOv2MaskHead, coordinates
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances


@pytest.fixture(scope="module")
def models(make_model):
    """One network a prompt, all of the same weights; thresholds that let masks through."""
    loose = {"SCORE_THR": 0.001, "UPDATE_THR": 0.0001, "FPN_INSTANCE_STRIDES": [1] * 5}
    return {prompt: make_model(PROMPT=prompt, **loose) for prompt in PROMPTS}


def run(model, *records):
    with torch.no_grad():
        return model(list(records))


def assert_same(one, two):
    assert one.get_fields().keys() == two.get_fields().keys()
    for name, value in one.get_fields().items():
        other = two.get(name)
        if isinstance(value, Boxes):
            value, other = value.tensor, other.tensor
        if name == "pred_masks":  # rounding may turn a pixel at the threshold
            assert value.shape == other.shape
            assert (value ^ other).sum() <= 1e-5 * value.numel()
        else:
            tolerance = 1.0 if name == "pred_boxes" else 1e-4
            torch.testing.assert_close(value, other, rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_results_have_their_types_and_shapes(models, prompt, scene):
    (result,) = run(models[prompt], scene)
    instances = result["instances"]
    count = len(instances)
    assert count > 0
    assert instances.image_size == (192, 192)
    assert instances.pred_masks.shape == (count, 192, 192)
    assert instances.pred_masks.dtype == torch.bool
    assert instances.pred_classes.dtype == torch.int64
    assert instances.scores.dtype == torch.float32
    bounds = BitMasks(instances.pred_masks).get_bounding_boxes().tensor
    assert torch.equal(instances.pred_boxes.tensor, bounds)
    assert (instances.scores.diff() <= 0).all()
    assert instances.has("pred_points") == (prompt not in ("none", "cls_image"))
    assert ("unmatched" in result) == (prompt not in ("none", "cls_image"))


@pytest.mark.parametrize("prompt", ["cls", "point", "point_with_size"])
def test_points_come_back_in_pixels_of_the_original_image(models, prompt, scene):
    (result,) = run(models[prompt], scene)
    instances = result["instances"]
    scale = torch.tensor([192 / 128, 192 / 96])
    want = scene["instances"].gt_points[instances.prompt_indices] * scale
    torch.testing.assert_close(instances.pred_points, want)
    classes = scene["instances"].gt_classes[instances.prompt_indices]
    assert torch.equal(instances.pred_classes, classes)
    unmatched = {entry["instance"] for entry in result["unmatched"]}
    assert unmatched | set(instances.prompt_indices.tolist()) == {0, 1, 2}
    assert not unmatched & set(instances.prompt_indices.tolist())


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_batch_equals_its_images_one_by_one(models, prompt, scene):
    other = dict(scene, image=scene["image"].flip(-1), height=50, width=60)
    other["instances"] = scene["instances"][torch.tensor([2, 0])]
    empty = dict(scene, instances=scene["instances"][torch.tensor([], dtype=torch.int64)])
    records = [scene, other, empty]
    together = run(models[prompt], *records)
    for record, result in zip(records, together, strict=True):
        (alone,) = run(models[prompt], record)
        assert_same(alone["instances"], result["instances"])
        assert alone.get("unmatched") == result.get("unmatched")


def test_images_of_different_size_share_a_batch(models, scene):
    small = dict(scene, image=scene["image"][:, :70, :80])
    first, second = run(models["none"], scene, small)
    assert first["instances"].image_size == second["instances"].image_size == (192, 192)


def test_classes_of_the_image_filter_its_results(models, scene):
    (every,) = run(models["none"], scene)
    (named,) = run(models["cls_image"], dict(scene, instances=scene["instances"][:1]))
    assert set(every["instances"].pred_classes.tolist()) != {0}
    assert set(named["instances"].pred_classes.tolist()) == {0}


@pytest.mark.parametrize("prompt", ["point", "point_with_size", "cls"])
def test_points_may_be_the_masks_centers(models, prompt, scene):
    without = dict(scene, instances=scene["instances"][:])
    without["instances"].remove("gt_points")
    (given,), (derived,) = run(models[prompt], scene), run(models[prompt], without)
    assert_same(given["instances"], derived["instances"])


def test_point_prompt_reads_neither_masks_nor_boxes(models, scene, points_only):
    garbage = scene["instances"][:]
    garbage.gt_masks = BitMasks(torch.rand(3, 96, 128) > 0.5)
    garbage.gt_boxes = Boxes(torch.rand(3, 4) * 1e6)
    (want,) = run(models["point"], dict(scene, instances=points_only(scene["instances"])))
    (got,) = run(models["point"], dict(scene, instances=garbage))
    assert torch.equal(want["instances"].pred_masks, got["instances"].pred_masks)
    assert torch.equal(want["instances"].scores, got["instances"].scores)


@pytest.mark.parametrize("prompt", ["point", "point_with_size", "cls", "cls_image"])
def test_an_image_without_instances_gives_an_empty_result(models, prompt, scene):
    for instances in (Instances((96, 128)), scene["instances"][:0]):
        (result,) = run(models[prompt], dict(scene, instances=instances))
        assert result["instances"].pred_masks.shape == (0, 192, 192)
        assert result["instances"].pred_classes.dtype == torch.int64
        assert result["instances"].pred_boxes.tensor.shape == (0, 4)
        assert result.get("unmatched", []) == []


def test_points_without_sizes_are_listed(models, scene, points_only):
    bare = points_only(scene["instances"])
    (result,) = run(models["point_with_size"], dict(scene, instances=bare))
    assert result["unmatched"] == [{"instance": i, "reason": "size"} for i in range(3)]


@pytest.mark.parametrize("prompt", ["point", "point_with_size", "cls", "cls_image"])
def test_prompts_without_labels_say_what_to_set(models, prompt, scene):
    record = {"image": scene["image"], "file_name": "a.jpg"}
    with pytest.raises(ValueError, match="a.jpg came without 'instances'.*keep_annotations=True"):
        run(models[prompt], record)
    if prompt in ("point", "cls"):
        classes = Instances((96, 128), gt_classes=torch.tensor([0]))
        with pytest.raises(ValueError, match="needs gt_points, or gt_masks.*a.jpg has neither"):
            run(models[prompt], dict(record, instances=classes))
    if prompt in ("point_with_size", "cls"):
        classes = Instances((96, 128), gt_classes=torch.tensor([0]), gt_points=torch.ones(1, 2))
        with pytest.raises(ValueError, match="needs gt_boxes"):
            run(models[prompt], dict(record, instances=classes))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("PROMPT", "box", r"PROMPT='box'; expected one of \('none', 'cls',"),
        ("NMS_TYPE", "soft", "NMS_TYPE='soft'; expected one of"),
        ("NMS_KERNEL", "cubic", "NMS_KERNEL='cubic'; expected"),
        ("NORM", "BN", "NORM='BN'; expected one of"),
        ("NUM_GRIDS", [8, 4], "one entry a level"),
        ("INSTANCE_IN_FEATURES", ["p2", "p3"], "INSTANCE_IN_FEATURES.*needs one entry"),
        ("FPN_SCALE_RANGES", (1, 2, 3), "pairs"),
        ("USE_DCN_IN_INSTANCE", True, "USE_DCN_IN_INSTANCE=True"),
        ("NUM_MASKS", 16, "NUM_MASKS=16 and NUM_KERNELS=32"),
    ],
)
def test_values_that_would_do_nothing_are_refused(make_cfg, key, value, message):
    with pytest.raises(ValueError, match=message):
        build_model(make_cfg(**{key: value}))


def test_softmax_focal_loss_is_refused(make_cfg):
    cfg = make_cfg()
    cfg.MODEL.SOLOV2.LOSS.FOCAL_USE_SIGMOID = False
    with pytest.raises(ValueError, match="FOCAL_USE_SIGMOID=False"):
        build_model(cfg)


def test_training_lowers_both_losses(make_cfg, scene):
    torch.manual_seed(0)
    model = build_model(make_cfg()).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    history = []
    for _ in range(8):
        losses = model([scene])
        assert set(losses) == {"loss_ins", "loss_cate"}
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append([loss.item() for loss in losses.values()])
    assert all(last < first for first, last in zip(history[0], history[-1], strict=True))


def test_a_batch_without_instances_trains(make_cfg, scene):
    model = build_model(make_cfg()).train()
    losses = model([dict(scene, instances=scene["instances"][:0])])
    assert losses["loss_ins"].item() == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_training_without_labels_is_refused(make_cfg, scene):
    model = build_model(make_cfg()).train()
    with pytest.raises(ValueError, match=r"needs 'instances'.*\['b.jpg'\]"):
        model([scene, {"image": scene["image"], "file_name": "b.jpg"}])


def test_loss_weights_scale_the_losses(make_cfg, scene):
    torch.manual_seed(0)
    model = build_model(make_cfg()).train()
    first = model([scene])
    model.dice_weight *= 2
    model.focal_weight *= 3
    second = model([scene])
    torch.testing.assert_close(second["loss_ins"], 2 * first["loss_ins"])
    torch.testing.assert_close(second["loss_cate"], 3 * first["loss_cate"])


def test_coordinates_match_the_definition():
    want = [[[-1 + 2 * j / 3 for j in range(4)]] * 3, [[float(i - 1)] * 4 for i in range(3)]]
    torch.testing.assert_close(coordinates(torch.zeros(2, 5, 3, 4)), torch.tensor([want, want]))


def test_heads_start_from_the_prior_and_small_weights():
    torch.manual_seed(0)
    sizes = {"in_channels": 32, "channels": 64}
    head = SOLOv2InsHead(
        **sizes, num_convs=1, num_classes=3, num_kernels=4, num_grids=[4, 2], prior_prob=0.02
    )
    prior = torch.full((3,), -math.log(0.98 / 0.02))
    torch.testing.assert_close(head.cate_pred.bias.detach(), prior)
    assert head.kernel_pred.bias.abs().max() == 0
    masks = SOLOv2MaskHead(**sizes, num_masks=64)
    for module in (head, masks):
        weights = [p for p in module.parameters() if p.ndim == 4]
        stds = torch.stack([w.std() for w in weights])
        torch.testing.assert_close(stds, torch.full_like(stds, 0.01), rtol=0.15, atol=0)


def test_heads_without_norm_have_biases(make_cfg, scene):
    model = build_model(make_cfg(NORM="none", USE_COORD_CONV=False)).eval()
    names = model.state_dict().keys()
    assert "ins_head.cate_tower.0.bias" in names and "ins_head.kernel_tower.2.bias" in names
    assert model.ins_head.kernel_tower[0].in_channels == 32
    run(model, scene)
