"""The whole store on a disk that fails or fills, in the Nth call: nothing acknowledged is lost.

The program runs under the shim, which makes the call fail. It says what it acknowledged; then power cuts are
taken from its trace, since a failed sync may have lost what the page cache still shows.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from . import engine_program as program
from . import shim
from .engine_truth import Known
from .image import Trace
from .rounds import scaled
from .test_engine_power import PROGRAM, SLOW_DISK, cut_power, run_program

GAVE_UP, DONE = 3, 0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "store"
    trace = tmp_path / "trace"
    root.mkdir()
    shim.begin_trace(trace, root)
    code = "import sys; from pathlib import Path; from crash import engine_program as p, shim\n"
    code += "p.open_engine(Path(sys.argv[1]), create=True).close(); shim.mark_here('created')"
    environment = shim.environment(root, trace=trace, skip_syncs=True)
    subprocess.run([PROGRAM[0], "-c", code, str(root)], env=environment, check=True)
    return root


@pytest.mark.parametrize(
    "rule",
    [
        *("op=fdatasync;path=journal/*;nth=3", "op=fdatasync;path=journal/*;nth=25"),
        *("op=pwritev;path=journal/*;nth=4", "op=pwritev;path=journal/*;nth=30;short=100"),
        *("op=fdatasync;path=rows/data.mdb;nth=3", "op=fdatasync;path=rows/data.mdb;nth=6"),
        *("op=writes;path=rows/data.mdb;nth=9", "op=writes;path=rows/data.mdb;nth=30;short=700"),
        *("op=dsync;path=rows/data.mdb;nth=3", "op=dsync;path=rows/data.mdb;nth=4;short=4096"),
        "op=fsync;path=rows/compacting*;nth=1",
    ],
)
def test_eio_ends_writes_and_a_restart_finds_everything_acknowledged(root: Path, rule: str) -> None:
    fail = f"{SLOW_DISK}|{rule};errno=EIO"
    if "fdatasync;path=journal" in rule:  # the first rule that matches is the one that acts
        fail = f"{rule};errno=EIO|{SLOW_DISK}"
    trace = run_program(root, 40, fail=fail, status=GAVE_UP)
    known = check_after(trace, root)
    assert "StorageError" in known.failed
    assert not known.closed


def check_after(trace: Trace, root: Path) -> Known:
    faults = [fault for fault in trace.faults() if fault.error]  # the others are delays
    assert len(faults) == 1, faults
    first = trace.events.index(faults[0])
    cut_power(trace, trace.cuts(5 + scaled(50), seed=1, after=first), root.parent)
    return Known.of([marker.text for marker in trace.markers()])


@pytest.mark.parametrize(
    "rule",
    [
        *("op=fallocate;path=journal/*;nth=2", "op=pwritev;path=journal/*;nth=9;short=300"),
        *("op=writes;path=rows/data.mdb;nth=12", "op=dsync;path=rows/data.mdb;nth=3"),
        *("op=fdatasync;path=rows/data.mdb;nth=4", "op=writes;path=rows/compacting/*;nth=2"),
    ],
)
def test_enospc_is_waited_out(root: Path, rule: str) -> None:
    trace = run_program(root, 40, fail=f"{SLOW_DISK}|{rule};errno=ENOSPC", status=DONE)
    known = check_after(trace, root)
    assert known.closed
    assert not known.failed
    sent = {op for op in [*known.acknowledged, *known.again] if op[0] == "b"}
    assert len(sent) == 40 * program.N_THREADS


def test_a_disk_that_is_full_for_a_while_is_waited_out(
    root: Path, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    rules, trace = tmp_path / "rules", tmp_path / "trace"
    rules.write_text("op=writes,fallocate;errno=ENOSPC;budget=200000")
    run = subprocess.Popen(
        [*PROGRAM, str(root), "group", "40"],
        env=shim.environment(root, trace=trace, fail=f"@{rules}", skip_syncs=True),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    n_full = 0
    with run.stdout:
        for line in run.stdout:
            n_full += line == "full\n"
            if n_full == 5:
                rules.unlink(missing_ok=True)
    assert run.wait() == DONE
    loaded = Trace.load(trace)
    loaded.verify(root)
    assert n_full >= 5
    report = cut_power(loaded, loaded.cuts(5 + scaled(50), seed=1, after=loaded.n_events // 2), tmp_path)
    measured(f"full disk, refused {n_full} times: {report}")
