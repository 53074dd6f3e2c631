"""The journal's bytes: golden files, the second implementation, and the example in FORMAT.md agree."""

from __future__ import annotations

import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from featurestore.errors import CorruptRecordError, IncompatibleVersionError
from featurestore.storage import frame as bodies
from featurestore.storage import journal as compiled
from featurestore.storage.journal import BATCH, FORGET, PRODUCER, SCHEMA, Journal, JournalReader

from . import journal_v1

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "journal_v1"
GOLDEN_CHANGES = GOLDEN.parent / "journal_producer_v1"
STORE = bytes(range(16))
NOW_MS = 1_700_000_000_000
PLAN = b'{"name":"demo","version":1}'
BATCH_BODY = journal_v1.batch_body(
    [0, 1, 16],
    [NOW_MS, NOW_MS - 1_000_000, -1],
    [[1.5, -2.0, float("nan")], [b"596", None, "été".encode()], [b"a", b"", b"bc"]],
    producer=b"ingest-1",
    epoch=7,
    sequence=42,
    fingerprint=0x1122334455667788,
    event_id=3,
)
FORGET_BODY = struct.pack("<H6x16s", 2, bytes(range(100, 116)))


CHANGES = [
    struct.pack("<BB6xQQ", 2, 8, 7, 41) + b"ingest-1",
    struct.pack("<BB6xQQ", 1, 4, 0, 0) + "é".encode() + b"ab",
]


def golden_changes() -> dict[str, bytes]:
    """A schema, a producer that is reset, and one that is dropped."""
    salt, written = 0x0011223344556677, b""
    for i, (kind, body) in enumerate([(SCHEMA, PLAN), *((PRODUCER, body) for body in CHANGES)]):
        at = 72 + len(written)
        written += journal_v1.frame(
            salt, kind, body, first=i + 1, offset=at, durable=at, schema=1, now_ms=NOW_MS + i
        )
    header = journal_v1.segment_header(STORE, salt, 1, previous=0, base=0, size=4096)
    return {"journal-00000000000000000001.seg": (header + written).ljust(4096, b"\0")}


def golden() -> dict[str, bytes]:
    """The golden files as the second implementation writes them."""
    salts = 0x0123456789ABCDEF, 0xFEDCBA9876543210
    schema = journal_v1.frame(salts[0], SCHEMA, PLAN, first=1, offset=72, durable=72, schema=1, now_ms=NOW_MS)
    at = 72 + len(schema)
    batch = journal_v1.frame(
        salts[0], BATCH, BATCH_BODY, first=2, n=3, offset=at, durable=at, schema=1, now_ms=NOW_MS + 123
    )
    used = at + len(batch)
    forget = journal_v1.frame(
        salts[1],
        FORGET,
        FORGET_BODY,
        first=5,
        offset=used + 72,
        durable=used + 72,
        schema=1,
        now_ms=NOW_MS + 200,
    )
    first = journal_v1.segment_header(STORE, salts[0], 1, previous=0, base=0, size=4096) + schema + batch
    second = journal_v1.segment_header(STORE, salts[1], 5, previous=1, base=used, size=4096) + forget
    return {
        "journal-00000000000000000001.seg": first.ljust(4096, b"\0"),
        "journal-00000000000000000005.seg": second.ljust(4096, b"\0"),
    }


def test_the_golden_files_are_what_the_second_implementation_writes() -> None:
    assert {path.name: path.read_bytes() for path in GOLDEN.iterdir()} == golden()
    assert {path.name: path.read_bytes() for path in GOLDEN_CHANGES.iterdir()} == golden_changes()


def test_the_golden_changes_of_producers_read_as_they_were_written() -> None:
    schema, reset, drop = JournalReader(GOLDEN_CHANGES, 0, STORE)
    assert [frame.kind for frame in (schema, reset, drop)] == [SCHEMA, PRODUCER, PRODUCER]
    assert [frame.first_position for frame in (schema, reset, drop)] == [1, 2, 3]
    assert bodies.parse_producer_body(reset.body) == (2, b"ingest-1", 7, 41)
    assert bodies.parse_producer_body(drop.body) == (1, "é".encode() + b"ab", 0, 0)
    assert bodies.producer_body(2, b"ingest-1", 7, 41) == reset.body


def test_the_golden_journal_reads_as_it_was_written() -> None:
    schema, batch, forget = JournalReader(GOLDEN, 0, STORE)
    assert (schema.kind, schema.first_position, schema.n_positions) == (SCHEMA, 1, 1)
    assert (schema.now_ms, schema.schema_version, schema.body) == (NOW_MS, 1, PLAN)
    assert (batch.kind, batch.first_position, batch.n_positions) == (BATCH, 2, 3)
    assert (batch.offset, batch.durable_offset) == (160, 160)
    assert (forget.kind, forget.first_position, forget.offset) == (FORGET, 5, 400 + 72)
    assert bodies.parse_forget_body(forget.body) == (2, bytes(range(100, 116)))
    body = bodies.parse_batch_body(batch.body)
    assert (body.producer, body.epoch, body.sequence) == (b"ingest-1", 7, 42)
    assert (body.fingerprint, body.event_id) == (0x1122334455667788, 3)
    assert body.outcomes.tolist() == [0, 1, 16]
    assert body.times.tolist() == [NOW_MS, NOW_MS - 1_000_000, -1]
    numbers, names, letters = body.columns
    assert isinstance(numbers, np.ndarray)
    assert isinstance(names, bodies.TextValues)
    assert isinstance(letters, bodies.TextValues)
    np.testing.assert_array_equal(numbers, [1.5, -2.0, np.nan])
    assert names.data.tobytes() == "596été".encode()
    assert names.offsets.tolist() == [0, 3, 3, 8]
    assert names.present is not None
    assert names.present.tolist() == [1, 0, 1]
    assert letters.data.tobytes() == b"abc"
    assert letters.offsets.tolist() == [0, 1, 1, 3]
    assert letters.present is None


def test_the_golden_journal_opens_and_goes_on(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "j")
    with Journal(tmp_path / "j", STORE) as journal:
        assert journal.last_position == 5
        assert journal.torn is None
        assert journal.append(BATCH, b"next") == 6
    assert [frame.first for frame in journal_v1.frames(tmp_path / "j")] == [1, 2, 5, 6]


def test_the_hexdump_in_the_document_is_the_golden_file() -> None:
    document = (Path(compiled.__file__).parent / "FORMAT.md").read_text()
    shown = document[document.index("## Journal") :]
    lines = re.findall(r"^([0-9a-f]{8})  ((?:[0-9a-f]{2} {1,2}){16})", shown, re.M)
    assert len(lines) > 30
    dumps: list[dict[int, bytes]] = []
    for offset, text in lines:
        if int(offset, 16) == 0:
            dumps.append({})
        dumps[-1][int(offset, 16)] = bytes.fromhex(text)
    for path, dump in zip([*sorted(GOLDEN.iterdir()), *GOLDEN_CHANGES.iterdir()], dumps, strict=True):
        data = path.read_bytes()
        assert all(data[at : at + 16] == line for at, line in dump.items())
        assert not any(data[max(dump) + 16 :])


def test_the_second_implementation_reads_what_the_journal_writes(tmp_path: Path) -> None:
    with Journal(tmp_path, STORE, create=True, segment_bytes=4096) as journal:
        for i in range(40):
            journal.append(BATCH, b"x" * i, b"y" * (i * 7), n_positions=i + 1, now_ms=-i, schema_version=i)
        mine = list(journal.read())
    theirs = journal_v1.frames(tmp_path)
    assert len(theirs) == 40
    assert len({frame.file for frame in theirs}) > 1
    assert [tuple(frame) for frame in mine] == [
        (f.kind, f.first, f.n, f.now_ms, f.schema, f.offset, f.durable, f.body) for f in theirs
    ]
    assert all(frame.durable <= frame.offset for frame in theirs)


def segment(directory: Path, *frames: bytes, first: int = 1, salt: int = 5, version: int = 1) -> Path:
    path = directory / f"journal-{first:020}.seg"
    header = journal_v1.segment_header(STORE, salt, first, previous=0, base=0, size=4096, version=version)
    path.write_bytes((header + b"".join(frames)).ljust(4096, b"\0"))
    return path


def test_a_newer_segment_version_is_refused(tmp_path: Path) -> None:
    path = segment(tmp_path, version=2)
    with pytest.raises(IncompatibleVersionError, match=r"version 2"):
        Journal(tmp_path, STORE)
    assert path.read_bytes()[72:] == bytes(4024)


@pytest.mark.parametrize("change", [{"version": 2}, {"kind": 7}, {"kind": 0}])
def test_an_intact_frame_of_a_newer_version_or_kind_is_refused(
    tmp_path: Path, change: dict[str, int]
) -> None:
    kind = change.get("kind", 1)
    version = change.get("version", 1)
    segment(tmp_path, journal_v1.frame(5, kind, b"", first=1, offset=72, durable=72, version=version))
    with pytest.raises(IncompatibleVersionError, match="newer"):
        Journal(tmp_path, STORE)


@pytest.mark.parametrize(
    "change",
    [{"first": 2}, {"first": 0}, {"n": 0}, {"durable": 73}],
    ids=["gap", "repeat", "empty", "durable"],
)
def test_an_intact_frame_that_contradicts_its_place_is_refused(
    tmp_path: Path, change: dict[str, int]
) -> None:
    segment(tmp_path, journal_v1.frame(5, 1, b"", **{"first": 1, "offset": 72, "durable": 72, **change}))
    with pytest.raises(CorruptRecordError):
        Journal(tmp_path, STORE)


@pytest.mark.parametrize("change", [{"salt": 6}, {"offset": 80}], ids=["salt", "offset"])
def test_a_frame_of_another_segment_or_place_is_not_a_frame(tmp_path: Path, change: dict[str, int]) -> None:
    segment(
        tmp_path,
        journal_v1.frame(change.get("salt", 5), 1, b"", first=1, offset=change.get("offset", 72), durable=72),
    )
    with Journal(tmp_path, STORE) as journal:
        assert journal.last_position == 0
        assert journal.torn is not None
