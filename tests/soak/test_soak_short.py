"""`tools/soak.py` on one small command: what it loses and what differs is seen."""

from collections import Counter
from pathlib import Path
from random import Random

import pytest
import torch

from tests.soak.disturb import KILL, KINDS, Disturber, python
from tests.soak.results import results
from tests.soak.run import Totals, report, soak

# Writes as our programs do: under a lock, whole files only, and goes on where it was.
CAREFUL = """
import sys, time
from pathlib import Path
from weaklabels.files import atomic_text
from weaklabels.locks import OutputInUse, output_lock
out = Path(sys.argv[1])
try:
    with output_lock(out):
        for number in range(10):
            if not (out / f"{number}.json").exists():
                time.sleep(0.1)
                with atomic_text(out / f"{number}.json") as file:
                    file.write(str(number) * 3000)
except OutputInUse as error:
    sys.exit(print(error, file=sys.stderr) or 2)
"""


def script(folder: Path, text: str) -> list[str]:
    (folder / "script.py").write_text(text)
    return python(str(folder / "script.py"), "{output}")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


@pytest.mark.slow
def test_a_careful_command_ends_as_it_does_in_peace(tmp_path, capsys):
    totals = soak({"a": script(tmp_path, CAREFUL)}, tmp_path / "out", seconds=5, seed=1)
    assert totals.clean and totals.runs >= 1 and sum(totals.disturbances.values()) >= 2
    assert report(totals) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("0 lost, 0 different")


def test_what_is_lost_or_different_is_said(capsys):
    totals = Totals(3, Counter({KILL: 2}), lost=["a: b after SIGKILL"], different=["a: c"])
    assert report(totals) == 1
    printed = capsys.readouterr()
    assert printed.out == "3 runs, 2 disturbances (2 SIGKILL): 1 lost, 1 different\n"
    assert "lost: a: b after SIGKILL" in printed.err


FORGETFUL = """
import sys, time
from pathlib import Path
out = Path(sys.argv[1])
started = out / "started"
text = "twice" if started.exists() else "once"
out.mkdir(exist_ok=True)
started.touch()
(out / "result.json").unlink(missing_ok=True)
time.sleep(1)
(out / "result.json").write_text(text)
time.sleep(1)
"""


def test_a_command_that_forgets_is_found_out(tmp_path):
    totals = soak({"a": script(tmp_path, FORGETFUL)}, tmp_path / "out", seconds=5, seed=2)
    assert any("result.json" in line for line in totals.different)


@pytest.mark.parametrize("kind", KINDS)
def test_every_disturbance_ends_all_that_it_started(kind: str, tmp_path):
    words = [w.format(output=tmp_path / "out") for w in script(tmp_path, CAREFUL)]
    rng = Random(0)
    rng.choice = lambda kinds: kind if kind in kinds else kinds[0]
    disturber = Disturber(words, tmp_path / "log", 1.5, rng)
    assert disturber.disturb() == kind and disturber.counts == {kind: 1}
    assert not disturber.faults
    assert disturber.finish() == 0  # nobody else holds the output


def test_digests_are_of_tensors_and_not_of_what_tells_of_the_run(tmp_path: Path):
    content = {"model": {"a": torch.ones(2)}, "history": "3 seconds"}
    torch.save(content, tmp_path / "model_final.pth")
    for name in ("log.txt", ".x.partial", "stages/a.json", "a.jsonl.parts/rank0of1.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a")
    first = results(tmp_path)
    torch.save(content | {"history": "4 seconds"}, tmp_path / "model_final.pth")
    assert first.keys() == {"model_final.pth"} and results(tmp_path) == first
    (tmp_path / "model_final.pth").write_bytes(b"PK")
    assert results(tmp_path) == {"model_final.pth": "damaged"}
