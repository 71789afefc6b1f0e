"""How programs end: mistakes in one line, bugs with a traceback, wherever they arise."""

import argparse
import sys
import types

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from detectron2.data.datasets.inline import register_inline_datasets
from weaklabels.files import read_json
from weaksam.segmenters.extras import require_extra
from wsis.cli import main as cli
from wsis.cli.flags import GLOSSARY, OLD_SPELLINGS, add_flag, current_spelling
from wsis.config import find_config, load_config
from wsis.errors import user_message
from wsis.launcher import Job, RankError, launch
from wsis.training import class_names


class Missing(Dataset):
    """A dataset whose items cannot be read."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return read_json("/nowhere/labels.json")


def mistake():
    register_inline_datasets(["bad name=labels.json:images"])


def mistake_of_a_worker():
    list(DataLoader(Missing(), num_workers=1))


def missing_package():
    require_extra("no_such_module", "no-such-package")


def bug():
    return [][1]


def bug_with_the_type_of_a_mistake():
    return int("seven")


def bug_in_an_import():
    from wsis.errors import no_such_name  # noqa: F401


def full_disk():
    with open("/dev/full", "w") as file:
        file.write("text")


def full_disk_while_saving():
    with open("/dev/full", "wb") as file:
        torch.save(torch.zeros(10**6), file)


def no_permission():
    raise PermissionError(13, "Permission denied", "/root/labels.json")


def interrupt():
    raise KeyboardInterrupt


def mistake_in_one_rank():
    """Rank 1 fails while rank 0 waits for it."""
    if torch.distributed.get_rank() == 1:
        mistake()
    torch.distributed.barrier()


def mistake_of_a_workers_rank():
    if torch.distributed.get_rank() == 0:
        mistake_of_a_worker()
    torch.distributed.barrier()


def rank_and_size(factor):
    return factor * torch.distributed.get_rank() + 10 * torch.distributed.get_world_size()


@pytest.fixture
def end(monkeypatch, capsys):
    """Run a command whose work is a function; its exit code and what it says to stderr."""

    def run(function, words=(), argv=None, **names):
        module = types.ModuleType("wsis.cli.test_end", "A test.")
        module.add_arguments = lambda parser: parser.add_argument("--resume", action="store_true")
        module.run = lambda args: function() or 0
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.COMMANDS, "end", "test_end")
        if argv is not None:
            monkeypatch.setattr(sys, "argv", argv)
        code = cli.program("end", None if argv is not None else words)
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (mistake, "the name 'bad name' before '=' is not valid"),
        (mistake_of_a_worker, "/nowhere/labels.json: no such file"),
        (missing_package, "needs the package no-such-package, which is not installed"),
        (full_disk, "[Errno 28] No space left on device"),
        (full_disk_while_saving, "[Errno 28] No space left on device"),
        (no_permission, "[Errno 13] Permission denied: '/root/labels.json'"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(end, function, message):
    code, error = end(function)
    assert code == 2
    assert error.startswith("wsis end: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (bug, IndexError),
        (bug_with_the_type_of_a_mistake, ValueError),
        (bug_in_an_import, ImportError),
    ],
)
def test_a_bug_keeps_its_traceback(end, function, kind):
    with pytest.raises(kind):
        end(function)


def test_a_key_is_told_without_quotes_around_the_sentence():
    with pytest.raises(KeyError) as caught:
        class_names("no_such_dataset")
    message = user_message(caught.value)
    assert "'no_such_dataset' is not registered" in message and not message.startswith(("'", '"'))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (mistake_in_one_rank, "the name 'bad name' before '=' is not valid"),
        (mistake_of_a_workers_rank, "/nowhere/labels.json: no such file"),
    ],
)
def test_a_mistake_in_a_spawned_rank_is_told_as_here(end, function, message):
    """Not as the lost connection that the other rank reports."""
    code, error = end(lambda: launch(Job(num_gpus=0, num_processes=2), function))
    assert code == 2
    (line,) = [line for line in error.splitlines() if line.startswith("wsis end: ")]
    assert message in line and "Traceback" not in error


@pytest.mark.slow
def test_a_bug_in_a_spawned_rank_shows_that_ranks_traceback(end):
    with pytest.raises(RankError, match=r"(?s)in bug\n.*IndexError: list index"):
        end(lambda: launch(Job(num_gpus=0, num_processes=2), bug))


@pytest.mark.slow
def test_a_job_returns_what_its_first_process_returns():
    assert launch(Job(num_gpus=0, num_processes=2), rank_and_size, 1) == 20
    assert launch(Job(num_gpus=0), len, "here") == 4


@pytest.mark.parametrize(
    ("argv", "names", "again"),
    [
        (["/bin/wsis"], {}, "wsis end"),
        (["tools/train_net.py", "a b"], {}, "python tools/train_net.py 'a b'"),
        (["tools/train_net.py"], {"RESUME": "--resume"}, "python tools/train_net.py --resume"),
        (["x.py", "--resume"], {"RESUME": "--resume"}, "python x.py --resume"),
    ],
)
def test_ctrl_c_ends_with_what_to_type(end, argv, names, again):
    parser = {"add_arguments": lambda p: [p.add_argument("w", nargs="?"), add_resume(p)]}
    code, error = end(interrupt, argv=argv, **parser, **names)
    assert code == 130
    assert error.splitlines()[-2:] == ["wsis end: interrupted; to go on:", f"  {again}"]


def add_resume(parser):
    parser.add_argument("--resume", action="store_true")


def test_the_list_of_commands_has_a_line_of_help_for_each(capsys):
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, module in cli.COMMANDS.items():
        assert f"  {name} " in "\n".join(lines)
        assert any(line.endswith(cli.help_line(module)) for line in lines if name in line)
    assert cli.main(["trian"]) == 2
    assert "unknown command 'trian'; expected one of train, " in capsys.readouterr().err


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_describes_itself(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.program(command, ["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: wsis {command} ")
    assert cli.help_line(cli.COMMANDS[command]) in text
    for old in OLD_SPELLINGS.get(command, {}):
        assert f"{old} " not in text and f"{old}," not in text


@pytest.mark.parametrize("command", OLD_SPELLINGS)
def test_old_spellings_become_flags_that_the_command_has(command):
    known = cli.make_parser(command)._option_string_actions
    for old, new in OLD_SPELLINGS[command].items():
        assert old not in known and new in known
        assert current_spelling(command, [old, "x", f"{old}=y"]) == [new, "x", f"{new}=y"]


def test_a_flag_of_the_glossary_is_said_once():
    parser = argparse.ArgumentParser()
    add_flag(parser, "--records", required=True)
    add_flag(parser, "--seed", default=3, help="another seed")
    args = parser.parse_args(["--records", "a.jsonl"])
    assert (args.records.name, args.seed) == ("a.jsonl", 3)
    assert GLOSSARY["--records"].help in parser.format_help()
    assert "another seed" in parser.format_help()


@pytest.mark.parametrize("name", ["SOLOv2/R50_3x.yaml", "configs/SOLOv2/R50_3x.yaml"])
def test_a_shipped_config_is_found_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(name, num_gpus=0).MODEL.META_ARCHITECTURE == "SOLOv2"
    (tmp_path / "own.yaml").write_text("SEED: 7")
    assert load_config("own.yaml", num_gpus=0).SEED == 7
    with pytest.raises(FileNotFoundError, match="no shipped config of this name"):
        find_config("SOLOv2/R51.yaml")


@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        ("SEED: [", (), "bad.yaml"),
        ("SEED: seven", (), "bad.yaml: .*SEED"),
        ("SEED: 7", ("SEED",), "config overrides SEED: .*pairs"),
        ("SEED: 7", ("SEED", "seven"), "config overrides SEED seven"),
        ("SEED: 7", ("SOLVER.STEPS", "(1,"), "config overrides SOLVER.STEPS"),
    ],
)
def test_a_bad_config_is_named(tmp_path, content, overrides, message):
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_config(str(tmp_path / "bad.yaml"), overrides, num_gpus=0)
