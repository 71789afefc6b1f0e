"""Every command in README and docs names files and options that exist."""

import importlib
import shlex

import pytest

from tests.documentation import PAGES, commands
from tools.pipeline import ROOT

COMMANDS = sorted({command for page in PAGES for command in commands(page)})


def help_text(command: list[str], capsys) -> str:
    """What the program of a command prints for --help."""
    if command[:3] == ["python", "-m", "maskrefinenet"]:
        module, arguments = "maskrefinenet.__main__", [command[3], "--help"]
    elif command[0] == "python":
        module, arguments = command[1].removesuffix(".py").replace("/", "."), ["--help"]
    else:  # scripts/quickstart.sh runs tools/quickstart.py, the scripts of the subsets the pipeline
        name = "quickstart" if "quickstart" in command[1] else "pipeline"
        module, arguments = f"tools.{name}", ["--help"]
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(module).main(arguments)
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_commands_exist(command, capsys):
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
    missing = {option for option in options if option not in help_text(words, capsys)}
    assert not missing, f"{program} does not know {missing}"


def test_there_are_commands_to_check():
    assert len(COMMANDS) > 15
