"""The GPU's self-check, on the CPU: it runs whole, it notices faults, one failure ends no other."""

import dataclasses
import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from wsis.cli import gpu_check as command
from wsis.cli.main import program
from wsis.gpu_check import QUICK, Check, Context, Status, all_checks, parity, processes, run_checks
from wsis.gpu_check import training as training_module
from wsis.gpu_check.results import judged, measured, run_check, skipped
from wsis.runner import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")
GROUPS = ("parity", "training", "resume", "out of memory", "speed", "SyncBN", "torch.compile")


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(torch.device("cpu"), QUICK, tmp_path, ("fp32", "bf16"))


def find(context: Context, name: str) -> Check:
    (check,) = (c for c in all_checks(context, tests_only=False) if c.name == name)
    return check


@pytest.mark.slow
def test_the_whole_check_passes_on_the_cpu(tmp_path, capsys):
    report = tmp_path / "new" / "report.json"
    assert program("gpu-check", ["--device", "cpu", "--quick", "--output", str(report)]) == 0
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("| ")][1:]
    content = json.loads(report.read_text())
    results = content["results"]
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines if "---" not in line]
    assert names == [r["name"] for r in results] and len(set(names)) == len(names)
    assert {g for g in GROUPS if any(n.startswith(g) for n in names)} == set(GROUPS)
    assert content["machine"]["torch"] == torch.__version__
    for result in results:
        without_gpu = result["name"].startswith(("out of memory", "SyncBN"))
        assert result["status"] == ("skipped" if without_gpu else "passed"), result
        if without_gpu:
            assert result["note"]
        elif result["bound"] is not None:
            assert result["figure"] <= result["bound"]
        if result["name"].startswith("parity") and result["name"].endswith("fp32"):
            assert result["figure"] == 0  # the CPU against itself
    half = [r["figure"] for r in results if r["name"].endswith("outputs, bf16")]
    assert len(half) == 3 and min(half) > 1e-4  # bfloat16 was really used


def test_without_a_gpu_one_line_says_what_to_do(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert program("gpu-check", ["--output", str(tmp_path / "a.json")]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert "no CUDA device" in captured.err and "--device cpu --quick" in captured.err
    assert program("gpu-check", ["--device", "cpu"]) == 2
    assert "--device cpu needs --quick" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_failing_check_ends_no_other(monkeypatch, tmp_path, capsys):
    def broken(context: Context):
        raise RuntimeError("a | fault\nin two lines")

    checks = [
        Check("broken", broken),
        Check("not a number", lambda _: judged("not a number", math.nan, 1.0)),
        Check("too large", lambda _: judged("too large", 2.0, 1.0)),
        Check("sound", lambda _: judged("sound", 1.0, 1.0)),
        Check("speed", lambda _: measured("speed", 3.0, unit="images/s")),
        Check("absent", lambda _: skipped("absent", "why")),
    ]
    monkeypatch.setattr(command, "all_checks", lambda *_, **__: checks)
    report = tmp_path / "a.json"
    words = ["--device", "cpu", "--quick", "--output", str(report)]
    assert program("gpu-check", words) == 1
    results = json.loads(report.read_text())["results"]
    statuses = ["failed"] * 3 + ["passed"] * 2 + ["skipped"]
    assert [r["status"] for r in results] == statuses
    assert results[0]["note"] == "RuntimeError: a | fault in two lines"
    assert results[1]["figure"] is None and "nan" in results[1]["note"]
    out = capsys.readouterr().out
    assert "| broken | FAILED |" in out and "a / fault in two lines" in out
    assert "2 passed, 3 failed, 1 skipped" in out
    assert program("gpu-check", [*words, "--only", "sound"]) == 0
    assert program("gpu-check", [*words, "--only", "nothing"]) == 2


def test_checks_that_begin_too_late_are_skipped(context):
    checks = [Check("late", lambda _: judged("late", 0.0, 1.0))]
    (result,) = run_checks(checks, context, minutes=-1)
    assert result.status is Status.SKIPPED and "minutes are over" in result.note


def test_tests_only_leaves_the_speed_out(context):
    names = [[c.name for c in all_checks(context, tests_only=t)] for t in (False, True)]
    assert [n for n in names[0] if not n.startswith("speed")] == names[1]
    assert len(names[0]) > len(names[1])


@pytest.mark.parametrize(
    ("factor", "status"), [(1.0, Status.PASSED), (1.001, Status.FAILED), (math.nan, Status.FAILED)]
)
def test_a_device_with_other_results_is_noticed(monkeypatch, context, factor, status):
    """The "device" computes the last output wrongly by a factor."""
    parity.cpu_outputs("SOLOv2", QUICK)  # kept, as the CPU's side
    right = parity.OUTPUTS["SOLOv2"]

    def device(model, scale):
        *outputs, last = right(model, scale)
        return [*outputs, last * factor]

    monkeypatch.setitem(parity.OUTPUTS, "SOLOv2", device)
    result = run_check(find(context, "parity: SOLOv2 outputs, fp32"), context)
    assert result.status is status
    if factor == 1.001:
        assert result.figure == pytest.approx(0.001, rel=1e-3)


def test_a_wrong_gradient_is_noticed(monkeypatch, context):
    parity.cpu_losses("Mask R-CNN", QUICK)
    right = parity.LOSSES["Mask R-CNN"]

    def device(model, batch):
        losses = right(model, batch)
        # The same value with twice the gradient of the proposals' class loss.
        loss = losses["loss_rpn_cls"]
        return losses | {"loss_rpn_cls": loss + (loss - loss.detach())}

    monkeypatch.setitem(parity.LOSSES, "Mask R-CNN", device)
    losses, gradients = (
        run_check(find(context, f"parity: Mask R-CNN {part}, fp32"), context)
        for part in ("losses", "gradients")
    )
    assert losses.status is Status.PASSED and gradients.status is Status.FAILED


def test_a_resumed_training_without_its_optimizer_is_noticed(monkeypatch, context):
    """With as many steps as on a GPU, also by the bound there."""
    context = dataclasses.replace(context, scale=dataclasses.replace(QUICK, steps=20))
    check = find(context, "resume: MaskRefineNet")
    monkeypatch.setattr(torch.optim.Adam, "load_state_dict", lambda self, state: None)
    result = run_check(check, context)
    assert result.status is Status.FAILED
    assert result.figure > training_module.RESUME_BOUND["cuda"]


def test_errors_by_their_definitions():
    got, want = [torch.tensor([3.0, 0.0]), torch.ones(1)], [torch.tensor([3.0, 4.0]), torch.ones(1)]
    assert parity.relative_error(got, want) == pytest.approx(4 / math.sqrt(26))
    assert parity.worst_error(got, want) == pytest.approx(4 / 5)
    assert parity.relative_error([torch.zeros(2)], [torch.zeros(2)]) == 0
    with pytest.raises(ValueError, match="shapes differ"):
        parity.relative_error([torch.zeros(2)], [torch.zeros(3)])
    masks = np.zeros((3, 2, 2), dtype=bool)
    masks[0, 0], masks[1, :, 0] = True, True
    other = masks.copy()
    other[0, 0, 0] = False  # IoU 1/2, 1, and 1 of two empty ones
    assert parity.mask_error(other, masks) == pytest.approx(1 / 6)


@pytest.mark.slow
def test_two_processes_stay_in_step(context):
    scale = dataclasses.replace(QUICK, two_processes=True)
    context = dataclasses.replace(context, scale=scale)
    for check in processes.checks()[:2]:
        result = run_check(check, context)
        assert result.status is Status.PASSED, result


def test_the_script_runs_without_an_installation(tmp_path):
    words = ["--device", "cpu", "--quick", "--only", "NMS", "--output", str(tmp_path / "a.json")]
    script = str(ROOT / "scripts" / "gpu_check.sh")
    done = subprocess.run(["bash", script, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 passed, 0 failed, 0 skipped" in done.stdout
