"""What the README says is so: its examples are run, and what it prints is compared with what they print."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurestore.cli import COMMANDS, main
from featurestore.cli.exits import Exit
from featurestore.config import DEFAULT_LISTEN, ServeConfig
from featurestore.schema import compile_schema
from featurestore.server.serve import Server, open_store

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def blocks(kind: str) -> list[str]:
    return [text for found, text in BLOCKS if found == kind]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What `featurestore demo --keep` prints, and the store it keeps."""
    directory = tmp_path_factory.mktemp("readme") / "demo-store"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["demo", "--keep", str(directory)]) == Exit.OK
    return out.getvalue(), directory


@pytest.fixture(scope="module")
def address(demo: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """That store, served."""
    admin = tmp_path_factory.mktemp("admin") / "a.sock"
    config = ServeConfig(data=demo[1], listen="localhost:0", admin=f"unix:{admin}")
    with open_store(config) as engine, Server(engine, config) as server:
        yield str(server.address)


def test_the_table_shown_is_the_one_that_the_demo_prints(demo: tuple[str, Path]) -> None:
    assert blocks("text")[0] in demo[0]


def test_the_python_example_prints_what_stands_below_it(address: str) -> None:
    (source,) = blocks("python")
    assert DEFAULT_LISTEN in source
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(source.replace(DEFAULT_LISTEN, address), "README.md", "exec"), {})  # noqa: S102  our own
    assert out.getvalue() == blocks("text")[1]


def test_the_command_example_prints_what_stands_below_it(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (session,) = blocks("console")
    command, _, expected = session.partition("\n")
    command, _, n_lines = command.partition(" | head -")
    _, program, *words = shlex.split(command)
    assert program == "featurestore"
    assert main([*words, "--server", address]) == Exit.OK
    printed = capsys.readouterr().out.splitlines(keepends=True)
    assert "".join(printed[: int(n_lines)]) == expected


def test_the_schema_is_valid_and_makes_the_features_that_it_says() -> None:
    (source,) = blocks("yaml")
    names = [feature.name for feature in compile_schema(source).features]
    assert "customer.count_1d" in names
    assert "customer.mean_tx_amount_7d" in names
    assert len(names) == 12


def test_the_replay_example_makes_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = (text for text in blocks("sh") if "featurestore replay" in text)
    words = shlex.split(block.replace("\\\n", " "))
    out = tmp_path / words[-1]
    monkeypatch.chdir(REPOSITORY)
    assert main([*words[1:-1], str(out)]) == Exit.OK
    assert out.stat().st_size > 0


def test_every_command_it_names_exists_and_every_flag_of_it() -> None:
    lines = README.replace("\\\n", " ")
    named = re.findall(r"(?:^|`|\$ |bin/)featurestore ([a-z]+)((?: [^`\n]*)?)", lines, re.MULTILINE)
    assert len(named) > 10
    known = {command.name for command in COMMANDS}
    for name, rest in named:
        assert name in known, name
        flags = re.findall(r"(?<= )--[a-z-]+", rest.partition("&")[0])
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            main([name, "--help"])
        for flag in flags:
            assert re.search(rf"{flag}\b", out.getvalue()), (name, flag)


def test_every_file_it_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    for link in links:
        assert (REPOSITORY / link).exists(), link


def test_the_first_two_blocks_are_build_and_demo_then_tests() -> None:
    """.ci/run runs them as they stand."""
    first, second = blocks("sh")[:2]
    assert [line.split()[0] for line in first.splitlines()[-3:]] == [
        "python3",
        ".venv/bin/pip",
        ".venv/bin/featurestore",
    ]
    assert second.splitlines()[-1] == ".venv/bin/python -m pytest"


def test_as_many_modules_are_compiled_as_it_says() -> None:
    n = len(list((REPOSITORY / "featurestore").rglob("*.pyx")))
    assert f"{n} modules" in README


def test_it_can_be_read_in_one_sitting() -> None:
    lines = README.splitlines()
    assert len(lines) <= 200
    in_prose = [line for line in lines if not line.startswith(("$ ", "|"))]
    assert max(map(len, in_prose)) <= 120
