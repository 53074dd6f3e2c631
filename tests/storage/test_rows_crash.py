"""Disks that fail, processes that are killed: the last commit is whole, and nothing after it is believed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from featurestore.storage.rows import RowStore
from storage.row_records import pack, some_rows, unpack

STORE_ID = b"0123456789abcdef"

# Stands before libc: the next call of one kind fails, and all of that kind until it is disarmed.
FAILING_DISK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/types.h>
#include <sys/uio.h>

static const char *failing;
static int left, error;

void disk_fail(const char *call, int after, int code) { left = after; error = code; failing = call; }

static int fails(const char *call) {
    const char *a = failing;
    if (!a) return 0;
    while (*a && *a == *call) a++, call++;
    if (*a != *call || left-- > 0) return 0;
    left = 0;
    errno = error;
    return 1;
}

int fdatasync(int fd) {
    return fails("fdatasync") ? -1 : ((int (*)(int)) dlsym(RTLD_NEXT, "fdatasync"))(fd);
}

#define WRITES(name) \
    ssize_t name(int fd, const void *data, size_t size, off_t at) { \
        if (fails("pwrite")) return -1; \
        ssize_t (*next)(int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, #name); \
        return next(fd, data, size, at); \
    }
#define WRITES_MANY(name) \
    ssize_t name(int fd, const struct iovec *parts, int n, off_t at) { \
        if (fails("pwrite")) return -1; \
        ssize_t (*next)(int, const struct iovec *, int, off_t) = dlsym(RTLD_NEXT, #name); \
        return next(fd, parts, n, at); \
    }
WRITES(pwrite)
WRITES(pwrite64)
WRITES_MANY(pwritev)
WRITES_MANY(pwritev64)
"""

FAILING_CHILD = """
import ctypes, errno, sys
from featurestore.errors import LimitError, StorageError, StoreLockedError
from featurestore.storage.rows import RowStore
from storage.row_records import pack, some_rows, unpack

directory, call, after, code = sys.argv[1], sys.argv[2].encode(), int(sys.argv[3]), int(sys.argv[4])
disk = ctypes.CDLL(None)
store_id = b"0123456789abcdef"
kept, lost = some_rows(3000, seed=1), some_rows(3000, seed=2)
store = RowStore.open(directory, store_id=store_id, create=True)
store.begin()
store.write_shard(0, pack(kept), 1)
store.commit()

disk.disk_fail(call, after, code)
store.begin()
store.write_shard(0, pack(lost), 2)
try:
    store.commit()
    sys.exit("commit did not fail")
except StorageError as error:
    assert error.__cause__.errno == code, error
    assert "the environment is closed" in str(error) and "reopen()" in str(error), error

for use in (store.begin, store.stat, lambda: store.read_shard(0)):
    try:
        use()
        sys.exit("an environment that was given up was used")
    except StorageError as error:
        assert "given up after a failure" in str(error), error

try:                                # the disk still fails: signing in finds that out
    store.reopen()
    reopened = True
except StorageError:
    reopened = False
assert not reopened or after, "reopen trusted a disk that fails"
disk.disk_fail(None, 0, 0)
try:                                # nobody else could take the store meanwhile
    RowStore.open(directory, store_id=store_id, create=False)
    sys.exit("the lock was lost")
except StoreLockedError:
    pass
if not reopened:
    store.reopen()
assert store.read_shard(0) == (pack(kept), 1)
assert store.verify() == []
store.begin()
store.write_shard(0, pack(lost), 2)
store.commit()
assert unpack(store.read_shard(0)[0]) == kept | lost
"""


def environment(*libraries: Path) -> dict[str, str]:
    """Of a child: this process's own, with `libraries` preloaded behind what is already: a sanitizer comes
    first."""
    preload = " ".join([os.environ.get("LD_PRELOAD", ""), *map(str, libraries)]).strip()
    return {**os.environ, "LD_PRELOAD": preload, "PYTHONPATH": ":".join(sys.path)}


@pytest.fixture(scope="session")
def failing_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("disk") / "disk.so"
    source = library.with_suffix(".c")
    source.write_text(FAILING_DISK)
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.mark.parametrize(
    ("call", "after", "code"),
    [
        ("pwrite", 0, 28),  # ENOSPC at the first page
        ("pwrite", 1, 28),
        ("pwrite", 0, 5),  # EIO
        ("fdatasync", 0, 5),  # EIO: pages may be lost, and the next fdatasync says nothing of it
        ("fdatasync", 0, 28),
    ],
)
def test_a_failed_commit_gives_the_environment_up_until_reopened(
    tmp_path: Path, failing_disk: Path, call: str, after: int, code: int
) -> None:
    child = subprocess.run(
        [sys.executable, "-c", FAILING_CHILD, tmp_path / "rows", call, str(after), str(code)],
        env=environment(failing_disk),
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert child.returncode == 0, child.stdout + child.stderr


def test_a_failed_write_of_the_meta_page_is_not_believed_after_reopening(
    tmp_path: Path, failing_disk: Path
) -> None:
    """All pages are synced, only the page that makes them visible fails: the commit before stays."""
    script = """
import ctypes, sys
from featurestore.errors import StorageError
from featurestore.storage.rows import RowStore
disk = ctypes.CDLL(None)
for after in range(0, 40):
    directory = f"{sys.argv[1]}/{after}"
    store = RowStore.open(directory, store_id=bytes(16), create=True)
    store.begin(); store.put_meta("m", b"kept"); store.commit()
    disk.disk_fail(b"pwrite", after, 5)
    store.begin(); store.put_meta("m", b"lost")
    try:
        store.commit()
        break
    except StorageError:
        disk.disk_fail(None, 0, 0)
        store.reopen()
        assert store.get_meta("m") == b"kept", after
        assert store.verify() == []
        store.close()
else:
    sys.exit("every commit failed")
disk.disk_fail(None, 0, 0)
assert after >= 2, after            # at least one page, then the meta page
"""
    child = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        env=environment(failing_disk),
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert child.returncode == 0, child.stdout + child.stderr


COMMITTING_CHILD = """
import sys
from featurestore.storage.rows import RowStore
from storage.row_records import pack
directory, first = sys.argv[1], int(sys.argv[2])
keys = [bytes([shard]) + n.to_bytes(15, "big") for shard in range(4) for n in range(300)]
store = RowStore.open(directory, store_id=b"0123456789abcdef", create=first == 1, map_size_bytes=1 << 20)
position = first
while True:
    store.begin(1 << 18)
    for shard in range(4):
        rows = {key: position.to_bytes(8, "little") * (1 + position % 20) for key in keys if key[0] == shard}
        if position % 7 == 0:
            rows = dict.fromkeys(list(rows)[::2]) | dict(list(rows.items())[1::2])
        store.write_shard(shard, pack(rows), position)
    store.put_meta("sequencer", position.to_bytes(8, "little") * 3000)
    store.commit()
    print(position, flush=True)
    position += 1
"""


def test_after_kill_9_the_last_commit_is_whole(tmp_path: Path) -> None:
    rng = random.Random(12)
    position = 0
    for _ in range(12):
        child = subprocess.Popen(
            [sys.executable, "-c", COMMITTING_CHILD, tmp_path / "rows", str(position + 1)],
            stdout=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip
        assert child.stdout is not None
        told = int(child.stdout.readline())
        time.sleep(rng.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        told = max([told, *(int(line) for line in child.stdout.read().split())])
        child.wait()
        with RowStore.open(tmp_path / "rows", store_id=STORE_ID, create=False) as store:
            positions = store.shards()
            position = positions[0]
            assert position in (told, told + 1)  # killed between commit and telling
            assert positions == dict.fromkeys(range(4), position)
            assert store.get_meta("sequencer") == position.to_bytes(8, "little") * 3000
            for shard in range(4):
                rows = unpack(store.read_shard(shard)[0])
                assert len(rows) == (150 if position % 7 == 0 else 300)
                assert set(rows.values()) == {position.to_bytes(8, "little") * (1 + position % 20)}
            assert store.verify() == []


def test_a_reader_killed_with_9_does_not_pin_its_pages(tmp_path: Path) -> None:
    script = """
import sys, time, lmdb
env = lmdb.open(sys.argv[1], readonly=True)
txn = env.begin() if sys.argv[2] else None
print("ready", flush=True)
time.sleep(60)
"""
    rows = some_rows(2000, seed=1)
    with RowStore.open(tmp_path, store_id=STORE_ID, create=True) as store:
        store.begin()
        store.write_shard(0, pack(rows), 1)
        store.commit()
        # The second stays, with no transaction: while anybody has the file open, the table of readers stays.
        killed, idle = (
            subprocess.Popen(
                [sys.executable, "-c", script, tmp_path, begin], stdout=subprocess.PIPE, text=True
            )
            for begin in ("begin", "")
        )
        for reader in (killed, idle):
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n"
        killed.kill()
        killed.wait()
    sizes = []
    with RowStore.open(tmp_path, store_id=STORE_ID, create=False) as store:
        for position in range(2, 12):
            store.begin()
            store.write_shard(0, pack(rows), position)
            store.commit()
            sizes.append(store.stat().file_bytes)
    idle.kill()
    idle.wait()
    assert sizes[2:] == [sizes[2]] * len(sizes[2:])  # every page replaced is used again two commits later
