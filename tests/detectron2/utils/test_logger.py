"""Loggers: one handler per target, ranks' files, rate limits, tables."""

import logging
import time

import pytest

from detectron2.utils.logger import (
    create_small_table,
    log_every_n,
    log_every_n_seconds,
    log_first_n,
    setup_logger,
)


@pytest.fixture
def name(request):
    """A logger name of this test's own, cleaned up afterwards."""
    yield f"test_logger.{request.node.name}"
    logging.getLogger(f"test_logger.{request.node.name}").handlers.clear()


def test_stdout_once_and_shortened(name, capsys):
    setup_logger(name=name, abbrev_name="short")
    setup_logger(name=name, abbrev_name="short")
    logging.getLogger(f"{name}.part").info("hello")
    out = capsys.readouterr().out
    assert out.count("hello") == 1 and "short.part]" in out
    logging.getLogger(name).error("bad")
    assert "ERROR" in capsys.readouterr().out


def test_files_of_ranks(name, tmp_path, capsys):
    setup_logger(str(tmp_path), 0, name=name)
    setup_logger(str(tmp_path), 0, name=name)
    setup_logger(str(tmp_path / "deep" / "own.txt"), 3, name=f"{name}.three")
    logging.getLogger(f"{name}.three").warning("from rank 3")
    logging.getLogger(name).info("from rank 0")
    assert "from rank 3" not in capsys.readouterr().out
    text = (tmp_path / "log.txt").read_text()
    assert text.count("from rank 0") == 1 and f"{name} INFO: from rank 0" in text
    assert "from rank 3" in (tmp_path / "deep" / "own.txt.rank3").read_text()
    logging.getLogger(f"{name}.three").handlers.clear()


def test_loggers_share_a_file(name, tmp_path):
    for suffix in ("a", "b"):
        logger = setup_logger(str(tmp_path / "x.log"), 1, name=f"{name}.{suffix}")
        logger.info("by %s", suffix)
        logger.handlers.clear()
    text = (tmp_path / "x.log.rank1").read_text()
    assert "by a" in text and "by b" in text


def test_log_first_n_counts_lines_and_messages(caplog):
    caplog.set_level(logging.INFO)
    for i in range(5):
        log_first_n(logging.INFO, f"line {i}", n=2)
        log_first_n(logging.INFO, f"message {i % 2}", key="message")
        log_first_n(logging.INFO, f"both {i % 2}", n=2, key=("caller", "message"), name="x.y")
    messages = [record.getMessage() for record in caplog.records]
    assert [m for m in messages if "line" in m] == ["line 0", "line 1"]
    assert sorted(m for m in messages if "message" in m) == ["message 0", "message 1"]
    assert len([m for m in messages if "both" in m]) == 4
    names = {r.name for r in caplog.records if "both" in r.getMessage()}
    assert names == {"x.y"}
    assert {r.name for r in caplog.records if "line" in r.getMessage()} == {__name__}
    with pytest.raises(ValueError, match="key='place'"):
        log_first_n(logging.INFO, "m", key="place")


def test_log_every_n(caplog):
    caplog.set_level(logging.INFO)
    for i in range(7):
        log_every_n(logging.INFO, f"each third {i}", n=3)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["each third 0", "each third 3", "each third 6"]


def test_log_every_n_seconds(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    clock = iter([10.0, 12.0, 15.0, 15.1])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    for i in range(4):
        log_every_n_seconds(logging.INFO, f"at {i}", n=5)
    assert [record.getMessage() for record in caplog.records] == ["at 0", "at 2"]


def test_small_table():
    header, _, row = create_small_table({"AP": 12.34567, "n": 3}).splitlines()
    assert header.split() == ["|", "AP", "|", "n", "|"]
    assert row.split() == ["|", "12.346", "|", "3", "|"]
