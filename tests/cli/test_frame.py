"""The frame of the command line: help, exit codes, one-line errors, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import ModuleType

import pytest

from featurestore.cli import COMMANDS, main
from featurestore.cli.exits import MEANINGS, Exit
from featurestore.cli.frame import Command, run_command_line
from featurestore.errors import ConfigError, SchemaError, StorageError, UnavailableError


@pytest.fixture
def run_body(monkeypatch):
    """Runs a command whose body is the given function; returns the exit code."""

    def run(body, *words):
        module = ModuleType("featurestore_test_command")
        module.add_arguments = lambda parser: parser.add_argument("--number", type=int)
        module.run = body
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return run_command_line([Command("try", module.__name__, "tries")], ["try", *words])

    return run


def raising(error):
    def body(_arguments):
        raise error

    return body


def test_exit_codes_are_what_scripts_were_told():
    assert {code.name: int(code) for code in Exit} == {
        "OK": 0, "ERROR": 1, "USAGE": 2, "REFUSED": 3, "UNAVAILABLE": 4,
        "INTERRUPTED": 130, "BROKEN_PIPE": 141, "TERMINATED": 143,
    }  # fmt: skip
    assert set(MEANINGS) == set(Exit)


def test_help_names_every_command_and_every_exit_code(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert command.name in text
    for code, meaning in MEANINGS.items():
        assert f"{code.value:>3}  {meaning}" in text


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_help_of_a_command_teaches_with_examples(capsys, command):
    assert main([command.name, "--help"]) == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert f"featurestore {command.name} " in text


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from featurestore.cli import main; main(['--help']); main(['replay', '--help']);"
        "print([m for m in ('pyarrow', 'yaml', 'lmdb', 'tqdm', 'featurestore.core', 'featurestore.schema')"
        " if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("featurestore ")


@pytest.mark.parametrize(
    "words", [[], ["repaly"], ["--nonsense"], ["check"], ["check", "a.yaml", "-o", "xml"]]
)
def test_a_wrong_command_line_is_usage(capsys, words):
    assert main(words) == Exit.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: featurestore" in captured.err
    assert "error: " in captured.err


def test_options_are_not_abbreviated(run_body):
    assert run_body(lambda arguments: Exit.OK, "--num", "1") == Exit.USAGE
    assert run_body(lambda arguments: Exit(arguments.number), "--number", "3") == Exit.REFUSED


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StorageError("the disk is gone"), Exit.ERROR),
        (SchemaError("bad", path="f.yaml", line=3), Exit.ERROR),
        (ConfigError("no such format"), Exit.USAGE),
        (UnavailableError("no server"), Exit.UNAVAILABLE),
    ],
)
def test_an_error_of_ours_is_one_line(run_body, capsys, monkeypatch, error, code):
    monkeypatch.delenv("FEATURESTORE_TRACEBACK", raising=False)
    assert run_body(raising(error)) == code
    assert capsys.readouterr().err == f"featurestore: error: {error}\n"


def test_the_traceback_is_there_when_asked_for(run_body, capsys, monkeypatch):
    monkeypatch.setenv("FEATURESTORE_TRACEBACK", "1")
    assert run_body(raising(StorageError("gone"))) == Exit.ERROR
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert text.endswith("\nfeaturestore: error: gone\n")


def test_a_defect_keeps_its_traceback(run_body):
    with pytest.raises(ZeroDivisionError):
        run_body(lambda arguments: 1 // 0)


def test_a_missing_dependency_says_how_to_get_it(run_body, capsys):
    assert run_body(raising(ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow"))) == Exit.ERROR
    assert (
        "needs pyarrow, which is not installed; pip install 'featurestore[server]'" in capsys.readouterr().err
    )


def test_a_missing_module_of_ours_is_a_defect(run_body):
    with pytest.raises(ModuleNotFoundError):
        run_body(raising(ModuleNotFoundError("No module named 'featurestore.x'", name="featurestore.x")))


def test_ctrl_c_is_said_in_one_line(run_body, capsys):
    assert run_body(raising(KeyboardInterrupt())) == Exit.INTERRUPTED
    assert capsys.readouterr().err == "featurestore: interrupted\n"


def test_sigterm_unwinds_and_the_handler_before_comes_back(run_body, capsys):
    before = signal.getsignal(signal.SIGTERM)
    cleaned = []

    def body(_arguments):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except Exception:
            cleaned.append("stopped by mistake")
        finally:
            cleaned.append("yes")

    assert run_body(body) == Exit.TERMINATED
    assert cleaned == ["yes"]
    assert signal.getsignal(signal.SIGTERM) is before
    assert "SIGTERM" in capsys.readouterr().err


def test_a_sigterm_that_an_import_would_swallow_still_ends_the_command(run_body, tmp_path, monkeypatch):
    """As imports do that look for something elsewhere when it fails here."""
    (tmp_path / "imports_something.py").write_text(
        "import os, signal, time\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(0.1)\n"
        "except BaseException:\n"
        "    pass\n"
        "done = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    before = signal.getsignal(signal.SIGALRM)
    imported = []

    def body(_arguments):
        import imports_something

        imported.append(imports_something.done)
        time.sleep(10)

    assert run_body(body) == Exit.TERMINATED
    assert imported == [True]
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "featurestore", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("featurestore ")
