"""Do the stubs say what the compiled modules are?

A compiled module shows no types: its .pyi is all that a type checker and an editor know of it. mypy's
stubtest imports each module and holds every name, argument and default in its stub to what it finds.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from source import tree

STUBS = {module: path for module, path in tree.files(".pyi").items() if "v1" not in path.parts}

# Found in a module and in no stub.
ALLOWED = r"""
.*\.__(pyx_capi|reduce_cython|setstate_cython|test)__    # Cython's own
featurestore\.engine\.(HEAD|HOLES|IDS|IDS_SHARD|PLAN|PRODUCERS|PRODUCERS_SHARD|SKETCHES)  # storage.checkpoint
featurestore\.engine\.UPKEEP                             # a name of niceness.py
featurestore\.(engine|core\.(plan|state))\.MAX_(FUTURE|GRACE)_MS  # a name of plan.py
featurestore\.(engine|core\.state|storage\.frame)\.CLOCKS  # another
featurestore\.core\.state\.Reserved                       # has nothing that Python could use
featurestore\.core\.program\.Compiled                    # has C fields: the one base of its kind
featurestore\.core\.bytes\.Block\.__buffer__            # in C until Python 3.12
"""


def test_every_compiled_module_that_python_imports_has_a_stub() -> None:
    python = [
        path for part in ("featurestore", "tests", "benches") for path in (tree.ROOT / part).rglob("*.py")
    ]
    imported = {each.module for path in python for each in tree.imports(path)} & set(tree.CYTHON)
    assert len(imported) > 12
    assert imported - set(STUBS) == set()


def test_every_stub_is_of_a_compiled_module() -> None:
    assert set(STUBS) - set(tree.CYTHON) == set()


@pytest.mark.parametrize("path", STUBS.values(), ids=STUBS)
def test_a_stub_says_types_and_nothing_else(path: Path) -> None:
    """Docstrings are in the source, where help() finds them; a type is Any only where it is anybody's."""
    found = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(found):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            assert ast.get_docstring(node) is None, tree.shown(path, getattr(node, "lineno", 1))
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            untyped = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            assert node.returns is not None and untyped == [], tree.shown(path, node.lineno)
        if isinstance(node, ast.Name) and node.id in ("ndarray", "Any"):
            line = path.read_text(encoding="utf-8").splitlines()[node.lineno - 1]
            assert "PlanListener[Any]" in line, f"{tree.shown(path, node.lineno)}: say which"


def test_the_stubs_are_what_the_modules_are(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed.txt"
    allowed.write_text(ALLOWED)
    options = ["--mypy-config-file", "pyproject.toml", "--allowlist", str(allowed), "--concise"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", *options, *STUBS],
        cwd=tree.ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
