"""DetectionCheckpointer: what it saves, loads, reports and refuses."""

import logging
import os
import pickle
import re

import numpy as np
import pytest
import torch
import torchvision
from iopath.common.file_io import PathHandler, PathManager
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer, PeriodicCheckpointer
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone


def randomize(model: nn.Module) -> None:
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def small_training() -> tuple[nn.Module, dict]:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    return model, {"optimizer": optimizer, "scheduler": scheduler}


def test_save_and_resume_give_back_everything(tmp_path):
    model, others = small_training()
    saved = DetectionCheckpointer(model, str(tmp_path), **others)
    assert not saved.has_checkpoint()
    saved.save("model_0000004", iteration=4, best=np.float64(0.25))
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000004.pth"]

    new_model, new_others = small_training()
    loaded = DetectionCheckpointer(new_model, str(tmp_path), **new_others)
    assert loaded.has_checkpoint()
    assert loaded.get_all_checkpoint_files() == [str(tmp_path / "model_0000004.pth")]
    assert loaded.resume_or_load("not used", resume=True) == {"iteration": 4, "best": 0.25}
    assert same_weights(model, new_model)
    momentum = [state["momentum_buffer"] for state in others["optimizer"].state.values()]
    for want, state in zip(momentum, new_others["optimizer"].state.values(), strict=True):
        assert torch.equal(want, state["momentum_buffer"])
    assert loaded.load_report.is_complete


def test_without_resume_only_the_model_is_loaded(tmp_path):
    model, others = small_training()
    DetectionCheckpointer(model, str(tmp_path), **others).save("a", iteration=4)
    new_model, new_others = small_training()
    new_others["optimizer"].param_groups[0]["lr"] = 7.0
    checkpointer = DetectionCheckpointer(new_model, str(tmp_path / "other"), **new_others)
    rest = checkpointer.resume_or_load(str(tmp_path / "a.pth"), resume=True)
    assert same_weights(model, new_model)
    assert set(rest) == {"optimizer", "scheduler", "iteration"}
    assert new_others["optimizer"].param_groups[0]["lr"] == 7.0
    assert checkpointer.resume_or_load("", resume=False) == {}


def test_missing_state_is_told(tmp_path, caplog):
    model, others = small_training()
    DetectionCheckpointer(model, str(tmp_path)).save("a")
    DetectionCheckpointer(model, **others).load(str(tmp_path / "a.pth"))
    assert "holds no state of 'optimizer'" in caplog.text


def test_nothing_is_saved_without_a_folder_or_to_disk(tmp_path):
    model, _ = small_training()
    DetectionCheckpointer(model).save("a")
    DetectionCheckpointer(model, str(tmp_path), save_to_disk=False).save("a")
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="'sub/a'"):
        DetectionCheckpointer(model, str(tmp_path)).save("sub/a")


def test_a_failed_save_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    model, _ = small_training()
    checkpointer = DetectionCheckpointer(model, str(tmp_path))
    checkpointer.save("a", iteration=1)

    def disk_full(data, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", disk_full)
    for name in ("a", "b"):
        with pytest.raises(OSError, match="disk full"):
            checkpointer.save(name, iteration=2)
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == ["a.pth", "last_checkpoint"]
    assert checkpointer.resume_or_load("")["iteration"] == 1


def test_periodic_checkpointer_keeps_the_newest(tmp_path):
    model, _ = small_training()
    checkpointer = DetectionCheckpointer(model, str(tmp_path))
    periodic = PeriodicCheckpointer(checkpointer, 2, max_iter=7, max_to_keep=2)
    for iteration in range(7):
        periodic.step(iteration)
    files = ["last_checkpoint", "model_0000003.pth", "model_0000005.pth", "model_final.pth"]
    assert sorted(os.listdir(tmp_path)) == files
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_final.pth")


def caffe2_name(name: str) -> str | None:
    """Our name of a ResNet's tensor as in MSRA's files, which have no statistics."""
    if "running" in name:
        return None
    name = name.replace("shortcut", "branch1").replace(".norm.", ".bn.")
    name = re.sub(r"(\d)\.conv([123])\.", lambda m: f"{m[1]}.branch2{' abc'[int(m[2])]}.", name)
    name = name.replace("stem.conv1.bn", "res.conv1.bn").replace("stem.conv1", "conv1")
    name = re.sub(r"bn\.weight$", "bn.s", name)
    name = re.sub(r"\.weight$", ".w", re.sub(r"\.bias$", ".b", name))
    return name.replace(".", "_")


@pytest.mark.parametrize("with_blobs", [False, True])
def test_caffe2_backbone(tmp_path, model, with_blobs, caplog):
    source = {k: torch.rand(v.shape).numpy() for k, v in model["backbone"].state_dict().items()}
    data = {caffe2_name(k): v for k, v in source.items() if caffe2_name(k)}
    assert "res2_0_branch2a_bn_s" in data and "res_conv1_bn_b" in data
    data |= {"conv1_w_momentum": np.zeros(2), "fc1000_w": np.zeros((2, 2)), "fc1000_b": np.zeros(2)}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"blobs": data} if with_blobs else data, protocol=2))

    randomize(model)
    head = model["head"].weight.clone()
    checkpointer = DetectionCheckpointer(model)
    assert checkpointer.load(str(path)) == {}
    for name, value in model["backbone"].state_dict().items():
        if name.endswith("running_mean"):
            assert not value.any()
        elif name.endswith("running_var"):
            assert (value == 1).all()
        else:
            assert np.array_equal(value.numpy(), source[name]), name
    assert torch.equal(model["head"].weight, head)
    report = checkpointer.load_report
    assert report.missing == ["head.weight", "head.bias"]
    assert report.unexpected == ["fc1000.bias", "fc1000.weight"]
    assert "head.* (2 tensors)" in caplog.text and "fc1000.* (2 tensors)" in caplog.text


def test_detectron2_pickle(tmp_path):
    model = nn.Sequential(nn.Linear(2, 3))
    weights = {"0.weight": np.ones((3, 2), np.float32), "0.bias": np.zeros(3, np.float32)}
    data = {"model": weights, "__author__": "Detectron2 Model Zoo"}
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps(data))
    DetectionCheckpointer(model).load(str(tmp_path / "model_final.pkl"))
    assert (model[0].weight == 1).all() and not model[0].bias.any()


def test_torchvision_resnet(tmp_path, resnet_config, caplog):
    theirs = torchvision.models.resnet18(num_classes=5)
    randomize(theirs)
    torch.save(theirs.state_dict(), tmp_path / "resnet18-5c106cde.pth")
    resnets = resnet_config.MODEL.RESNETS
    resnets.DEPTH, resnets.STEM_OUT_CHANNELS, resnets.RES2_OUT_CHANNELS = 18, 64, 64
    model = nn.ModuleDict({"backbone": build_backbone(resnet_config)})
    checkpointer = DetectionCheckpointer(model)
    checkpointer.load(str(tmp_path / "resnet18-5c106cde.pth"))
    assert not checkpointer.load_report.missing
    assert checkpointer.load_report.unexpected == ["linear.weight", "linear.bias"]
    assert "STRIDE_IN_1X1 False" in caplog.text
    ours = model["backbone"].eval()
    theirs.eval()
    x = torch.rand(1, 3, 32, 32)
    want = theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x)))))
    torch.testing.assert_close(ours(x)["res2"], want)


def test_frozen_norms_of_our_own_files_load_to_the_bit(tmp_path):
    model = nn.Sequential(FrozenBatchNorm2d(3))
    randomize(model)
    DetectionCheckpointer(model, str(tmp_path)).save("a")
    other = nn.Sequential(FrozenBatchNorm2d(3))
    DetectionCheckpointer(other).load(str(tmp_path / "a.pth"))
    assert same_weights(model, other)


def test_plain_and_wrapped_state_dicts(tmp_path):
    model, _ = small_training()
    torch.save({f"module.{k}": v for k, v in model.state_dict().items()}, tmp_path / "plain.pth")
    other, _ = small_training()
    DetectionCheckpointer(nn.DataParallel(other)).load(str(tmp_path / "plain.pth"))
    assert same_weights(model, other)


def test_report_of_all_differences(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.BatchNorm1d(2)})
    model["alias"] = model["a"]
    model.register_buffer("pixel_mean", torch.zeros(3))
    weights = {"a.weight": torch.ones(2, 2), "a.bias": torch.ones(2), "b.weight": torch.ones(3, 2)}
    weights |= {"d.e.x": torch.ones(1), "d.e.y": torch.ones(1), "a.extra": torch.ones(1)}
    weights["anchor_generator.cell_anchors.0"] = torch.ones(1)
    torch.save({"model": weights}, tmp_path / "other.pth")
    checkpointer = DetectionCheckpointer(model)
    checkpointer.load(str(tmp_path / "other.pth"))
    report = checkpointer.load_report
    norm = ["c.bias", "c.running_mean", "c.running_var", "c.weight"]
    assert sorted(report.missing) == ["b.bias", *norm]
    assert sorted(report.unexpected) == ["a.extra", "d.e.x", "d.e.y"]
    assert report.mismatched == [("b.weight", (3, 2), (2, 2))]
    assert str(report).splitlines() == [
        "2 of the model's 12 tensors were loaded.",
        "Missing in the file, so they keep their initial values:",
        "    b.bias",
        "    c.* (4 tensors)",
        "In the file but not in the model, so they are not used:",
        "    a.extra",
        "    d.* (2 tensors)",
        "Of another shape in the file, so they keep their initial values:",
        "    b.weight: (3, 2) in the file, (2, 2) in the model",
    ]
    assert str(report) in caplog.text
    assert (model["a"].weight == 1).all() and model["b"].weight.shape == (2, 2)


def layered_model() -> nn.Module:
    model = nn.ModuleDict({"block": nn.ModuleDict({"layer1": nn.Linear(2, 3)})})
    model["layer2"] = nn.Linear(3, 2)
    return model


@pytest.mark.parametrize("scheme", ["", "test-scheme://"])
def test_matching_on_request_also_through_another_path_manager(tmp_path, scheme):
    class Handler(PathHandler):
        def _get_supported_prefixes(self):
            return ["test-scheme://"]

        def _get_local_path(self, path, **kwargs):
            return str(tmp_path / path.removeprefix("test-scheme://"))

    weights = {"layer1.weight": torch.full((3, 2), 9.0), "layer2.bias": torch.full((2,), 9.0)}
    torch.save({"model": weights}, tmp_path / "weights.pth")
    model = layered_model()
    checkpointer = DetectionCheckpointer(model)
    if scheme:
        checkpointer.path_manager = PathManager()
        checkpointer.path_manager.register_handler(Handler())
    path = f"{scheme or str(tmp_path) + '/'}weights.pth"
    checkpointer.load(path)
    assert (model["layer2"].bias == 9).all() and (model["block"]["layer1"].weight < 9).all()
    checkpointer.load(path + "?matching_heuristics=True")
    assert (model["block"]["layer1"].weight == 9).all()
    assert checkpointer.load_report.unexpected == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1, 2], "holds a list"),
        ({"model_state": {"a": torch.ones(1)}, "epoch": 3}, r"\['epoch', 'model_state'\].*'model'"),
        ({}, "neither 'model' nor tensors"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, data, message):
    torch.save(data, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=rf"odd\.pth.*{message}"):
        DetectionCheckpointer(layered_model()).load(str(tmp_path / "odd.pth"))


def test_missing_file_says_where_to_put_it(tmp_path):
    path = str(tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match=rf"Put the file at {re.escape(path)}"):
        DetectionCheckpointer(layered_model()).load(path)


def test_offline_url_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    url = "https://127.0.0.1:9/models/R-50.pkl"  # nothing listens there
    want = tmp_path / "models" / "R-50.pkl"
    with pytest.raises(FileNotFoundError, match=re.escape(str(want))):
        DetectionCheckpointer(layered_model()).load(url)
    want.parent.mkdir(exist_ok=True)
    want.write_bytes(pickle.dumps({"layer2.bias": np.full(2, 9, np.float32)}))
    model = layered_model()
    DetectionCheckpointer(model).load(url)
    assert (model["layer2"].bias == 9).all()
