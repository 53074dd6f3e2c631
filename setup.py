"""Builds the Cython modules: every featurestore/**/*.pyx becomes an extension module of its own.

Two switches in the environment choose another build of the same sources:

FEATURESTORE_DEBUG=1      bounds, overflow and None checks on, assertions on, no optimisation
FEATURESTORE_SANITIZE=1   AddressSanitizer and UndefinedBehaviorSanitizer (preload libasan to run)
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("FEATURESTORE_DEBUG") == "1"
SANITIZE = os.environ.get("FEATURESTORE_SANITIZE") == "1"

# -ffp-contract=off and no -march=native: the same journal gives the same bits on every machine.
compile_args = [
    "-std=gnu11",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
]
compile_args += [
    "-Wno-unused-parameter",
    "-Wno-unused-function",
    "-Wno-missing-field-initializers",
    "-Wno-cpp",
]
link_args = ["-pthread"]
if SANITIZE:
    compile_args += ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]
    compile_args += ["-fno-sanitize-recover=undefined"]
    link_args += ["-fsanitize=address,undefined"]
elif DEBUG:
    compile_args += ["-O0", "-g", "-UNDEBUG"]
else:
    compile_args += ["-O3"]

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

extensions = [
    Extension(
        ".".join(path.with_suffix("").parts),
        [str(path)],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )
    for path in sorted(Path("featurestore").rglob("*.pyx"))
]

setup(ext_modules=cythonize(extensions, compiler_directives=directives, nthreads=os.cpu_count() or 1))
