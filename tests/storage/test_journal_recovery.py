"""Opening a journal that a crash, a power cut or damage has left: every answer is defined."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.errors import CorruptRecordError, IncompatibleVersionError, StorageError
from featurestore.storage import failpoint
from featurestore.storage.journal import BATCH, Journal, JournalReader

from . import journal_v1

STORE = b"store-of-a-test!"
SEGMENT_BYTES = 4096


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoint.disarm()


def body(i: int) -> bytes:
    return random.Random(i).randbytes(i * 37 % 230)


def write(directory: Path, n: int, *, synced: bool, start: int = 0) -> None:
    """n frames, each one durable before the next, or none of them while they are written."""
    mode: Literal["group", "process"] = "group" if synced else "process"
    with Journal(
        directory, STORE, create=True, segment_bytes=SEGMENT_BYTES, mode=mode, sync_delay_ms=1000
    ) as journal:
        for i in range(start, start + n):
            position = journal.append(BATCH, body(i), n_positions=2)
            if synced:
                journal.wait_durable(position + 1)


def reopened(directory: Path, **arguments: int) -> list[bytes]:
    """The bodies after opening, checked to be what the second implementation and an observer find too."""
    with Journal(directory, STORE, **arguments) as journal:  # type: ignore[arg-type]
        found = [frame.body for frame in journal.read()]
        assert journal.verify() == len(found)
    assert [frame.body for frame in JournalReader(directory)] == found
    assert [frame.body for frame in journal_v1.frames(directory)] == found
    return found


def tail_is_zero(directory: Path) -> bool:
    last = sorted(directory.glob("*.seg"))[-1]
    ends = [frame.end for frame in journal_v1.frames(directory) if frame.file == last.name]
    return not any(last.read_bytes()[max(ends, default=72) :])


def test_an_untouched_journal_opens_without_a_torn_tail(tmp_path: Path) -> None:
    write(tmp_path, 5, synced=True)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with Journal(tmp_path, STORE) as journal:
        assert journal.torn is None
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_a_last_frame_cut_at_any_byte_is_cut_off_whole(tmp_path: Path) -> None:
    write(tmp_path, 4, synced=True)
    last = journal_v1.frames(tmp_path)[-1]
    file = tmp_path / last.file
    whole = file.read_bytes()
    last_byte = max(at for at in range(last.end) if whole[at])
    for at in range(last.at, last.end):
        file.write_bytes(whole[:at] + bytes(SEGMENT_BYTES - at))
        with Journal(tmp_path, STORE) as journal:
            assert (journal.torn is None) == (at == last.at or at > last_byte)
            assert journal.last_position == (8 if at > last_byte else 6)
            assert journal.durable_position == journal.last_position
        assert tail_is_zero(tmp_path)
        assert reopened(tmp_path) == [body(i) for i in range(4 if at > last_byte else 3)]


def test_every_flipped_byte_refuses_or_leaves_exactly_the_frames_before_it(tmp_path: Path) -> None:
    write(tmp_path, 28, synced=True)
    write(tmp_path, 4, synced=False, start=28)
    frames = journal_v1.frames(tmp_path)
    assert len({frame.file for frame in frames}) == 2
    # A frame was durable for certain when a later one recorded it, or a later segment exists.
    proven = max(frame.durable for frame in frames)
    assert any(frame.offset >= proven for frame in frames)
    assert any(frame.offset < proven and frame.file == frames[-1].file for frame in frames)
    chance = random.Random(0)
    refused = cut = 0
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for at in range(max(frame.end for frame in frames if frame.file == path.name)):
            data = bytearray(whole)
            data[at] ^= 1 << chance.randrange(8)
            path.write_bytes(data)
            hit = next((i for i, f in enumerate(frames) if f.file == path.name and f.at <= at < f.end), None)
            if hit is None:
                with pytest.raises((CorruptRecordError, IncompatibleVersionError), match=path.name):
                    Journal(tmp_path, STORE)
            elif path.name == frames[0].file or frames[hit].offset < proven:
                with pytest.raises(CorruptRecordError, match=f"{path.name}.* offset {frames[hit].at}"):
                    Journal(tmp_path, STORE)
                assert path.read_bytes() == data
                refused += 1
            else:
                with Journal(tmp_path, STORE) as journal:
                    assert journal.torn is not None
                    assert [frame.body for frame in journal.read()] == [body(i) for i in range(hit)]
                assert path.read_bytes() == whole[: frames[hit].at].ljust(SEGMENT_BYTES, b"\0")
                cut += 1
        path.write_bytes(whole)
    assert refused
    assert cut


def test_a_bad_frame_before_good_ones_that_were_not_durable_ends_the_journal(tmp_path: Path) -> None:
    write(tmp_path, 6, synced=False)
    frames = journal_v1.frames(tmp_path)
    assert {frame.durable for frame in frames} == {72}
    file = tmp_path / frames[2].file
    data = bytearray(file.read_bytes())
    data[frames[2].at : frames[2].end] = bytes(frames[2].end - frames[2].at)
    file.write_bytes(data)
    assert reopened(tmp_path) == [body(0), body(1)]
    # Frame 2 is written again as it was: what followed it then must not come back.
    write(tmp_path, 1, synced=True, start=2)
    assert reopened(tmp_path) == [body(0), body(1), body(2)]


def test_frames_that_no_frame_records_as_durable_are_written_again_at_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed sync their pages may be clean in memory and missing on disk."""
    write(tmp_path, 3, synced=True)
    write(tmp_path, 3, synced=False, start=3)
    frames = journal_v1.frames(tmp_path)
    written: list[tuple[int, int]] = []
    real = os.pwrite

    def pwrite(fd: int, data: bytes, at: int) -> int:
        written.append((at, at + len(data)))
        return real(fd, data, at)

    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(os, "pwrite", pwrite)
    Journal(tmp_path, STORE).close()
    assert written == [(frames[3].at, frames[5].end)]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_a_body_full_of_lookalike_frames_proves_nothing(tmp_path: Path) -> None:
    """A client chooses its bodies, not the salt: what looks like a frame inside one is none."""
    fakes = b"".join(
        journal_v1.frame(0, BATCH, b"", first=1, offset=72 + 56 + 56 * i, durable=72 + 56 + 56 * i)
        for i in range(30)
    )
    with Journal(tmp_path, STORE, create=True, segment_bytes=SEGMENT_BYTES) as journal:
        journal.append(BATCH, fakes)
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    data[80] ^= 1
    file.write_bytes(data)
    assert reopened(tmp_path) == []


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_damage_anywhere_has_a_defined_answer(tmp_path: Path, data: st.DataObject) -> None:
    base, copy = tmp_path / "base", tmp_path / "copy"
    if not base.exists():
        base.mkdir()
        write(base, 30, synced=True)
        write(base, 5, synced=False, start=30)
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(base, copy)
    path = data.draw(st.sampled_from(sorted(copy.iterdir())))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        noise = data.draw(st.binary(max_size=300))
        content[at : at + len(noise)] = noise
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), SEGMENT_BYTES]))])
    try:
        found = reopened(copy)
    except (CorruptRecordError, IncompatibleVersionError):
        return
    assert found == [body(i) for i in range(len(found))]
    assert len(found) >= 29


@given(st.integers(0, 10**6), st.sampled_from([512, 4096]), st.integers(0, 12), st.integers(1, 12))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_power_cut_keeps_every_durable_frame_and_leaves_a_prefix(
    tmp_path: Path, seed: int, block: int, n_synced: int, n_unsynced: int
) -> None:
    """What was synced is on disk; of the blocks written since, a random half."""
    chance = random.Random(seed)
    directory = tmp_path / "j"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    settings_ = {"mode": "process", "sync_delay_ms": 1000, "segment_bytes": 32768}
    with Journal(directory, STORE, create=True, **settings_) as journal:  # type: ignore[arg-type]
        for i in range(n_synced):
            journal.append(BATCH, body(i) * 9, n_positions=2)
        journal.sync()
        n_syncs = journal.n_syncs
        (file,) = directory.iterdir()
        on_disk = file.read_bytes()
        for i in range(n_synced, n_synced + n_unsynced):
            journal.append(BATCH, body(i) * 9, n_positions=2)
        in_memory = file.read_bytes()
        if journal.n_syncs != n_syncs:
            return  # the machine paused for a second: the model does not know what was synced
    after = b"".join(
        (on_disk if chance.random() < 0.5 else in_memory)[at : at + block]
        for at in range(0, len(on_disk), block)
    )
    file.write_bytes(after)
    found = reopened(directory, from_position=2 * n_synced + 1)
    assert found == [body(i) * 9 for i in range(len(found))]
    assert len(found) >= n_synced
    with Journal(directory, STORE) as journal:
        assert journal.append(BATCH, b"on") == 2 * len(found) + 1


def test_a_death_during_recovery_is_recovered_from(tmp_path: Path) -> None:
    write(tmp_path, 3, synced=True)
    frames = journal_v1.frames(tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: frames[2].at + 70] + os.urandom(SEGMENT_BYTES - frames[2].at - 70))
    failpoint.arm("recovery.mid=eio")
    with pytest.raises(StorageError, match="Input/output"):
        Journal(tmp_path, STORE)
    assert reopened(tmp_path) == [body(0), body(1)]


def test_a_segment_that_was_being_made_is_removed(tmp_path: Path) -> None:
    write(tmp_path, 2, synced=True)
    (tmp_path / "journal-00000000000000000005.seg.tmp").write_bytes(b"half")
    assert reopened(tmp_path) == [body(0), body(1)]
    assert len(list(tmp_path.iterdir())) == 1


def test_only_what_the_checkpoint_does_not_cover_is_read(tmp_path: Path) -> None:
    write(tmp_path, 60, synced=True)
    segments = JournalReader(tmp_path).segments
    assert len(segments) > 2
    first = tmp_path / segments[0].name
    data = bytearray(first.read_bytes())
    data[100] ^= 1
    first.write_bytes(data)
    with Journal(tmp_path, STORE, from_position=segments[1].first_position) as journal:
        assert journal.last_position == 120
        with pytest.raises(CorruptRecordError, match=segments[0].name):
            journal.verify()
    with pytest.raises(CorruptRecordError, match=segments[0].name):
        Journal(tmp_path, STORE)


def test_a_journal_that_ends_before_the_checkpoint_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 3, synced=True)
    Journal(tmp_path, STORE, from_position=7).close()
    with pytest.raises(CorruptRecordError, match="ends before position 7"):
        Journal(tmp_path, STORE, from_position=8)


def test_a_journal_that_begins_after_the_checkpoint_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 60, synced=True)
    start = JournalReader(tmp_path).segments[1].first_position
    with Journal(tmp_path, STORE) as journal:
        journal.truncate_before(start)
    Journal(tmp_path, STORE, from_position=start).close()
    with pytest.raises(CorruptRecordError, match=f"position {start - 1} is needed"):
        Journal(tmp_path, STORE, from_position=start - 1)


Damage = Callable[[Path, list[Path]], object]

DAMAGES: dict[str, tuple[Damage, type[Exception], str]] = {
    "missing in the middle": (lambda d, f: f[1].unlink(), CorruptRecordError, "does not follow"),
    "shrunk": (lambda d, f: os.truncate(f[0], 4000), CorruptRecordError, "has 4000 bytes"),
    "shrunk into the header": (lambda d, f: os.truncate(f[1], 71), CorruptRecordError, "cut to 71 bytes"),
    "emptied": (lambda d, f: os.truncate(f[1], 0), IncompatibleVersionError, "not a journal segment"),
    "last one shrunk": (lambda d, f: os.truncate(f[-1], 4088), CorruptRecordError, "has 4088 bytes"),
    "grown": (lambda d, f: os.truncate(f[-1], 5000), CorruptRecordError, "has 5000 bytes"),
    "zeroed": (lambda d, f: f[1].write_bytes(bytes(4096)), IncompatibleVersionError, "not a journal segment"),
    "renamed": (lambda d, f: f[-1].rename(d / f"journal-{999:020}.seg"), CorruptRecordError, "renamed"),
    "foreign": (
        lambda d, f: (d / f"journal-{999:020}.seg").write_bytes(b"SQLite format 3\0" * 256),
        IncompatibleVersionError,
        "not a journal segment",
    ),
    "a name of another kind": (
        lambda d, f: f[0].rename(d / "journal-old.seg"),
        IncompatibleVersionError,
        "not a journal segment",
    ),
    "a directory": (lambda d, f: (d / f"journal-{999:020}.seg").mkdir(), StorageError, "cannot read"),
}


@pytest.mark.parametrize(("damage", "error", "said"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_directories_are_refused_untouched(
    tmp_path: Path, damage: Damage, error: type[Exception], said: str
) -> None:
    write(tmp_path, 60, synced=True)
    damage(tmp_path, sorted(tmp_path.iterdir()))
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(error, match=said):
        Journal(tmp_path, STORE, create=True)
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_missing_segment_is_noticed_even_where_nothing_is_read(tmp_path: Path) -> None:
    """Three nearly empty segments: the gap would fit into the first one's zeros."""
    with Journal(tmp_path, STORE, create=True, segment_bytes=SEGMENT_BYTES) as journal:
        for _ in range(3):
            last = journal.append(BATCH, b"small")
            journal.roll()
    sorted(tmp_path.iterdir())[1].unlink()
    with pytest.raises(CorruptRecordError, match="does not follow"):
        Journal(tmp_path, STORE, from_position=last)


def test_a_segment_swapped_for_one_of_the_same_name_is_noticed(tmp_path: Path) -> None:
    """Another journal of the same store, cut at the same positions but with other bytes."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    for directory, fill in ((one, b"a" * 1000), (two, b"b" * 900)):
        with Journal(directory, STORE, create=True, segment_bytes=SEGMENT_BYTES) as journal:
            for _ in range(3):
                for _ in range(3):
                    journal.append(BATCH, fill)
                journal.roll()
    name = sorted(path.name for path in one.iterdir())[1]
    shutil.copy(two / name, one / name)
    with pytest.raises(CorruptRecordError):
        Journal(one, STORE)


def test_other_files_in_the_directory_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "LOCK").write_bytes(b"")
    (tmp_path / "rows.mdb").write_bytes(b"x")
    write(tmp_path, 2, synced=True)
    assert reopened(tmp_path) == [body(0), body(1)]
    assert (tmp_path / "rows.mdb").read_bytes() == b"x"
