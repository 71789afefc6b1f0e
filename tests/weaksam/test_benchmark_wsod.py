"""The weak detector's benchmark compares like with like; its times are not judged."""

import torch

import wsis.benchmarks.wsod as wsod
from weaksam.wsod.settings import HEADS

SMALL = (
    *("MODEL.VGG.WIDTH", 0.125, "MODEL.ROI_BOX_HEAD.FC_DIM", 16),
    *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 2),
)


def test_the_loops_give_the_targets(one_thread):
    row = wsod.targets_row(60, 2, repeats=1)
    assert row.what == "MIST targets, 60 RoIs, 2 classes, the same"
    generator = torch.Generator().manual_seed(3)
    boxes = wsod.random_boxes(40, 100, 80, generator)
    scores, tags = torch.rand(40, 5, generator=generator), torch.tensor([0, 4])
    rule = HEADS["mist"].seeds
    ours = wsod.targets(boxes, scores, tags, rule)
    torch.testing.assert_close(
        ours.weights, torch.tensor(wsod.targets_by_loops(boxes, scores, tags, rule)[1])
    )
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= torch.tensor([100, 80])).all()


def test_the_bare_step_goes_through_the_layers_of_the_training_step(one_thread):
    model = wsod.build_detector(*SMALL)
    batch = [wsod.make_input(12, (64, 96), 2)]
    reached = []
    for step in (wsod.training_step, wsod.bare_step):
        step(model, batch)
        reached.append({n for n, p in model.named_parameters() if p.grad is not None})
    assert reached[0] == reached[1] and "roi_heads.predictor.bbox3.weight" in reached[0]


def test_the_step_is_a_row(one_thread):
    row = wsod.step_row(12, (64, 96), 2, repeats=1, overrides=SMALL)
    assert row.what == "WSOD step, 12 proposals, VGG-16, 64 x 96" and row.figure > 0
