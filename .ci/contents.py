"""Holds an sdist and a wheel against the files that git tracks: nothing is missing, and nothing else is in.

What is not tracked may not be given away either: data whose licence does not allow it, generated C.
"""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import PurePosixPath

UNPACKED = (".ci/", ".gitignore", "tests/crash/.gitignore")  # of the repository, not of the package
SOURCES = (".pyx", ".md")  # under featurestore/, but not in the wheel


def tracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.split("\0") if name and not name.startswith(UNPACKED)}


def of_sdist(files: set[str]) -> set[str]:
    return files | {"PKG-INFO", "setup.cfg"}


def of_wheel(files: set[str]) -> set[str]:
    package = {name for name in files if name.startswith("featurestore/")}
    modules = {name.removesuffix(".pyx") + ".so" for name in package if name.endswith(".pyx")}
    return modules | {name for name in package if not name.endswith(SOURCES)}


def in_sdist(path: str) -> set[str]:
    with tarfile.open(path) as archive:
        names = {str(PurePosixPath(*PurePosixPath(one.name).parts[1:])) for one in archive if one.isfile()}
    return {name for name in names if not name.startswith("featurestore.egg-info/")}


def in_wheel(path: str) -> tuple[set[str], set[str]]:
    """What it installs, with the suffix of the platform taken off modules, and what it says of itself."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    about = {name for name in names if name.partition("/")[0].endswith(".dist-info")}
    return {
        name.partition(".cpython-")[0] + ".so" if name.endswith(".so") else name for name in names - about
    }, {name.partition("/")[2] for name in about}


def differ(what: str, found: set[str], wanted: set[str]) -> bool:
    for name in sorted(wanted - found):
        print(f"{what}: {name} is missing", file=sys.stderr)
    for name in sorted(found - wanted):
        print(f"{what}: {name} should not be there", file=sys.stderr)
    return found != wanted


def main(sdist: str, wheel: str) -> int:
    files = tracked()
    installed, about = in_wheel(wheel)
    licences = {"licenses/LICENSE", "licenses/NOTICE"}
    wrong = [
        differ("sdist", in_sdist(sdist), of_sdist(files)),
        differ("wheel", installed, of_wheel(files)),
        differ("wheel's licences", {name for name in about if name.startswith("licenses/")}, licences),
    ]
    return any(wrong)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
