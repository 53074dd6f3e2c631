"""Valid bytes made wrong, from a seed.

What breaks decoders is not noise but bytes that are nearly right: a length that says more than there is, a
count of 0 or of 2^32 - 1, a piece left out, given twice or taken from another message. Noise comes too, but
seldom.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

WIDTHS = (1, 2, 4, 8)
MOST_CHANGES = 4


def _edges(width: int) -> tuple[int, ...]:
    """Numbers of `width` bytes at which arithmetic goes wrong."""
    bits = 8 * width
    return (
        0,
        1,
        2,
        7,
        8,
        255,
        2**bits - 1,
        2**bits - 2,
        2 ** (bits - 1),
        2 ** (bits - 1) - 1,
        2 ** (bits - 2),
    )


def _place(rng: random.Random, data: bytearray, width: int = 1) -> int:
    return rng.randrange(max(1, len(data) - width + 1))


def _span(rng: random.Random, data: bytearray) -> tuple[int, int]:
    """Mostly short, now and then any."""
    start = _place(rng, data)
    longest = len(data) - start if rng.random() < 0.2 else min(len(data) - start, 24)
    return start, start + rng.randint(min(1, longest), longest)


def flip_bit(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> str:
    at, bit = _place(rng, data), rng.randrange(8)
    data[at] ^= 1 << bit
    return f"bit {bit} of byte {at}"


def set_byte(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> str:
    at, value = _place(rng, data), rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    data[at] = value
    return f"byte {at} = {value}"


def set_number(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> str:
    """A whole number of a format with fixed fields: a length, a count, a time."""
    width, order = rng.choice(WIDTHS), rng.choice(("little", "little", "big"))
    at = _place(rng, data, width) // width * width if rng.random() < 0.7 else _place(rng, data, width)
    old = int.from_bytes(data[at : at + width], order)
    value = rng.choice(
        (old + rng.choice((-8, -1, 1, 8)), rng.choice(_edges(width)), rng.getrandbits(8 * width))
    )
    data[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, order)
    return f"{width} bytes at {at} = {value:#x}"


def set_varint(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> str:
    """The bytes of one varint replaced by another's, longer or shorter."""
    at = end = _place(rng, data)
    while end < len(data) and data[end] & 0x80:
        end += 1
    value = rng.choice(
        (rng.choice(_edges(8)), rng.getrandbits(rng.randrange(1, 70)), len(data), len(data) - at)
    )
    written = bytearray()
    rest = value
    while rest >= 0x80:
        written.append(rest & 0x7F | 0x80)
        rest >>= 7
    written.append(rest)
    data[at : end + 1] = written
    return f"varint at {at} = {value:#x}"


def cut(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> str:
    at = _place(rng, data)
    del data[at:]
    return f"cut at {at}"


def remove(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> str:
    start, stop = _span(rng, data)
    del data[start:stop]
    return f"without {start}..{stop}"


def repeat(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> str:
    start, stop = _span(rng, data)
    data[stop:stop] = data[start:stop]
    return f"{start}..{stop} twice"


def move(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> str:
    (start, stop), to = _span(rng, data), _place(rng, data)
    data[to : to + stop - start] = data[start:stop]
    return f"{start}..{stop} over {to}"


def insert(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> str:
    at, n = _place(rng, data), rng.randrange(1, 17)
    data[at:at] = rng.choice((bytes(n), b"\xff" * n, rng.randbytes(n)))
    return f"{n} bytes put in at {at}"


def splice(rng: random.Random, data: bytearray, others: Sequence[bytes]) -> str:
    """Its beginning, and the end of another sample."""
    which = rng.randrange(len(others))
    at, start = _place(rng, data), rng.randrange(len(others[which]) + 1)
    data[at:] = others[which][start:]
    return f"sample {which} from {start} on at {at}"


CHANGES: tuple[Callable[[random.Random, bytearray, Sequence[bytes]], str], ...] = (
    flip_bit, set_byte, set_number, set_number, set_varint, cut, remove, repeat, move, insert, splice,
)  # fmt: skip


def damaged(rng: random.Random, sample: bytes, others: Sequence[bytes]) -> tuple[bytes, str]:
    """The sample after one to four changes, and what they were."""
    data = bytearray(sample)
    said = []
    for _ in range(rng.randint(1, MOST_CHANGES)):
        if not data:
            break
        said.append(rng.choice(CHANGES)(rng, data, others))
    return bytes(data), ", ".join(said)


# ---- JSON, where bytes that are wrong seldom are JSON still

ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    1.5,
    2**31,
    2**63,
    -(2**63),
    1e300,
    "",
    "x",
    [],
    {},
    [0],
    {"x": 0},
)


def _places(node: Any) -> list[tuple[Any, Any]]:
    """Every place in it, as the list or object and the index or name there."""
    pairs = list(
        node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    )
    return [(node, at) for at, _ in pairs] + [place for _, value in pairs for place in _places(value)]


def _change_json(rng: random.Random, places: list[tuple[Any, Any]]) -> str:
    holder, at = rng.choice(places)
    old = holder[at]
    how = rng.randrange(6)
    if how == 0 and isinstance(holder, list):
        del holder[at]
        return f"without item {at}"
    if how == 1 and isinstance(holder, list):
        holder.insert(at, old)
        return f"item {at} twice"
    if how == 2 and isinstance(holder, dict):
        del holder[at]
        return f"without {at}"
    if how == 3 and isinstance(old, (int, float)):
        holder[at] = old + rng.choice((-1, 1, 2, 255, 65536))
    elif how == 4:
        other, there = rng.choice(places)
        # A copy: what contains itself is no JSON.
        holder[at] = json.loads(
            json.dumps(other[there] if there in other or isinstance(other, list) else None)
        )
    else:
        holder[at] = rng.choice(ODD)
    return f"{at} = {json.dumps(holder[at])[:60]}"


def damaged_json(rng: random.Random, sample: bytes, _: Sequence[bytes]) -> tuple[bytes, str]:
    """JSON text after one to three changes to what it says, and what they were."""
    tree = json.loads(sample)
    said = []
    for _ in range(rng.randint(1, 3)):
        places = _places(tree)
        if places:
            said.append(_change_json(rng, places))
    return json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    ), ", ".join(said)
