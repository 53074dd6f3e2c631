"""What all commands share: arguments, one-line errors, signals, exit codes.

Results go to standard output; summaries, progress and errors to standard error. An error that featurestore
raises on purpose is one line, `featurestore: error: …`; FEATURESTORE_TRACEBACK=1 shows where it came from.
Any other exception is a defect and keeps its traceback. Where standard input, output or error is closed,
/dev/null stands in for it before anything else is opened. SIGTERM unwinds the stack as Ctrl-C does, so that a
`with` block cleans up behind itself; a command that drains in its own way sets its own handlers.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol, cast

from featurestore.cli.exits import Exit, exit_of, table
from featurestore.errors import ConfigError, FeatureStoreError
from featurestore.stdio import fill_standard_descriptors

DESCRIPTION = """\
Real-time velocity features: how often did this key do this in the last minutes, hours, days?
Windows are exact until a key is hot, and carry true bounds after."""

EPILOG = """\
examples:
  featurestore check card-fraud.yaml
  featurestore replay tx.parquet --schema card-fraud.yaml --event transaction \\
      --service fraud --out train.parquet
  featurestore COMMAND --help     says more about one command, with examples

exit codes:
{exits}

environment:
  FEATURESTORE_TRACEBACK=1   show the traceback of every error"""


AGAIN_S = 0.02  # after which a SIGTERM in the midst of an import is looked at again


class CommandModule(Protocol):
    """What the module of a command holds; FLAGS besides, where settings are given by flags of other names."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...
    def run(self, arguments: argparse.Namespace) -> Exit: ...


@dataclass(frozen=True)
class Command:
    name: str
    module: str
    summary: str

    def load(self) -> CommandModule:
        return cast(CommandModule, importlib.import_module(self.module))


class _Terminated(BaseException):
    """SIGTERM arrived. Not an Exception: nothing but the frame may stop it."""


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **_: object) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib import metadata

        try:
            version = metadata.version("featurestore")
        except metadata.PackageNotFoundError:  # run from a source tree
            version = "(not installed)"
        print(f"featurestore {version}")
        parser.exit(Exit.OK)


def run_command_line(commands: Sequence[Command], argv: list[str] | None = None) -> int:
    """Runs the command that `argv` (default: the process's) names and returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    try:
        _complete_standard_streams()
        with _sigterm_unwinds():
            code = _run(commands, words)
            sys.stdout.flush()
            return code
    except FeatureStoreError as error:
        _print_error(str(error))
        return exit_of(error)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "featurestore":
            raise
        _print_error(
            f"this command needs {error.name}, which is not installed; "
            f"pip install 'featurestore[server]' brings it"
        )
        return Exit.ERROR
    except BrokenPipeError:
        # What is still buffered must not raise again when the interpreter flushes at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.BROKEN_PIPE
    except KeyboardInterrupt:
        print("featurestore: interrupted", file=sys.stderr)
        return Exit.INTERRUPTED
    except _Terminated:
        print("featurestore: stopped by SIGTERM", file=sys.stderr)
        return Exit.TERMINATED


def _complete_standard_streams() -> None:
    """Before anything else is opened, so that no file or connection takes the place of one that is closed."""
    fill_standard_descriptors()
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed when Python started
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  it lasts


def _run(commands: Sequence[Command], words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="featurestore",
        description=DESCRIPTION,
        epilog=EPILOG.format(exits=table()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version)
    choices = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")
    asked: CommandModule | None = None
    for command in commands:
        subparser = choices.add_parser(
            command.name,
            help=command.summary,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if words[:1] == [command.name]:  # the others are not imported
            asked = command.load()
            asked.add_arguments(subparser)
    try:
        arguments = parser.parse_args(words)
    except SystemExit as stop:  # argparse has printed the help or what is wrong
        sys.stdout.flush()
        return int(stop.code or 0)
    if asked is None:
        raise AssertionError(f"{words[0]} parsed as a command but was not loaded")
    try:
        return asked.run(arguments)
    except ConfigError as error:
        raise _in_flags(error, getattr(asked, "FLAGS", {})) from error


def _in_flags(error: ConfigError, flags: Mapping[str, str]) -> ConfigError:
    """The error in the words of the command line: `--max-memory` where it names `max_memory_bytes`, and that
    behind it, if it says the unit."""
    if error.setting is None or error.setting not in flags:
        return error
    flag = flags[error.setting]
    named = flag if flag.strip("-").replace("-", "_") == error.setting else f"{flag} ({error.setting})"
    return ConfigError(named + str(error).removeprefix(error.setting))


@contextlib.contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    def unwind(_number: int, frame: FrameType | None) -> None:
        if _is_importing(frame):
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
            return
        raise _Terminated

    def again(_number: int, _frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)  # to whoever handles it by now

    try:
        before = signal.signal(signal.SIGTERM, unwind)
    except ValueError:  # not the main thread: someone else's process, someone else's signals
        yield
        return
    before_alarm = signal.signal(signal.SIGALRM, again)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before_alarm)
        signal.signal(signal.SIGTERM, before)


def _is_importing(frame: FrameType | None) -> bool:
    """An import may swallow what is raised inside it, and go on to look elsewhere for what it wanted."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _print_error(message: str) -> None:
    """For the exception being handled."""
    if os.environ.get("FEATURESTORE_TRACEBACK") == "1":
        traceback.print_exc()
    print(f"featurestore: error: {message}", file=sys.stderr)


def add_output_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        dest="output",
        choices=("text", "json"),
        default="text",
        help="how to print the result (default: text)",
    )


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object to standard output; NaN and infinities are refused here rather than by its reader."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
