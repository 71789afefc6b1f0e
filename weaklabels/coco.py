"""Read and write the files that the tools exchange: COCO json and prediction records (.jsonl).

Annotations and records are streamed, so that memory does not grow with their number. Reading
raises errors that name the file and the entry; writing goes to a temporary name that is renamed
at the end, so that a killed run never leaves half a file under the final name.
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

IMAGE_KEYS = ("id", "file_name", "height", "width")
CATEGORY_KEYS = ("id", "name")
RECORD_KEYS = ("image_id", "file_name", "height", "width", "instances")
INSTANCE_KEYS = ("category_id", "score", "segmentation")
CHUNK = 1 << 20  # characters read at a time
DELIMITERS = tuple(",:]} \t\r\n")  # what ends a json value
ELEMENT = "annotations[]"  # how `_walk` names one entry of the annotation list


def dumps(value: Any) -> str:
    """Compact json text of `value`: equal values give equal bytes."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@contextmanager
def atomic_text(path: str | Path) -> Iterator[IO[str]]:
    """Open `path` for writing; the file appears under its name only when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", encoding="utf-8", newline="\n") as handle:
            yield handle
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as one compact json line, atomically."""
    with atomic_text(path) as handle:
        handle.write(dumps(value) + "\n")


def read_json(path: Path) -> Any:
    """The content of a json file; ValueError with its name where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a json file ({error})") from error


def missing_keys(entry: Any, keys: tuple[str, ...]) -> list[str]:
    """Which of `keys` the entry lacks: all of them where it is no json object."""
    return [key for key in keys if not isinstance(entry, dict) or key not in entry]


class InvalidAnnotation(ValueError):
    """An annotation cannot be used; the message names the file, its id and the reason."""


class CocoWriter:
    """Write a COCO file annotation by annotation: only the header and one entry are in memory."""

    def __init__(self, handle: IO[str], header: dict[str, Any]):
        self._handle = handle
        self.count = 0
        handle.write("{" + "".join(f"{dumps(k)}:{dumps(v)},\n" for k, v in header.items()))
        handle.write('"annotations":[')

    def add(self, annotation: dict[str, Any]) -> None:
        """Append one annotation as it is."""
        self._handle.write((",\n" if self.count else "\n") + dumps(annotation))
        self.count += 1

    def close(self) -> None:
        """End the annotation list and the file's object."""
        self._handle.write("\n]}\n")


class CocoFile:
    """A COCO instance file: everything but the annotations in memory, those one at a time.

    header: the file's sections without `annotations`.  images: by id, in the file's order.
    category_ids: in the file's order.  skipped: reasons, one for each entry left out.

    Args:
        skip_invalid: leave out and list annotations with a duplicate id or an unknown image or
            category, where False raises InvalidAnnotation for the first of them.
    """

    def __init__(self, path: str | Path, skip_invalid: bool = False):
        self.path = Path(path)
        self.skip_invalid = skip_invalid
        self.skipped: list[str] = []
        if not self.path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected a COCO instance file (json)")
        sections = {key: value for key, value in _walk(self.path) if key != ELEMENT}
        for name in ("images", "annotations", "categories"):
            if not isinstance(sections.get(name), list):
                raise ValueError(f"{path}: no list {name!r}; a COCO instance file has one")
        del sections["annotations"]
        self.header = sections
        self.images = self._by_id("image", sections["images"])
        self.category_ids = list(self._by_id("category", sections["categories"]))
        required = (("image", "images", IMAGE_KEYS), ("category", "categories", CATEGORY_KEYS))
        for kind, section, keys in required:
            for entry in sections[section]:
                missing = missing_keys(entry, keys)
                if missing:
                    raise ValueError(f"{path}: {kind} id {entry['id']} lacks {missing}")

    def annotations(self) -> Iterator[dict[str, Any]]:
        """Valid annotations in the file's order; each call reads the file again."""
        self.skipped = []
        seen: set[int] = set()
        categories = set(self.category_ids)
        for key, annotation in _walk(self.path):
            if key == ELEMENT:
                problem = self._problem(annotation, seen, categories)
                if problem is None:
                    seen.add(annotation["id"])
                    yield annotation
                else:
                    self.reject(problem)

    def reject(self, problem: str) -> None:
        """List `problem` where invalid entries are skipped, otherwise raise InvalidAnnotation."""
        if not self.skip_invalid:
            raise InvalidAnnotation(f"{self.path}: {problem}")
        self.skipped.append(problem)

    def _problem(self, entry: Any, seen: set[int], categories: set[int]) -> str | None:
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int):
            return f"annotation {dumps(entry)[:80]}: no integer 'id'"
        name = f"annotation id {entry['id']}"
        if entry["id"] in seen:
            return f"{name}: occurs twice; ids must be unique"
        image_id, category_id = entry.get("image_id"), entry.get("category_id")
        if not isinstance(image_id, int) or image_id not in self.images:
            return f"{name}: image_id {image_id!r} is not among the file's images"
        if not isinstance(category_id, int) or category_id not in categories:
            return f"{name}: category_id {category_id!r} is not among the file's categories"
        return None

    def _by_id(self, kind: str, entries: list[Any]) -> dict[int, dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict) or not isinstance(entry.get("id"), int):
                raise ValueError(f"{self.path}: {kind} number {index} has no integer 'id'")
            if entry["id"] in found:
                raise ValueError(f"{self.path}: {kind} id {entry['id']} occurs twice")
            found[entry["id"]] = entry
        return found


def read_records(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Stream prediction records as ("file:line", record), each checked for its form.

    Raises:
        ValueError: a line is no whole record; the message names file, line and what is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected prediction records (.jsonl)")
    with open(path, encoding="utf-8") as handle:
        for number, line in enumerate(handle, 1):
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                hint = "" if line.endswith("\n") else "; was the run that writes it cut off?"
                raise ValueError(f"{where}: not a json record ({error}){hint}") from error
            missing = missing_keys(record, RECORD_KEYS)
            if missing:
                raise ValueError(f"{where}: the record lacks {missing}")
            for index, instance in enumerate(record["instances"]):
                _check_instance(f"{where}: instance {index}", instance)
            yield where, record


def _check_instance(where: str, instance: Any) -> None:
    missing = missing_keys(instance, INSTANCE_KEYS)
    if missing:
        raise ValueError(f"{where} lacks {missing}")
    score = instance["score"]
    if not isinstance(score, int | float) or not math.isfinite(score):
        raise ValueError(f"{where}: score {score!r} is not a finite number")


def _walk(path: Path) -> Iterator[tuple[str, Any]]:
    """(name, value) for each section of a json object; annotations come one by one.

    The list of annotations itself is yielded as ("annotations", []), each of its entries as
    (ELEMENT, entry), whatever the order of the sections.
    """
    try:
        with open(path, encoding="utf-8") as handle:
            stream = _JsonStream(handle)
            stream.expect("{")
            closing = stream.peek() == "}"
            while not closing:
                key = stream.name()
                if key == "annotations" and stream.peek() == "[":
                    yield key, []
                    for entry in stream.elements():
                        yield ELEMENT, entry
                else:
                    yield key, stream.value()
                closing = stream.expect(",}") == "}"
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a json object ({error})") from error


class _JsonStream:
    """Decode one json value after the other from a text file, without holding the whole file."""

    def __init__(self, handle: IO[str]):
        self._handle = handle
        self._decoder = json.JSONDecoder()
        self._text, self._at, self._ended = "", 0, False

    def peek(self) -> str:
        """The next character that is not white space; '' at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at].isspace():
                self._at += 1
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._read_more()

    def expect(self, allowed: str) -> str:
        """Consume one character, which must be among `allowed`."""
        found = self.peek()
        if not found or found not in allowed:
            raise json.JSONDecodeError(f"expected one of {allowed!r}", self._text, self._at)
        self._at += 1
        return found

    def name(self) -> str:
        """Consume the name of a member of an object, and the colon after it."""
        found = self.value() if self.peek() == '"' else self.expect('"')
        self.expect(":")
        return found

    def value(self) -> Any:
        """Consume one value of any kind."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if self._ended:
                    raise
            else:
                # "12", "12." and "12e" all give 12: a number may go on in the next chunk.
                if self._text[end : end + 1] in DELIMITERS or self._ended:
                    self._at = end
                    return value
            self._read_more()

    def elements(self) -> Iterator[Any]:
        """Consume a list, yielding its values one by one."""
        self.expect("[")
        if self.peek() == "]":
            self.expect("]")
            return
        while True:
            yield self.value()
            if self.expect(",]") == "]":
                return

    def _read_more(self) -> None:
        rest = self._text[self._at :]
        chunk = self._handle.read(max(CHUNK, len(rest)))  # doubles while one value goes on
        self._text, self._at, self._ended = rest + chunk, 0, not chunk
