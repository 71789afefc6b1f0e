"""Training of classifiers: schedule, augmentation, exact resume, selection, and refusals."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.weaksam.scenes import make_dataset
from weaksam.clues.cam import CAMConfig
from weaksam.clues.checkpoint import load_classifier
from weaksam.clues.data import Augmentation, Samples, TaggedDataset, seeded
from weaksam.clues.metrics import average_precision, classification_metrics
from weaksam.clues.train import (
    TrainSettings,
    cam_settings,
    decay_groups,
    train_classifier,
    weaktr_settings,
)
from weaksam.clues.weaktr import WeakTrConfig

SMALL = CAMConfig(
    3,
    (
        *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.FREEZE_AT", 0),
        *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.NORM", "BN"),
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8),
        *("MODEL.RESNETS.OUT_FEATURES", ["res2"], "MODEL.PIXEL_STD", [57.0, 57.0, 57.0]),
    ),
    feature="res2",
)
SETTINGS = cam_settings(3, 32, batch_size=8, workers=0, learning_rate=0.02, warmup_epochs=0, seed=1)


def small(seed=0):
    torch.manual_seed(seed)
    return SMALL.build()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colours")
    return make_dataset(folder / "train", 48)[0], make_dataset(folder / "val", 15, seed=9)[0]


def test_published_schedule():
    settings = TrainSettings()
    assert settings == weaktr_settings(64)
    numbers = (settings.epochs, settings.batch_size, settings.learning_rate, settings.weight_decay)
    assert numbers == (60, 64, 5e-5, 0.05)
    assert (settings.min_learning_rate, settings.warmup_epochs, settings.seed) == (1e-5, 5, 504)
    assert settings.augmentation.size == 224
    assert weaktr_settings(512).learning_rate == pytest.approx(4e-4)


@pytest.mark.parametrize("lag", [0, 1])
def test_rates_are_those_of_timms_cosine(lag):
    scheduler = pytest.importorskip("timm.scheduler")
    settings = replace(TrainSettings(), lag_epochs=lag)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=settings.learning_rate)
    cosine = scheduler.CosineLRScheduler(
        optimizer, t_initial=60, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6
    )
    for epoch in range(60):
        cosine.step(max(epoch - lag, 0))
        rate = settings.learning_rate_at(epoch + 0.7)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


def test_rates_by_iteration_move_within_an_epoch():
    settings = cam_settings(10, warmup_epochs=1)
    rates = [settings.learning_rate_at(epochs) for epochs in (0, 0.5, 1, 5.5, 10)]
    assert rates[0] < rates[1] < rates[2] and rates[2] > rates[3] > rates[4]
    assert rates[4] == pytest.approx(settings.min_learning_rate)


@pytest.mark.parametrize("kind", ["imagenet", "crop"])
def test_samples_depend_on_seed_epoch_and_index_only(data, kind):
    if kind == "imagenet":
        pytest.importorskip("timm")
    augmentation = Augmentation(kind, 32)
    samples = Samples(data[0], augmentation.for_training(), seed=5)
    first = samples[3][0]
    random.random(), np.random.random(), torch.rand(3)
    assert torch.equal(samples[3][0], first)
    samples.epoch = 1
    assert not torch.equal(samples[3][0], first)
    assert first.shape == (3, 32, 32) and first.dtype == torch.float32
    evaluated = Samples(data[0], augmentation.for_evaluation(), 5)[3]
    assert evaluated[0].shape == (3, 32, 32)
    assert evaluated[0].min() >= 0 and 100 < evaluated[0].max() <= 255
    assert evaluated[1].tolist() == [1, 0, 0]


def test_global_generators_are_left_alone():
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    before = random.getstate()[1], np.random.get_state()[1].tolist(), torch.get_rng_state()
    with seeded(1, 2, 3):
        values = random.random(), np.random.random(), float(torch.rand(1))
    assert random.getstate()[1] == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    with seeded(1, 2, 3):
        assert values == (random.random(), np.random.random(), float(torch.rand(1)))


def test_training_learns_is_exact_after_a_kill_and_stops_when_done(data, tmp_path, monkeypatch):
    train, val = data
    whole = train_classifier(small(), train, tmp_path / "whole", SETTINGS, val=val)
    lines = [json.loads(x) for x in (tmp_path / "whole/metrics.json").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert whole.metrics["class_AP"] == max(line["class_AP"] for line in lines) > 0.9
    model, calls = small(), []
    original = model.loss

    def killed(images, targets):
        calls.append(len(images))
        if len(calls) == 9:  # in the second epoch
            raise KeyboardInterrupt
        return original(images, targets)

    model.loss = killed
    with pytest.raises(KeyboardInterrupt):
        train_classifier(model, train, tmp_path / "parts", SETTINGS, val=val)
    parts = train_classifier(small(), train, tmp_path / "parts", SETTINGS, val=val)
    states = [load_classifier(r.checkpoint).model.state_dict() for r in (whole, parts)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    before = (tmp_path / "parts/last.pth").stat().st_mtime_ns
    again = train_classifier(small(), train, tmp_path / "parts", SETTINGS, val=val)
    assert again.metrics == parts.metrics
    assert (tmp_path / "parts/last.pth").stat().st_mtime_ns == before


def test_other_settings_do_not_resume(data, tmp_path):
    settings = replace(SETTINGS, epochs=1)
    train_classifier(small(), data[0], tmp_path, settings)
    with pytest.raises(
        ValueError, match=r"last.pth cannot be resumed .*epochs: 1 -> 2; seed: 1 -> 4"
    ):
        train_classifier(small(), data[0], tmp_path, replace(settings, epochs=2, seed=4))
    with pytest.raises(ValueError, match=r"last.pth cannot be resumed .*\(start: \w+ -> \w+\)"):
        train_classifier(small(7), data[0], tmp_path, settings)
    with pytest.raises(ValueError, match=r"last.pth cannot be resumed .*\(train: \w+ -> \w+\)"):
        train_classifier(small(), data[1], tmp_path, settings)


def test_weaktr_trains(data, tmp_path):
    pytest.importorskip("timm")
    torch.manual_seed(0)
    config = WeakTrConfig(3, None, 16, 2, 2, 8, 32, reduction=2)
    settings = weaktr_settings(16, epochs=2, workers=0, augmentation=Augmentation("imagenet", 32))
    result = train_classifier(config.build(), data[0], tmp_path, settings, val=data[1])
    assert np.isfinite(result.metrics["loss"]) and 0 < result.metrics["class_AP"] <= 1
    assert load_classifier(result.checkpoint).model.config == config


def test_decay_leaves_out_vectors_positions_and_class_tokens():
    model = WeakTrConfig(3, None, 16, 2, 2, 8, 32, reduction=2).build()
    decayed, exempt = decay_groups(model, 0.05)
    names = {id(p): name for name, p in model.named_parameters()}
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.05, 0)
    assert {"cls_token", "pos_embed", "norm.weight", "head.bias"} <= {
        names[id(p)] for p in exempt["params"]
    }
    assert all(names[id(p)].endswith("weight") for p in decayed["params"])
    assert len(decayed["params"]) + len(exempt["params"]) == len(names)


def test_refusals_name_the_file(data, tmp_path):
    train, val = data
    with pytest.raises(ValueError, match=r"tags.json: 3 classes \(train\), the network has 2"):
        train_classifier(replace(SMALL, num_classes=2).build(), train, tmp_path, SETTINGS)
    fewer = replace(train.tags, images=train.tags.images[:1])
    with pytest.raises(ValueError, match="tags.json: no image of the split is tagged green, red"):
        train_classifier(small(), TaggedDataset(fewer, train.dicts[:1]), tmp_path, SETTINGS)
    renamed = replace(val.tags, categories=((1, "x"), (2, "y"), (3, "z")))
    with pytest.raises(ValueError, match="has other classes than"):
        train_classifier(small(), train, tmp_path, SETTINGS, val=TaggedDataset(renamed, val.dicts))
    with pytest.raises(ValueError, match="amp needs a CUDA device"):
        train_classifier(small(), train, tmp_path, replace(SETTINGS, amp=True), device="cpu")
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path):
    model = small()
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    with pytest.raises(FloatingPointError, match="became nan in epoch 1; lower the learning rate"):
        train_classifier(model, data[0], tmp_path, SETTINGS)


def test_an_image_of_another_size_is_named(tmp_path):
    dataset, _ = make_dataset(tmp_path, 3)
    Image.new("RGB", (5, 7)).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match="1.png.*7 x 5 .*say 40 x 56"):
        train_classifier(small(), dataset, tmp_path / "out", SETTINGS)


def test_average_precision_by_counting():
    rng = np.random.default_rng(0)
    scores, targets = rng.random((30, 4)), rng.random((30, 4)) < 0.3
    targets[:, 3] = False
    metrics = classification_metrics(scores, targets)
    want = []
    for s, t in zip(scores.T[:3], targets.T[:3], strict=True):
        hits = [t[s >= value].sum() / (s >= value).sum() for value in s[t]]
        want.append(np.mean(hits))
    np.testing.assert_allclose(metrics["per_class_AP"][:3], want)
    assert metrics["per_class_AP"][3] is None
    assert metrics["class_AP"] == pytest.approx(np.mean(want))
    assert average_precision(np.array([3.0, 2, 1]), np.array([1, 0, 1])) == pytest.approx(5 / 6)
    with pytest.raises(ValueError, match="no image has a tag"):
        classification_metrics(scores, np.zeros_like(targets))
