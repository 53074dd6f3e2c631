"""What a garbage collector takes together: it empties objects before it frees them, and in any order.

Each runs in a process of its own, in which what was freed is overwritten: what uses it ends by a signal.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import transports

SCHEMA = """
version: 1
name: clicks
events:
  click: {time: {field: at, unit: ms}, fields: {user: key, page: key}}
views:
  user: {event: click, key: user, windows: [1h], features: [count, distinct(page)]}
services:
  all: [user.*]
"""

PROGRAM = """
import gc, sys
from featurestore.columns import event_columns
from featurestore.config import Limits
from featurestore.core.batch import EventBatch
from featurestore.core.state import State
from featurestore.engine import Engine
from featurestore.schema import compile_schema

what, directory, schema = sys.argv[1:]
plan = compile_schema(schema)
users, pages = [f"u{i % 10}" for i in range(100)], [f"p{i}" for i in range(100)]
columns = event_columns(plan.events[0], {"at": list(range(100)), "user": users, "page": pages})
clicks = EventBatch(plan.events[0], 0, *columns)
gc.disable()
if what == "state":
    one = State(plan, clock="event")
    one.observe(clicks)
else:
    one = Engine.open(directory, schema=schema, clock="event")
    one.observe(clicks)
    if what in ("engine, closed", "rows"):
        one.close()
    if what == "rows":
        one = one.rows
    if what == "loop":
        import socket
        from featurestore.server.dispatcher import Dispatcher
        from featurestore.server.host import Host
        from featurestore.server.loop import Loop
        one = Loop(Host(Dispatcher(one), [], Limits()), [socket.create_server(("127.0.0.1", 0))])
ring = [one]
ring.append(ring)
del one, ring, plan, clicks, columns
print("collected", gc.collect() > 0)
"""


@pytest.mark.parametrize("what", ["state", "engine", "engine, closed", "rows", "loop"])
def test_what_is_collected_in_a_ring_is_freed_in_order(what: str, tmp_path: Path) -> None:
    if what == "loop" and "native" not in transports.available():
        pytest.skip("the native transport was not built")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, what, str(tmp_path / "store"), SCHEMA],
        env=os.environ | {"MALLOC_PERTURB_": "85", "PYTHONMALLOC": "malloc"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "collected True\n"), done.stderr
