"""What is known about a stage: one JSON file per stage in OUTPUT/stages.

A marker says that a stage was started, that it is finished, or that its results were given by the
user. It holds the inputs as fields, so that other inputs are noticed, and checksums of given files.
A result outside OUTPUT, beside the dataset, also gets a note of the run that made it: without one
it could not be told from a file of the user.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from weaklabels.files import atomic_text, file_sha256, read_json

STARTED, FINISHED, GIVEN = "started", "finished", "given"
LONGEST = 60  # characters shown of a value that differs


@dataclass(frozen=True)
class Marker:
    """The state of one stage.

    inputs: `Command.inputs()` of what was run; empty where nothing was.
    files: notes of given files by path, see `file_note`.
    """

    state: str
    inputs: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None

    def write(self, path: Path) -> None:
        write_fields(path, asdict(self))


def read_marker(path: Path) -> Marker | None:
    """The marker at `path`, None where there is none.

    Raises:
        ValueError: it is not one of these fields.
    """
    if not path.exists():
        return None
    content = read_json(path)
    try:
        return Marker(**content)
    except TypeError as error:
        raise ValueError(
            f"{path} was written by an earlier version and does not list the stage's inputs. "
            f"Redo the stage with --from {path.stem}, or delete this file: the stage's results are "
            "then used as they are"
        ) from error


def write_fields(path: Path, fields: dict[str, Any]) -> None:
    with atomic_text(path) as file:
        file.write(json.dumps(fields, indent=1) + "\n")


def file_note(path: Path) -> dict[str, Any]:
    """Checksum, size and time of a file, to know it again."""
    status = path.stat()
    note = {"sha256": file_sha256(str(path)), "bytes": status.st_size}
    return note | {"mtime_ns": status.st_mtime_ns}


def is_unchanged(path: Path, note: dict[str, Any]) -> bool:
    """Whether a file still has the content of a note; read only where its time has changed."""
    status = path.stat()
    if status.st_size != note["bytes"]:
        return False
    return status.st_mtime_ns == note["mtime_ns"] or file_sha256(str(path)) == note["sha256"]


def changes(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Each input that differs, as "name: value then, value now"."""
    before, after = dict(_flat(then)), dict(_flat(now))
    return [
        f"{name}: {_short(before, name)} then, {_short(after, name)} now"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]


def _flat(inputs: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in inputs.items():
        if isinstance(value, dict):
            prefix = "--" if name == "flags" else ""
            yield from ((prefix + key, item) for key, item in value.items())
        else:
            yield name, value


def _short(values: dict[str, Any], name: str) -> str:
    text = json.dumps(values[name], ensure_ascii=False) if name in values else "absent"
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def note_path(path: Path) -> Path:
    """Where the note of a result beside the dataset stands."""
    return path.with_name(f"{path.name}.made-by.json")


def needs_sha256(needs: Iterable[Path]) -> list[str | None]:
    """Checksums of the files that a stage reads, in order; None for a missing file or a folder."""
    return [file_sha256(str(path)) if path.is_file() else None for path in needs]


def write_note(path: Path, run: str, inputs: dict[str, Any], needs: Iterable[Path]) -> None:
    """Say beside a result which run made it, and from what."""
    fields = {"run": run, "inputs": inputs, "needs": needs_sha256(needs)}
    write_fields(note_path(path), fields | {"file": file_note(path)})


def read_note(path: Path) -> dict[str, Any] | None:
    """The note of a result; None without one, or where the file is not the noted one any more."""
    if not note_path(path).exists():
        return None
    note = read_json(note_path(path))
    return note if is_unchanged(path, note["file"]) else None
