"""What an operator changed of a producer, under kill -9: before it was acknowledged, after, in a checkpoint.

The process that dies is forked, as in test_engine_kill.py; the store that is opened then is asked what a
sender would ask of it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from storage import store_v1

from featurestore.engine import Engine
from featurestore.errors import SequenceError
from featurestore.storage import failpoint

OWNER, EPOCH, LAST = b"ingest-1", 3, 7


def send(engine: Engine, sequence: int, epoch: int = EPOCH) -> bool:
    """Whether it counted."""
    position = engine.state.position
    data = {
        "at": [store_v1.START_MS],
        "play_id": [f"{epoch}/{sequence}"],
        "account": ["anna"],
        "seconds": [1.0],
    }
    engine.observe(store_v1.batch(engine, data), producer=OWNER, epoch=epoch, sequence=sequence)
    return engine.state.position > position


def killed(store: Path, work: Callable[[Engine], object]) -> None:
    """A process that opens the store, does its work and dies without a word."""
    child = os.fork()
    if child == 0:
        try:
            with Engine.open(store) as engine:
                work(engine)
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def reset(engine: Engine) -> None:
    engine.reset_producer(OWNER.decode(), EPOCH, LAST)


def drop(engine: Engine) -> None:
    engine.drop_producer(OWNER.decode())


@pytest.mark.parametrize("change", [drop, reset])
@pytest.mark.parametrize("when", ["journaled", "acknowledged", "checkpointed", "checkpointed again"])
def test_what_was_changed_of_a_producer_survives(
    tmp_path: Path, change: Callable[[Engine], None], when: str
) -> None:
    def work(engine: Engine) -> None:
        if when == "journaled":
            failpoint.arm("producer.journaled=kill")
        change(engine)
        if when.startswith("checkpointed"):
            engine.checkpoint()

    store = tmp_path / "store"
    with Engine.open(store, schema=store_v1.SCHEMA, clock="event", n_shards=2, segment_bytes=4096) as engine:
        assert send(engine, LAST)
        assert send(engine, 1, EPOCH + (1 << 40)), "another writes under its name"
        with pytest.raises(SequenceError, match="fenced"):
            send(engine, LAST + 1)
        if when != "checkpointed":
            engine.checkpoint()  # which knows the producer as it was
        position = engine.state.position
    killed(store, work)
    with Engine.open(store) as engine:
        assert engine.state.position == position + 1
        found, _ = engine.producers()
        if change is drop:
            assert found == []
            assert send(engine, LAST), "as if it had never written"
        else:
            assert [tuple(each[:3]) for each in found] == [(OWNER, EPOCH, LAST)]
            with pytest.raises(SequenceError):
                send(engine, LAST)
        assert send(engine, LAST + 1)
        assert not send(engine, LAST + 1)
        digest = engine.state.digest()
    with Engine.open(store) as engine:
        assert engine.state.digest() == digest
