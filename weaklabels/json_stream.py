"""Read a large JSON file value by value: memory holds one value, not the file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

CHUNK = 1 << 20  # characters read at a time
DELIMITERS = tuple(",:]} \t\r\n")  # what ends a JSON value


def walk_object(path: Path, streamed: str) -> Iterator[tuple[str, Any, bool]]:
    """(name, value, is_element) for each member of the JSON object in a file.

    The list named `streamed` is yielded as (streamed, [], False) and then each of its entries as
    (streamed, entry, True), whatever the order of the members.

    Raises:
        ValueError: the file is no JSON object, has a member twice, or goes on after its end.
    """
    seen: set[str] = set()
    try:
        with open(path, encoding="utf-8") as handle:
            stream = JsonStream(handle)
            stream.expect("{")
            closing = stream.peek() == "}"
            if closing:
                stream.expect("}")
            while not closing:
                name = stream.name()
                if name in seen:
                    raise ValueError(f"the section {name!r} occurs twice")
                seen.add(name)
                if name == streamed and stream.peek() == "[":
                    yield name, [], False
                    for entry in stream.elements():
                        yield name, entry, True
                else:
                    yield name, stream.value(), False
                closing = stream.expect(",}") == "}"
            if stream.peek():
                raise ValueError("something follows the end of the object")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a json object ({error}); make or fetch it again") from error


class JsonStream:
    """Decode one JSON value after the other from a text file."""

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
