"""Disturb whole recipes again and again, and compare what they end with."""

import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

from tests.soak.disturb import Disturber, python, timed
from tests.soak.results import results

SMOKE = ("tools/quickstart.py", "--smoke", "--output", "{output}")
RECIPES = {
    "pointwssis": python(*SMOKE),
    "weaksam": python(*SMOKE, "--method", "weaksam", "--until", "wsod"),
}
LEAST_DISTURBANCES, MOST_DISTURBANCES = 2, 6  # of one run, before it may end in peace
say = partial(print, flush=True)


@dataclass
class Totals:
    """What a soak did. lost: results that were there and whole before a disturbance, and not after.

    different: results that differ from those of a run in peace, or are missing at the end.
    """

    runs: int = 0
    disturbances: Counter = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.disturbances.items()))
        total = sum(self.disturbances.values())
        head = f"{self.runs} runs, {total} disturbances ({kinds})"
        return f"{head}: {len(self.lost)} lost, {len(self.different)} different"

    @property
    def clean(self) -> bool:
        return not (self.lost or self.different or self.faults)


def soak(recipes: dict[str, list[str]], out: Path, seconds: float, seed: int = 0) -> Totals:
    """Run each recipe in peace; then disturb them in turn, until the time is over.

    The run that is under way then is finished.

    Args:
        recipes: a command by its name; {output} in it stands for the folder that it writes.
        out: folder for all outputs; what a recipe leaves in peace stays in NAME.reference.
    """
    rng, totals = Random(seed), Totals()
    trials = {name: _Trial(name, words, out, rng, totals) for name, words in recipes.items()}
    for trial in trials.values():
        trial.run_in_peace()
    latest = time.monotonic() + seconds
    while time.monotonic() < latest:
        for trial in trials.values():
            if time.monotonic() < latest:
                trial.run_disturbed(lambda: time.monotonic() < latest)
                say(totals)
    return totals


class _Trial:
    """The runs of one recipe, all into the same folder, so that paths in files are the same."""

    def __init__(self, name: str, words: list[str], out: Path, rng: Random, totals: Totals):
        self.name, self.rng, self.totals = name, rng, totals
        self.folder, self.log = out / name, out / f"{name}.log"
        out.mkdir(parents=True, exist_ok=True)
        self.words = [word.format(output=self.folder) for word in words]
        self.reference: dict[str, str] = {}
        self.seconds = 0.0

    def disturber(self) -> Disturber:
        return Disturber(self.words, self.log, self.seconds, self.rng)

    def run_in_peace(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        code, self.seconds = timed(self.disturber().finish)
        if code:
            raise ValueError(f"{self.name} ends with {code} even in peace; see {self.log}")
        self.reference = results(self.folder)
        kept = self.folder.with_name(f"{self.name}.reference")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self.folder, kept)
        say(f"{self.name}: {len(self.reference)} results in {self.seconds:.0f} seconds of peace")

    def run_disturbed(self, goes_on: Callable[[], bool]) -> None:
        """One run from an empty folder, disturbed several times, then left to its end."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        disturber, before = self.disturber(), {}
        for number in range(self.rng.randint(LEAST_DISTURBANCES, MOST_DISTURBANCES)):
            if number >= LEAST_DISTURBANCES and not goes_on():
                break
            kind = disturber.disturb()
            now = self._done()
            lost = [name for name in before if name not in now]
            self.totals.lost += [f"{self.name}: {name} after {kind}" for name in lost]
            before = now
        code = disturber.finish()
        if code:
            disturber.faults.append(f"{self.name} ends with {code}; see {self.log}")
        found = results(self.folder)
        names = [name for name, value in self.reference.items() if found.get(name) != value]
        self.totals.different += [f"{self.name}: {name}" for name in names]
        self.totals.faults += disturber.faults
        self.totals.disturbances += disturber.counts
        self.totals.runs += 1

    def _done(self) -> dict[str, str]:
        """The results that are what they are to be already."""
        found = results(self.folder)
        return {name: value for name, value in found.items() if self.reference.get(name) == value}


def report(totals: Totals) -> int:
    """Print what was found, and the summary as the last line; the exit code."""
    for kind in ("lost", "different", "faults"):
        for line in getattr(totals, kind):
            say(f"{kind}: {line}", file=sys.stderr)
    say(totals)
    return 0 if totals.clean else 1
