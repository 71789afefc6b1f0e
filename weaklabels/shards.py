"""Records on disk while they are made: one growing file for each process, merged at the end.

The folder OUTPUT.jsonl.parts beside OUTPUT.jsonl holds settings.json (what the run depends on) and
one rank<i>of<n>.jsonl for each process. Each line is one image and is flushed at once, so a killed
run loses at most the line it was writing. Another number of processes may resume it.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


def dumps(value: Any) -> str:
    """Compact JSON: equal values give equal bytes."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def write_atomically(path: Path, lines: Iterator[str]) -> None:
    """Write text under a temporary name and rename it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)
    os.replace(temporary, path)


def whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of every complete line."""
    offset = 0
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield offset, line
            offset += len(line)


class RecordShards:
    """The parts of one output. `settings` must stay the same until it is finished."""

    def __init__(self, output: Path, settings: dict[str, Any]):
        self.output = output
        self.unmatched_output = output.with_suffix(".unmatched.json")
        self.folder = output.with_name(output.name + ".parts")
        self.settings = settings

    def open(self) -> None:
        """Make the folder, or check that it was made with the same settings.

        Raises:
            ValueError: the parts there were made with other settings.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "settings.json"
        if not path.exists():
            write_atomically(path, iter([json.dumps(self.settings, indent=1) + "\n"]))
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        now = json.loads(json.dumps(self.settings))
        changed = [key for key in {*before, *now} if before.get(key) != now.get(key)]
        if changed:
            detail = "; ".join(f"{k}: {before.get(k)!r} then, {now.get(k)!r} now" for k in changed)
            raise ValueError(
                f"{self.folder} holds an unfinished run with other settings ({detail}): finish it "
                "with those, remove the folder, or give another --output"
            )

    def parts(self) -> list[Path]:
        return sorted(self.folder.glob("rank*.jsonl"))

    def finished_ids(self) -> set[Any]:
        """Ids of the images that have a complete line."""
        return {
            json.loads(line)["image_id"] for part in self.parts() for _, line in whole_lines(part)
        }

    def appender(self, rank: int, world_size: int) -> IO[str]:
        """This process's part, truncated after its last complete line and opened for appending."""
        path = self.folder / f"rank{rank}of{world_size}.jsonl"
        if path.exists():
            end = max((offset + len(line) for offset, line in whole_lines(path)), default=0)
            os.truncate(path, end)
        return open(path, "a", encoding="utf-8", newline="\n")

    def merge(self, image_ids: list[Any]) -> Counter:
        """Write the output in the order of `image_ids`, and the list of unmatched points.

        Returns:
            how many points got no mask, by (category id, reason).
        """
        places = {}
        for part in self.parts():
            for offset, line in whole_lines(part):
                places.setdefault(json.loads(line)["image_id"], (part, offset))
        files = {part: open(part, "rb") for part in self.parts()}
        unmatched: list[dict[str, Any]] = []

        def lines() -> Iterator[str]:
            for image_id in image_ids:
                if image_id not in places:
                    continue
                part, offset = places[image_id]
                files[part].seek(offset)
                record = json.loads(files[part].readline())
                unmatched.extend({"image_id": image_id} | item for item in record.pop("unmatched"))
                yield dumps(record) + "\n"

        try:
            write_atomically(self.output, lines())
        finally:
            for file in files.values():
                file.close()
        counts = Counter((item["category_id"], item["reason"]) for item in unmatched)
        summary = [
            {"category_id": category, "reason": reason, "count": count}
            for (category, reason), count in sorted(counts.items())
        ]
        content = {"counts": summary, "points": unmatched}
        write_atomically(self.unmatched_output, iter([json.dumps(content, indent=1) + "\n"]))
        return counts

    def remove(self) -> None:
        """Delete the parts once the output is complete."""
        shutil.rmtree(self.folder)
