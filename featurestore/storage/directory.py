"""The data directory: who owns it, which store it is, and where each kind of file lives.

    DIR/LOCK          flock'ed while a process has the store open
    DIR/store.json    what is fixed when a store is created: format, id, clock, number of shards
    DIR/secret        16 random bytes that key every fingerprint, mode 0600
    DIR/journal/      segments (journal.pyx)
    DIR/rows/         checkpoints in LMDB (rows.pyx)

store.json is written last when a store is created, so a directory either is a store or is not one yet.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from featurestore.errors import (
    ConfigError,
    CorruptRecordError,
    IncompatibleVersionError,
    StorageError,
    StoreLockedError,
)

FORMAT = "featurestore data directory"
VERSION = 1


@dataclass(frozen=True)
class Identity:
    """What is fixed when a store is created."""

    format: str
    version: int
    store_id: str  # 32 hex digits
    clock: str  # "wall" | "event"
    n_shards: int

    @property
    def id_bytes(self) -> bytes:
        return bytes.fromhex(self.store_id)


def sync_directory(path: Path) -> None:
    """Makes creations, renames and deletions in `path` survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_synced(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Writes a whole file so that after a power cut it has its old content or the new one."""
    temporary = path.with_name(path.name + ".new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
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
        return (path / "store.json").exists()

    @classmethod
    def create(cls, path: Path, *, clock: str, n_shards: int) -> DataDirectory:
        """Makes a new store's directory; what a creation that did not finish left there is replaced."""
        if cls.exists(path):
            raise StorageError(f"{path} is a store already; open it, or give another directory")
        try:
            path.mkdir(parents=True, exist_ok=True)
            strangers = {entry.name for entry in path.iterdir()} - {"LOCK", "secret", "secret.new", "store.json.new"}
            if strangers:
                raise StorageError(f"{path} is not empty ({sorted(strangers)[0]}) and is no store; give an empty directory")
            lock_fd = _lock(path)
            try:
                secret = secrets.token_bytes(16)
                identity = Identity(FORMAT, VERSION, secrets.token_hex(16), clock, n_shards)
                write_synced(path / "secret", secret, 0o600)
                write_synced(path / "store.json", (json.dumps(asdict(identity), indent=2) + "\n").encode())
            except BaseException:
                os.close(lock_fd)
                raise
        except OSError as error:
            raise StorageError(f"cannot create a store in {path}: {error.strerror}") from error
        return cls(path, identity, secret, lock_fd)

    @classmethod
    def open(cls, path: Path) -> DataDirectory:
        """Takes an existing store. Raises StoreLockedError, CorruptRecordError, IncompatibleVersionError, StorageError."""
        if not cls.exists(path):
            raise StorageError(f"{path} is not a store: it has no store.json; create one with `featurestore serve --schema`")
        identity = read_identity(path)
        lock_fd = _lock(path)
        try:
            secret = (path / "secret").read_bytes()
            if len(secret) != 16:
                raise CorruptRecordError(f"{path / 'secret'} has {len(secret)} bytes, not 16; restore it from a backup")
        except OSError as error:
            os.close(lock_fd)
            raise StorageError(
                f"cannot read {path / 'secret'}: {error.strerror}; without it no key can be found again: restore it from a backup"
            ) from error
        except BaseException:
            os.close(lock_fd)
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
    name = path / "store.json"
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
            f"{name}: data directory version {raw.get('version')}; this program reads version {VERSION}: use a newer one"
        )
    try:
        identity = Identity(**raw)
        n = identity.n_shards
        if len(identity.id_bytes) != 16 or identity.clock not in ("wall", "event") or not 0 < n <= 4096 or n & (n - 1):
            raise ValueError("a value is out of range")
    except (TypeError, ValueError) as error:
        raise CorruptRecordError(f"{name}: {error}; restore it from a backup") from error
    return identity


def _lock(path: Path) -> int:
    fd = os.open(path / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise StoreLockedError(f"{path} is in use by another process; stop it first, or give another directory") from error
    return fd


def require_clock(identity: Identity, wanted: str | None) -> None:
    """A store's clock is fixed for its life."""
    if wanted is not None and wanted != identity.clock:
        raise ConfigError(f"this store was created with the {identity.clock} clock; it cannot be opened with the {wanted} clock")
