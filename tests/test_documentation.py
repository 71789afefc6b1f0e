"""Every command in README and docs names files and options that exist."""

import re
import runpy
import shlex
import sys
from functools import partial

import pytest

from tests.documentation import PAGES, commands, small_pipeline
from wsis.runner import ROOT

COMMANDS = sorted({command for page in PAGES for command in commands(page)})


def help_text(command: list[str], capsys, monkeypatch) -> str:
    """What the program of a command prints for --help."""
    if command[:2] == ["python", "-m"]:
        subcommand = [word for word in command[3:4] if not word.startswith("--")]
        monkeypatch.setattr(sys, "argv", [command[2], *subcommand, "--help"])
        run = partial(runpy.run_module, command[2], run_name="__main__")
    elif command[0] == "wsis":
        step = [word for word in command[2:3] if not word.startswith("-")]  # of wsis clues
        monkeypatch.setattr(sys, "argv", ["wsis", command[1], *step, "--help"])
        run = partial(runpy.run_module, "wsis", run_name="__main__")
    elif "scripts/weaksam" in command[1]:
        monkeypatch.setattr(sys, "argv", ["wsis", "run", "weaksam", "--help"])
        run = partial(runpy.run_module, "wsis", run_name="__main__")
    else:  # scripts/quickstart.sh runs tools/quickstart.py, the scripts of the subsets the pipeline
        names = ("quickstart", "gpu_check", "pipeline")
        name = next(n for n in names if n in command[1] or n == "pipeline")
        script = ROOT / (command[1] if command[0] == "python" else f"tools/{name}.py")
        monkeypatch.setattr(sys, "argv", [script.name, "--help"])
        run = partial(runpy.run_path, str(script), run_name="__main__")
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_commands_exist(command, capsys, monkeypatch):
    words = shlex.split(command)
    while "=" in words[0]:  # VARIABLE=value before the command
        words = words[1:]
    program = words[1]
    if program.startswith(("tools/", "scripts/")):
        assert (ROOT / program).is_file()
    if "--config-file" in words:
        assert (ROOT / words[words.index("--config-file") + 1]).is_file()
    # A word with blanks is the value of an option: options for another program.
    options = {w.split("=")[0] for w in words[1:] if w.startswith("--") and " " not in w}
    if program in ("scripts/test.sh", "scripts/setup_env.sh"):
        assert not options
        return
    missing = {option for option in options if option not in help_text(words, capsys, monkeypatch)}
    assert not missing, f"{program} does not know {missing}"


def test_readme_shows_the_small_run_that_the_tests_make():
    (command,) = (c for c in commands(ROOT / "README.md") if c.startswith("NUM_GPUS=0 "))
    assert shlex.split(command) == ["NUM_GPUS=0", "OUTPUT_DIR=output/tiny", *small_pipeline()]


def test_there_are_commands_to_check():
    assert len(COMMANDS) > 15


def test_tests_that_the_docs_name_exist():
    named = {
        found
        for page in PAGES
        for found in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8"))
    }
    missing = [
        f"{file}::{test}"
        for file, test in named
        if f"def {test}(" not in (ROOT / file).read_text(encoding="utf-8")
    ]
    assert named and not missing
