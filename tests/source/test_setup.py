"""setup.py: which modules are built, by what pkg-config finds and FEATURESTORE_NATIVE says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from source import tree

NATIVE = {f"featurestore.server.{name}" for name in ("connection", "host", "loop", "tls")}
# setup.py as it is, but that it says what it would build.
LIST = """
import json, runpy, setuptools
setuptools.setup = lambda **given: print(json.dumps(
    {extension.name: extension.extra_link_args for extension in given["ext_modules"]}))
runpy.run_path("setup.py", run_name="__main__")
"""
# Its build of no module at all, to a directory.
BUILD = """
import runpy, setuptools, sys
def build(**given):
    command = given["cmdclass"]["build_ext"](setuptools.Distribution())
    command.extensions, command.build_lib = [], sys.argv[1]
    command.build_extensions()
setuptools.setup = build
runpy.run_path("setup.py", run_name="__main__")
"""


def run(
    directory: Path, finds: str | None, wanted: str | None, *program: str
) -> subprocess.CompletedProcess[str]:
    """`finds`: a pattern of the libraries that there are; None: there is no pkg-config."""
    commands = directory / "bin"
    commands.mkdir()
    if finds is not None:
        fake = commands / "pkg-config"
        fake.write_text(f'#!/bin/sh\ncase "$*" in {finds}) echo -lfake ;; *) exit 1 ;; esac\n')
        fake.chmod(0o755)
    for needed in ("sh", "gcc", "cc"):
        if (found := shutil.which(needed)) is not None:
            (commands / needed).symlink_to(found)
    environment = {name: value for name, value in os.environ.items() if name != "FEATURESTORE_NATIVE"}
    environment |= {"PATH": str(commands)} | ({} if wanted is None else {"FEATURESTORE_NATIVE": wanted})
    return subprocess.run(
        [sys.executable, "-c", *(program or (LIST,))],
        cwd=tree.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def built(done: subprocess.CompletedProcess[str]) -> dict[str, list[str]]:
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("wanted", [None, "1"])
def test_with_both_libraries_all_is_built_and_linked(tmp_path: Path, wanted: str | None) -> None:
    done = run(tmp_path, "*", wanted)
    modules = built(done)
    assert modules.keys() >= NATIVE
    linked = {name for name, arguments in modules.items() if "-lfake" in arguments}
    assert linked == NATIVE - {"featurestore.server.loop"}, "which calls no library itself"
    assert "without" not in done.stderr


@pytest.mark.parametrize("finds", [None, "none", "*openssl*", "*libnghttp2*"])
def test_without_a_library_the_native_transport_is_left_out_which_is_said(
    tmp_path: Path, finds: str | None
) -> None:
    done = run(tmp_path, finds, None)
    modules = built(done)
    assert not modules.keys() & NATIVE
    assert {"featurestore.server.codec", "featurestore.server.dispatcher"} <= modules.keys()
    assert done.stderr.count("built without the native transport") == 1


def test_it_may_be_left_out_without_a_word(tmp_path: Path) -> None:
    done = run(tmp_path, "*", "0")
    assert not built(done).keys() & NATIVE
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("finds", "missing"),
    [
        (None, "libnghttp2 >= 1.43, openssl >= 3.0"),
        ("none", "libnghttp2 >= 1.43, openssl >= 3.0"),
        ("*openssl*", "libnghttp2 >= 1.43"),
        ("*libnghttp2*", "openssl >= 3.0"),
    ],
)
def test_when_it_is_asked_for_a_missing_library_fails_the_build_and_is_named(
    tmp_path: Path, finds: str | None, missing: str
) -> None:
    done = run(tmp_path, finds, "1")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"FEATURESTORE_NATIVE=1, and pkg-config does not find {missing}; on Debian install"
    )


def test_what_is_left_out_is_not_left_from_the_build_before(tmp_path: Path) -> None:
    """The server would find it, and use it."""
    server = tmp_path / "featurestore" / "server"
    server.mkdir(parents=True)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for name in ("connection", "host", "loop", "tls", "codec"):
        (server / f"{name}{suffix}").touch()
    done = run(tmp_path, "*", "0", BUILD, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in server.iterdir()] == [f"codec{suffix}"]


def test_a_module_that_was_kept_replaces_a_newer_one(tmp_path: Path) -> None:
    """As when somebody goes back to sources that were built before, of which the module is older."""
    shutil.copy(tree.ROOT / "setup.py", tmp_path)
    (tmp_path / "featurestore").mkdir()
    source = tmp_path / "featurestore" / "small.pyx"
    environment = os.environ | {"FEATURESTORE_NATIVE": "0"}
    environment.pop("PYTHONPATH", None)

    def say(what: str) -> str:
        source.write_text(f"SAID = {what!r}\n")
        for command in (
            ["setup.py", "-q", "build_ext", "--inplace"],
            ["-c", "from featurestore.small import SAID; print(SAID)"],
        ):
            done = subprocess.run(
                [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True,
                timeout=120, check=True,
            )  # fmt: skip
        return done.stdout.strip()

    assert say("first") == "first"
    (kept,) = tmp_path.glob("build/kept-*/*.so")
    first = kept.read_bytes()
    assert say("second") == "second"
    kept.write_bytes(first)
    os.utime(kept, (0, 0))
    assert say("first") == "first"


def test_what_is_built_is_hardened() -> None:
    """Relocations are resolved and sealed when a module is loaded, and a smashed stack is noticed."""
    if shutil.which("readelf") is None:
        pytest.skip("there is no readelf")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    modules = sorted(tree.PACKAGE.rglob(f"*{suffix}"))
    assert len(modules) > 30
    for module in modules:
        told = subprocess.run(
            ["readelf", "--wide", "--segments", "--dynamic", "--dyn-syms", str(module)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "GNU_RELRO" in told, module
        assert "BIND_NOW" in told or "NOW" in told.split("FLAGS_1", 1)[-1].split("\n", 1)[0], module
        stack = next(line for line in told.splitlines() if "GNU_STACK" in line)
        assert "RWE" not in stack, module
        # Modules of a few functions may have no array on any stack.
        assert "__stack_chk_fail" in told or module.stat().st_size < 200_000, module
