"""Losses against the reference's figures, the definition, and one process against two."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from adet.modeling.solov2.losses import category_loss, dice_losses, mask_loss
from adet.modeling.solov2.targets import ImageTargets

HERE = Path(__file__).resolve().parent


def test_dice_equals_the_reference(golden):
    figures = golden("solov2_misc.npz")
    probabilities = torch.from_numpy(figures["dice/in"]).flatten(1)
    masks = torch.from_numpy(figures["dice/target"]).flatten(1)
    got = dice_losses(probabilities, masks, torch.arange(5))
    np.testing.assert_allclose(got, figures["dice/out"], rtol=1e-5)
    order = torch.tensor([3, 3, 0])  # several cells may share an instance
    got = dice_losses(probabilities[order], masks, order)
    np.testing.assert_allclose(got, figures["dice/out"][order], rtol=1e-5)


def test_focal_equals_the_reference(golden):
    figures = golden("solov2_misc.npz")
    logits, wanted, each = (torch.from_numpy(figures[f"focal/{k}"]) for k in ("x", "y", "none"))
    usable = wanted.sum(1) <= 1  # a cell of ours has one class at most
    logits, wanted, each = logits[usable], wanted[usable], each[usable]
    classes = torch.where(wanted.any(1), wanted.argmax(1), 4)
    target = ImageTargets(torch.zeros(0, 2, 2), torch.zeros(0), torch.zeros(0), classes)
    got = category_loss(logits[None], [target], alpha=0.25, gamma=2.0)
    positives = int((classes < 4).sum())
    assert got.item() == pytest.approx(each.sum().item() / (positives + 1), rel=1e-5)


def make_targets(masks, cells, instances, num_cells=6):
    classes = torch.full((num_cells,), 2)
    classes[cells] = 0
    masks = torch.as_tensor(masks, dtype=torch.uint8)
    indices = (torch.tensor(values, dtype=torch.int64) for values in (cells, instances))
    return ImageTargets(masks, *indices, classes)


def test_mask_loss_is_the_mean_over_all_positives_of_the_batch():
    generator = torch.Generator().manual_seed(0)
    kernels = torch.randn(2, 6, 3, generator=generator)
    features = torch.randn(2, 3, 4, 5, generator=generator)
    masks = torch.rand(2, 2, 4, 5, generator=generator) > 0.5
    pairs = [([0, 1, 4], [0, 0, 1]), ([2], [1])]
    targets = [make_targets(m, *pair) for m, pair in zip(masks, pairs, strict=True)]
    losses = []
    for image, (cells, instances) in enumerate(pairs):
        for cell, instance in zip(cells, instances, strict=True):
            p = torch.einsum("k,khw->hw", kernels[image, cell], features[image]).sigmoid()
            t = masks[image, instance].float()
            losses.append(1 - 2 * (p * t).sum() / ((p * p).sum() + (t * t).sum() + 0.002))
    got = mask_loss(kernels, features, targets)
    torch.testing.assert_close(got, torch.stack(losses).mean())


def test_instances_without_a_pixel_at_stride_4_have_no_mask_loss():
    kernels, features = torch.randn(1, 6, 3), torch.randn(1, 3, 4, 5)
    masks = torch.zeros(2, 4, 5)
    masks[0, 1:3, 1:4] = 1
    both = mask_loss(kernels, features, [make_targets(masks, [0, 3], [0, 1])])
    one = mask_loss(kernels, features, [make_targets(masks, [0], [0])])
    torch.testing.assert_close(both, one)


def test_a_batch_without_instances_has_a_zero_loss_that_backpropagates():
    kernels = torch.randn(1, 6, 3, requires_grad=True)
    features = torch.randn(1, 3, 4, 5, requires_grad=True)
    loss = mask_loss(kernels, features, [make_targets(torch.zeros(0, 4, 5), [], [])])
    assert loss.item() == 0
    loss.backward()
    assert kernels.grad.abs().sum() == features.grad.abs().sum() == 0


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path):
    """Three steps of SGD: the averaged losses and all weights agree, though one process has more
    instances than the other."""
    results = {}
    for processes in (1, 2):
        store = tmp_path / f"store{processes}"
        commands = [
            [sys.executable, HERE / "train_three_steps.py", store, str(processes), str(rank)]
            for rank in range(processes)
        ]
        running = [subprocess.Popen(c, stdout=subprocess.PIPE, text=True) for c in commands]
        output = [process.communicate(timeout=120)[0] for process in running]
        assert all(process.returncode == 0 for process in running)
        results[processes] = [json.loads(text) for text in output]
    (one,), two = results[1], results[2]
    np.testing.assert_allclose(
        np.mean([r["losses"] for r in two], axis=0), one["losses"], rtol=1e-5
    )
    assert two[0]["weights"] == two[1]["weights"]
    np.testing.assert_allclose(two[0]["weights"], one["weights"], rtol=1e-4)
