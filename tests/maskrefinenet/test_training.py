import json
from datetime import timedelta

import numpy as np
import pytest
import torch
import torchvision

from maskrefinenet import MaskRefineNet
from maskrefinenet.__main__ import main, make_parser
from maskrefinenet.checkpoint import load_checkpoint, load_encoder
from maskrefinenet.data import Augmentation, PairDataset, PositionSampler
from maskrefinenet.distributed import World, world
from maskrefinenet.noise import add_noise, drop_part, punch_holes, shift_boundary
from maskrefinenet.recipe import RECIPES
from maskrefinenet.train import TIMING_KEYS, Schedule, Trainer, check_batch
from maskrefinenet.train_command import OLD_SPELLINGS, settings_of
from maskrefinenet.train_run import training_pairs
from weaklabels.coco import load_annotations


@pytest.fixture
def command(tinycoco, tmp_path):
    """A small training run: the arguments but for --out."""
    return [
        *("train", "--strong-json", str(tinycoco / "instances_train2017_tiny_s.json")),
        *("--image-root", str(tinycoco), "--device", "cpu", "--workers", "0"),
        *("--predictions", str(tinycoco / "pred_strong1.pth"), str(tinycoco / "pred_strong2.pth")),
        *("--val-predictions", str(tinycoco / "pred_weak.json")),
        *("--val-json", str(tinycoco / "instances_train2017_tiny_w.json")),
        *("--encoder", "resnet18", "--weights", "none", "--size", "64", "--batch-size", "2"),
        *("--iterations", "5", "--warmup", "2", "--eval-period", "3", "--checkpoint-period", "2"),
        *("--log-period", "3", "--noise", "0.5"),
    ]


def dataset(tinycoco, **options) -> PairDataset:
    strong = load_annotations(tinycoco / "instances_train2017_tiny_s.json")
    pairs = training_pairs([tinycoco / "pred_strong1.pth"], strong, "one_to_one")
    augmentation = Augmentation(**{"box_scale": 2.0, **options})
    recipe = RECIPES["ours"]
    return PairDataset(pairs, tinycoco, size=64, augmentation=augmentation, recipe=recipe, seed=3)


def metrics(folder) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMING_KEYS} for line in lines]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_killed_run_ends_as_an_uninterrupted_one(recipe, command, tmp_path, monkeypatch, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = [*command, "--recipe", recipe]
    assert main([*command, "--out", str(whole)]) == 0

    step, calls = Trainer._step, []

    def killed(self, batch, rate):
        calls.append(rate)
        if len(calls) == 5:
            raise SystemError("killed")
        return step(self, batch, rate)

    monkeypatch.setattr(Trainer, "_step", killed)
    with pytest.raises(SystemError):
        main([*command, "--out", str(cut)])
    monkeypatch.undo()
    assert load_checkpoint(cut / "last.pth").content["last_itr"] == 4
    assert main([*command, "--out", str(cut)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*command, "--out", str(cut), "--resume"]) == 0
    assert metrics(cut) == metrics(whole)
    for name in ("last.pth", "best.pth"):
        want, got = load_checkpoint(whole / name), load_checkpoint(cut / name)
        assert want.content["last_itr"] == got.content["last_itr"]
        assert want.content["best_AP"] == got.content["best_AP"]
        for key, value in want.model_state.items():
            assert torch.equal(got.model_state[key], value), key
    assert main([*command, "--out", str(cut), "--resume", "--lr", "0.5"]) == 2
    assert "learning_rate: 0.0001 -> 0.5" in capsys.readouterr().err


def test_metrics_hold_loss_and_validation(command, tmp_path):
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    lines = metrics(tmp_path / "out")
    assert [line["iteration"] for line in lines if "loss" in line] == [3, 5]
    assert [line["iteration"] for line in lines if "AP" in line] == [3, 5]
    assert all(0 < line["loss"] < 1 for line in lines if "loss" in line)


def test_unusable_options_are_named(command, tmp_path, capsys):
    for extra, message in (
        (["--amp"], "--amp needs a CUDA device"),
        (["--batch-size", "1"], "less than 2 samples"),
        (["--noise", "2"], "--noise 2.0; expected 0 to 1"),
        (["--iterations", "0"], "iterations=0"),
        (["--warmup", "9"], "warmup=9"),
        (["--weights", "nowhere.pth"], "nowhere.pth: no such file"),
        (["--box-scale", "0.5"], "--box-scale 0.5"),
        (["--predictions", "nowhere.pth"], "nowhere.pth: no such file"),
    ):
        assert main([*command, "--out", str(tmp_path / "out"), *extra]) == 2
        assert message in capsys.readouterr().err


def test_junk_in_place_of_files_is_named(command, tmp_path, capsys):
    junk = tmp_path / "junk.pth"
    junk.write_bytes(b"<html>quota exceeded</html>")
    (tmp_path / "out").mkdir()
    for option in ("--weights", "--predictions", "--val-predictions"):
        assert main([*command, "--out", str(tmp_path / "out"), option, str(junk)]) == 2
        assert "junk.pth: cannot be read" in capsys.readouterr().err
    junk.rename(tmp_path / "out" / "last.pth")
    assert main([*command, "--out", str(tmp_path / "out"), "--resume"]) == 2
    assert "last.pth: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "processes", "batch_size", "enough"),
    [
        *(("cuda", 16, 16, True), ("cuda", 1, 1, False), ("cuda", 1, 2, True)),
        *(("cpu", 16, 16, False), ("cpu", 8, 16, True), ("cpu", 1, 1, False)),
    ],
)
def test_batch_norms_need_two_samples(device, processes, batch_size, enough):
    """On CUDA they are synchronized, and one sample in each of 16 processes is enough."""
    here = World(0, processes, torch.device(device))
    if enough:
        check_batch(batch_size, here)
    else:
        with pytest.raises(ValueError, match="less than 2 samples.*raise --batch-size"):
            check_batch(batch_size, here)


@pytest.mark.parametrize(
    ("processes", "want"),
    [*((n, 16) for n in (1, 2, 4, 8, 16)), (3, 18), (5, 20), (6, 18), (7, 21), (12, 24), (32, 32)],
)
def test_the_default_batch_is_divided_among_the_processes(command, processes, want):
    place = command.index("--batch-size")
    for arguments, batch_size in (
        (command[:place] + command[place + 2 :], want),
        (command, 2),
    ):
        words = [OLD_SPELLINGS.get(word, word) for word in (*arguments, "--output", "nowhere")]
        schedule = settings_of(make_parser().parse_args(words)).schedule_for(processes)
        assert (schedule.batch_size, schedule.learning_rate) == (batch_size, 1e-4)


def test_processes_wait_for_the_slowest_for_hours(monkeypatch):
    """They match all images, or refine their share, before they meet."""
    joined = {}
    monkeypatch.setattr("torch.distributed.init_process_group", lambda _, **how: joined.update(how))
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with world("cpu") as here:
        assert here.size == 2
    assert joined["timeout"] >= timedelta(hours=12)


def test_matching_shows_its_progress(tinycoco, capsys):
    strong = load_annotations(tinycoco / "instances_train2017_tiny_s.json")
    for progress in (True, False):
        training_pairs([tinycoco / "pred_strong1.pth"], strong, "one_to_one", progress=progress)
        assert ("match pred_strong1.pth" in capsys.readouterr().err) == progress


def test_learning_rate_warms_up_then_follows_a_cosine():
    schedule = Schedule(iterations=1000, learning_rate=1.0, warmup=100)
    rates = [schedule.learning_rate_at(i) for i in (0, 50, 100, 550, 1000)]
    assert rates == pytest.approx([0.01, 0.505, 1.0, 0.505, 0.01])
    assert Schedule().learning_rate_at(2000) == pytest.approx(1e-4)


def test_samples_depend_on_seed_and_position_alone(tinycoco):
    first, second = dataset(tinycoco, noise=1.0), dataset(tinycoco, noise=1.0)
    second[17]  # another epoch, then back
    for position in (4, 0):
        for key, value in first[position].items():
            assert torch.equal(second[position][key], value)
    assert not torch.equal(first[0]["inputs"], first[len(first)]["inputs"])


def test_an_epoch_holds_every_pair_once(tinycoco):
    samples = dataset(tinycoco)
    count = len(samples)
    for epoch in (0, 1):
        places = [samples._index(epoch * count + i) for i in range(count)]
        assert sorted(places) == list(range(count))


def test_class_zero_trains_on_its_target(tinycoco):
    """The reference multiplies masks by the class index, which empties those of class 0."""
    samples = dataset(tinycoco, box_scale=1.0)
    seen = set()
    for position in range(40):
        sample = samples[position]
        assert sample["inputs"].shape == (4, 64, 64) and sample["target"].max() <= 1
        if sample["class_id"] == 0 and sample["target"].any() and sample["inputs"][3].any():
            seen.add(samples._index(position))
        x, y = sample["point"].tolist()
        if sample["target"].any():
            columns = sample["target"].any(dim=0).nonzero()
            assert columns.min() <= x + 1 and x <= columns.max() and 0 <= y < 64
    assert len(seen) == 2  # one in either strong image


def test_ranks_share_each_batch():
    everything = list(PositionSampler(2, 5, 6, rank=0, world_size=1))
    assert everything == list(range(12, 30))
    shares = [list(PositionSampler(2, 5, 6, rank=r, world_size=2)) for r in (0, 1)]
    assert shares[0][:3] == [12, 13, 14] and shares[1][:3] == [15, 16, 17]
    assert sorted(shares[0] + shares[1]) == everything
    with pytest.raises(ValueError, match="batch of 6 .* among 4 .*--batch-size a multiple of 4"):
        PositionSampler(0, 1, 6, rank=0, world_size=4)


def test_noise_changes_the_mask_and_keeps_it_a_mask():
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[20:44, 16:50] = 1
    neighbor = np.zeros_like(mask)
    neighbor[44:60, 30:60] = 1
    for seed in range(20):
        rng = np.random.default_rng(seed)
        holes, part = punch_holes(mask, rng), drop_part(mask, rng)
        assert 0 < holes.sum() < mask.sum() and (holes <= mask).all()
        assert 0.35 < part.sum() / mask.sum() < 0.9 and (part <= mask).all()
        shifted, any_kind = shift_boundary(mask, rng), add_noise(mask, neighbor, rng)
        assert shifted.any() and (shifted != mask).any()
        assert any_kind.dtype == np.uint8 and any_kind.max() == 1 and (any_kind != mask).any()
    assert not add_noise(np.zeros_like(mask), neighbor, np.random.default_rng(0)).any()


def test_encoder_weights_from_a_file_leave_the_new_channels(tmp_path):
    trunk = torchvision.models.resnet18(weights=None)
    path = tmp_path / "resnet18.pth"
    torch.save(trunk.state_dict(), path)
    model = MaskRefineNet(3, encoder="resnet18")
    before = model.layer0[0].weight.detach().clone()
    load_encoder(model, str(path))
    assert torch.equal(model.layer0[0].weight[:, :3], trunk.conv1.weight)
    assert torch.equal(model.layer0[0].weight[:, 3:], before[:, 3:])
    assert torch.equal(model.layer4[1].conv2.weight, trunk.layer4[1].conv2.weight)
    with pytest.raises(ValueError, match="does not fit a resnet50"):
        load_encoder(MaskRefineNet(3, encoder="resnet50"), str(path))
