"""The journal: bodies of frames, whole segments, and a store that replays them.

Frames are damaged twice: as they are, and with their checksums made right, so that what a checksum vouches
for is not believed either: neither by the reader of frames nor by the engine that applies them.
"""

from __future__ import annotations

import functools
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from featurestore.core.hashing import crc32c_of
from featurestore.engine import Engine
from featurestore.errors import CorruptRecordError, FeatureStoreError, IncompatibleVersionError
from featurestore.storage.frame import (
    TextValues,
    batch_body,
    forget_body,
    parse_batch_body,
    parse_forget_body,
    parse_producer_body,
    producer_body,
)
from featurestore.storage.journal import BATCH, JournalReader
from fuzz import trial
from fuzz.stores import SCHEMA, START_MS, logins, plays
from fuzz.trial import Trial

NO_TIME = 16  # the least outcome of a refused event
REFUSED = (CorruptRecordError, IncompatibleVersionError)
SEGMENT_BYTES = 1 << 15
HEADER_BYTES, FRAME_BYTES = 72, 56


# ---- bodies

BODIES = [
    batch_body([0], [START_MS], []),
    batch_body(
        [0, 1, 2, 16, 25],
        [START_MS, -5, 2**62, 0, 7],
        [
            np.arange(5.0),
            TextValues(np.array([0, 1, 1, 4, 9, 9], np.uint32), np.frombuffer(b"abcdefghi", np.uint8), None),
            TextValues(
                np.array([0, 3, 3, 3, 8, 8], np.uint32),
                np.frombuffer(b"xyz12345", np.uint8),
                np.array([1, 0, 0, 1, 1], np.uint8),
            ),
        ],
        producer=b"ingest-1",
        epoch=3,
        sequence=2**63,
        fingerprint=2**64 - 1,
        event_id=7,
    ),
    batch_body([0] * 40, range(40), [np.full(40, np.nan)] * 3, producer=b"p" * 255),
]


def written_again(data: bytes) -> bytes:
    body = parse_batch_body(data)
    return batch_body(
        body.outcomes, body.times, body.columns, producer=body.producer, epoch=body.epoch,
        sequence=body.sequence, fingerprint=body.fingerprint, event_id=body.event_id,
    )  # fmt: skip


def check_batch(data: bytes) -> None:
    """The decoder takes exactly what the encoder writes, and refused events that it writes no more."""
    again = written_again(data)
    assert written_again(again) == again
    assert again == data or parse_batch_body(data).outcomes.max() >= NO_TIME


def check_shed(data: bytes) -> None:
    body = parse_batch_body(data, has_shed=True)
    assert body.shed is not None
    assert body.shed.any()
    assert not body.shed[body.outcomes > 0].any()
    again = batch_body(
        body.outcomes, body.times, body.columns, producer=body.producer, epoch=body.epoch,
        sequence=body.sequence, fingerprint=body.fingerprint, event_id=body.event_id, shed=body.shed,
    )  # fmt: skip
    assert again == data or body.outcomes.max() >= NO_TIME


def check_change(data: bytes) -> None:
    assert producer_body(*parse_producer_body(data)) == data


def check_forget(data: bytes) -> None:
    assert forget_body(*parse_forget_body(data)) == data


@pytest.mark.parametrize(
    "one",
    [
        Trial("batch body", BODIES, check_batch, (CorruptRecordError,), rounds=20_000),
        Trial(
            "shed body",
            [
                batch_body([0], [START_MS], [], shed=[5]),
                batch_body([0, 1, 0], range(3), [np.full(3, 1.5)], shed=[1, 0, 2**63], producer=b"p"),
            ],
            check_shed,
            (CorruptRecordError,),
            rounds=5000,
        ),
        Trial(
            "Forget body",
            [forget_body(1, bytes(range(16)))],
            check_forget,
            (CorruptRecordError,),
            rounds=2000,
        ),
        Trial(
            "producer body",
            [producer_body(1, b"p"), producer_body(2, b"ingest-1", 7, 41)],
            check_change,
            (CorruptRecordError,),
            rounds=2000,
        ),
    ],
    ids=lambda one: one.name,
)
def test_a_damaged_body_is_refused_or_is_a_body(one: Trial) -> None:
    trial.run(one)


# ---- segments


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """Where no disk has to be waited for, if there is such a place."""
    shared = Path("/dev/shm")  # noqa: S108  every use is below a directory of its own
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as path:
        yield Path(path)


@pytest.fixture(scope="module")
def store(directory: Path) -> Path:
    """A store with a checkpoint, and behind it a journal of batches, a Forget, changes of a producer and a
    schema change."""
    path = directory / "store"
    with Engine.open(path, schema=SCHEMA, clock="event", n_shards=2, segment_bytes=SEGMENT_BYTES) as engine:
        engine.observe(
            plays([START_MS + 1000 * i for i in range(20)], "a"), producer=b"p", epoch=1, sequence=1
        )
        engine.checkpoint()
        engine.observe(
            plays([START_MS + 20_000 + 1000 * i for i in range(9)], "b"), producer=b"p", epoch=1, sequence=3
        )
        engine.observe(logins([START_MS, START_MS + 5]))
        engine.forget({"account": "b"})
        engine.reset_producer("p", 2, 9)
        engine.drop_producer("p")
        engine.apply_schema(
            SCHEMA.replace(
                "windows: [10s, 60s], features: [count, sum(ms), last(ms)]",
                "windows: [10s, 90s], features: [count, sum(ms), last(ms)]",
            ),
            allow=["drop"],
        )
        engine.observe(plays([START_MS + 40_000], "c"))
    return path


def used(segment: bytes) -> bytes:
    """Without the zeros behind its frames."""
    return segment.rstrip(b"\0") + bytes(8)


def with_checksums(data: bytes) -> bytes:
    """A segment with its header's checksum right, and that of every frame that can be found."""
    out = bytearray(data)
    if len(out) < HEADER_BYTES:
        return data
    struct.pack_into("<I", out, 68, crc32c_of(out[:68]))
    salt, at = bytes(out[24:32]), HEADER_BYTES
    while at + FRAME_BYTES <= len(out) and out[at : at + 4] == b"FSJF":
        (n_body,) = struct.unpack_from("<I", out, at + 12)
        end = at + FRAME_BYTES + n_body + -n_body % 8
        if end > len(out):
            break
        checksum = crc32c_of(
            bytes(out[at + FRAME_BYTES : end]) + salt + bytes(out[at + 8 : at + FRAME_BYTES])
        )
        struct.pack_into("<I", out, at + 4, checksum)
        at = end
    return bytes(out)


def put_segment(path: Path, data: bytes) -> None:
    """In the place of the only segment, which has its size preallocated."""
    (segment,) = path.glob("*.seg")
    segment.write_bytes(data[:SEGMENT_BYTES].ljust(SEGMENT_BYTES, b"\0"))


def check_segment(path: Path, data: bytes) -> None:
    put_segment(path, data)
    reader = JournalReader(path)
    position = None
    for frame in reader:
        assert position is None or frame.first_position == position
        position = frame.first_position + frame.n_positions
        assert len(frame.body) <= SEGMENT_BYTES


def check_store(original: Path, path: Path, data: bytes) -> None:
    """What is opened answers, goes on, and is the same when it is opened again."""
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(original, path)
    put_segment(path / "journal", data)
    with Engine.open(path, segment_bytes=SEGMENT_BYTES) as engine:
        plan = engine.state.plan
        digest, position = engine.state.digest(), engine.state.position
        engine.checkpoint()
    with Engine.open(path, segment_bytes=SEGMENT_BYTES) as engine:
        assert (engine.state.digest(), engine.state.position) == (digest, position)
        assert engine.state.plan == plan


@pytest.mark.parametrize("repair", [bytes, with_checksums], ids=["as it is", "with its checksums"])
def test_a_damaged_segment_is_refused_cut_or_read(
    store: Path, directory: Path, repair: Callable[[bytes], bytes]
) -> None:
    path = directory / f"segment {repair.__name__}"
    shutil.copytree(store / "journal", path)
    (segment,) = path.glob("*.seg")
    samples = [used(segment.read_bytes())]
    check = functools.partial(check_segment, path)
    trial.run(Trial(f"segment {repair.__name__}", samples, check, REFUSED, repair, 4000))


def test_a_damaged_journal_with_its_checksums_right_is_refused_or_replayed(
    store: Path, directory: Path
) -> None:
    (segment,) = (store / "journal").glob("*.seg")
    samples = [used(segment.read_bytes())]
    check = functools.partial(check_store, store, directory / "replayed")
    trial.run(Trial("replay", samples, check, (FeatureStoreError,), with_checksums, 2500, 3 << 30))


@pytest.mark.parametrize(
    ("time_ms", "account", "ms"), [(2**62, b"a", 1.0), (START_MS, b"a" * 5000, 1.0), (START_MS, b"a", np.inf)]
)
def test_an_accepted_event_that_no_decoder_accepts_is_not_replayed(
    tmp_path: Path, time_ms: int, account: bytes, ms: float
) -> None:
    def text(value: bytes) -> TextValues:
        return TextValues(np.array([0, len(value)], np.uint32), np.frombuffer(value, np.uint8), None)

    with Engine.open(tmp_path / "store", schema=SCHEMA, clock="event", n_shards=2) as engine:
        columns = [text(account), text(b"t"), np.array([ms]), np.array([1.0]), text(b"id")]
        event_id = engine.state.plan.events[0].event_id
        engine.journal.append(BATCH, batch_body([0], [time_ms], columns, event_id=event_id))
        engine.journal.sync()
    with pytest.raises(CorruptRecordError, match="position 2 accepts an event with"):
        Engine.open(tmp_path / "store")
