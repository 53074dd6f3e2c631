"""The data directory: who owns it, which store it is, and where each kind of file lives.

    DIR/LOCK          flock'ed while a process has the store open
    DIR/store.json    what is fixed when a store is created: format, id, number of shards; and its clock then
    DIR/secret        16 random bytes that key every fingerprint, mode 0600
    DIR/journal/      segments (journal.pyx)
    DIR/rows/         checkpoints in LMDB (rows.pyx)
    DIR/CREATING      the store is being made and nobody has been told of it: what is there may be thrown away

A store is made under the mark CREATING; store.json is written when everything else is durable, its first
schema included, and the mark is removed last. So a directory with a store.json has all of the above, and
whatever is missing was lost; and one without is a store being made if it has the mark, else none, and nothing
in it is touched. A backup writes store.json last, too, and never the mark.

A new data directory is its owner's alone (0700), and so is every file in it. One that was there keeps its
mode, because others may have been let in on purpose, to the sockets in it; that others may write to it is
warned of: whoever may can put other files in the places of the store's. Files are made anew, never through a
link. None of a store's files that stay open, or are being written, is ever descriptor 0, 1 or 2 (stdio.py):
whoever opens one sees to it, because a program may close those at any time.

A directory may be the root of a volume: the `lost+found` that its file system made there is nobody's file,
and neither looked into, written to nor deleted.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import stat
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

from featurestore.errors import (
    ConfigError,
    CorruptRecordError,
    IncompatibleVersionError,
    StorageError,
    StoreLockedError,
)
from featurestore.plan import CLOCKS
from featurestore.stdio import fill_standard_descriptors

_log = logging.getLogger("featurestore.storage")

FORMAT = "featurestore data directory"
VERSION = 1
SECRET_BYTES = 16
STORE_JSON, CREATING = "store.json", "CREATING"
LOST_AND_FOUND = "lost+found"  # in the root of an ext2, ext3 or ext4 volume, from when it was made
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: What a system call says of a shortage: it passes, and leaves nothing in doubt. The journal knows the same.
SHORTAGES = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR}
)


@dataclass(frozen=True)
class Identity:
    """What is fixed when a store is created."""

    format: str
    version: int
    store_id: str  # 32 hex digits
    clock: str  # one of CLOCKS; it may be `wall` since, see Engine.set_wall_clock
    n_shards: int
    secret_check: str  # first 16 hex digits of the SHA-256 of the secret

    @property
    def id_bytes(self) -> bytes:
        return bytes.fromhex(self.store_id)

    def to_json(self) -> bytes:
        """The bytes of store.json: the fields, and the CRC-32 over them."""
        fields = asdict(self)
        return (json.dumps({**fields, "crc32": _crc_of(fields)}, indent=2) + "\n").encode()


def _crc_of(fields: dict[str, object]) -> str:
    return f"{zlib.crc32(json.dumps(fields, sort_keys=True, separators=(',', ':')).encode()):08x}"


def _check_of(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()[:16]


def is_shortage(error: BaseException | None) -> bool:
    """Whether a shortage is among the causes of an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in SHORTAGES:
            return True
        error = error.__cause__
    return False


def sync_directory(path: Path) -> None:
    """Makes creations, renames and deletions in `path` survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_synced(path: Path, data: bytes) -> None:
    """Writes a whole file so that after a power cut it has its old content or the new one."""
    fill_standard_descriptors()
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)  # of a process that was killed here
    fd = os.open(temporary, NEW_FILE, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        sync_directory(path.parent)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def entries(directory: Path) -> list[Path]:
    """What is in a directory, by name, without the lost+found of a volume whose root it is."""
    return sorted(
        entry for entry in directory.iterdir() if not (entry.name == LOST_AND_FOUND and entry.is_dir())
    )


def refuse_within(store: Path, target: Path, what: str) -> None:
    """ConfigError where `target`, by whatever links or mounts its path leads there, is a store's directory or
    lies in it: what is made there would be taken for the store's, and deleted with it."""
    place = target.resolve()
    for directory in (place, *place.parents):
        try:
            is_same = directory.samefile(store)
        except FileNotFoundError:
            continue
        if is_same:
            raise ConfigError(f"{target} lies in the store {store}; give {what} a directory of its own")


class DataDirectory:
    """An owned data directory. Close it (or use it as a context manager) to let another process in."""

    def __init__(self, path: Path, identity: Identity, secret: bytes, lock_fd: int) -> None:
        self.path, self.identity, self.secret = path, identity, secret
        self._lock_fd = lock_fd

    @property
    def journal(self) -> Path:
        return self.path / "journal"

    @property
    def rows(self) -> Path:
        return self.path / "rows"

    @classmethod
    def exists(cls, path: Path) -> bool:
        return (path / STORE_JSON).exists()

    @classmethod
    def create(cls, path: Path, *, clock: str, n_shards: int) -> DataDirectory:
        """Begins a new store's directory; `publish` makes it one. What a creation that did not finish left
        there is replaced."""
        fill_standard_descriptors()
        secret = secrets.token_bytes(SECRET_BYTES)
        identity = Identity(FORMAT, VERSION, secrets.token_hex(16), clock, n_shards, _check_of(secret))
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _refuse_strangers(path)
            lock_fd = _lock(path)
            try:
                if cls.exists(path):  # made by another process since we looked
                    raise StorageError(f"{path} is a store already; open it, or give another directory")
                write_synced(path / CREATING, b"")
                for name in ("journal", "rows"):
                    if (path / name).exists():
                        shutil.rmtree(path / name)
                write_synced(path / "secret", secret)
                sync_directory(path.absolute().parent)
            except BaseException:
                os.close(lock_fd)
                raise
        except OSError as error:
            raise StorageError(f"cannot create a store in {path}: {error.strerror}") from error
        return cls(path, identity, secret, lock_fd)

    def publish(self) -> None:
        """From now on the directory is a store: everything in it is durable."""
        try:
            write_synced(self.path / STORE_JSON, self.identity.to_json())
            (self.path / CREATING).unlink()
            sync_directory(self.path)
        except OSError as error:
            raise StorageError(f"cannot create a store in {self.path}: {error.strerror}") from error

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False) -> DataDirectory:
        """Takes an existing store; read_only: without writing anything, LOCK included.

        Raises StoreLockedError, CorruptRecordError, IncompatibleVersionError, StorageError.
        """
        fill_standard_descriptors()
        if not cls.exists(path):
            why = "making it did not finish" if (path / CREATING).exists() else "it has no store.json"
            raise StorageError(f"{path} is not a store: {why}; create one with `featurestore serve --schema`")
        identity = read_identity(path)
        lock_fd = _lock_existing(path) if read_only else _lock(path)
        try:
            secret = read_secret(path, identity)
            if not read_only:
                (path / CREATING).unlink(missing_ok=True)
                _warn_of_writers(path)
        except BaseException as error:
            if lock_fd >= 0:
                os.close(lock_fd)
            if isinstance(error, OSError):
                raise StorageError(f"cannot write to {path}: {error.strerror}") from error
            raise
        return cls(path, identity, secret, lock_fd)

    def close(self) -> None:
        """Lets the directory go."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def __enter__(self) -> DataDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_identity(path: Path) -> Identity:
    """What store.json says, checked; takes no lock."""
    name = path / STORE_JSON
    try:
        raw = json.loads(name.read_bytes())
    except OSError as error:
        raise StorageError(f"cannot read {name}: {error.strerror}") from error
    except ValueError as error:
        raise CorruptRecordError(f"{name} is not JSON ({error}); restore it from a backup") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise IncompatibleVersionError(f"{name} does not belong to a featurestore; give another directory")
    if raw.get("version") != VERSION:
        raise IncompatibleVersionError(
            f"{name}: data directory version {raw.get('version')}; "
            f"this program reads version {VERSION}: use a newer one"
        )
    crc = raw.pop("crc32", None)
    if crc != _crc_of(raw):
        raise CorruptRecordError(
            f"{name}: its checksum is {crc}, its fields give {_crc_of(raw)}; restore it from a backup"
        )
    try:
        identity = Identity(**raw)
        n = identity.n_shards
        if len(identity.id_bytes) != 16 or identity.clock not in CLOCKS or not 0 < n <= 4096 or n & (n - 1):
            raise ValueError("a value is out of range")
    except (TypeError, ValueError) as error:
        raise CorruptRecordError(f"{name}: {error}; restore it from a backup") from error
    return identity


def read_secret(path: Path, identity: Identity) -> bytes:
    """The secret, checked against what store.json says of it."""
    name = path / "secret"
    try:
        secret = name.read_bytes()
    except OSError as error:
        raise StorageError(
            f"cannot read {name}: {error.strerror}; "
            "without it no key can be found again: restore it from a backup"
        ) from error
    if len(secret) != SECRET_BYTES:
        raise CorruptRecordError(
            f"{name} has {len(secret)} bytes, not {SECRET_BYTES}; restore it from a backup"
        )
    if _check_of(secret) != identity.secret_check:
        raise CorruptRecordError(
            f"{name} is damaged or another store's: it does not match store.json; restore it from a backup"
        )
    return secret


def _warn_of_writers(path: Path) -> None:
    mode = path.stat().st_mode
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX:
        _log.warning(
            "%s may be written by others than its owner (mode %o), who can replace the store's files; "
            "make it 0700, or 0750 where others are to reach its sockets",
            path,
            stat.S_IMODE(mode),
        )


def _refuse_strangers(path: Path) -> None:
    names = {entry.name for entry in entries(path)}
    ours = {"LOCK", "secret", "secret.new", "store.json.new", CREATING, f"{CREATING}.new"}
    if CREATING in names:
        ours |= {"journal", "rows"}
    if strangers := sorted(names - ours):
        raise StorageError(
            f"{path} is not empty ({strangers[0]}) and is no store; "
            f"give an empty directory, or restore its store.json"
        )


def _lock_existing(path: Path) -> int:
    """As _lock where LOCK exists, without writing; -1 where it does not: then nobody ever had the store open
    here."""
    try:
        fd = os.open(path / "LOCK", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    return _flocked(fd, path)


def _lock(path: Path) -> int:
    try:
        fd = os.open(path / "LOCK", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(
            f"cannot write {path / 'LOCK'}: {error.strerror}; a store's directory must be writable"
        ) from error
    return _flocked(fd, path)


def _flocked(fd: int, path: Path) -> int:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise StoreLockedError(
            f"{path} is in use by another process; stop it first, or give another directory"
        ) from error
    return fd
