"""Compiled parts of the benchmarks: built when they are first needed, none of them in a wheel.

A module (Cython) or a program (C, C++) is kept under build/ by the content of all that it is made from, as
setup.py keeps the store's own modules, so that a second run builds nothing. What the machine lacks is a
NotInstalled that names the Debian package.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import Cython

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "build" / "benches"
C_FLAGS = ["-std=gnu11", "-O3", "-g1", "-fno-strict-aliasing", "-Wall", "-Wno-unused-function"]
CPP_FLAGS = ["-std=c++17", "-O3", "-g1"]
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "legacy_implicit_noexcept": False,
}


class NotInstalled(Exception):
    """Something that only this bench needs is not on this machine; the message says what to install."""


def module(name: str, header: str, library: str, package: str) -> ModuleType:
    """The Cython module `name`, such as benches.load.generator, linked with a C library."""
    if name in sys.modules:
        return sys.modules[name]
    source = ROOT / Path(*name.split(".")).with_suffix(".pyx")
    compiler = _compiler("CC", "cc", "gcc")
    # Its own headers and the package's: a struct that changed there changes what is compiled here.
    read = [source, *sorted(source.parent.glob("*.pxd")), *sorted((ROOT / "featurestore").rglob("*.pxd"))]
    flags = [*C_FLAGS, "-shared", "-fPIC", "-fvisibility=hidden", f"-I{sysconfig.get_path('include')}"]
    way = [flags, DIRECTIVES, library, Cython.__version__, sys.version, _version(compiler)]
    built = KEPT / f"{name}-{_digest(read, way)}.so"
    if not built.exists():
        _needs_header(compiler, "c", header, package)
        c_file = KEPT / f"{os.getpid()}.{name}.c"
        KEPT.mkdir(parents=True, exist_ok=True)
        directives = [part for key, value in DIRECTIVES.items() for part in ("-X", f"{key}={value}")]
        cython = [sys.executable, "-m", "cython", *directives, "-I", str(ROOT), str(source)]
        _run([*cython, "-o", str(c_file)])
        _compile([*compiler, *flags, str(c_file), f"-l{library}", "-pthread"], name, built)
        c_file.unlink()
    loader = importlib.machinery.ExtensionFileLoader(name, str(built))
    spec = importlib.util.spec_from_file_location(name, built, loader=loader)
    assert spec is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    loader.exec_module(made)
    return made


def program(source: Path, libraries: list[str], header: str, package: str) -> Path:
    """The program that a C or C++ file is, linked with libraries by their names in pkg-config."""
    is_c = source.suffix == ".c"
    compiler = _compiler("CC", "cc", "gcc") if is_c else _compiler("CXX", "c++", "g++")
    if shutil.which("pkg-config") is None:
        raise NotInstalled(f"{source.name} needs pkg-config: apt-get install pkg-config")
    found = _done("pkg-config", "--cflags", "--libs", *libraries)
    if found.returncode != 0:
        raise NotInstalled(f"{source.name} needs {' and '.join(libraries)}: apt-get install {package}")
    flags = C_FLAGS if is_c else CPP_FLAGS
    way = [flags, found.stdout, _version(compiler)]
    built = KEPT / f"{source.stem}-{_digest([source], way)}"
    if not built.exists():
        _needs_header(compiler, "c" if is_c else "c++", header, package)
        KEPT.mkdir(parents=True, exist_ok=True)
        _compile([*compiler, *flags, str(source), *shlex.split(found.stdout), "-pthread"], source.stem, built)
    return built


def _compiler(variable: str, *names: str) -> list[str]:
    said = os.environ.get(variable)
    if said:
        return shlex.split(said)
    for name in names:
        if shutil.which(name) is not None:
            return [name]
    raise NotInstalled(f"no {' or '.join(names)} here: apt-get install gcc g++")


def _version(compiler: list[str]) -> str:
    return _done(*compiler, "--version").stdout


def _digest(files: list[Path], way: list[object]) -> str:
    content = [(str(path.relative_to(ROOT)), path.read_bytes()) for path in files]
    return hashlib.sha256(repr((content, way)).encode()).hexdigest()[:16]


def _needs_header(compiler: list[str], language: str, header: str, package: str) -> None:
    if _done(*compiler, "-E", "-x", language, "-", given=f"#include <{header}>\n").returncode != 0:
        raise NotInstalled(f"there is no <{header}> here: apt-get install {package}")


def _compile(command: list[str], name: str, built: Path) -> None:
    """Into a file of this process's own first: two that build at once do not see each other's half. What was
    built of older sources goes.
    """
    ours = KEPT / f"{os.getpid()}.{built.name}"
    _run([*command, "-o", str(ours)])
    for older in KEPT.glob(f"{name}-*"):
        older.unlink(missing_ok=True)
    ours.replace(built)


def _run(command: list[str]) -> None:
    done = _done(*command)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}")


def _done(*command: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, input=given, capture_output=True, text=True, check=False)
