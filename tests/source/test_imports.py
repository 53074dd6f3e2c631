"""Who imports whom? Down only, and each outside package in one place.

The tables below are the architecture: featurestore/__init__.py tells it in words, and every map of a package
is held to the imports too. Counted are import, from-import and cimport, wherever they stand.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

import featurestore
from source import tree

# What each part of the package knows of the others, exactly. Top to bottom as on the map in its docstring.
PARTS = {
    "cli": "client config demo errors files plan schema server stdio storage training",
    "demo": "client config errors server storage",
    "client": "columns errors exported outcome plan refusals thrift v1",
    "server": "clock config core engine errors niceness outcome plan schema storage v1",
    "config": "errors",
    "training": "columns core errors files outcome plan refusals schema",
    "engine": "clock core errors niceness plan schema storage",
    "storage": "clock core errors plan stdio",
    "core": "columns errors plan",
    "schema": "errors plan",
    "files": "columns errors outcome plan refusals stdio thrift",
    "refusals": "columns outcome plan",
    "columns": "errors exported outcome plan",
    "exported": "errors",
    "niceness": "",
    "thrift": "",
    "stdio": "errors",
    "clock": "",
    "plan": "",
    "outcome": "",
    "errors": "",
    "v1": "",
}
# The package itself has names that are found when they are first used, and the command.
NAMES = {"featurestore": {"client", "errors", "outcome", "training"}, "featurestore.__main__": {"cli"}}

# Packages from elsewhere, and the only parts that know them. The first four are what a client needs.
OUTSIDE = {
    "numpy": "client columns core demo files refusals server storage training",
    "grpc": "client server v1",
    "google": "client server v1",
    "typing_extensions": "",
    "grpc_health": "server",
    "grpc_reflection": "server",
    "prometheus_client": "server",
    "lmdb": "storage.lmdb_api",
    "pyarrow": "exported files training",
    "tqdm": "cli",
    "yaml": "schema.document",
}

# core knows no file, no socket and no clock: this is all it has of Python's library and of C's.
CORE_LIBRARY = {"__future__", "hashlib", "math", "statistics", "struct", "typing"}
CORE_C = {
    "libc.float",
    "libc.math",
    "libc.stdint",
    "libc.stdlib",
    "libc.string",
    "cpython.buffer",
    "cpython.bytes",
    "cython",
}
CORE_HEADERS = {
    "<pthread.h>", "<sched.h>", "<stddef.h>", "<stdint.h>", "<stdlib.h>", "<string.h>", "<sys/mman.h>",
    "<sanitizer/asan_interface.h>",
}  # fmt: skip

IMPORTS = [
    each
    for files in (tree.PYTHON, tree.CYTHON, tree.HEADERS)
    for path in files.values()
    for each in tree.imports(path)
]


def part_of(module: str) -> str:
    """cli, core, ...; "" for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def is_of(module: str, part: str) -> bool:
    return f"{module}.".startswith(f"featurestore.{part}.")


def test_each_part_knows_what_the_table_says() -> None:
    found: dict[str, set[str]] = {part: set() for part in PARTS}
    for each in IMPORTS:
        module, other = tree.module_of(each.path), part_of(each.module)
        if each.module.partition(".")[0] != "featurestore" or module in NAMES:
            continue
        assert other in PARTS, f"{each}, which is no part of the package"
        if other != part_of(module):
            assert other in PARTS[part_of(module)].split(), f"{each}: {part_of(module)} may not know {other}"
            found[part_of(module)].add(other)
    assert found == {part: set(known.split()) for part, known in PARTS.items()}, "the table allows too much"


@pytest.mark.parametrize("module", NAMES)
def test_the_package_itself_knows_only_its_public_names(module: str) -> None:
    path = tree.PYTHON[module]
    ours = {part_of(each.module) for each in tree.imports(path) if each.module.startswith("featurestore")}
    assert ours == NAMES[module]


def test_the_table_goes_down_the_map_of_the_package() -> None:
    text = featurestore.__doc__ or ""
    lines = re.findall(r"^    ([a-z0-9]+(?:, [a-z0-9]+)*)(?:  | \()", text, re.MULTILINE)
    order = [name for line in lines for name in line.split(", ")]
    assert order == list(PARTS)
    for part, known in PARTS.items():
        assert all(order.index(part) < order.index(other) for other in known.split()), part


@pytest.mark.parametrize("package", ["client", "core", "demo", "files", "server", "storage", "training"])
def test_a_package_has_all_its_modules_on_its_map_and_arrows_point_down_it(package: str) -> None:
    prefix = f"featurestore.{package}."
    text = tree.PYTHON[prefix[:-1]].read_text(encoding="utf-8").split('"""')[1]
    lines = re.findall(r"^ *([a-z_0-9]+(?:, [a-z_0-9]+)*)  +\S", text, re.MULTILINE)
    modules = {module.removeprefix(prefix) for module in tree.EVERYTHING if module.startswith(prefix)}
    order = [name for line in lines for name in line.split(", ") if name in modules]
    assert sorted(order) == sorted(modules)
    for each in IMPORTS:
        module, other = tree.module_of(each.path).removeprefix(prefix), each.module.removeprefix(prefix)
        if module in modules and other in modules and module != other:
            assert order.index(module) < order.index(other), f"{each}, which is above it on the map"


def test_outside_packages_are_known_in_their_places_only() -> None:
    library = {*sys.stdlib_module_names, "featurestore", "cython", "libc", "cpython"}
    for each in IMPORTS:
        name = each.module.partition(".")[0]
        if name not in library:
            places = OUTSIDE.get(name, "").split()
            assert any(is_of(tree.module_of(each.path), place) for place in places), each


def test_a_client_knows_nothing_of_the_servers_dependencies() -> None:
    """Not even in a function: what is imported when it is first used fails when it is first used. But for
    pyarrow, of whoever hands over what only that can read, and is told so (test_frames)."""
    reached, left = {"featurestore"}, ["featurestore.client"]  # whose names are found one by one
    while left:
        module = left.pop()
        reached.add(module)
        path = tree.PYTHON[module]
        left += {e.module for e in tree.imports(path) if e.module.startswith("featurestore")} - reached
    assert {part_of(module) for module in reached} == {"", "client", *PARTS["client"].split()}
    found = [
        each.module
        for module in reached
        for each in tree.imports(tree.PYTHON[module])
        if (module, each.module) != ("featurestore.exported", "pyarrow")
    ]
    assert {name.partition(".")[0] for name in found} & set(OUTSIDE) == {"numpy", "grpc", "google"}


class Headers(tree.Walk):
    """The C headers that a module includes."""

    def __init__(self, path: Path) -> None:
        self.found: set[str] = set()
        super().__init__(path)

    def visit_CDefExternNode(self, node: Any) -> None:
        if node.include_file:
            self.found.add(node.include_file)
        self.found |= set(re.findall(r"#\s*include\s*(\S+)", node.verbatim_include or ""))


def test_core_knows_no_file_no_socket_and_no_clock() -> None:
    headers: set[str] = set()
    for module, path in [*tree.CYTHON.items(), *tree.HEADERS.items()]:
        if is_of(module, "core"):
            headers |= Headers(path).found
    assert headers <= CORE_HEADERS
    for each in IMPORTS:
        name = each.module.partition(".")[0]
        if is_of(tree.module_of(each.path), "core") and name not in ("featurestore", "numpy"):
            assert each.module in CORE_LIBRARY | CORE_C, each
