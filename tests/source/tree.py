"""Every source file as its own parser sees it: Python's for .py, Cython's for .pyx and .pxd.

Nothing here is matched against text, so neither a comment nor a line break can hide anything.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from Cython.Compiler import Builtin, Errors, Main, Nodes, Options
from Cython.Compiler.Scanning import FileSourceDescriptor
from Cython.Compiler.Symtab import ModuleScope
from Cython.Compiler.Visitor import TreeVisitor

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "featurestore"


def module_of(path: Path) -> str:
    """The dotted name that a file is imported by."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files(suffix: str, below: Path = PACKAGE) -> dict[str, Path]:
    return {module_of(path): path for path in sorted(below.rglob(f"*{suffix}"))}


PYTHON = files(".py")
CYTHON = files(".pyx")
HEADERS = files(".pxd")
EVERYTHING = {*PYTHON, *CYTHON, *HEADERS}


def shown(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


@cache
def parsed(path: Path) -> Any:
    """The syntax tree of a .pyx or .pxd, before Cython looks anything up."""
    Errors.init_thread()
    options = Options.CompilationOptions(Options.default_options, compiler_directives={"language_level": 3})
    context = Main.Context.from_options(options)
    name = module_of(path)
    return context.parse(
        FileSourceDescriptor(str(path)),
        ModuleScope(name, None, context),
        pxd=path.suffix == ".pxd",
        full_module_name=name,
    )


class Walk(TreeVisitor):
    """Visits every node; knows the extension type it is in and whether it is what another header declares."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.owner = ""
        self.extern = False
        self.visit(parsed(path))

    def visit_Node(self, node: Any) -> None:
        self.visitchildren(node)

    def visit_CDefExternNode(self, node: Any) -> None:
        self.extern = True
        self.visitchildren(node)
        self.extern = False

    def visit_CClassDefNode(self, node: Any) -> None:
        self.owner = node.class_name
        self.visitchildren(node)
        self.owner = ""


# ---- imports


@dataclass(frozen=True)
class Import:
    path: Path
    line: int
    module: str  # the module itself, not a name in it, as far as that can be known here

    def __str__(self) -> str:
        return f"{shown(self.path, self.line)} imports {self.module}"


def _named(module: str, names: list[str]) -> Iterator[str]:
    """`from module import names`: those that are modules of ours, else the module."""
    inner = [f"{module}.{name}" for name in names if f"{module}.{name}" in EVERYTHING]
    yield from inner or [module]


class _Imports(Walk):
    def __init__(self, path: Path) -> None:
        self.found: list[Import] = []
        super().__init__(path)

    def _add(self, node: Any, module: str, names: list[str]) -> None:
        self.found += [Import(self.path, node.pos[1], each) for each in _named(module, names)]

    def visit_CImportStatNode(self, node: Any) -> None:
        self._add(node, node.module_name, [])

    def visit_FromCImportStatNode(self, node: Any) -> None:
        assert not node.relative_level, "imports are absolute"
        self._add(node, node.module_name, [each[1] for each in node.imported_names])

    def visit_FromImportStatNode(self, node: Any) -> None:
        self._add(node, node.module.module_name.value, [name for name, _ in node.items])

    def visit_ImportNode(self, node: Any) -> None:
        self._add(node, node.module_name.value, [])


def imports(path: Path) -> list[Import]:
    """import, from-import and cimport, wherever they stand: also in functions and for type checkers only."""
    if path.suffix != ".py":
        return _Imports(path).found
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [Import(path, node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [alias.name for alias in node.names]
            found += [Import(path, node.lineno, each) for each in _named(node.module or "", names)]
        elif isinstance(node, ast.ImportFrom):
            assert not path.is_relative_to(PACKAGE), f"{shown(path, node.lineno)}: imports are absolute"
    return found


# ---- C functions


@dataclass(frozen=True)
class CFunction:
    path: Path
    line: int
    owner: str  # the extension type it is a method of, or ""
    name: str
    spec: str  # "noexcept", "except -1", "except? NULL", "except *"; "": none is written
    nogil: bool
    has_body: bool
    is_pointer: bool  # a pointer to a function: a struct's field, an argument, a ctypedef
    returns_object: bool  # NULL always means an exception then, and nothing can be written

    def __str__(self) -> str:
        return f"{shown(self.path, self.line)} {self.owner + '.' if self.owner else ''}{self.name}"

    @property
    def c_name(self) -> str:
        """As Cython names it: every part of where it is defined with its length before it."""
        parts = [*module_of(self.path).split("."), *([self.owner] if self.owner else [])]
        return "__pyx_f_" + "".join(f"{len(part)}{part}_" for part in parts) + self.name


def _written(value: Any) -> str:
    """An exception value as it is written: -1, NULL, 0xFF, NAME."""
    if isinstance(value, Nodes.Node) and type(value).__name__ == "UnaryMinusNode":
        return "-" + _written(value.operand)
    if type(value).__name__ == "NullNode":
        return "NULL"
    return str(getattr(value, "name", None) or value.value)


def _spec(function: Any) -> str:
    if not function.has_explicit_exc_clause:
        return ""
    if function.exception_value is None:
        return "except *" if function.exception_check else "noexcept"
    return f"except{'?' if function.exception_check else ''} {_written(function.exception_value)}"


@cache
def extension_types() -> frozenset[str]:
    class Classes(Walk):
        def visit_CClassDefNode(self, node: Any) -> None:
            names.add(node.class_name)

    names: set[str] = set()
    for path in [*CYTHON.values(), *HEADERS.values()]:
        Classes(path)
    return frozenset(names)


def is_object(base_type: Any) -> bool:
    while hasattr(base_type, "base_type"):  # const
        base_type = base_type.base_type
    name = getattr(base_type, "name", "")
    if getattr(base_type, "is_basic_c_type", False):  # int is C's here, not Python's
        return False
    return name is None or name == "object" or name in Builtin.builtin_types or name in extension_types()


class _Functions(Walk):
    def __init__(self, path: Path) -> None:
        self.found: list[CFunction] = []
        super().__init__(path)

    def _add(self, base_type: Any, declarator: Any, has_body: bool) -> None:
        returns_object = is_object(base_type)
        while isinstance(declarator, Nodes.CPtrDeclaratorNode):
            returns_object = False
            declarator = declarator.base
        if isinstance(declarator, Nodes.CFuncDeclaratorNode) and not self.extern:
            self.found.append(
                CFunction(
                    self.path,
                    declarator.pos[1],
                    self.owner,
                    declarator.declared_name() or "an argument",
                    _spec(declarator),
                    bool(declarator.nogil),
                    has_body,
                    isinstance(declarator.base, Nodes.CPtrDeclaratorNode),
                    returns_object,
                )
            )

    def visit_CFuncDefNode(self, node: Any) -> None:
        self._add(node.base_type, node.declarator, True)
        self.visitchildren(node)

    def visit_CVarDefNode(self, node: Any) -> None:
        for declarator in node.declarators:
            self._add(node.base_type, declarator, False)
        self.visitchildren(node)

    def visit_CTypeDefNode(self, node: Any) -> None:
        self._add(node.base_type, node.declarator, False)
        self.visitchildren(node)

    visit_CArgDeclNode = visit_CTypeDefNode


@cache
def functions(path: Path) -> list[CFunction]:
    """Every C function that a file defines or declares as its own, and every pointer to one."""
    return _Functions(path).found
