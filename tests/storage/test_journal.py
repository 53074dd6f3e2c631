"""Appending, waiting, rolling, truncating, and what happens when the disk fails or fills."""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from volumes import free_bytes, volume

from featurestore.errors import ConfigError, LimitError, StorageError, StoreLockedError
from featurestore.storage import failpoint
from featurestore.storage.journal import BATCH, FORGET, SCHEMA, Journal, JournalReader

from . import journal_v1

STORE = b"store-of-a-test!"
PATIENCE_S = 30.0


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoint.disarm()


def create(directory: Path, **settings: object) -> Journal:
    return Journal(directory, STORE, create=True, **{"segment_bytes": 4096, **settings})  # type: ignore[arg-type]


def bodies(journal: Journal, from_position: int = 0) -> list[bytes]:
    return [frame.body for frame in journal.read(from_position)]


def status(journal: Journal) -> str:
    return journal.status


def test_frames_come_back_in_order_with_what_was_given(tmp_path: Path) -> None:
    with create(tmp_path) as journal:
        assert journal.last_position == 0
        assert list(journal.read()) == []
        assert journal.append(SCHEMA, b"{}", schema_version=1) == 1
        assert journal.append(BATCH, b"ab", b"", b"cde", n_positions=10, now_ms=-5, schema_version=1) == 2
        assert journal.append(FORGET) == 12
        assert journal.last_position == 12
        schema, batch, forget = journal.read()
        assert (schema.kind, schema.body, schema.first_position) == (SCHEMA, b"{}", 1)
        assert (batch.body, batch.n_positions, batch.now_ms, batch.schema_version) == (b"abcde", 10, -5, 1)
        assert (forget.kind, forget.body, forget.first_position) == (FORGET, b"", 12)
        assert journal.verify() == 3


def test_reading_from_the_middle_of_a_frame_gives_that_frame(tmp_path: Path) -> None:
    with create(tmp_path) as journal:
        for body in (b"1-3", b"4-6", b"7-9"):
            journal.append(BATCH, body, n_positions=3)
        assert bodies(journal, 1) == [b"1-3", b"4-6", b"7-9"]
        assert bodies(journal, 3) == [b"1-3", b"4-6", b"7-9"]
        assert bodies(journal, 4) == [b"4-6", b"7-9"]
        assert bodies(journal, 9) == [b"7-9"]
        assert bodies(journal, 10) == []


def test_a_reopened_journal_continues(tmp_path: Path) -> None:
    with create(tmp_path, from_position=1000) as journal:
        assert journal.append(BATCH, b"a", n_positions=7) == 1000
    with Journal(tmp_path, STORE, from_position=1007) as journal:
        assert journal.durable_position == journal.last_position == 1006
        assert journal.append(BATCH, b"b") == 1007
        assert bodies(journal) == [b"a", b"b"]
        assert journal.first_position == 1000


def test_segments_roll_when_full_and_are_sealed_in_a_chain(tmp_path: Path) -> None:
    with create(tmp_path) as journal:
        for i in range(100):
            journal.append(BATCH, bytes([i]) * 300)
        assert journal.n_segments == len(list(tmp_path.iterdir())) == 10
        assert journal.total_bytes == 10 * 4096
        assert bodies(journal) == [bytes([i]) * 300 for i in range(100)]
        reader = JournalReader(tmp_path)
        for before, after in zip(reader.segments, reader.segments[1:], strict=False):
            assert after.previous_position == before.first_position
            assert before.base_offset < after.base_offset <= before.base_offset + 4096
        assert len({segment.salt for segment in reader.segments}) == 10


def test_a_frame_may_fill_a_segment_to_its_last_byte(tmp_path: Path) -> None:
    body = b"f" * (4096 - 72 - 56)
    with create(tmp_path) as journal:
        for _ in range(3):
            journal.append(BATCH, body)
        assert journal.n_segments == 3
    with Journal(tmp_path, STORE, segment_bytes=4096) as journal:
        journal.append(BATCH, b"next")
        assert bodies(journal) == [body, body, body, b"next"]


@pytest.mark.parametrize("before", [0, 1])
def test_a_frame_larger_than_a_segment_gets_one_of_its_own_size(tmp_path: Path, before: int) -> None:
    large = os.urandom(3 << 20)
    expected = [b"small"] * before + [large, b"after"]
    with create(tmp_path) as journal:
        for body in expected:
            journal.append(BATCH, body)
        assert journal.n_segments == before + 2
        assert bodies(journal) == expected
    with Journal(tmp_path, STORE) as journal:
        assert bodies(journal) == expected


def test_truncation_deletes_only_segments_that_end_before_the_position(tmp_path: Path) -> None:
    with create(tmp_path) as journal:
        for i in range(100):
            journal.append(BATCH, bytes([i]) * 300, n_positions=2)
        starts = [segment.first_position for segment in JournalReader(tmp_path).segments]
        assert journal.truncate_before(starts[3] - 1) == 2
        assert journal.first_position == starts[2]
        assert journal.truncate_before(starts[3]) == 1
        assert journal.first_position == starts[3]
        assert journal.truncate_before(2**64 - 1) == len(starts) - 4
        assert journal.n_segments == len(list(tmp_path.iterdir())) == 1
        last = bodies(journal)
        journal.roll()
        assert journal.truncate_before(201) == 1
        assert bodies(journal) == []
        assert last
        assert journal.append(BATCH, b"on") == 201
    with Journal(tmp_path, STORE, from_position=202) as journal:
        assert bodies(journal) == [b"on"]


def test_rolling_an_empty_segment_changes_nothing(tmp_path: Path) -> None:
    with create(tmp_path) as journal:
        journal.roll()
        journal.append(BATCH, b"a")
        journal.roll()
        journal.roll()
        assert journal.n_segments == 2
        assert journal.first_position == 1


def test_waiting_returns_only_when_the_position_is_durable(tmp_path: Path) -> None:
    with create(tmp_path) as journal:
        for i in range(20):
            position = journal.append(BATCH, bytes(i), n_positions=2) + 1
            assert journal.wait_durable(position)
            assert journal.durable_position == journal.acknowledged_position == position
        with pytest.raises(ValueError, match="not written"):
            journal.wait_durable(position + 1)


def test_process_mode_acknowledges_at_once_and_syncs_within_its_delay(tmp_path: Path) -> None:
    with create(tmp_path, mode="process", sync_delay_ms=200) as journal:
        position = journal.append(BATCH, b"a")
        assert journal.acknowledged_position == position
        deadline = time.monotonic() + PATIENCE_S
        while journal.durable_position < position and time.monotonic() < deadline:
            time.sleep(0.01)
        assert journal.durable_position == position
        assert journal.n_syncs == 1


def test_group_mode_takes_its_time_with_what_nobody_waits_for(tmp_path: Path) -> None:
    with create(tmp_path, mode="group", sync_delay_ms=1000, segment_bytes=1 << 20) as journal:
        journal.wait_durable(journal.append(BATCH, b"a"))
        n_syncs = journal.n_syncs
        for _ in range(200):
            position = journal.append(BATCH, b"b", unawaited=True)
        assert journal.n_syncs <= n_syncs + 1  # not one after the other, as it would otherwise
        assert journal.acknowledged_position <= position
        deadline = time.monotonic() + PATIENCE_S
        while journal.durable_position < position and time.monotonic() < deadline:
            time.sleep(0.01)
        assert journal.durable_position == position


def test_what_somebody_waits_for_is_synced_at_once_with_what_nobody_does(tmp_path: Path) -> None:
    with create(tmp_path, mode="group", sync_delay_ms=1000, segment_bytes=1 << 20) as journal:
        began = time.monotonic()
        for i in range(30):
            journal.append(BATCH, bytes(i), unawaited=True)
            if i % 2:
                journal.append(BATCH, bytes(i))  # whoever sent it waits, and has not said so yet
                while journal.durable_position < journal.last_position:
                    assert time.monotonic() < began + PATIENCE_S
            else:
                journal.wait_durable(journal.last_position)
        assert journal.n_syncs >= 30  # the delay alone would need half a minute for as many


def test_waiting_in_process_mode_does_not_wait_for_the_delay(tmp_path: Path) -> None:
    with create(tmp_path, mode="process", sync_delay_ms=1000) as journal:
        for i in range(30):
            journal.wait_durable(journal.append(BATCH, bytes(i)))
        assert journal.n_syncs == 30  # one per wait; the delay alone would need half a minute


def test_a_new_segment_begins_only_when_all_before_it_is_durable(tmp_path: Path) -> None:
    with create(tmp_path, mode="process", sync_delay_ms=1000) as journal:
        for i in range(50):
            position = journal.append(BATCH, bytes(i))
            journal.roll()
            assert journal.durable_position == position


def test_process_mode_syncs_at_close(tmp_path: Path) -> None:
    failpoint.arm("journal.after_sync:1000000=eio")
    journal = create(tmp_path, mode="process", sync_delay_ms=1000)
    journal.append(BATCH, b"a")
    journal.close()
    assert failpoint.hits("journal.after_sync") == 1


def test_concurrent_appends_share_syncs_and_every_waiter_is_served(tmp_path: Path) -> None:
    n_threads, n_each = 8, 150
    written: dict[int, bytes] = {}
    late: list[int] = []

    def work(me: int) -> None:
        for i in range(n_each):
            body = f"{me}:{i}".encode() * (i % 20)
            position = journal.append(BATCH, body, n_positions=3)
            written[position] = body
            assert journal.wait_durable(position + 2, PATIENCE_S)
            if journal.durable_position < position + 2:
                late.append(position)

    with create(tmp_path, segment_bytes=32768) as journal:
        threads = [threading.Thread(target=work, args=(me,)) for me in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not late
        assert journal.n_appends == n_threads * n_each == len(written)
        assert journal.n_syncs < journal.n_appends
        assert {frame.first_position: frame.body for frame in journal.read()} == written
        assert sorted(written) == list(range(1, 3 * n_threads * n_each, 3))
        assert journal.n_segments > 1


def test_reading_and_truncating_while_others_append(tmp_path: Path) -> None:
    stop = threading.Event()

    def append() -> None:
        while not stop.is_set():
            journal.append(BATCH, b"z" * 500)

    with create(tmp_path) as journal:
        thread = threading.Thread(target=append)
        thread.start()
        try:
            for _ in range(20):
                first = journal.first_position
                positions = [frame.first_position for frame in journal.read(first)]
                assert positions == list(range(first, first + len(positions)))
                journal.truncate_before(first + len(positions))
        finally:
            stop.set()
            thread.join()


def test_an_eventfd_tells_of_progress_and_of_failure(tmp_path: Path) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        with create(tmp_path) as journal:
            journal.add_eventfd(fd)
            position = journal.append(BATCH, b"a")
            assert select.select([fd], [], [], PATIENCE_S)[0]
            assert os.eventfd_read(fd) >= 1
            assert journal.durable_position == position
            journal.remove_eventfd(fd)
            journal.wait_durable(journal.append(BATCH, b"b"))
            journal.append(BATCH, b"c")
            journal.sync()
            with pytest.raises(BlockingIOError):
                os.eventfd_read(fd)
            journal.add_eventfd(fd)
            failpoint.arm("journal.before_sync=eio")
            journal.append(BATCH, b"d")
            # The sync before may be told of now, too: a waiter is let go before the hooks are called.
            while journal.status != "failed":
                assert select.select([fd], [], [], PATIENCE_S)[0]
                os.eventfd_read(fd)
    finally:
        os.close(fd)


def test_the_number_of_hooks_is_limited(tmp_path: Path) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        with create(tmp_path) as journal:
            for _ in range(8):
                journal.add_eventfd(fd)
            with pytest.raises(LimitError):
                journal.add_eventfd(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("point", ["journal.before_sync", "journal.after_sync"])
@pytest.mark.parametrize("action", ["eio", "enospc"])
def test_the_first_failed_sync_is_the_last(tmp_path: Path, point: str, action: str) -> None:
    journal = create(tmp_path)
    good = journal.append(BATCH, b"good")
    journal.sync()
    failpoint.arm(f"{point}={action}")
    bad = journal.append(BATCH, b"bad")
    number = getattr(errno, action.upper())
    for _ in range(2):
        with pytest.raises(StorageError, match=os.strerror(number)) as caught:
            journal.wait_durable(bad)
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == number
    failpoint.disarm()
    with pytest.raises(StorageError):
        journal.append(BATCH, b"more")
    with pytest.raises(StorageError):
        journal.roll()
    assert status(journal) == "failed"
    assert journal.durable_position == journal.acknowledged_position == good
    assert journal.wait_durable(good)
    assert bodies(journal) == [b"good", b"bad"]
    journal.close()
    assert status(journal) == "closed"


def test_process_mode_acknowledges_nothing_after_a_failed_sync(tmp_path: Path) -> None:
    journal = create(tmp_path, mode="process", sync_delay_ms=0)
    failpoint.arm("journal.before_sync=eio")
    position = journal.append(BATCH, b"a")
    with pytest.raises(StorageError):
        journal.wait_durable(position)
    assert journal.acknowledged_position == 0
    with pytest.raises(StorageError):
        journal.append(BATCH, b"b")


def test_close_reports_a_last_sync_that_failed(tmp_path: Path) -> None:
    journal = create(tmp_path, mode="process", sync_delay_ms=1000)
    failpoint.arm("journal.before_sync=eio")
    journal.append(BATCH, b"a")
    with pytest.raises(StorageError, match="Input/output error"):
        journal.close()
    journal.close()


def test_a_frame_that_found_no_space_leaves_nothing_and_the_next_one_succeeds(tmp_path: Path) -> None:
    with create(tmp_path) as journal:
        journal.append(BATCH, b"a" * 100)
        failpoint.arm("journal.mid_frame=enospc")
        with pytest.raises(LimitError, match="no space"):
            journal.append(BATCH, b"b" * 1000)
        assert status(journal) == "full"
        assert journal.last_position == 1
        (file,) = tmp_path.iterdir()
        assert not any(file.read_bytes()[journal_v1.frames(tmp_path)[-1].end :])
        assert append_when_possible(journal, b"c") == 2
        assert status(journal) == "open"
        journal.sync()
        assert bodies(journal) == [b"a" * 100, b"c"]


def append_when_possible(journal: Journal, body: bytes) -> int:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return journal.append(BATCH, body)
        except LimitError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize("point", ["journal.allocate", "journal.roll"])
@pytest.mark.parametrize("before", [0, 1])
def test_a_segment_that_found_no_space_leaves_the_journal_as_it_was(
    tmp_path: Path, point: str, before: int
) -> None:
    with create(tmp_path) as journal:
        for _ in range(before):
            journal.append(BATCH, b"a" * 100)
        files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        failpoint.arm(f"{point}=enospc")
        with pytest.raises(LimitError):
            journal.append(BATCH, b"b" * 4096)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
        assert journal.n_segments == 1
        assert journal.total_bytes == 4096
        large = b"c" * 4096
        assert append_when_possible(journal, large) == before + 1
        journal.sync()
        assert bodies(journal) == [b"a" * 100] * before + [large]
        assert journal.total_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


@pytest.mark.parametrize("point", ["journal.allocate", "journal.roll"])
def test_a_segment_that_found_no_descriptor_is_made_later(tmp_path: Path, point: str) -> None:
    with create(tmp_path) as journal:
        journal.append(BATCH, b"a" * 100)
        failpoint.arm(f"{point}=emfile")
        with pytest.raises(LimitError, match="Too many open files"):
            journal.append(BATCH, b"b" * 4096)
        assert status(journal) == "full"
        assert append_when_possible(journal, b"c" * 4096) == 2
        journal.sync()
        assert bodies(journal) == [b"a" * 100, b"c" * 4096]


def test_segments_leave_room_on_a_small_volume_and_are_never_larger_than_asked(tmp_path: Path) -> None:
    with (
        volume(tmp_path / "volume", 32 << 20) as place,
        Journal(place, STORE, create=True, segment_bytes=16 << 20) as journal,
    ):
        free = 32 << 20
        while status(journal) == "open":
            before = free_bytes(place)
            try:
                journal.roll()
                journal.append(BATCH, bytes(1000))
            except LimitError:
                break
            assert before - free_bytes(place) <= max(free // 4, 1 << 20) + (1 << 16)
            free = free_bytes(place)
        assert free_bytes(place) < 1 << 20
        journal.truncate_before(journal.last_position)
        assert append_when_possible(journal, bytes(2 << 20)) > 1


@pytest.mark.parametrize(
    "spec", ["journal.mid_frame=eio", "journal.allocate=eio", "journal.roll=eio", "journal.rolled=enospc"]
)
def test_any_other_failed_write_is_for_good(tmp_path: Path, spec: str) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    journal = create(tmp_path)
    journal.add_eventfd(fd)
    journal.append(BATCH, b"a")
    journal.sync()
    failpoint.arm(spec)
    with pytest.raises(StorageError):
        journal.append(BATCH, b"b" * 4096)
    failpoint.disarm()
    assert journal.status == "failed"
    with pytest.raises(StorageError):
        journal.append(BATCH, b"c")
    journal.close()  # ends the sync thread, which has told the eventfd
    assert os.eventfd_read(fd) >= 2
    os.close(fd)
    with Journal(tmp_path, STORE) as journal:
        assert bodies(journal) == [b"a"]


def test_a_failed_truncation_is_for_good_and_leaves_no_hole(tmp_path: Path) -> None:
    journal = create(tmp_path)
    for _ in range(30):
        journal.append(BATCH, b"a" * 1000)
    journal.sync()
    failpoint.arm("journal.truncate:2=eio")
    with pytest.raises(StorageError):
        journal.truncate_before(25)
    journal.close()
    with Journal(tmp_path, STORE, from_position=25) as journal:
        assert journal.last_position == 30


def test_a_second_open_is_refused_until_the_first_is_closed(tmp_path: Path) -> None:
    journal = create(tmp_path)
    with pytest.raises(StoreLockedError):
        Journal(tmp_path, STORE)
    journal.append(BATCH, b"still works")
    journal.sync()
    journal.close()
    Journal(tmp_path, STORE).close()


def test_a_refused_open_gives_up_the_lock(tmp_path: Path) -> None:
    create(tmp_path).close()
    for _ in range(2):
        with pytest.raises(StorageError, match="belongs to store"):
            Journal(tmp_path, bytes(16))


def test_a_closed_journal_says_so(tmp_path: Path) -> None:
    journal = create(tmp_path)
    journal.append(BATCH, b"a")
    journal.close()
    journal.close()
    assert journal.status == "closed"
    for call in (lambda: journal.append(BATCH, b"b"), journal.roll):
        with pytest.raises(ValueError, match="closed"):
            call()
    assert journal.truncate_before(10) == 0
    assert bodies(journal) == [b"a"]


def test_a_journal_is_created_only_on_request(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no journal"):
        Journal(tmp_path, STORE)
    with pytest.raises(StorageError, match="cannot open"):
        Journal(tmp_path / "nowhere", STORE, create=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "never"},
        {"segment_bytes": 4095},
        {"segment_bytes": 4097},
        {"segment_bytes": 2**41},
        {"sync_delay_ms": 1001},
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        create(tmp_path, **settings)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_a_frame_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        Journal(tmp_path, b"short", create=True)
    with create(tmp_path) as journal:
        for kind, pieces, n in ((0, (), 1), (7, (), 1), (BATCH, (), 0), (BATCH, (b"",) * 17, 1)):
            with pytest.raises(ValueError, match="frame"):
                journal.append(kind, *pieces, n_positions=n)
        for wrong in (None, "text", 3):
            with pytest.raises(TypeError):
                journal.append(BATCH, wrong)  # type: ignore[arg-type]
        assert journal.last_position == 0
