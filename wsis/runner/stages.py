"""Stages and their states: what is finished, what was given by the user, what has to run."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from .commands import Command, Launch, Machines
from .markers import (
    FINISHED,
    GIVEN,
    changes,
    is_unchanged,
    needs_sha256,
    note_path,
    read_marker,
    read_note,
)


class PipelineError(ValueError):
    """Something that the user has to correct; the message says what and how."""


@dataclass(frozen=True)
class Check:
    """How a given file is checked.

    look: returns what the file holds in a few words, raises ValueError where it is unfit.
    reads: other files that `look` needs.
    """

    look: Callable[[Path], str]
    reads: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Stage:
    """One command and the files that it reads and makes.

    leaves: further files that later stages may need; given results may come without them.
    folder: holds all that the stage makes; renamed as a whole when the stage is redone.
    before: checks before the command runs, each raises ValueError.
    early: such checks before the first stage of a run, where this one will run.
    checks: how each of `makes` is checked where the user gives it.
    rest: what to run instead where the first of `makes` is given without the others.
    """

    name: str
    what: str
    command: Command
    needs: tuple[Path, ...] = ()
    makes: tuple[Path, ...] = ()
    leaves: tuple[Path, ...] = ()
    folder: Path | None = None
    before: tuple[Callable[[], None], ...] = field(default=(), compare=False)
    early: tuple[Callable[[], None], ...] = field(default=(), compare=False)
    checks: Mapping[Path, Check] = field(default_factory=dict, compare=False)
    rest: "Stage | None" = None

    @property
    def everywhere(self) -> bool:
        """Whether it runs on every machine of a job; other stages run on the first alone."""
        return self.command.launch is not Launch.ONE


@dataclass(frozen=True)
class Run:
    """Stages in order, and where they run.

    output: folder of the run; its `stages` folder holds the markers.
    hints: how to get files that no stage makes.
    """

    stages: tuple[Stage, ...]
    output: Path
    machines: Machines
    hints: Mapping[Path, str] = field(default_factory=dict)

    def marker(self, stage: Stage) -> Path:
        return self.output / "stages" / f"{stage.name}.json"

    def failure(self, stage: Stage) -> Path:
        """Written by the first of several machines where a stage fails there."""
        return self.marker(stage).with_suffix(".failed")

    def words(self, stage: Stage) -> str:
        return shlex.join(stage.command.argv(self.machines))

    def is_own(self, path: Path) -> bool:
        """Whether a file lies in the run's folder, not beside the dataset."""
        return path.absolute().is_relative_to(self.output.absolute())

    @property
    def identity(self) -> str:
        return str(self.output.absolute())


class State(Enum):
    """What a stage's marker and results say."""

    FINISHED = "finished"
    GIVEN = "given"
    OPEN = "to be run"
    UNNEEDED = "not needed"


def find_states(run: Run) -> list[tuple[Stage, State]]:
    """Each stage, or its `rest`, with its state."""
    found = [find_state(run, stage) for stage in run.stages]
    # A stage is needed if nobody reads its results (they are what the run is for) or if a stage
    # that has to run does.
    pending: set[Path] = set()
    for index in range(len(found) - 1, -1, -1):
        stage, state = found[index]
        results = {*stage.makes, *stage.leaves}
        is_read = any(results & set(later.needs) for later in run.stages[index + 1 :])
        if state is State.OPEN and is_read and not results & pending:
            found[index] = stage, State.UNNEEDED
        elif state is State.OPEN:
            pending |= set(stage.needs)
    return found


def find_state(run: Run, stage: Stage) -> tuple[Stage, State]:
    """The stage, or its `rest`, and its state by marker and results.

    Raises:
        PipelineError: it was finished by another command, or given files are incomplete or changed.
    """
    marker = read_marker(run.marker(stage))
    there = [path for path in stage.makes if path.exists()]
    complete = len(there) == len(stage.makes)
    if marker is None:
        return state_without_marker(run, stage, there)
    for path, note in marker.files.items():
        if Path(path).exists() and not is_unchanged(Path(path), note):
            raise PipelineError(
                f"{path} was given as a result of stage {stage.name!r} and has changed since; "
                f"stages after it may have used the earlier file. Delete {run.marker(stage)} to "
                "use the present file, and redo the stages after it with --from"
            )
    if marker.state == GIVEN and not complete:
        return state_without_marker(run, stage, there)
    if marker.state == GIVEN:
        return stage, State.GIVEN
    if marker.files and stage.rest:
        stage = stage.rest
    different = changes(marker.inputs, stage.command.inputs())
    if different and (complete or marker.state == FINISHED):
        raise PipelineError(
            f"stage {stage.name!r} in {run.output} was finished by another command "
            f"({'; '.join(different)}): redo it with --from {stage.name}, or set OUTPUT_DIR to "
            "another folder"
        )
    if marker.state != FINISHED or not complete:
        return stage, State.OPEN
    for path in there:
        note = None if run.is_own(path) else read_note(path)
        if note and note["run"] != run.identity:
            raise PipelineError(
                f"{path}, which stage {stage.name!r} made, was since replaced by the run in "
                f"{note['run']}: redo it with --from {stage.name}"
            )
    return stage, State.FINISHED


def state_without_marker(run: Run, stage: Stage, there: list[Path]) -> tuple[Stage, State]:
    """The state of a stage that this run has not started.

    What stands at its output is the user's, unless a note says that a run of ours made it. Such a
    file is used where the same command on the same files would make it again; a leftover of this
    folder's own earlier run is set aside; that of another run is left alone.
    """
    notes = {path: read_note(path) for path in there if not run.is_own(path)}
    notes = {path: note for path, note in notes.items() if note}
    inputs = stage.command.inputs()
    others = [
        path
        for path, note in notes.items()
        if note["inputs"] != inputs or note["needs"] != needs_sha256(stage.needs)
    ]
    if others and all(notes[path]["run"] == run.identity for path in others):
        return stage, State.OPEN
    if others:
        path = others[0]
        raise PipelineError(
            f"{path} was made by the run in {notes[path]['run']} from other inputs than those of "
            f"stage {stage.name!r} in {run.output}, and is left alone: move it "
            f"and {note_path(path).name} away to make it anew, or use that run's OUTPUT_DIR"
        )
    if not there or len(there) == len(stage.makes):
        return stage, State.GIVEN if there else State.OPEN
    if stage.rest and there == [stage.makes[0]]:
        return stage.rest, State.OPEN
    missing = [str(path) for path in stage.makes if path not in there]
    raise PipelineError(
        f"{there[0]} stands where stage {stage.name!r} writes, so it is taken as given, but "
        f"{', '.join(missing)} is not there: add it, or move the given file away"
    )
