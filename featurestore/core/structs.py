"""Sizes of shared structs, compared at import: compiled modules that do not fit together do not start.

Modules share structs and C functions through .pxd files, and nothing in C keeps them in step. One that was
compiled before a struct's last change goes on with the size and the fields of then, without an error: it
reads other fields than it names, and writes past the end of what others allocate. (For an extension type
Cython itself says so, as a warning, and only if it became larger.)

So each .pxd that declares structs has an inline function, which is compiled anew into every module that
cimports it: their sizes, with those of the .pxd files it builds on.

    cdef inline dict window_structs():
        return arena_structs() | plan_structs() | {"core/window.pxd": (sizeof(LogHead), ...)}

and each module says, before anything else runs in it, what it was compiled with:

    same_structs(__name__, window_structs())

Who says it first does not matter: two modules that disagree cannot both be imported. What this does not see
is a change that keeps every size, such as two fields that change places. tests/source/test_structs.py holds
every .pxd and every module to it, and builds a module that is stale.
"""

from __future__ import annotations

Structs = dict[str, tuple[int, ...]]  # .pxd → sizes in bytes of what it declares, in its order

_known: dict[str, tuple[str, tuple[int, ...]]] = {}  # .pxd → who said so first, and the sizes


def same_structs(module: str, *compiled_with: Structs) -> None:
    """Raises ImportError where `module` was compiled with other structs than a module imported before it."""
    for structs in compiled_with:
        for pxd, sizes in structs.items():
            before, known = _known.setdefault(pxd, (module, sizes))
            if sizes != known:
                raise ImportError(
                    f"{module} was compiled with another featurestore/{pxd} than {before} was (sizes of its "
                    f"structs: {sizes} and {known}): build again what changed, with "
                    "`python setup.py build_ext --inplace`",
                    name=module,
                )
