"""Records on disk while they are made: one growing file per process, merged at the end.

Beside OUTPUT.jsonl stands the folder OUTPUT.jsonl.parts with settings.json (what the run was asked
for) and one rank<i>of<n>.jsonl per process. Each line is one image and is flushed at once, so a
killed run loses at most the line that it was writing. Any number of processes may continue the
work of any other number. Generation and refinement both write through this class.
"""

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weaklabels.files import atomic_text, dumps, objects, read_json, write_json

UNMATCHED = "unmatched"  # key of a part's record: points without a mask; not in the output


@dataclass
class MergeReport:
    """What the merged file holds.

    unmatched: how many points got no mask, by (category id, reason).
    """

    images: int = 0
    instances: int = 0
    unmatched: Counter = field(default_factory=Counter)


class ShardWriter:
    """The part file of one process, open for appending; use it in a `with` block."""

    def __init__(self, path: Path):
        """Open the part; a line that a killed run left unfinished is cut off."""
        self.path = path
        if path.exists():
            end = max((offset + len(line) for offset, line in whole_lines(path)), default=0)
            os.truncate(path, end)
        self._handle = open(path, "ab")

    def append(self, record: dict[str, Any]) -> None:
        """Write one record as a whole line, at once."""
        self._handle.write((dumps(record) + "\n").encode("utf-8"))
        self._handle.flush()

    def close(self) -> None:
        """Put the part on the disk for good."""
        if not self._handle.closed:
            self._handle.flush()
            os.fsync(self._handle.fileno())
            self._handle.close()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class RecordShards:
    """The parts of one output file of prediction records.

    The main process calls `open`; then every process asks `finished_ids` before anyone writes,
    and appends its share through `writer`; at last the main process calls `merge` and, unless
    images are missing, `remove`.

    Args:
        output: the file to make.
        settings: all that the records depend on, as JSON values; it must stay the same until the
            output is complete.
        lists_unmatched: records carry a list `unmatched` ({"category_id", "point", "reason"}),
            which goes to OUTPUT.unmatched.json and not to the output.
    """

    def __init__(
        self, output: str | Path, settings: dict[str, Any], *, lists_unmatched: bool = True
    ):
        self.output = Path(output)
        self.settings = settings
        self.lists_unmatched = lists_unmatched
        self.folder = self.output.with_name(self.output.name + ".parts")
        self.unmatched_output = self.output.with_suffix(".unmatched.json")

    def is_complete(self) -> bool:
        """Whether the output is there and nothing of it is missing."""
        return self.output.is_file() and not self.folder.exists()

    def open(self) -> None:
        """Make the folder, or check that it was made with the same settings.

        Raises:
            ValueError: the parts in the folder were made with other settings.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "settings.json"
        if not path.exists():
            write_json(path, self.settings, indent=1)
            return
        before = read_json(path)
        if not isinstance(before, dict):
            raise ValueError(f"{path}: not the settings of a run; remove {self.folder}")
        now = json.loads(json.dumps(self.settings))
        changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        if changed:
            detail = "; ".join(f"{k}: {before.get(k)!r} then, {now.get(k)!r} now" for k in changed)
            raise ValueError(
                f"{self.folder} holds an unfinished run with other settings ({detail}): finish it "
                "with those, remove the folder, or give another --output"
            )

    def parts(self) -> list[Path]:
        """The part files, whatever number of processes wrote them."""
        return sorted(self.folder.glob("rank*.jsonl"))

    def finished_ids(self) -> set[int]:
        """Ids of the images that have a whole line in some part."""
        return {record["image_id"] for part in self.parts() for _, record in _part_records(part)}

    def writer(self, rank: int, world_size: int) -> ShardWriter:
        """The part of one process."""
        return ShardWriter(self.folder / f"rank{rank}of{world_size}.jsonl")

    def merge(
        self,
        image_ids: Sequence[int],
        visit: Callable[[dict[str, Any]], object] | None = None,
    ) -> MergeReport:
        """Write the output in the order of `image_ids`; images that no part has are left out.

        Args:
            visit: called with each record that is written, in order; for statistics.

        Raises:
            ValueError: the folder is gone, or a part holds something else than records.
        """
        if not self.folder.is_dir():
            raise ValueError(
                f"{self.folder} disappeared during the run: did another run write {self.output}? "
                "Start one run per output"
            )
        report = MergeReport()
        unmatched: list[dict[str, Any]] = []
        with atomic_text(self.output) as handle:
            for record in self._in_order(image_ids):
                lost = record.pop(UNMATCHED, ()) if self.lists_unmatched else ()
                unmatched.extend({"image_id": record["image_id"]} | item for item in lost)
                handle.write(self._line(record))
                report.images += 1
                report.instances += len(record["instances"])
                if visit is not None:
                    visit(record)
        report.unmatched.update((item["category_id"], item["reason"]) for item in unmatched)
        if self.lists_unmatched:
            self._write_unmatched(report.unmatched, unmatched)
        return report

    def _line(self, record: dict[str, Any]) -> str:
        try:
            return dumps(record) + "\n"
        except ValueError as error:
            raise ValueError(
                f"{self.folder}: image {record['image_id']} holds {error}; delete the part that "
                "has it, and its images are made again"
            ) from error

    def remove(self) -> None:
        """Delete the parts: the output is complete."""
        shutil.rmtree(self.folder)

    def _in_order(self, image_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
        places: dict[int, tuple[Path, int]] = {}
        for part in self.parts():
            for offset, record in _part_records(part):
                places.setdefault(record["image_id"], (part, offset))
        with contextlib.ExitStack() as stack:
            files = {part: stack.enter_context(open(part, "rb")) for part in self.parts()}
            for image_id in image_ids:
                if image_id in places:
                    part, offset = places[image_id]
                    files[part].seek(offset)
                    yield json.loads(files[part].readline())

    def _write_unmatched(self, counts: Counter, points: list[dict[str, Any]]) -> None:
        summary = [
            {"category_id": category, "reason": reason, "count": count}
            for (category, reason), count in sorted(counts.items())
        ]
        write_json(self.unmatched_output, {"counts": summary, "points": points}, indent=1)


def whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of every line that was written to its end."""
    offset = 0
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield offset, line
            offset += len(line)


def _part_records(part: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(offset, record) of every whole line of a part."""
    for offset, line in whole_lines(part):
        try:
            record = json.loads(line)
            if type(record["image_id"]) is not int or not isinstance(record["instances"], list):
                raise ValueError("image_id is no whole number, or instances are no list")
            for lost in objects(record.get(UNMATCHED, []), UNMATCHED):
                if type(lost["category_id"]) is not int or not isinstance(lost["reason"], str):
                    raise ValueError("a point without a mask has no category_id or no reason")
                dumps(lost)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(
                f"{part}: at byte {offset} is no record ({error!r}): the part is damaged; delete "
                "it, and its images are made again"
            ) from error
        yield offset, record
