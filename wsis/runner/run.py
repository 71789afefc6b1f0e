"""Run stages one after the other, on one machine or on several."""

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from weaklabels.files import atomic_text
from weaklabels.locks import output_lock
from wsis.versions import versions

from .commands import python_path
from .markers import (
    FINISHED,
    GIVEN,
    STARTED,
    Marker,
    file_note,
    note_path,
    read_marker,
    write_note,
)
from .stages import PipelineError, Run, Stage, State, find_states

SECONDS_BETWEEN_LOOKS = 5.0
SHOWN_DIGITS = 12  # of a checksum in the log
OLD = ".old-"  # in the names of results that were set aside


def dry_run(run: Run) -> str:
    """Every command, as a person would type it."""
    return "\n".join(f"# {s.name}: {s.what}\n{run.words(s)}" for s in run.stages)


def run_stages(run: Run) -> int:
    """Run what is not finished; returns how many stages that were.

    Raises:
        ValueError: an input is missing or unfit, a command failed, or another process runs the
            same stages; the message says what to do.
    """
    if run.machines.node_rank:
        return _run_stages(run)
    with output_lock(run.output):
        return _run_stages(run)


def _run_stages(run: Run) -> int:
    todo = find_states(run)
    check_given(run, todo)
    if not run.machines.node_rank:
        for check in [c for stage, state in todo if state is State.OPEN for c in stage.early]:
            check()
    ran = 0
    for number, (stage, state) in enumerate(todo, start=1):
        head = f"[{number}/{len(todo)}] {stage.name}"
        if state is State.OPEN:
            print(f"{head}: {stage.what}\n  {run.words(stage)}", flush=True)
            run_stage(run, stage)
            ran += 1
            check_given(run, todo[number:])
        elif state is State.GIVEN:
            accept_given(run, stage)
            print(f"{head}: given, used as it is", flush=True)
        elif state is State.FINISHED:
            print(f"{head}: finished, skipped", flush=True)
        else:
            print(f"{head}: not needed, what would read its results is there", flush=True)
    return ran


def check_given(run: Run, todo: Sequence[tuple[Stage, State]]) -> None:
    """Accept every given result whose check has what it reads: early, before long stages run."""
    if run.machines.node_rank:
        return
    for stage, state in todo:
        reads = [path for check in stage.checks.values() for path in check.reads]
        if state is State.GIVEN and all(path.exists() for path in reads):
            accept_given(run, stage)


def accept_given(run: Run, stage: Stage) -> None:
    """Check given results once, and note their checksums in the marker.

    Raises:
        PipelineError: they are unfit.
    """
    if read_marker(run.marker(stage)) is not None:
        return
    if run.machines.node_rank:
        wait_for(run, stage)
        return
    with telling_other_machines(run, stage):
        files = {str(path): look_at(stage, path) for path in stage.makes}
        Marker(GIVEN, files=files, versions=versions()).write(run.marker(stage))


def look_at(stage: Stage, path: Path) -> dict[str, Any]:
    """The note of a given file, with what it holds; says so in the log."""
    check = stage.checks.get(path)
    try:
        holds = check.look(path) if check else "not checked"
    except (ValueError, KeyError, OSError) as error:
        raise PipelineError(
            f"{path} stands where stage {stage.name!r} writes, so it is taken as given, but it "
            f"is unfit: {error}. Correct it, or move it away to have the stage run"
        ) from error
    note = file_note(path)
    digest = note["sha256"][:SHOWN_DIGITS]
    print(f"{stage.name}: {path} is given ({holds}; sha256 {digest}…)", flush=True)
    return {**note, "holds": holds}


def run_stage(run: Run, stage: Stage) -> None:
    """Run one stage, or on another machine than the first wait until the first has run it.

    Raises:
        ValueError: an input is missing or unfit, the command failed or did not make its results.
    """
    if run.machines.node_rank:
        if stage.everywhere:
            run_here(run, stage)
        wait_for(run, stage)
        return
    began = time.monotonic()
    with telling_other_machines(run, stage):
        check_needs(run, stage)
        marker = start(run, stage)
        run_here(run, stage)
        missing = [str(path) for path in stage.makes if not path.exists()]
        if missing:
            raise PipelineError(f"stage {stage.name!r} ended without error but made no {missing}")
        for path in stage.makes:
            if not run.is_own(path):
                write_note(path, run.identity, marker.inputs, stage.needs)
    seconds = round(time.monotonic() - began, 1)
    finished = Marker(FINISHED, marker.inputs, marker.files, marker.versions, seconds)
    finished.write(run.marker(stage))


def start(run: Run, stage: Stage) -> Marker:
    """Mark a stage as started, so that what it makes from now on is not taken for the user's."""
    before = read_marker(run.marker(stage))
    if before and before.state != GIVEN:
        files = before.files
    else:
        given = stage.makes[0] if is_rest(run, stage) else None
        files = {str(given): look_at(stage, given)} if given else {}
        for path in stage.makes:
            if path.exists() and path != given:
                rename(path, time.strftime(f"{OLD}%Y%m%d-%H%M%S"))
    marker = Marker(STARTED, stage.command.inputs(), files, versions())
    marker.write(run.marker(stage))
    return marker


def is_rest(run: Run, stage: Stage) -> bool:
    return any(stage is other.rest for other in run.stages)


def run_here(run: Run, stage: Stage) -> None:
    """Run the stage's command on this machine."""
    if run.machines.node_rank:
        check_needs(run, stage)
    environment = os.environ | {"PYTHONPATH": python_path()}
    code = subprocess.run(stage.command.argv(run.machines), env=environment).returncode
    if code:
        raise PipelineError(
            f"stage {stage.name!r} ended with exit code {code}; its message is above. The same "
            f"command resumes where it stopped:\n  {run.words(stage)}"
        )


@contextmanager
def telling_other_machines(run: Run, stage: Stage) -> Iterator[None]:
    """Write down for the other machines that a stage failed on the first."""
    try:
        yield
    except (ValueError, OSError) as error:
        if run.machines.num_nodes > 1:
            with atomic_text(run.failure(stage)) as file:
                file.write(f"{time.time()} {error}\n")
        raise


def failures(run: Run) -> dict[str, str]:
    """What the first machine has written down about stages that failed there."""
    paths = (run.failure(stage) for stage in run.stages)
    return {path.name: path.read_text() for path in paths if path.exists()}


def wait_for(run: Run, stage: Stage) -> None:
    """Wait until the first machine has finished a stage.

    Raises:
        PipelineError: the stage fails there while this machine waits.
    """
    of_an_earlier_run = failures(run)
    while not is_done(run, stage):
        for name, message in failures(run).items():
            if message != of_an_earlier_run.get(name):
                raise PipelineError(f"on the first machine, {message.partition(' ')[2]}")
        time.sleep(SECONDS_BETWEEN_LOOKS)


def is_done(run: Run, stage: Stage) -> bool:
    marker = read_marker(run.marker(stage))
    done = marker is not None and marker.state in (FINISHED, GIVEN)
    return done and all(path.exists() for path in stage.makes)


def check_needs(run: Run, stage: Stage) -> None:
    """Every file that the stage reads is there, and its own checks pass."""
    for path in stage.needs:
        if not path.exists():
            raise PipelineError(
                f"stage {stage.name!r} needs {path}, which is missing: {hint(run, stage, path)}"
            )
    for check in stage.before:
        check()


def hint(run: Run, stage: Stage, path: Path) -> str:
    """What to do about a missing file."""
    if path in run.hints:
        return run.hints[path]
    for maker in run.stages:
        marker = read_marker(run.marker(maker))
        if path in maker.leaves and marker and marker.state == GIVEN:
            return (
                f"stage {maker.name!r} leaves it when it runs, but its results were given without "
                "it: put it there, or give the results of the stages that read it, too"
            )
    return f"an earlier stage makes it: run without --from, or look into {run.output}"


def set_aside(run: Run, first: str) -> None:
    """Rename what the stages from `first` on have made or were given, so that they run again."""
    names = [stage.name for stage in run.stages]
    if first not in names:
        raise PipelineError(f"{first!r}: no such stage; stages are {', '.join(names)}")
    suffix = time.strftime(f"{OLD}%Y%m%d-%H%M%S")
    for stage in run.stages[names.index(first) :]:
        run.marker(stage).unlink(missing_ok=True)
        for made in (stage.folder,) if stage.folder else (*stage.makes, *stage.leaves):
            # Parts of a record file are what an interrupted stage would go on from.
            for path in (made, note_path(made), *made.parent.glob(f"{made.name}.*part*")):
                rename(path, suffix)


def rename(path: Path, suffix: str) -> None:
    """Keep a file or folder under another name, if it is there."""
    if path.exists() and OLD not in path.name:
        path.rename(path.with_name(path.name + suffix))
        print(f"kept as {path.name + suffix}: {path}", flush=True)
