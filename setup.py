"""Builds the Cython modules: every featurestore/**/*.pyx becomes an extension module of its own.

Two switches in the environment choose another build of the same sources (.ci/checked runs the suite on both):

FEATURESTORE_DEBUG=1      bounds and None checks on, assertions on, no optimisation
FEATURESTORE_SANITIZE=1   AddressSanitizer and UndefinedBehaviorSanitizer (preload libasan to run)

C files and compiled modules are kept under build/, apart for each way of building, and only what changed is
translated and compiled again: also by `pip install -e .`, which begins every build in a directory of its own.
"""

import hashlib
import os
import shutil
import sys
from pathlib import Path

import Cython
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

DEBUG = os.environ.get("FEATURESTORE_DEBUG") == "1"
SANITIZE = os.environ.get("FEATURESTORE_SANITIZE") == "1"
JOBS = os.cpu_count() or 1

# -ffp-contract=off and no -march=native: the same journal gives the same bits on every machine.
compile_args = ["-std=gnu11", "-ffp-contract=off", "-fno-strict-aliasing", "-fvisibility=hidden"]
compile_args += ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-unused-function"]
compile_args += [
    "-Wno-missing-field-initializers",
    "-Wno-cpp",
    "-Wno-array-bounds",
]  # in code of Cython's own
link_args = ["-pthread"]
if SANITIZE:
    # Python itself is compiled with -fwrapv, which would keep signed overflow from being seen.
    compile_args += ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-wrapv"]
    compile_args += ["-fno-sanitize-recover=undefined"]
    compile_args += ["-Wno-maybe-uninitialized"]  # of what it adds itself, gcc is less sure
    link_args += ["-fsanitize=address,undefined"]
elif DEBUG:
    compile_args += ["-O0", "-g", "-UNDEBUG"]
else:
    compile_args += ["-O3", "-g1"]

directives = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "nonecheck": DEBUG,
    "overflowcheck": False,
    "cdivision": True,
    "embedsignature": True,
    "legacy_implicit_noexcept": False,
    "freethreading_compatible": False,
}

way = [compile_args, link_args, directives, Cython.__version__, sys.version, os.environ.get("CFLAGS")]
KEPT = Path("build", "kept-" + hashlib.sha256(repr(way).encode()).hexdigest()[:16])


class BuildChanged(build_ext):
    """Compiles a module only if its C file is newer than the module that is kept of it."""

    def build_extension(self, ext: Extension) -> None:
        built = Path(self.get_ext_fullpath(ext.name))
        kept = KEPT / f"{ext.name}.so"
        built.unlink(missing_ok=True)  # never written into: a running process may have it mapped
        if kept.exists() and kept.stat().st_mtime_ns >= Path(ext.sources[0]).stat().st_mtime_ns:
            built.parent.mkdir(parents=True, exist_ok=True)
        else:
            super().build_extension(ext)
            built.replace(kept)
        shutil.copy2(kept, built)


extensions = [
    Extension(
        ".".join(path.with_suffix("").parts),
        [str(path)],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )
    for path in sorted(Path("featurestore").rglob("*.pyx"))
]

setup(
    ext_modules=cythonize(extensions, compiler_directives=directives, build_dir=KEPT, nthreads=JOBS),
    cmdclass={"build_ext": BuildChanged},
    options={"build_ext": {"parallel": JOBS}},
)
