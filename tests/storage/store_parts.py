"""The store of tests/golden/store_parts_v4: a crash between two parts of a checkpoint, so a head of version
4, and shards that are ahead of it.

python -m storage.store_parts DIRECTORY     makes one like it (with an id, a secret and salts of its own)
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from featurestore.engine import Engine
from featurestore.errors import LimitError
from featurestore.storage import failpoint

from .store_v1 import SCHEMA, send

N_SHARDS = 4
KEYS = [f"key-{i}" for i in range(24)]
#: Both of them after the head: the first before the shards that are ahead of it, the second behind them.
FORGOTTEN = KEYS[:4], KEYS[4:8]


def make(directory: Path) -> None:
    with Engine.open(
        directory,
        schema=SCHEMA,
        clock="event",
        n_shards=N_SHARDS,
        segment_bytes=8192,
        checkpoint_part_bytes=1,
    ) as engine:
        send(engine, 1, KEYS)
        engine.checkpoint()
        send(engine, 2, KEYS)
        tombstones(engine, FORGOTTEN[0])
        send(engine, 3, KEYS)
        failpoint.arm("checkpoint.part:2=enospc")
        with pytest.raises(LimitError):
            engine.checkpoint()
        failpoint.disarm()
        send(engine, 4, KEYS)
        tombstones(engine, FORGOTTEN[1])
        send(engine, 5, KEYS[:6])


def tombstones(engine: Engine, keys: list[str]) -> None:
    """Forgets keys up to where the tombstone is in the journal."""
    for key in keys:
        failpoint.arm("forget.journaled=enospc")
        with pytest.raises(OSError):
            engine.forget({"account": key})
        failpoint.disarm()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
