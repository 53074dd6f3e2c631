"""Is there Python in a function that says `nogil`?

Cython refuses Python objects there, but not all that costs the GIL: looking for an exception after a call,
raising one, printing one that a noexcept function cannot pass on, counting the users of a memoryview. The C
that it makes shows each of them, as its annotated listing does in yellow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from source import tree
from source.translation import translate

# A function that needs Python all the same, by its name in C, and why. There is none.
EXCEPTIONS: dict[str, str] = {}

# A function over fused types is translated once for each of them.
HEAD = re.compile(
    r"^(?:static|CYTHON_INLINE|[a-z_]).*\b(?:__pyx_fuse_\d+)?(__pyx_f_\w+)\(.*\) \{$", re.MULTILINE
)
PLACE = re.compile(r'/\* "([^"]+)":(\d+)$', re.MULTILINE)
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
# Python's C API and Cython's own helpers around it, types that are plain numbers aside.
PYTHON = re.compile(
    r"\b(?!Py_ssize_t\b)(_?Py[A-Z]\w*|Py_\w+|__Pyx_\w+|__PYX_\w+|__pyx_(?:convert|memoryview)\w*)"
)


def functions_in(c_text: str) -> Iterator[tuple[str, str]]:
    """C name and text of every cdef function."""
    for head in HEAD.finditer(c_text):
        yield head.group(1), c_text[head.start() : c_text.index("\n}\n", head.end())]


def python_in(text: str) -> str:
    """What a function has of Python, with the place of the first; "" for nothing."""
    used = list(dict.fromkeys(PYTHON.findall(COMMENT.sub("", text))))
    if not used:
        return ""
    places = PLACE.findall(text[: text.index(used[0])])
    return f"{':'.join(places[-1]) if places else 'its head'}: {', '.join(used)}"


def nogil_functions() -> dict[str, tree.CFunction]:
    paths = [*tree.CYTHON.values(), *tree.HEADERS.values()]
    found = [f for path in paths for f in tree.functions(path) if f.nogil and f.has_body]
    return {function.c_name: function for function in found}


def test_no_nogil_function_touches_python(translated: dict[Path, str]) -> None:
    wanted = nogil_functions()
    assert len(wanted) > 400, "the parser finds no functions any more"
    found = [each for text in translated.values() for each in functions_in(text) if each[0] in wanted]
    assert set(wanted) - {name for name, _ in found} == set(), "these are in none of the C files"
    with_python = {name: python_in(text) for name, text in found if python_in(text)}
    assert {str(wanted[name]): what for name, what in with_python.items() if name not in EXCEPTIONS} == {}
    assert set(EXCEPTIONS) <= set(with_python), "an exception that is not needed any more"


# Functions that make memoryviews. Each counts users under the GIL, so none is made per call, event or value.
MEMORYVIEWS = {
    # for tests and tools
    "featurestore.core.hashing": "checked_secret crc32c_of fingerprint fingerprints sip128 sip64",
    "featurestore.core.arena": "Blocks.alloc Blocks.free",
    "featurestore.core.program": "CompiledProgram.run",
    "featurestore.core.table": "Index._check Index.find Index.insert Index.remove",
    "featurestore.server.replies": "_Reply.take encode_ingest",
    "featurestore.storage.blocks": "count_records",
    "featurestore.storage.frame": "batch_body text_column",
    "featurestore.core.countmin": "CountminSketch._check CountminSketch.add CountminSketch.load "
    "CountminSketch.peek CountminSketch.places CountminSketch.read",
    "featurestore.core.distinct": "DistinctCounters._checked DistinctCounters.add DistinctCounters.export "
    "DistinctCounters.load DistinctCounters.observe DistinctCounters.read _Answers.__cinit__",
    "featurestore.core.top": "Tops.add Tops.read Tops.restore Tops.time_reads entropy_bounds logarithms",
    # once for a shard or a meta of a checkpoint
    "featurestore.core.state": "State.import_shard State.import_sketches",
    "featurestore.storage.rows": "RowStore.do_meta RowStore.do_shard RowStore.put_meta RowStore.write_shard",
}


class MemoryViews(tree.Walk):
    """The functions in which a memoryview is declared, and those over Python objects."""

    def __init__(self, path: Path) -> None:
        self.function = ""
        self.found: set[str] = set()
        self.of_objects: set[str] = set()
        super().__init__(path)

    def visit_FuncDefNode(self, node: Any) -> None:
        outer, name = self.function, getattr(node, "name", None) or node.declarator.declared_name()
        self.function = f"{self.owner}.{name}" if self.owner else name
        self.visitchildren(node)
        self.function = outer

    def visit_MemoryViewSliceTypeNode(self, node: Any) -> None:
        self.found.add(self.function)
        if tree.is_object(node.base_type_node):
            self.of_objects.add(self.function)


def test_memoryviews_are_made_at_the_doors_for_python_only() -> None:
    found: dict[str, set[str]] = {}
    for path in [*tree.CYTHON.values(), *tree.HEADERS.values()]:
        walk = MemoryViews(path)
        assert walk.of_objects == set(), path
        if walk.found:
            found.setdefault(tree.module_of(path), set()).update(walk.found)
    assert found == {module: set(names.split()) for module, names in MEMORYVIEWS.items()}


SAMPLE = """
cdef int fails(int x) except -1 nogil:
    return x

cdef int hidden_check(int x) noexcept nogil:
    return fails(x)

cdef int raises(int x) except -1 nogil:
    if x:
        raise ValueError
    return 0

cdef int takes_it(int x) noexcept nogil:
    with gil:
        return x

cdef int counts_users(const int[::1] x) noexcept nogil:
    cdef const int[::1] y = x[1:]
    return y[0]

cdef int clean(const int* x, int n) noexcept nogil:
    cdef int i, total = 0
    for i in range(n):
        total += x[i] // n
    return total

def used(int x, const int[::1] y):
    return hidden_check(x) + raises(x) + takes_it(x) + counts_users(y) + clean(&y[0], 1)
"""


def test_python_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sample.pyx"
    path.write_text(SAMPLE)
    monkeypatch.setattr(tree, "ROOT", tmp_path)
    (text,) = translate(tmp_path, [path], tmp_path / "build").values()
    wanted = {function.c_name: function.name for function in tree.functions(path) if function.nogil}
    found = {wanted[name] for name, body in functions_in(text) if name in wanted and python_in(body)}
    assert found == {"hidden_check", "raises", "takes_it", "counts_users"}
