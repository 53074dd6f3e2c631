"""Hashes against the authors' published vectors and against textbook versions written from the papers."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.columns import TextColumn, text_column
from featurestore.core import hashing
from featurestore.core.batch import EventBatch
from featurestore.errors import InvalidEventError
from featurestore.plan import EventPlan, FieldPlan, Kind, TimePlan

KEY = bytes(range(16))
MESSAGE = bytes(range(64))
MASK = (1 << 64) - 1

# From the reference code's vectors.h: message 00 01 02 ... of this length, key 00 01 ... 0f.
SIP64 = {
    0: "310e0edd47db6f72",
    1: "fd67dc93c539f874",
    2: "5a4fa9d909806c0d",
    3: "2d7efbd796666785",
    7: "37d1018bf50002ab",
    8: "6224939a79f5f593",
    15: "e545be4961ca29a1",
    16: "db9bc2577fcc2a3f",
    63: "724506eb4c328a95",
}
SIP128 = {
    0: "a3817f04ba25a8e66df67214c7550293",
    1: "da87c1d86b99af44347659119b22fc45",
    2: "8177228da4a45dc7fca38bdef60affe4",
    3: "9c70b60c5267a94e5f33b6b02985ed51",
    7: "a1f1ebbed8dbc153c0b84aa61ff08239",
    8: "3b62a9ba6258f5610f83e264f31497b4",
    15: "5493e99933b0a8117e08ec0f97cfc3d9",
    16: "6ee2a4ca67b054bbfd3315bf85230577",
    63: "5150d1772f50834a503e069a973fbd7c",
}
# SHA-256 of each of the two tables whole, lengths 0 to 63 end to end.
ALL_SIP64 = "0226a91002af9775a791b3ec5a48e643f8848d2d5774dea9be3438d5786bb58e"
ALL_SIP128 = "ecfaa9fe47ff788fa834a9863ea2715a2880cd37d2b8c3c194402838428119b9"


def siphash_2_4(key: bytes, message: bytes, n_out: int) -> bytes:
    """SipHash-2-4 as the paper states it (64 bits) and the reference code extends it (128)."""
    k0, k1 = struct.unpack("<QQ", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]
    v[1] ^= 0xEE if n_out == 16 else 0

    def rotate(x: int, bits: int) -> int:
        return (x << bits | x >> 64 - bits) & MASK

    def rounds(n: int) -> None:
        for _ in range(n):
            v[0] = (v[0] + v[1]) & MASK
            v[1] = rotate(v[1], 13) ^ v[0]
            v[0] = rotate(v[0], 32)
            v[2] = (v[2] + v[3]) & MASK
            v[3] = rotate(v[3], 16) ^ v[2]
            v[0] = (v[0] + v[3]) & MASK
            v[3] = rotate(v[3], 21) ^ v[0]
            v[2] = (v[2] + v[1]) & MASK
            v[1] = rotate(v[1], 17) ^ v[2]
            v[2] = rotate(v[2], 32)

    padded = message + bytes(7 - len(message) % 8) + bytes([len(message) & 0xFF])
    for (word,) in struct.iter_unpack("<Q", padded):
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xEE if n_out == 16 else 0xFF
    rounds(4)
    out = struct.pack("<Q", v[0] ^ v[1] ^ v[2] ^ v[3])
    if n_out == 16:
        v[1] ^= 0xDD
        rounds(4)
        out += struct.pack("<Q", v[0] ^ v[1] ^ v[2] ^ v[3])
    return out


def key_message(entity_id: int, parts: list[bytes]) -> bytes:
    return struct.pack("<H", entity_id) + b"".join(struct.pack("<H", len(part)) + part for part in parts)


@pytest.mark.parametrize("n", SIP64)
def test_siphash64_gives_the_published_vectors(n: int) -> None:
    assert hashing.sip64(KEY, MESSAGE[:n]) == int.from_bytes(bytes.fromhex(SIP64[n]), "little")


@pytest.mark.parametrize("n", SIP128)
def test_siphash128_gives_the_published_vectors(n: int) -> None:
    assert hashing.sip128(KEY, MESSAGE[:n]).hex() == SIP128[n]


def test_all_64_published_vectors_of_both() -> None:
    all64 = b"".join(hashing.sip64(KEY, MESSAGE[:n]).to_bytes(8, "little") for n in range(64))
    all128 = b"".join(hashing.sip128(KEY, MESSAGE[:n]) for n in range(64))
    assert hashlib.sha256(all64).hexdigest() == ALL_SIP64
    assert hashlib.sha256(all128).hexdigest() == ALL_SIP128


@given(key=st.binary(min_size=16, max_size=16), message=st.binary(max_size=600))
def test_siphash_is_what_the_paper_says(key: bytes, message: bytes) -> None:
    assert hashing.sip64(key, message).to_bytes(8, "little") == siphash_2_4(key, message, 8)
    assert hashing.sip128(key, message) == siphash_2_4(key, message, 16)


def test_a_message_in_pieces_hashes_as_the_whole_for_every_cut() -> None:
    for n in range(41):
        whole = hashing.sip128(KEY, MESSAGE[:n])
        for i in range(n + 1):
            for j in range(i, n + 1):
                assert hashing.sip128(KEY, MESSAGE[:i], MESSAGE[i:j], MESSAGE[j:n]) == whole


@given(st.lists(st.binary(max_size=40), max_size=12))
def test_many_pieces_hash_as_the_whole(pieces: list[bytes]) -> None:
    assert hashing.sip128(KEY, *pieces) == siphash_2_4(KEY, b"".join(pieces), 16)


@given(
    secret=st.binary(min_size=16, max_size=16),
    entity_id=st.integers(0, 0xFFFF),
    parts=st.lists(st.binary(min_size=1, max_size=70), max_size=4),
)
def test_a_fingerprint_is_the_hash_of_the_documented_message(
    secret: bytes, entity_id: int, parts: list[bytes]
) -> None:
    assert hashing.fingerprint(secret, entity_id, parts) == siphash_2_4(
        secret, key_message(entity_id, parts), 16
    )


def test_a_length_that_straddles_two_words_keeps_both_its_bytes() -> None:
    for n in range(1, 17):
        parts = [b"a" * n, b"b" * 0x102, b"c"]
        assert hashing.fingerprint(KEY, 1, parts) == siphash_2_4(KEY, key_message(1, parts), 16)


def text_batch(columns: list[TextColumn]) -> EventBatch:
    fields = tuple(FieldPlan(f"f{k}", Kind.TEXT, True) for k in range(len(columns)))
    event = EventPlan(1, "e", TimePlan("ts", "ms"), fields, 0, None, 0, ())
    return EventBatch(event, 0, np.zeros(len(columns[0].offsets) - 1, np.int64), columns)


@given(
    rows=st.lists(st.tuples(*[st.none() | st.text(max_size=20)] * 3), min_size=1, max_size=20),
    entity_id=st.integers(0, 0xFFFF),
    fields=st.lists(st.integers(0, 2), max_size=4),
    lo=st.integers(0, 19),
)
def test_fingerprints_of_a_batch_are_those_of_its_keys_one_by_one(
    rows: list[tuple[str | None, ...]], entity_id: int, fields: list[int], lo: int
) -> None:
    lo = min(lo, len(rows))
    columns = [text_column([row[k] for row in rows])[0] for k in range(3)]
    words, missing = hashing.fingerprints(KEY, entity_id, text_batch(columns).part(lo, len(rows)), fields)
    assert len(words) == len(missing) == len(rows) - lo
    for i, row in enumerate(rows[lo:]):
        parts = [row[k] for k in fields]
        if all(parts):
            encoded = [part.encode() for part in parts if part]
            assert not missing[i]
            assert words[i].astype("<u8").tobytes() == siphash_2_4(KEY, key_message(entity_id, encoded), 16)
        else:
            assert missing[i]
            assert words[i].tolist() == [0, 0]


def test_the_longest_key_has_a_fingerprint_and_a_longer_one_is_an_error() -> None:
    longest = b"k" * 4096
    assert hashing.fingerprint(KEY, 7, [longest]) == siphash_2_4(KEY, key_message(7, [longest]), 16)
    with pytest.raises(InvalidEventError, match="4097 bytes"):
        hashing.fingerprint(KEY, 7, [longest + b"k"])
    column = TextColumn(np.array([0, 4096, 8193], np.uint32), np.frombuffer(b"k" * 8193, np.uint8), None)
    words, missing = hashing.fingerprints(KEY, 7, text_batch([column]), [0])
    assert words[0].astype("<u8").tobytes() == hashing.fingerprint(KEY, 7, [longest])
    assert missing.tolist() == [False, True]


def test_parts_do_not_run_into_each_other() -> None:
    keys = [[b"ab", b"c"], [b"a", b"bc"], [b"abc"], [b"c", b"ab"], []]
    assert len({hashing.fingerprint(KEY, entity, key) for key in keys for entity in (0, 1)}) == 10
    assert hashing.fingerprint(KEY, 0, [b"a", b""]) is None


def test_wrong_secrets_and_fields_are_errors() -> None:
    with pytest.raises(ValueError, match="16 bytes, not 15"):
        hashing.fingerprint(KEY[:15], 0, [b"a"])
    with pytest.raises(ValueError, match="16 bytes, not 17"):
        hashing.sip128(bytes(17), b"")
    fields = (FieldPlan("account", Kind.TEXT, True), FieldPlan("seconds", Kind.NUMBER, False))
    event = EventPlan(1, "e", TimePlan("ts", "ms"), fields, 0, None, 0, ())
    batch = EventBatch(event, 0, np.zeros(1, np.int64), [text_column(["a"])[0], np.zeros(1)])
    for field in (2, -1, 65536):
        with pytest.raises(ValueError, match=f"field {field}: this batch has 2 columns"):
            hashing.fingerprints(KEY, 0, batch, [field])
    with pytest.raises(ValueError, match="field 1 is a column of numbers"):
        hashing.fingerprints(KEY, 0, batch, [0, 1])


# RFC 3720, appendix B.4, and the check value of the CRC catalogues.
@pytest.mark.parametrize("tables", [False, True])
@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_crc32c_gives_the_published_values(data: bytes, crc: int, tables: bool) -> None:
    assert hashing.crc32c_of(data, tables=tables) == crc


def crc32c_by_bits(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@given(a=st.binary(max_size=100), b=st.binary(max_size=100))
def test_crc32c_by_instruction_by_tables_and_by_bits_agree_in_one_go_or_two(a: bytes, b: bytes) -> None:
    whole = crc32c_by_bits(a + b)
    for tables in (False, True):
        assert hashing.crc32c_of(a + b, tables=tables) == whole
        assert hashing.crc32c_of(b, hashing.crc32c_of(a, tables=tables), tables=tables) == whole
