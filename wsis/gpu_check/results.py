"""Run checks one after the other, whatever becomes of each, and report them.

A check that passes has a figure not above its bound; one that only measures has no bound.
"""

import enum
import gc
import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .scenes import Context

logger = logging.getLogger(__name__)

COLUMNS = ("check", "result", "figure", "bound", "s", "GPU GiB", "note")
LONGEST_NOTE = 160  # characters of an error in the table


class Status(enum.Enum):
    """What became of a check."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Result:
    """What a check found.

    figure, bound: numbers in `unit`; it passes if figure <= bound. No bound: a measurement.
    note: what the figure is, or why the check failed or was skipped.
    seconds, peak_gib: of the whole check; None for the memory where there is no GPU.
    """

    name: str
    status: Status
    figure: float | None = None
    bound: float | None = None
    unit: str = ""
    note: str = ""
    seconds: float = 0.0
    peak_gib: float | None = None

    def row(self) -> tuple[str, ...]:
        """The cells under COLUMNS."""
        unit = f" {self.unit}" if self.unit else ""
        return (
            self.name,
            "FAILED" if self.status is Status.FAILED else self.status.value,
            "-" if self.figure is None else f"{self.figure:.3g}{unit}",
            "-" if self.bound is None else f"<= {self.bound:.3g}",
            f"{self.seconds:.1f}",
            "-" if self.peak_gib is None else f"{self.peak_gib:.2f}",
            self.note or "-",
        )


def judged(name: str, figure: float, bound: float, *, unit: str = "", note: str = "") -> Result:
    """Passed if the figure is at most the bound; a NaN fails."""
    status = Status.PASSED if figure <= bound else Status.FAILED
    return Result(name, status, figure, bound, unit, note)


def measured(name: str, figure: float, *, unit: str, note: str = "") -> Result:
    """A figure that nothing is asked of."""
    return Result(name, Status.PASSED, figure, unit=unit, note=note)


def skipped(name: str, reason: str) -> Result:
    """Not run."""
    return Result(name, Status.SKIPPED, note=reason)


@dataclass(frozen=True)
class Check:
    """One check: `run` gets the context and returns a Result of this name."""

    name: str
    run: Callable[[Context], Result]


def run_checks(checks: Sequence[Check], context: Context, *, minutes: float) -> Iterator[Result]:
    """The result of each check as soon as it is there.

    An error of a check is its result and ends no other. Checks that would begin after `minutes`
    are skipped.
    """
    start = time.monotonic()
    for check in checks:
        if time.monotonic() - start > 60 * minutes:
            yield skipped(check.name, f"not begun: the {minutes:g} minutes are over")
        else:
            yield run_check(check, context)


def run_check(check: Check, context: Context) -> Result:
    """One result, with its time and its peak of GPU memory."""
    on_gpu = context.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(context.device)
    start = time.monotonic()
    torch.manual_seed(0)
    try:
        result = check.run(context)
    except Exception as error:  # whatever it is: the check has failed, the others go on
        logger.debug("%s", check.name, exc_info=True)
        text = " ".join(f"{type(error).__name__}: {error}".split())
        result = Result(check.name, Status.FAILED, note=text)
    seconds = time.monotonic() - start
    peak = torch.cuda.max_memory_allocated(context.device) / 2**30 if on_gpu else None
    gc.collect()  # networks of a failed check hang on its traceback
    if on_gpu:
        torch.cuda.empty_cache()
    return replace(result, seconds=seconds, peak_gib=peak)


def table_head() -> str:
    """The first two lines of the table."""
    return f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}"


def table_line(result: Result) -> str:
    """One line of the table."""
    cells = [cell.replace("|", "/") for cell in result.row()]
    if len(cells[-1]) > LONGEST_NOTE:
        cells[-1] = cells[-1][: LONGEST_NOTE - 3] + "..."
    return f"| {' | '.join(cells)} |"


def describe(results: Sequence[Result]) -> str:
    """How many checks passed, failed and were skipped."""
    counts = Counter(result.status for result in results)
    return ", ".join(f"{counts[status]} {status.value}" for status in Status)


def write_report(path: Path, machine: dict[str, Any], results: Sequence[Result]) -> None:
    """All results as JSON; a figure that is no finite number is null, and its note says so."""
    entries = []
    for result in results:
        entry = asdict(result) | {"status": result.status.value}
        if result.figure is not None and not math.isfinite(result.figure):
            entry |= {"figure": None, "note": f"figure {result.figure}; {result.note}"}
        entries.append(entry)
    content = {"machine": machine, "summary": describe(results), "results": entries}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
