"""Processes forked with a client in hand, as gunicorn --preload, multiprocessing and Celery fork them: each
event is counted once, whoever sends it, and a child in which gRPC cannot work is told so.

Each parent is a process of its own, as it would be: the one that runs the tests has threads in gRPC, a
server, and gRPC's fork handlers off.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .fake_server import FakeServer

PRELUDE = """
import asyncio, json, multiprocessing, os, signal, sys, threading, time
from featurestore.client import AsyncClient, Client
from featurestore.errors import FeatureStoreError

T0 = 1_522_540_800_000
target = sys.argv[1]


def say(**what):
    os.write(1, json.dumps(what).encode() + b"\\n")  # at once, so that no two are mixed


def observe(client, i, **how):
    return client.observe("transaction", {"customer_id": i, "tx_datetime": T0}, "fraud", **how)


def run(work):
    try:
        work()
    except FeatureStoreError as error:
        say(error=type(error).__name__, words=str(error), applied=error.applied, code=0)


def fork(work):
    child = os.fork()
    if child == 0:
        run(work)
        os._exit(0)
    return child


def wait(*children):
    for child in children:
        for _ in range(1000):
            if (ended := os.waitpid(child, os.WNOHANG)) != (0, 0):
                say(status=ended[1])
                break
            time.sleep(0.01)
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            say(status="hung")
"""


def said_by(server: FakeServer | str, program: str, support: str | None = None) -> list[dict[str, Any]]:
    """What a parent and its children say; that they end, and well, is checked."""
    target = server if isinstance(server, str) else server.target
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"}
    if support is not None:
        environment["GRPC_ENABLE_FORK_SUPPORT"] = support
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + program, target],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["status"] for one in said if one.get("status", 0) != 0] == [], done.stderr
    return [one for one in said if "status" not in one]


def counted(server: FakeServer) -> list[int]:
    of_each = [event["customer_id"] for event in server.events]
    return sorted(int(getattr(one, "integer", one)) for one in of_each)


@pytest.mark.parametrize("support", [None, "1"])
@pytest.mark.parametrize("threads", [0, 2])
def test_four_children_and_their_parent_count_each_event_once(
    server: FakeServer, threads: int, support: str | None
) -> None:
    """Also where other threads of the parent are calling as it forks."""
    said = said_by(
        server,
        f"""
client = Client(target, timeout_s=5)
observe(client, 0)
is_over = False

def others():
    while not is_over:
        client.get("fraud", {{"customer_id": 1, "terminal_id": 2}})

threads = [threading.Thread(target=others) for _ in range({threads})]
for thread in threads:
    thread.start()

def five(first):
    for i in range(first, first + 5):
        say(outcome=observe(client, i).outcome.name, producer=client.producer)

children = [fork(lambda: five(1 + 5 * n)) for n in range(4)]
five(21)
wait(*children)
is_over = True
for thread in threads:
    thread.join()
client.close()
""",
        support,
    )
    assert [one["outcome"] for one in said] == ["ACCEPTED"] * 25, said
    assert len({one["producer"] for one in said}) == 5
    assert counted(server) == list(range(26))


def test_a_pool_of_multiprocessing_counts_each_event_once(server: FakeServer) -> None:
    said_by(
        server,
        """
client = Client(target, timeout_s=5)
observe(client, 0)

def send(i):
    return observe(client, i).outcome.name

with multiprocessing.get_context("fork").Pool(4) as pool:
    for outcome in pool.map(send, range(1, 41), chunksize=1):
        assert outcome == "ACCEPTED", outcome
    more = {"tx_datetime": [T0] * 2, "customer_id": [41, 42], "terminal_id": [0, 0]}
    assert client.ingest("transaction", more).accepted == 2
""",
    )
    assert counted(server) == list(range(43))


def test_children_of_children_have_names_of_their_own(server: FakeServer) -> None:
    said = said_by(
        server,
        """
client = Client(target, timeout_s=5)
names = [str(client.ticket())]

def child():
    observe(client, 1)
    say(producer=client.producer, ticket=client.ticket().producer)
    wait(fork(grandchild))
    observe(client, 3)

def grandchild():
    say(producer=client.producer, ticket=client.ticket().producer)
    observe(client, 2)

say(producer=client.producer, ticket=client.ticket().producer)
observe(client, 0)
wait(fork(child))
""",
    )
    assert all(one["producer"] == one["ticket"] for one in said)
    assert len({one["producer"] for one in said}) == 3
    assert counted(server) == [0, 1, 2, 3]


READS_AND_TICKETS = """
client = Client(target, timeout_s=5, producer="shop", epoch=3)
ticket = client.ticket()
ONE = {"tx_datetime": [T0], "customer_id": [0], "terminal_id": [0]}

def child():
    run(client.ticket)
    run(lambda: observe(client, 0))
    run(lambda: client.ingest("transaction", ONE))
    client.get("fraud", {"customer_id": 1, "terminal_id": 2})
    say(outcome=observe(client, 1, ticket=ticket).outcome.name)

wait(fork(child))
say(outcome=observe(client, 2).outcome.name)
"""
READS_AND_TICKETS_OF_ASYNCIO = """
client = AsyncClient(target, timeout_s=5, producer="shop", epoch=3)
ticket = client.ticket()
ONE = {"tx_datetime": [T0], "customer_id": [0], "terminal_id": [0]}

async def writes():
    for write in (lambda: observe(client, 0), lambda: client.ingest("transaction", ONE)):
        try:
            await write()
        except FeatureStoreError as error:
            run(lambda: (_ for _ in ()).throw(error))
    await client.get("fraud", {"customer_id": 1, "terminal_id": 2})
    say(outcome=(await observe(client, 1, ticket=ticket)).outcome.name)

def child():
    run(client.ticket)
    asyncio.run(writes())

wait(fork(child))
say(outcome=asyncio.run(observe(client, 2)).outcome.name)
"""


@pytest.mark.parametrize(
    "program", [READS_AND_TICKETS, READS_AND_TICKETS_OF_ASYNCIO], ids=["sync", "asyncio"]
)
def test_a_name_that_was_given_is_the_parents(server: FakeServer, program: str) -> None:
    """What a child of it may do: read, and finish a write by its ticket."""
    said = said_by(server, program)
    errors = [one for one in said if "error" in one]
    assert len(errors) == 3
    for one in errors:
        assert "'shop', before this process was forked" in one["words"]
        assert one["error"] == "ConfigError"
    assert [one["applied"] for one in errors[:2]] == [False, False]
    assert [one["outcome"] for one in said if "outcome" in one] == ["ACCEPTED"] * 2
    assert counted(server) == [1, 2]


def test_an_asyncio_client_that_was_not_used_is_each_childs_own(server: FakeServer) -> None:
    said = said_by(
        server,
        """
client = AsyncClient(target, timeout_s=5)

async def five(first):
    async with client:
        for i in range(first, first + 5):
            say(outcome=(await observe(client, i)).outcome.name, producer=client.producer)

children = [fork(lambda: asyncio.run(five(5 * n))) for n in range(4)]
wait(*children)
asyncio.run(five(20))
""",
    )
    assert [one["outcome"] for one in said] == ["ACCEPTED"] * 25
    assert len({one["producer"] for one in said}) == 5
    assert counted(server) == list(range(25))


@pytest.mark.parametrize("is_closed", [False, True])
def test_after_an_asyncio_client_was_used_a_child_is_told(server: FakeServer, is_closed: bool) -> None:
    """Else it hangs, or gRPC ends it."""
    said = said_by(
        server,
        f"""
client = AsyncClient(target, timeout_s=5)

async def used():
    await observe(client, 0)
    if {is_closed}:
        await client.close()

loop = asyncio.new_event_loop()
loop.run_until_complete(used())

def child():
    run(lambda: asyncio.run(observe(client, 1)))
    run(lambda: asyncio.run(observe(AsyncClient(target), 1)))
    run(lambda: observe(Client(target), 1))
    asyncio.run(client.close())

wait(fork(child))
""",
    )
    assert len(said) == 3
    for one in said:
        assert (one["error"], one["applied"]) == ("ConfigError", False)
        assert "after an AsyncClient had been used: make the first call in the child" in one["words"]
    assert counted(server) == [0]


def test_without_grpcs_fork_handlers_a_child_is_told_unless_its_parent_never_called(
    server: FakeServer,
) -> None:
    said = said_by(
        server,
        """
client = Client(target, timeout_s=5)
wait(fork(lambda: observe(client, 0)))
observe(client, 1)
wait(fork(lambda: observe(client, 2)))
observe(client, 3)
""",
        support="0",
    )
    assert [one["error"] for one in said] == ["ConfigError"]
    assert "with GRPC_ENABLE_FORK_SUPPORT=0: make the first call in the child" in said[0]["words"]
    assert counted(server) == [0, 1, 3]


def test_a_child_of_a_fork_amid_an_ingest_is_told(server: FakeServer) -> None:
    said = said_by(
        server,
        """
client = Client(target, timeout_s=5)
is_forked = threading.Event()
is_sent = threading.Event()

def pieces():
    yield {"tx_datetime": [T0], "customer_id": [0], "terminal_id": [0]}
    is_sent.set()
    is_forked.wait()
    yield {"tx_datetime": [T0], "customer_id": [1], "terminal_id": [0]}

thread = threading.Thread(target=lambda: client.ingest("transaction", pieces()))
thread.start()
is_sent.wait()
child = fork(lambda: observe(client, 2))
is_forked.set()
thread.join()
wait(child)
""",
    )
    assert [one["error"] for one in said] == ["ConfigError"]
    assert "while an ingest" in said[0]["words"]
    assert counted(server) == [0, 1]


def test_a_childs_deadline_holds_where_nobody_answers() -> None:
    with socket.create_server(("localhost", 0)) as silent:
        said = said_by(
            f"localhost:{silent.getsockname()[1]}",
            """
client = Client(target, timeout_s=0.5)
run(lambda: client.get("fraud", {"customer_id": 1}))
wait(fork(lambda: client.get("fraud", {"customer_id": 1})))
""",
        )
    assert [one["error"] for one in said] == ["UnavailableError"] * 2
