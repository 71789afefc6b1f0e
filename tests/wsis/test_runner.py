"""The runner: skipping, resuming, redoing, several machines, and errors that say what to do."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.wsis.plans import toy_run, toy_stage, toy_stages
from wsis import runner
from wsis.runner import Command, Launch, Machines, PipelineError, run_stages, set_aside
from wsis.runner import run as running
from wsis.runner.markers import FINISHED, STARTED, Marker, read_marker

KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
FIRST = Machines(0, num_nodes=2, node_rank=0, address="first")
SECOND = replace(FIRST, node_rank=1)


def letters(stages) -> list[str]:
    return [stage.makes[0].read_text() for stage in stages]


def test_a_command_becomes_words():
    flags = {"size": 64, "amp": True, "device": None, "resume": False, "files": ("a", Path("b"))}
    command = Command("train-refiner", ("data",), flags, {"KEY": "(1,)"}, Launch.SPAWN)
    words = command.argv(Machines(num_gpus=2))
    assert words[1:] == [
        *("-m", "wsis", "train-refiner", "data", "--num-gpus", "2"),
        *("--size", "64", "--amp", "--files", "a", "b", "KEY", "(1,)"),
    ]
    several = command.argv(Machines(2, num_nodes=3, node_rank=1, address="first", port=5))
    launcher = ("--nnodes=3", "--node-rank=1", "--nproc-per-node=2")
    assert several[3:8] == [*launcher, "--master-addr=first", "--master-port=5"]
    assert several[8:] == [word for word in words[1:] if word not in ("--num-gpus", "2")]
    assert replace(command, launch=Launch.ONE).argv(Machines(2, 3)) == [
        word for word in words if word not in ("--num-gpus", "2")
    ]


def test_programs_run_in_a_checkout_and_without_one(monkeypatch, tmp_path):
    monkeypatch.chdir(runner.ROOT)
    assert Command("train").argv(Machines(0))[1:] == ["tools/train_net.py"]
    monkeypatch.chdir(tmp_path)
    script = str(runner.ROOT / "tools" / "train_net.py")
    assert Command("train").argv(Machines(0))[1:] == [script]
    monkeypatch.setattr("wsis.runner.commands.ROOT", tmp_path)  # site-packages
    assert Command("train").argv(Machines(0))[1:] == ["-m", "wsis", "train"]


def test_finished_stages_are_skipped_and_broken_ones_run_again(tmp_path):
    broken = toy_stages(tmp_path, KILLED)
    with pytest.raises(PipelineError, match="'second' ended with exit code -9"):
        run_stages(toy_run(tmp_path, broken))
    assert read_marker(tmp_path / "stages" / "second.json").state == STARTED
    stages = toy_stages(tmp_path)
    assert run_stages(toy_run(tmp_path, stages)) == 1
    assert run_stages(toy_run(tmp_path, stages)) == 0
    assert letters(stages) == ["x", "x"]


def test_a_stage_killed_before_its_marker_was_written_is_not_taken_for_given(tmp_path):
    stages = toy_stages(tmp_path)
    run = toy_run(tmp_path, stages)
    stages[1].makes[0].write_text("y")
    Marker(STARTED, stages[1].command.inputs()).write(run.marker(stages[1]))
    assert run_stages(run) == 2
    assert letters(stages) == ["x", "yx"]


def test_a_marker_holds_inputs_as_fields(tmp_path):
    stage = toy_stage(tmp_path, "first")
    command = replace(stage.command, flags={"lr": 0.1}, config={"SEED": "1"})
    run = toy_run(tmp_path, (replace(stage, command=command),))
    run_stages(run)
    content = json.loads(run.marker(stage).read_text())
    assert content["state"] == FINISHED
    assert content["inputs"] == {
        **{"program": command.program, "arguments": [], "flags": {"lr": "0.1"}},
        "config": {"SEED": "1"},
    }
    assert {"torch", "numpy"} <= set(content["versions"])
    assert content["seconds"] >= 0


@pytest.mark.parametrize("done", [True, False])
def test_other_inputs_are_not_taken_for_finished(tmp_path, done):
    """Also where the stage was killed after it had made its results."""
    stages = toy_stages(tmp_path)
    run = toy_run(tmp_path, stages)
    run_stages(run)
    if not done:
        Marker(STARTED, stages[0].command.inputs()).write(run.marker(stages[0]))
    command = replace(stages[0].command, config={"SEED": "2"})
    changed = toy_run(tmp_path, (replace(stages[0], command=command), stages[1]))
    with pytest.raises(PipelineError, match='SEED: absent then, "2" now.*--from first'):
        run_stages(changed)


def test_markers_of_an_earlier_version_are_explained(tmp_path):
    stages = toy_stages(tmp_path)
    run = toy_run(tmp_path, stages)
    run.marker(stages[0]).parent.mkdir()
    run.marker(stages[0]).write_text('{"command": ["a"], "seconds": 1}')
    with pytest.raises(ValueError, match="first.json was written by an earlier version.*--from"):
        run_stages(run)


def test_results_that_nobody_has_to_read_are_not_made(tmp_path):
    stages = toy_stages(tmp_path)
    third = toy_stage(tmp_path, "third", stages[1].makes)
    run = toy_run(tmp_path, (*stages, third))
    stages[1].makes[0].write_text("given")
    assert run_stages(run) == 1
    assert not stages[0].makes[0].exists()
    assert third.makes[0].read_text() == "x"


def test_redoing_from_a_stage_keeps_the_old_results(tmp_path):
    stages = toy_stages(tmp_path)
    run = toy_run(tmp_path, stages)
    run_stages(run)
    (tmp_path / "second.txt.parts").mkdir()
    set_aside(run, "second")
    assert run_stages(run) == 1
    assert len(list(tmp_path.glob("second.txt.old-*"))) == 1
    assert not (tmp_path / "second.txt.parts").exists()
    with pytest.raises(PipelineError, match="stages are first, second"):
        set_aside(run, "third")


def test_a_stage_that_makes_nothing_is_an_error(tmp_path):
    stage = toy_stage(tmp_path, "first")
    Path(stage.command.program).write_text("pass")
    with pytest.raises(PipelineError, match="made no .*first.txt"):
        run_stages(toy_run(tmp_path, (stage,)))


def test_checks_run_before_the_command(tmp_path):
    def refuse():
        raise ValueError("no disk")

    stage = replace(toy_stage(tmp_path, "first"), before=(refuse,))
    with pytest.raises(ValueError, match="no disk"):
        run_stages(toy_run(tmp_path, (stage,)))
    assert not (tmp_path / "first.txt").exists()


def test_machines_agree_on_what_is_finished(tmp_path):
    """Also when a job starts again with another first machine."""
    stages = toy_stages(tmp_path)
    stages = tuple(
        replace(stage, command=replace(stage.command, launch=Launch.SPAWN)) for stage in stages
    )
    for stage in stages:
        stage.makes[0].touch()
        run = toy_run(tmp_path, stages, FIRST)
        Marker(FINISHED, stage.command.inputs()).write(run.marker(stage))
    for machines in (FIRST, SECOND, replace(SECOND, address="there")):
        found = runner.find_states(toy_run(tmp_path, stages, machines))
        assert [state for _, state in found] == [runner.State.FINISHED] * 2


def test_another_machine_waits_for_the_results(tmp_path, monkeypatch):
    stages = toy_stages(tmp_path)
    waits = []

    def look_again(seconds):
        waits.append(seconds)
        run_stages(toy_run(tmp_path, stages, FIRST))

    monkeypatch.setattr(running.time, "sleep", look_again)
    assert run_stages(toy_run(tmp_path, stages, SECOND)) == 2
    assert len(waits) == 1 and letters(stages) == ["x", "x"]


def test_a_failure_on_the_first_machine_stops_the_others(tmp_path, monkeypatch):
    broken = toy_stages(tmp_path, "raise SystemExit(3)")
    run = toy_run(tmp_path, broken, FIRST)
    with pytest.raises(PipelineError, match="'second' ended with exit code 3"):
        run_stages(run)
    old = run.failure(broken[1]).read_text()

    def fail_again(seconds):
        run.failure(broken[1]).write_text("again " + old)

    monkeypatch.setattr(time, "sleep", fail_again)  # the old failure alone stops nobody
    with pytest.raises(PipelineError, match="on the first machine.*exit code 3"):
        run_stages(toy_run(tmp_path, broken, SECOND))


def test_unfit_inputs_on_the_first_machine_stop_the_others_too(tmp_path):
    def refuse():
        raise ValueError("category id 1 is 'dog'")

    stage = replace(toy_stage(tmp_path, "first"), before=(refuse,))
    run = toy_run(tmp_path, (stage,), FIRST)
    with pytest.raises(ValueError, match="'dog'"):
        run_stages(run)
    assert "'dog'" in run.failure(stage).read_text()
