"""Builds the Cython modules: every featurestore/**/*.pyx becomes an extension module of its own.

Two switches in the environment choose another build of the same sources (.ci/checked runs tests on them):

FEATURESTORE_DEBUG=1      bounds and None checks on, assertions on, no optimisation unless sanitized as well
FEATURESTORE_SANITIZE=1   AddressSanitizer and UndefinedBehaviorSanitizer (preload libasan to run)

The native transport needs libnghttp2 and OpenSSL (Debian: libnghttp2-dev, libssl-dev), found by pkg-config.
Where they are not, it is left out and the server uses grpcio; `featurestore doctor` says which it is.
FEATURESTORE_NATIVE=0 leaves it out, FEATURESTORE_NATIVE=1 fails rather than leave it out.

Compiled modules are kept under build/, or FEATURESTORE_KEPT, apart for each way of building, by the content
of what they were made from, and only what changed is translated and compiled again. Times of files say
nothing of that: every `pip install -e .` begins in a directory of its own, with a Cython that has just been
unpacked.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import Cython
from Cython.Build import cythonize
from Cython.Build.Dependencies import create_dependency_tree
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

DEBUG = os.environ.get("FEATURESTORE_DEBUG") == "1"
SANITIZE = os.environ.get("FEATURESTORE_SANITIZE") == "1"
JOBS = os.cpu_count() or 1

# -ffp-contract=off and no -march=native: the same journal gives the same bits on every machine.
compile_args = ["-std=gnu11", "-ffp-contract=off", "-fno-strict-aliasing", "-fvisibility=hidden"]
# What distributions build servers with: a smashed stack ends the process, and no pointer to a library's
# function can be overwritten once a module is loaded.
compile_args += ["-fstack-protector-strong"]
compile_args += ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-unused-function"]
compile_args += [
    "-Wno-missing-field-initializers",
    "-Wno-cpp",
    "-Wno-array-bounds",
]  # in code of Cython's own
link_args = ["-pthread", "-Wl,-z,relro", "-Wl,-z,now"]
if SANITIZE:
    # Python itself is compiled with -fwrapv, which would keep signed overflow from being seen.
    compile_args += ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-wrapv"]
    compile_args += ["-fno-sanitize-recover=undefined"]
    compile_args += ["-Wno-maybe-uninitialized"]  # of what it adds itself, gcc is less sure
    link_args += ["-fsanitize=address,undefined"]
elif DEBUG:
    compile_args += ["-O0", "-g"]
else:
    compile_args += ["-O3", "-g1"]
    # Calls of libc that write past an object whose size is known end the process; wants optimisation.
    compile_args += ["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
if DEBUG:
    compile_args += ["-UNDEBUG"]

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

# All that a module is made from besides the sources; of Cython's own .pxd files its version says enough.
compiler = os.environ.get("CC") or sysconfig.get_config_var("CC")
way = [compile_args, link_args, directives, Cython.__version__, sys.version]
way += [subprocess.getoutput(f"{compiler} --version")]  # noqa: S605 - as setuptools, whoever sets CC runs it
way += [os.environ.get(flags) for flags in ("CFLAGS", "CPPFLAGS", "LDFLAGS")]
KEPT = Path(os.environ.get("FEATURESTORE_KEPT") or "build")
KEPT /= "kept-" + hashlib.sha256(repr(way).encode()).hexdigest()[:16]


def kept(ext: Extension) -> Path:
    """Where the module is kept that was compiled from what its sources are now."""
    read = create_dependency_tree().all_dependencies(f"{ext.name.replace('.', '/')}.pyx")
    ours = [(path, Path(path).read_bytes()) for path in sorted(read) if path.startswith("featurestore/")]
    made_from = repr([ours, ext.extra_link_args]).encode()
    return KEPT / f"{ext.name}-{hashlib.sha256(made_from).hexdigest()[:16]}.so"


class BuildChanged(build_ext):
    """Translates and compiles a module only if none is kept of what its sources are now."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # Said here: a build for `pip install -e` does not heed the options of `setup`.
        self.parallel = self.parallel or JOBS

    def build_extensions(self) -> None:
        for name in left_out:  # of a build before this one: it would still be found
            Path(self.get_ext_fullpath(name)).unlink(missing_ok=True)
        changed = {ext.name: ext for ext in self.extensions if not kept(ext).exists()}
        for translated in cythonize(
            list(changed.values()),
            compiler_directives=directives,
            build_dir=KEPT,
            force=True,
            nthreads=JOBS,
        ):
            changed[translated.name].sources = translated.sources
        # The longest first, or one of them is compiled at the end while the other cores have nothing to do.
        self.extensions.sort(key=lambda ext: Path(ext.sources[0]).stat().st_size, reverse=True)
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        built = Path(self.get_ext_fullpath(ext.name))
        built.unlink(missing_ok=True)  # never written into: a running process may have it mapped
        if kept(ext).exists():
            built.parent.mkdir(parents=True, exist_ok=True)
        else:
            super().build_extension(ext)
            for older in KEPT.glob(f"{ext.name}-*.so"):
                older.unlink()
            built.replace(kept(ext))
        shutil.copy(kept(ext), built)  # not its time: what is newer in the tree would stay there


# Modules of the native transport, and the libraries, by pkg-config's names and least versions, that each is
# linked to.
NATIVE = {
    "featurestore.server.connection": ["libnghttp2 >= 1.43"],
    "featurestore.server.host": ["libnghttp2 >= 1.43"],
    "featurestore.server.loop": [],
    "featurestore.server.tls": ["openssl >= 3.0"],
}


def libraries(wanted: list[str]) -> list[str] | None:
    """Flags for the linker; None where a library is not there."""
    if not wanted:
        return []
    asked = ["pkg-config", "--libs", *wanted]
    try:
        return shlex.split(subprocess.check_output(asked, text=True, stderr=subprocess.DEVNULL))  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None


def is_native() -> bool:
    """Whether the native transport is built."""
    wanted = os.environ.get("FEATURESTORE_NATIVE", "")
    needed = sorted({library for needs in NATIVE.values() for library in needs})
    missing = ", ".join(library for library in needed if libraries([library]) is None)
    if wanted == "1" and missing:
        sys.exit(
            f"FEATURESTORE_NATIVE=1, and pkg-config does not find {missing}; on Debian install "
            "libnghttp2-dev, libssl-dev and pkg-config"
        )
    if wanted != "0" and missing:
        print(f"built without the native transport: pkg-config does not find {missing}", file=sys.stderr)
    return wanted != "0" and not missing


def extension(path: Path) -> Extension:
    name = ".".join(path.with_suffix("").parts)
    return Extension(
        name,
        [str(path)],
        extra_compile_args=compile_args,
        extra_link_args=link_args + (libraries(NATIVE[name]) or [] if name in NATIVE else []),
    )


left_out = set() if is_native() else set(NATIVE)
extensions = [
    each for each in map(extension, sorted(Path("featurestore").rglob("*.pyx"))) if each.name not in left_out
]

setup(
    ext_modules=extensions,
    cmdclass={"build_ext": BuildChanged},
)
