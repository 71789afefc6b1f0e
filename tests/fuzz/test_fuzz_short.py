"""The short form of `python -m tests.fuzz`: the corpus, and some changed files of each target."""

import pytest

from tests.fuzz.engine import CORPUS, corpus, fuzz
from tests.fuzz.targets import TARGETS, Target

SEED = 20_240_601
CHANGED = 60  # inputs for each share of a target beside its corpus; all targets take half a minute


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_nothing_that_a_file_holds_stops_its_reader_otherwise_than_said(name: str, tmp_path):
    target = TARGETS[name]
    executions = len(corpus(target)) + CHANGED * target.share
    report = fuzz(target, executions, seed=SEED, out=tmp_path, timeout=60)
    assert report.executions == executions
    assert not report.failures, report.kinds


def test_every_folder_of_the_corpus_belongs_to_a_target():
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert sum(path.stat().st_size for path in CORPUS.rglob("*")) < 1 << 20


def test_faults_of_every_kind_are_seen_and_their_inputs_kept(tmp_path):
    def crash(path):
        import ctypes

        ctypes.string_at(0)

    def hang(path):
        while True:
            pass

    def undocumented(path):
        raise ZeroDivisionError

    def documented(path):
        return TARGETS["state"].open(tmp_path / f"files of {path.name}")(path)

    expected = {crash: "signals", hang: "hangs", undocumented: "undocumented exceptions"}
    for number, (reader, kind) in enumerate([*expected.items(), (documented, None)]):
        target = Target("state", lambda folder, reader=reader: reader)
        out = tmp_path / str(number)
        report = fuzz(target, 2, seed=0, out=out, timeout=1 if reader is hang else 60)
        assert dict(report.failures) == ({kind: 2} if kind else {})
        assert len(list(out.glob("*.failure.json"))) == (2 if kind else 0)
