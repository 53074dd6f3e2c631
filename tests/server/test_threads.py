"""What a server's threads are: who gives way to whom, and who takes turns."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import grpc
import pytest
import transports
from house import T0, batch, opened, play
from transport.process import eventually

from featurestore.niceness import nicely
from featurestore.v1 import admin_service_pb2 as admin_pb
from featurestore.v1 import feature_store_service_pb2_grpc as pb_grpc

LARGE = batch(*(play(T0 + i, ip=f"10.0.0.{i % 200}") for i in range(3000)))  # larger than a loop runs itself


MOST = 19  # as nice as a thread can be


def own() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def niceness() -> dict[str, set[int]]:
    """Of the threads of this process that a server has named, by name."""
    found: dict[str, set[int]] = {}
    for thread in threading.enumerate():
        if thread.name.startswith("featurestore-") and thread.native_id is not None:
            name = thread.name.removeprefix("featurestore-").partition("_")[0]
            found.setdefault(name, set()).add(os.getpriority(os.PRIO_PROCESS, thread.native_id))
    return found


def test_what_may_take_its_time_gives_way(tmp_path: Path, transport: str) -> None:
    with opened(tmp_path, transport=transport, metrics="localhost:0") as house:
        house.engine.start_upkeep()
        with house.admin() as admin:
            admin.Checkpoint(admin_pb.CheckpointRequest())
        wanted = {"upkeep": {min(MOST, own() + 10)}, "metrics": {min(MOST, own() + 5)}, "admin": {own()}}
        if transport == "native":
            wanted |= {"worker": {min(MOST, own() + 5)}}
            wanted |= {name: {own()} for name in ("loop", "reads", "writes", "desk")}
        eventually(lambda: wanted.items() <= niceness().items(), "each is as nice as it should be")


def test_what_is_done_nicely_is_done_by_a_nicer_thread() -> None:
    seen: list[int] = []
    assert nicely(lambda: seen.append(own()) or len(seen)) == 1
    assert seen == [min(MOST, own() + 10)]
    with pytest.raises(ZeroDivisionError):
        nicely(lambda: 1 // 0)


@transports.needs_native
def test_large_messages_and_checkpoints_take_turns(tmp_path: Path) -> None:
    """And give each back: of as many as there are cores, one that was kept would be missed."""
    n_cores = len(os.sched_getaffinity(0))
    with opened(tmp_path, transport="native") as house:
        state = house.engine.state
        before = state.turns
        house.hot.Ingest(batch(play()))
        assert state.turns == before == (0, 0)
        for _ in range(n_cores + 1):
            house.hot.Ingest(LARGE)
        each = (n_cores + 1, n_cores + 1)
        eventually(lambda: state.turns == each, "a turn for each, given back after its answer")
        for _ in range(n_cores + 1):
            house.engine.checkpoint()
        asked, ended = state.turns
        assert asked == ended >= (n_cores + 1) * (1 + house.engine.directory.identity.n_shards)


def test_many_take_turns_at_once(tmp_path: Path, transport: str) -> None:
    """Batches of several clients and checkpoints beside them: all of it is applied."""
    n_clients, n_batches, n_events = 6, 5, len(LARGE.rows)
    failed: list[BaseException] = []
    with opened(tmp_path, transport=transport) as house:
        before = house.engine.state.position

        def ingest() -> None:
            try:
                with grpc.insecure_channel(str(house.server.address)) as channel:
                    hot = pb_grpc.FeatureStoreServiceStub(channel)
                    for _ in range(n_batches):
                        assert hot.Ingest(LARGE).accepted == n_events
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=ingest) for _ in range(n_clients)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            house.engine.checkpoint()
        for thread in threads:
            thread.join()
        assert not failed
        assert house.engine.state.position - before == n_clients * n_batches * n_events
