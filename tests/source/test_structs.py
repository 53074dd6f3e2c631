"""Is every shared struct compared at import, and is a stale module turned away?

How is told in featurestore/core/structs.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from source import tree
from source.translation import translate


class Shared(tree.Walk):
    """What a .pxd declares, and what it and a .pyx say of it."""

    def __init__(self, path: Path) -> None:
        self.declared: list[str] = []  # structs, unions and extension types, in order
        self.sizes: list[str] = []  # what <name>_structs takes the size of
        self.key = ""  # and what it calls the file
        self.builds_on: set[str] = set()  # and whose sizes it adds
        self.says: list[set[str]] = []  # the calls of same_structs
        self.inside = False
        super().__init__(path)
        self.cimported = {each.module for each in tree.imports(path)} & set(tree.HEADERS)

    def visit_CStructOrUnionDefNode(self, node: Any) -> None:
        if not self.extern and node.attributes is not None:
            self.declared.append(node.name)
        self.visitchildren(node)

    def visit_CClassDefNode(self, node: Any) -> None:
        if not self.extern:
            self.declared.append(node.class_name)
        super().visit_CClassDefNode(node)

    def visit_CFuncDefNode(self, node: Any) -> None:
        self.inside = node.declarator.declared_name() == structs_of(tree.module_of(self.path))
        self.visitchildren(node)
        self.inside = False

    def visit_SizeofVarNode(self, node: Any) -> None:
        if self.inside:
            self.sizes.append(node.operand.name)

    def visit_DictItemNode(self, node: Any) -> None:
        if self.inside:
            self.key = str(node.key.value)
        self.visitchildren(node)

    def visit_SimpleCallNode(self, node: Any) -> None:
        name = getattr(node.function, "name", "")
        if self.inside:
            self.builds_on.add(name)
        if name == "same_structs":
            assert getattr(node.args[0], "name", "") == "__name__", self.path
            self.says.append({call.function.name for call in node.args[1:]})
        self.visitchildren(node)


def structs_of(module: str) -> str:
    return module.rpartition(".")[2] + "_structs"


SHARED = {path: Shared(path) for path in [*tree.HEADERS.values(), *tree.CYTHON.values()]}
OWNERS = {module for module, path in tree.HEADERS.items() if SHARED[path].declared}


def built_on(modules: set[str]) -> set[str]:
    """Those headers and all that they cimport, whose structs theirs may be made of."""
    reached: set[str] = set()
    left = set(modules)
    while left:
        module = left.pop()
        reached.add(module)
        left |= SHARED[tree.HEADERS[module]].cimported - reached
    return reached & OWNERS


def told_by(calls: set[str]) -> set[str]:
    """The headers whose sizes these functions give, theirs and those that they add."""
    reached: set[str] = set()
    left = {module for module in OWNERS if structs_of(module) in calls}
    while left:
        module = left.pop()
        reached.add(module)
        added = SHARED[tree.HEADERS[module]].builds_on
        left |= {other for other in OWNERS if structs_of(other) in added} - reached
    return reached


def test_names_are_told_apart() -> None:
    assert len({structs_of(module) for module in OWNERS}) == len(OWNERS) > 20


@pytest.mark.parametrize("module", sorted(OWNERS))
def test_a_header_gives_the_size_of_all_that_it_declares(module: str) -> None:
    shared = SHARED[tree.HEADERS[module]]
    assert shared.sizes == shared.declared
    assert shared.key == str(tree.HEADERS[module].relative_to(tree.PACKAGE))
    assert told_by({structs_of(module)}) == built_on({module})


@pytest.mark.parametrize("module", sorted(tree.CYTHON))
def test_a_module_says_what_it_was_compiled_with(module: str) -> None:
    own = {module} & set(tree.HEADERS)
    needed = built_on(own | SHARED[tree.CYTHON[module]].cimported)
    said = SHARED[tree.CYTHON[module]].says
    assert [told_by(calls) for calls in said] == ([needed] if needed else [])


# ---- and it works

SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))


def build(package: Path, module: str) -> None:
    """Compiles one module of a copy of the package anew, and no other."""
    path = (package.parent / module.replace(".", "/")).with_suffix(".pyx")
    c_path = package.parent / "build" / f"{module}.c"
    c_path.parent.mkdir(exist_ok=True)
    c_path.write_text(translate(package.parent, [path], c_path.parent)[path])
    compiler = str(sysconfig.get_config_var("CC") or "cc").split()
    include = sysconfig.get_paths()["include"]
    options = ["-O0", "-w", "-fPIC", "-shared", f"-I{include}", "-o", str(path.with_suffix(SUFFIX))]
    subprocess.run([*compiler, *options, str(c_path)], check=True)


def imported(package: Path, *modules: str) -> str:
    """The last line that importing them says; "" where they can all be imported."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(f"import {module}" for module in modules)],
        cwd=package.parent, env={**os.environ, "PYTHONPATH": str(package.parent)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stderr.strip().rpartition("\n")[2]


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the compiled package in which one struct, Bytes, has grown, and only core.bytes knows."""
    package = tmp_path_factory.mktemp("stale") / "featurestore"
    shutil.copytree(tree.PACKAGE, package, ignore=shutil.ignore_patterns("*.c", "__pycache__", "demo"))
    header = package / "core" / "bytes.pxd"
    text = header.read_text()
    assert text.count("    size_t capacity\n") == 1
    header.write_text(text.replace("    size_t capacity\n", "    size_t capacity\n    size_t one_more\n"))
    build(package, "featurestore.core.bytes")
    return package


# The first that is told so is what the module is built on, if that has the struct as well.
@pytest.mark.parametrize("module", ["countmin", "sequencer", "shard"])
def test_a_module_compiled_before_a_struct_grew_is_turned_away(rebuilt: Path, module: str) -> None:
    said = imported(rebuilt, f"featurestore.core.{module}")
    wrong = "was compiled with another featurestore/core/bytes.pxd than featurestore.core.bytes was"
    assert said.startswith(f"ImportError: featurestore.core.countmin {wrong}")
    assert said.endswith("build again what changed, with `python setup.py build_ext --inplace`")


def test_the_store_does_not_start_and_what_does_not_know_the_struct_does(rebuilt: Path) -> None:
    assert imported(rebuilt, "featurestore.core.bytes", "featurestore.storage.frame") == ""
    assert "another featurestore/core/bytes.pxd" in imported(rebuilt, "featurestore.engine")


def test_a_module_that_was_built_again_starts(rebuilt: Path) -> None:
    build(rebuilt, "featurestore.core.countmin")
    assert imported(rebuilt, "featurestore.core.countmin") == ""
