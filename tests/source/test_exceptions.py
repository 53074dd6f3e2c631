"""Does every C function say how it fails, and does the header say the same as the source?

Without a spec Cython takes `except? -1` (or `except? NULL`, or for void a check after every call): each
result of that value then takes the GIL to ask for an exception, and a caller that was compiled against a
header that says less looks for none at all.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from source import tree

PATHS = [*tree.CYTHON.values(), *tree.HEADERS.values()]


def test_every_c_function_says_how_it_fails() -> None:
    found = [function for path in PATHS for function in tree.functions(path)]
    assert len(found) > 500, "the parser finds no functions any more"
    silent = [str(each) for each in found if not each.spec and not each.returns_object]
    assert silent == [], "write noexcept, except -1, except NULL, except? ..."


@pytest.mark.parametrize("module", sorted({*tree.HEADERS} & {*tree.CYTHON}))
def test_header_and_source_agree(module: str) -> None:
    defined = {(f.owner, f.name): f for f in tree.functions(tree.CYTHON[module]) if f.has_body}
    for declared in tree.functions(tree.HEADERS[module]):
        if declared.has_body or declared.is_pointer:
            continue
        definition = defined.get((declared.owner, declared.name))
        assert definition is not None, f"{declared} is defined nowhere"
        assert (declared.spec, declared.nogil) == (definition.spec, definition.nogil), (
            f"{declared} and {definition} differ"
        )


@pytest.mark.parametrize(
    ("declaration", "spec", "returns_object"),
    [
        ("cdef int f() except -1", "except -1", False),
        ("cdef int f() except? -1", "except? -1", False),
        ("cdef int f(\n    int a,\n    int b,\n) \\\n    noexcept nogil", "noexcept", False),
        ("cdef int f()  # noexcept", "", False),
        ("cdef void f() except *", "except *", False),
        ("cdef const char* f() except NULL", "except NULL", False),
        ("cdef object* f()", "", False),
        ("cdef dict f()", "", True),
        ("cdef f()", "", True),
        ("cdef class C:\n    cdef C f(self)", "", True),
        ("ctypedef void (*f)(int) noexcept nogil", "noexcept", False),
        ("cdef struct S:\n    int (*f)(int)", "", False),
        ("cdef int g(int (*f)(int) except -2) noexcept", "except -2", False),
    ],
)
def test_the_parser_reads_what_is_written(
    declaration: str, spec: str, returns_object: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sample.pxd"
    path.write_text(declaration + "\n")
    monkeypatch.setattr(tree, "ROOT", tmp_path)
    monkeypatch.setattr(tree, "extension_types", lambda: frozenset({"C"}))
    (found,) = (each for each in tree.functions(path) if each.name == "f")
    assert (found.spec, found.returns_object) == (spec, returns_object)
