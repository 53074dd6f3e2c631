"""The journal keeps its promises when the power goes, the disk fails or fills, and the process is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from . import journal_program as program
from . import shim
from .image import SYNC_BEGIN, SYNC_END, CutReport, Image, Trace, check_images, run_apart
from .kill import History, kill_loop
from .rounds import scaled

pytest.importorskip("featurestore.storage.journal")

PROGRAM = [sys.executable, "-m", program.__name__]
SLOW_DISK = "op=fdatasync;sticky=1;delay_ms=1"
"""Syncs are answered without being done; so that batches gather behind one, it takes a while all the same."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "journal").mkdir()
    return tmp_path / "journal"


def run_program(root: Path, *arguments: object, fail: str = SLOW_DISK, status: int = 0) -> Trace:
    trace = root.parent / "trace"
    shim.begin_trace(trace, root)
    done = subprocess.run(
        [*PROGRAM, str(root), *map(str, arguments)],
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


def read_back(directory: Path) -> dict[int, tuple[int, int]]:
    """Recovers a journal: what it holds by first position, each frame whole, none missing in between."""
    held: dict[int, tuple[int, int]] = {}
    with program.open_journal(directory) as journal:
        position = journal.first_position
        for frame in journal.read():
            assert frame.first_position == position
            held[position] = program.parse(frame)
            position += frame.n_positions
        assert journal.last_position == journal.durable_position == position - 1
    assert len(set(held.values())) == len(held), "a frame is there twice"
    return held


def go_on(directory: Path, held: dict[int, tuple[int, int]]) -> None:
    """After recovery the journal takes more, and a second recovery finds the same and that."""
    number = 1 + max((n for thread, n in held.values() if thread == 0), default=-1)
    with program.open_journal(directory) as journal:
        first = program.append_and_wait(journal, "group", 0, number)
    again = read_back(directory)
    assert again.pop(first) == (0, number)
    assert again == held


def check(image: Image) -> None:
    held = read_back(image.path)
    kept_from = max(
        [int(mark.split()[1]) for mark in image.markers if mark.startswith("truncate")], default=0
    )
    for mark in image.markers:
        if mark.startswith("ack"):
            position, *what = map(int, mark.split()[1:])
            if position >= kept_from:
                assert held.get(position) == tuple(what), f"{mark} is lost"
    go_on(image.path, held)


def check_prefix(image: Image) -> None:
    """Mode `process`: what was written is acknowledged; a power cut leaves a prefix, however long."""
    held = read_back(image.path)
    for mark in image.markers:
        if mark.startswith("ack"):
            position, *what = map(int, mark.split()[1:])
            assert held.get(position, tuple(what)) == tuple(what)
    if "closed" in image.markers:
        assert len(held) == sum(mark.startswith("ack") for mark in image.markers)
    go_on(image.path, held)


def cut_power(
    trace: Trace, n: int, scratch: Path, checker: Callable[[Image], None] = check, *, seed: int = 1
) -> CutReport:
    report = check_images(trace, trace.cuts(n, seed), checker, scratch)
    print(report)
    assert not report.failures, report
    return report


class TestPowerCuts:
    def test_group_keeps_everything_acknowledged(self, root: Path) -> None:
        trace = run_program(root, "group", 4, 60)
        n = 80 + scaled(120)  # two thirds have unsynced blocks: of twenty, now and then half have none
        assert cut_power(trace, n, root.parent).uncertain > n // 2

    def test_group_keeps_everything_acknowledged_while_old_segments_are_deleted(self, root: Path) -> None:
        trace = run_program(root, "group", 3, 100, 60)
        assert sum(marker.text.startswith("truncate") for marker in trace.markers()) > 3
        cut_power(trace, 20 + scaled(80), root.parent)

    def test_losing_whole_pages_is_survived_too(self, root: Path) -> None:
        run_program(root, "group", 4, 60)
        cut_power(Trace.load(root.parent / "trace", block_bytes=4096), 15 + scaled(45), root.parent)

    def test_process_leaves_a_prefix(self, root: Path) -> None:
        trace = run_program(root, "process", 3, 60)
        n = 20 + scaled(80)
        assert cut_power(trace, n, root.parent, check_prefix).uncertain > n // 2

    def test_power_may_go_again_during_recovery(self, root: Path, tmp_path: Path) -> None:
        trace = run_program(root, "group", 4, 40)
        n, torn = 4 + scaled(8), 0
        for i, cut in enumerate(trace.cuts(n, seed=3, after=trace.n_events // 2)):
            first = tmp_path / f"first {i}"
            markers = trace.crash_image(cut.at, cut.seed, first).markers
            acknowledged = [mark for mark in markers if mark.startswith("ack")]
            again = tmp_path / f"again {i}"
            shim.begin_trace(again, first)
            environment = shim.environment(first, trace=again, skip_syncs=True)
            recover = [*PROGRAM, str(first), "group", "0", "0"]
            subprocess.run(recover, env=environment, check=True, capture_output=True)
            recovery = Trace.load(again)
            recovery.verify(first)
            torn += recovery.n_events > 5

            def check_both(image: Image, acknowledged: list[str] = acknowledged) -> None:
                check(Image(image.path, image.cut, acknowledged, image.blocks_unsynced, image.names_unsynced))

            cut_power(recovery, 6, tmp_path, check_both)
        assert torn > n // 4

    @pytest.mark.parametrize("calls", ["fdatasync", "fsync"])
    def test_the_checker_would_notice_syncs_that_do_nothing(self, root: Path, calls: str) -> None:
        run_program(root, "group", 2, 30)
        trace = Trace.load(root.parent / "trace", ignore_syncs=[calls])
        cuts = trace.cuts(200, seed=1)
        assert check_images(trace, cuts, check, root.parent, until_failure=True).failures


class TestFailingDisk:
    @pytest.mark.parametrize("nth", [1, 2, 5, 20])
    def test_a_failed_sync_is_the_last_and_nothing_after_it_is_acknowledged(
        self, root: Path, nth: int
    ) -> None:
        trace = run_program(root, "group", 3, 40, fail=f"op=fdatasync;nth={nth + 1};errno=EIO", status=3)
        assert len(trace.faults()) == 1
        (failed,) = [i for i, event in enumerate(trace.events) if event.kind == SYNC_END and event.error]
        assert not [event for event in trace.events[failed:] if event.kind == SYNC_BEGIN], "it synced again"
        assert any("failed StorageError" in marker.text for marker in trace.markers())
        cut_power(trace, 30, root.parent)

    def test_what_a_failed_sync_left_in_memory_is_not_believed_after_a_restart(self, root: Path) -> None:
        # The kernel has the bytes, marked clean: the next process reads them, a sync does not write them.
        run_program(root, "group", 3, 40, fail="op=fdatasync;nth=12;errno=EIO", status=3)
        environment = shim.environment(root, trace=root.parent / "trace", fail=SLOW_DISK, skip_syncs=True)
        again = [*PROGRAM, str(root), "group", "3", "10"]
        subprocess.run(again, env=environment, check=True, capture_output=True)
        trace = Trace.load(root.parent / "trace")
        trace.verify(root)
        restart = [marker.event for marker in trace.markers() if marker.text == "ready"][1]
        report = check_images(trace, trace.cuts(40, seed=1, after=restart), check, root.parent)
        assert not report.failures, report

    @pytest.mark.parametrize("nth", [3, 30])
    @pytest.mark.parametrize("short", ["", ";short=100", ";short=0"])
    def test_a_failed_write_is_the_last(self, root: Path, nth: int, short: str) -> None:
        trace = run_program(root, "group", 3, 40, fail=f"op=pwritev;nth={nth};errno=EIO{short}", status=3)
        assert len(trace.faults()) == 1
        cut_power(trace, 20, root.parent)

    def test_short_writes_are_finished(self, root: Path) -> None:
        rules = "|".join(f"op=pwritev;nth={nth};short={nth}" for nth in range(2, 30))
        trace = run_program(root, "group", 2, 30, fail=rules)
        assert len(trace.faults()) > 20
        cut_power(trace, 20, root.parent)

    @pytest.mark.parametrize("op", ["fallocate", "rename", "open", "fsync"])
    @pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
    def test_a_segment_that_cannot_be_made_loses_nothing(self, root: Path, op: str, error: str) -> None:
        program.open_journal(root).close()
        rules = (
            f"op={op};path=*.tmp;nth=1;errno={error}" if op != "rename" else f"op=rename;nth=1;errno={error}"
        )
        status = 0 if error == "ENOSPC" else 3
        trace = run_program(root, "group", 2, 40, fail=rules, status=status)
        assert len(trace.faults()) == 1
        cut_power(trace, 20, root.parent)

    @pytest.mark.parametrize("nth", [3, 5])
    def test_a_directory_that_cannot_be_synced_ends_it(self, root: Path, nth: int) -> None:
        trace = run_program(root, "group", 2, 60, fail=f"op=fsync;path=;nth={nth};errno=EIO", status=3)
        assert len(trace.faults()) == 1
        cut_power(trace, 30, root.parent)

    def test_a_full_disk_is_waited_out(self, root: Path, tmp_path: Path) -> None:
        rules = tmp_path / "rules"
        rules.write_text("op=writes,fallocate;budget=60000")
        trace = tmp_path / "trace"
        shim.begin_trace(trace, root)
        run = subprocess.Popen(
            [*PROGRAM, str(root), "group", "2", "80"],
            env=shim.environment(root, trace=trace, fail=f"@{rules}", skip_syncs=True),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert run.stdout is not None
        with run.stdout:
            for line in run.stdout:
                if line == "full\n":
                    rules.unlink(missing_ok=True)
        assert run.wait() == 0
        loaded = Trace.load(trace)
        loaded.verify(root)
        assert loaded.faults()
        assert any(marker.text == "full" for marker in loaded.markers())
        assert len(read_back(root)) == 160
        cut_power(loaded, 40, tmp_path)

    @pytest.mark.parametrize("nth", [4, 9])
    def test_a_full_disk_found_by_a_write_is_waited_out(self, root: Path, nth: int) -> None:
        # Where preallocation does not reserve (copy on write), ENOSPC comes in the middle of a frame.
        trace = run_program(root, "group", 2, 40, fail=f"op=pwritev;nth={nth};errno=ENOSPC;short=300")
        assert len(trace.faults()) == 1
        assert len(read_back(root)) == 80
        cut_power(trace, 40, root.parent)


class TestKills:
    def test_everything_acknowledged_survives(self, root: Path) -> None:
        def lost(history: History) -> None:
            held = read_back(root)
            for words in history.acknowledged:
                position, *what = map(int, words.split())
                assert held.get(position) == tuple(what), f"{history.how}: ack {words} is lost"

        def check_apart(history: History) -> None:
            assert not (why := run_apart(lambda: lost(history), 60)), why

        named = ["mid_frame:5", "before_sync:3", "after_sync:4", "roll:2", "rolled:2", "allocate:2"]
        failpoints = [{"FEATURESTORE_FAILPOINT": f"journal.{name}=kill"} for name in named]
        failpoints += [{"FS_SHIM_FAIL": f"op=pwritev;nth={n};short={n * 50};kill=1"} for n in (2, 7, 12)]
        n = 12 + scaled(28)
        report = kill_loop(
            [*PROGRAM, str(root), "group", "3", "100000"],
            check_apart,
            rounds=n,
            seed=1,
            delay_s=(0.0, 0.05),
            failpoints=failpoints,
            environment=shim.environment(root),
        )
        print(report)
        assert report.kills == n
        assert report.kills_at_failpoints == len(failpoints)
        assert report.acknowledged > 2 * n


def test_a_process_killed_by_the_shim_dies_of_sigkill(root: Path) -> None:
    run_program(root, "group", 1, 20, fail="op=pwritev;nth=5;short=10;kill=1", status=-signal.SIGKILL)
    assert len(read_back(root)) == 3
