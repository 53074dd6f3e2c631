"""The whole store when the power goes: nothing acknowledged is lost, nothing is there twice or halved.

One run of the program is traced; from it, the directories that a power cut could have left at any moment are
made, opened, and compared with what had been acknowledged by then. See engine_truth.py and image.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from reference.timeless import timeless_digest

from featurestore.engine import Engine
from featurestore.errors import StorageError

from . import engine_program as program
from . import shim
from .engine_truth import Known, Truth
from .image import Cut, CutReport, Image, Trace, check_images
from .rounds import scaled

PROGRAM = [sys.executable, "-m", program.__name__]
SLOW_DISK = "op=fdatasync;path=journal/*;sticky=1;delay_ms=1"
"""Syncs are answered without being done; so that batches gather behind one, it takes a while all the same."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


def run_program(
    root: Path, n_batches: int, *, durability: str = "group", fail: str = SLOW_DISK, status: int = 0
) -> Trace:
    trace = root.parent / "trace"
    if not trace.exists():
        shim.begin_trace(trace, root)
    done = subprocess.run(
        [*PROGRAM, str(root), durability, str(n_batches)],
        env=shim.environment(root, trace=trace, fail=fail, skip_syncs=True),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == status, done.stderr + done.stdout[-2000:]
    loaded = Trace.load(trace)
    loaded.verify(root)
    return loaded


def recovered(engine: Engine) -> tuple[int, str, dict[str, list[float]], str]:
    state = engine.state
    return state.position, timeless_digest(state), program.counts_of(engine), state.plan.to_json()


def check(image: Image, durability: str = "group", whole: Sequence[str] = ()) -> None:
    """What was acknowledged is there, once; the rest happened or did not; and the store goes on.

    In mode `process` what is there is a prefix of what happened (`whole`: all lines of the run), up to the
    last checkpoint at least.
    """
    known = Known.of(image.markers)
    try:
        engine = program.open_engine(image.path, durability)
    except StorageError as error:
        assert not any(mark.startswith("created") for mark in image.markers), error
        assert "making it did not finish" in str(error) or "it has no store.json" in str(error), error
        program.open_engine(image.path, durability, create=True).close()
        return
    with engine:
        found = recovered(engine)
        if durability == "process":
            assert found[0] >= known.checkpoint
            known = Known.of(whole)
            known.acknowledged = {op: at for op, at in known.acknowledged.items() if 0 < at <= found[0]}
        truth = Truth(image.path)
        truth.advance(known, found, str(image.cut))
        if durability == "group":
            assert not truth.remains(truth.forgotten)
        go_on(engine, truth, known, durability)
    with program.open_engine(image.path, durability) as again:
        assert timeless_digest(again.state) == timeless_digest(truth.state)


def go_on(engine: Engine, truth: Truth, known: Known, durability: str) -> None:
    """What was in flight is sent again: it is a duplicate if it was there, and is applied if not."""
    for op in dict.fromkeys(known.tried):
        if op[0] == "b" and (op not in known.acknowledged or op in list(known.acknowledged)[-5:]):
            thread, number = int(op[1]), int(op[2])
            batch = program.batch_of(engine.state.plan, thread, number)
            engine.observe(batch, **program.producer_of(thread, number))
            was_there = op in truth.done
            assert set(map(int, batch.outcomes)) == {program.DUPLICATE if was_there else program.ACCEPTED}, op
            if not was_there:
                batch = program.batch_of(truth.state.plan, thread, number)
                truth.state.observe(batch, None, **program.producer_of(thread, number))
    engine.checkpoint()
    assert timeless_digest(engine.state) == timeless_digest(truth.state)


def created(trace: Trace) -> int:
    return next(marker.event for marker in trace.markers() if marker.text.startswith("created")) + 1


def cut_power(
    trace: Trace, cuts: Sequence[Cut], scratch: Path, checker: Callable[[Image], None] = check
) -> CutReport:
    report = check_images(trace, cuts, checker, scratch)
    print(report)
    assert not report.failures, report
    return report


class TestPowerCuts:
    def test_group_keeps_everything_acknowledged(self, root: Path, measured: Callable[[str], None]) -> None:
        trace = run_program(root, 40)
        # Two thirds of random cuts have unsynced blocks: of twenty, now and then half have none.
        n = 80 + scaled(120)
        report = cut_power(trace, trace.cuts(n, seed=1, after=created(trace)), root.parent)
        measured(f"power cuts, group: {report}")
        assert report.uncertain > report.checked // 2

    def test_process_leaves_a_prefix_that_reaches_the_last_checkpoint(
        self, root: Path, measured: Callable[[str], None]
    ) -> None:
        trace = run_program(root, 40, durability="process")
        whole = [marker.text for marker in trace.markers()]
        report = cut_power(
            trace,
            trace.cuts(scaled(200), seed=1, after=created(trace)),
            root.parent,
            lambda image: check(image, "process", whole),
        )
        measured(f"power cuts, process: {report}")

    def test_a_store_is_made_whole_or_not_at_all(self, root: Path) -> None:
        trace = run_program(root, 0)
        step = 1 if scaled(200) == 200 else 4
        cuts = [Cut(at, seed) for at in range(0, created(trace) + 1, step) for seed in range(2)]
        cut_power(trace, cuts, root.parent)

    @pytest.mark.parametrize("calls", ["fdatasync", "fsync", "dsync"])
    def test_the_checker_would_notice_syncs_that_do_nothing(self, root: Path, calls: str) -> None:
        run_program(root, 25)
        trace = Trace.load(root.parent / "trace", ignore_syncs=[calls])
        cuts = trace.cuts(200, seed=1, after=created(trace))
        assert check_images(trace, cuts, check, root.parent, until_failure=True).failures
