"""Locks of outputs: one writer at a time, freed by a kill, and no files left behind."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from weaklabels.files import atomic_text
from weaklabels.locks import OutputInUse, job_lock, output_lock

HOLD = """
import sys, time
from weaklabels.files import atomic_text
from weaklabels.locks import output_lock
with output_lock(sys.argv[1]), atomic_text(sys.argv[1]) as file:
    file.write("half of it")
    file.flush()
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other_process(tmp_path):
    """A process that holds the lock of tmp_path/out.json and is writing it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out.json")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_another_process_is_refused_and_told_who_writes(tmp_path, other_process):
    with pytest.raises(OutputInUse) as caught, output_lock(tmp_path / "out.json"):
        raise AssertionError("the lock was given twice")
    message = str(caught.value)
    assert str(tmp_path / "out.json") in message and f"process {other_process.pid}" in message
    assert socket.gethostname() in message
    with output_lock(tmp_path / "other.json"):
        pass


def test_a_killed_process_holds_nothing_and_its_files_go(tmp_path, other_process):
    assert len(names(tmp_path)) == 2  # the lock and the partial file
    other_process.send_signal(signal.SIGKILL)
    other_process.wait()
    with output_lock(tmp_path / "out.json"):
        assert names(tmp_path) == [".out.json.lock"]
    assert names(tmp_path) == []


def test_what_a_living_process_writes_stays(tmp_path, other_process):
    with output_lock(tmp_path):  # of the folder in which it writes
        assert len(names(tmp_path)) == 2
    assert other_process.poll() is None


def test_a_process_may_lock_its_output_again(tmp_path):
    path = tmp_path / "out.json"
    with output_lock(path):
        with output_lock(path), atomic_text(path) as file:
            file.write("whole")
        assert names(tmp_path) == [".out.json.lock", "out.json"]
    assert names(tmp_path) == ["out.json"] and path.read_text() == "whole"


def test_an_error_frees_the_lock(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), output_lock(tmp_path / "deep" / "out.json"):
            raise ZeroDivisionError
    assert names(tmp_path / "deep") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_in_one_that_cannot_be_written_is_locked_inside(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    tmp_path.chmod(0o555)
    try:
        with output_lock(folder):
            assert names(folder) == [".lock"]
    finally:
        tmp_path.chmod(0o755)


def test_all_processes_of_a_job_hear_of_a_taken_lock(tmp_path, other_process):
    told = []

    def gather(value):
        told.append(value)
        return [told[0]]

    for is_first in (True, False):
        with pytest.raises(OutputInUse), job_lock(tmp_path / "out.json", is_first, gather):
            raise AssertionError("the lock was given twice")
    assert told[0] and told[1] is None
