"""The row store keeps its promises when the power goes, the disk fails or fills, and after kill -9."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from . import rows_program as program
from . import shim
from .image import WRITE, Cut, CutReport, Image, Trace, check_images, run_apart
from .kill import History, kill_loop
from .rounds import scaled

PROGRAM = [sys.executable, "-m", program.__name__]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "rows").mkdir()
    return tmp_path / "rows"


def run_program(root: Path, n_checkpoints: int, *extra: str, fail: str = "", status: int = 0) -> Trace:
    trace = root.parent / "trace"
    shim.begin_trace(trace, root)
    done = subprocess.run(
        [*PROGRAM, str(root), str(n_checkpoints), *extra],
        env=shim.environment(root, trace=trace, fail=fail, skip_syncs=True),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == status, done.stderr + done.stdout[-2000:]
    loaded = Trace.load(trace)
    loaded.verify(root)
    for number in range(n_checkpoints + 2):
        program.held_after(number)  # remembered, and so by every child that checks an image
    return loaded


def check_store(directory: Path, number: int, *, created: bool) -> None:
    """The store holds what checkpoint `number` or the one after it left, in full, and goes on."""
    exists = (directory / "data.mdb").exists()
    assert exists or not created, "the store is gone"
    with program.open_store(directory, create=not exists) as store:
        last = program.last_of(store)
        assert number <= last <= number + 1
        for shard, rows in program.held_after(last).items():
            records, position = store.read_shard(shard)
            assert program.unpack(records) == rows
            assert position == max(
                (n + 1 for n in range(last + 1) if shard in program.changes_of(n)), default=0
            )
        assert store.verify() == []
        program.write(store, last + 1)
    with program.open_store(directory, create=False) as store:
        assert program.last_of(store) == last + 1
        assert program.unpack(store.read_shard(0)[0]) == program.held_after(last + 1)[0]


def check(image: Image) -> None:
    number = max([int(mark.split()[1]) for mark in image.markers if mark.startswith("ack")], default=-1)
    check_store(image.path, number, created="created" in image.markers)


def last_marked(image: Image, word: str) -> int:
    return max([int(mark.split()[1]) for mark in image.markers if mark.startswith(f"{word} ")], default=-1)


def payloads_dead_after(number: int) -> list[bytes]:
    """Payloads long enough to be told apart that some checkpoint up to `number` held and `number` does
    not."""
    alive = {payload for rows in program.held_after(number).values() for payload in rows.values()}
    before = {
        payload
        for n in range(number)
        for rows in program.held_after(n).values()
        for payload in rows.values()
        if len(payload) > 30
    }
    return sorted(before - alive)


def check_compacted(image: Image) -> None:
    """What was dead at a compaction that returned is in no file; every leftover is gone after opening."""
    compacted, acknowledged = last_marked(image, "compacted"), last_marked(image, "ack")
    if compacted == acknowledged:  # else a later checkpoint may have freed the same pages again
        files = [path.read_bytes() for path in image.path.rglob("*") if path.is_file()]
        for payload in payloads_dead_after(compacted):
            assert not any(payload in data for data in files), "what was freed is still in a file"
    check(image)
    assert {path.name for path in image.path.iterdir()} <= {"data.mdb", "lock.mdb"}


def check_copies(image: Image) -> None:
    """A copy is whole from the moment it has its name, and there from the moment it was said to be."""
    check(image)
    for number in range(last_marked(image, "ack") + 1):
        directory = image.path / f"copy-{number}"
        if (directory / "data.mdb").exists():
            with program.open_store(directory, create=False) as copy:
                assert program.last_of(copy) == number
                assert copy.verify() == []
                for shard, rows in program.held_after(number).items():
                    assert program.unpack(copy.read_shard(shard)[0]) == rows
        else:
            assert f"copied {number}" not in image.markers, f"copy {number} is gone"


def cut_power(
    trace: Trace, n: int, scratch: Path, checker: Callable[[Image], None] = check, *, after: int = 0
) -> CutReport:
    report = check_images(trace, trace.cuts(n, seed=1, after=after), checker, scratch)
    print(report)
    assert not report.failures, report
    return report


class TestPowerCuts:
    def test_every_commit_is_whole_or_not_there(self, root: Path) -> None:
        trace = run_program(root, 40)
        n = 20 + scaled(180)
        assert cut_power(trace, n, root.parent).uncertain > n // 2

    def test_losing_whole_pages_is_survived_too(self, root: Path) -> None:
        run_program(root, 20)
        cut_power(Trace.load(root.parent / "trace", block_bytes=4096), 10 + scaled(30), root.parent)

    def test_a_store_is_made_whole_or_not_at_all(self, root: Path) -> None:
        trace = run_program(root, 0)
        cuts = [Cut(at, seed) for at in range(trace.n_events + 1) for seed in range(scaled(3))]
        report = check_images(trace, cuts, check, root.parent)
        print(report)
        assert not report.failures, report

    def test_a_compaction_takes_place_or_not_and_leaves_nothing_behind(self, root: Path) -> None:
        trace = run_program(root, 16, "compact")
        assert sum(marker.text.startswith("compacted") for marker in trace.markers()) == 4
        n = 20 + scaled(80)
        assert cut_power(trace, n, root.parent, check_compacted).uncertain > n // 2
        # Every step of one of them: from the copy's first byte to the next checkpoint.
        first, last = (
            next(m.event for m in trace.markers() if m.text == text) for text in ("ack 7", "compacted 7")
        )
        changes = [at for at in range(first, last + 2) if trace.events[at - 1].kind != WRITE]
        cuts = [Cut(at, seed) for at in changes for seed in range(scaled(10))]
        report = check_images(trace, cuts, check_compacted, root.parent)
        print(report)
        assert not report.failures, report

    def test_a_copy_is_whole_or_not_there(self, root: Path) -> None:
        trace = run_program(root, 12, "copy")
        assert sum(marker.text.startswith("copied") for marker in trace.markers()) == 4
        cut_power(trace, 10 + scaled(90), root.parent, check_copies)

    @pytest.mark.parametrize("calls", ["fdatasync", "dsync"])
    def test_the_checker_would_notice_syncs_that_do_nothing(self, root: Path, calls: str) -> None:
        run_program(root, 20)
        trace = Trace.load(root.parent / "trace", ignore_syncs=[calls])
        cuts = trace.cuts(200, seed=1)
        assert check_images(trace, cuts, check, root.parent, until_failure=True).failures


class TestFailingDisk:
    @pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
    @pytest.mark.parametrize(
        "op", ["fdatasync;nth=9", "writes;nth=40", "writes;nth=41;short=700", "dsync;nth=9"]
    )
    def test_a_failed_commit_is_given_up_and_done_again(self, root: Path, op: str, error: str) -> None:
        trace = run_program(root, 20, fail=f"op={op};path=data.mdb;errno={error}")
        assert len(trace.faults()) == 1
        assert any(marker.text.startswith("given up") for marker in trace.markers())
        cut_power(trace, 25, root.parent)

    @pytest.mark.parametrize("and_sync", ["", "|op=fdatasync;path=data.mdb;nth=15;errno=EIO"])
    def test_a_meta_page_that_reached_the_disk_though_its_write_failed_does_no_harm(
        self, root: Path, and_sync: str
    ) -> None:
        # LMDB puts the old meta page back, into memory. Until that is synced the disk may hold the failed
        # transaction as the newest, whose pages are free as far as memory knows: opening syncs it first.
        trace = run_program(root, 16, fail=f"op=dsync;path=data.mdb;nth=14;short=4096;errno=EIO{and_sync}")
        failed = trace.events.index(trace.faults()[0])
        cuts = [Cut(at, seed) for at in range(failed, failed + 16) for seed in range(2 + scaled(10))]
        report = check_images(trace, cuts, check, root.parent)
        print(report)
        assert not report.failures, report

    def test_a_meta_page_half_way_to_the_disk_when_the_process_was_killed_does_no_harm(
        self, root: Path
    ) -> None:
        rule = "op=dsync;path=data.mdb;nth=14;short=4096;kill=1"
        run_program(root, 20, fail=rule, status=-signal.SIGKILL)
        environment = shim.environment(root, trace=root.parent / "trace", skip_syncs=True)
        subprocess.run([*PROGRAM, str(root), "4"], env=environment, check=True, capture_output=True)
        trace = Trace.load(root.parent / "trace")
        trace.verify(root)
        failed = trace.events.index(trace.faults()[0])
        cuts = [Cut(at, seed) for at in range(failed, failed + 25) for seed in range(scaled(4))]
        report = check_images(trace, cuts, check, root.parent)
        assert not report.failures, report

    @pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
    @pytest.mark.parametrize(
        "op",
        ["writes;path=compacting/*", "fsync;path=compacting*", "rename;path=compacting/*", "fsync;path="],
    )
    def test_a_compaction_that_fails_loses_nothing_and_can_be_done_again(
        self, root: Path, op: str, error: str
    ) -> None:
        program.open_store(root, create=True).close()
        trace = run_program(root, 8, "compact", fail=f"op={op};errno={error}")
        assert len(trace.faults()) == 1
        assert any(marker.text.startswith("given up") for marker in trace.markers())
        assert sum(marker.text.startswith("compacted") for marker in trace.markers()) == 2
        failed = trace.events.index(trace.faults()[0])
        cut_power(trace, scaled(50), root.parent, check_compacted, after=failed)

    def test_a_disk_that_stays_bad_for_a_while_is_outlived(self, root: Path) -> None:
        rules = "|".join(f"op=fdatasync;path=data.mdb;nth={nth};errno=EIO" for nth in range(9, 14))
        trace = run_program(root, 20, fail=rules)
        assert len(trace.faults()) == 5
        cut_power(trace, 15 + scaled(45), root.parent)

    def test_a_full_disk_is_outlived(self, root: Path, tmp_path: Path) -> None:
        rules = tmp_path / "rules"
        rules.write_text("op=writes;path=data.mdb;budget=300000")
        trace = tmp_path / "trace"
        shim.begin_trace(trace, root)
        run = subprocess.Popen(
            [*PROGRAM, str(root), "40"],
            env=shim.environment(root, trace=trace, fail=f"@{rules}", skip_syncs=True),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert run.stdout is not None
        n_given_up = 0
        with run.stdout:
            for line in run.stdout:
                n_given_up += line.startswith("given up")
                if n_given_up == 3:
                    rules.unlink(missing_ok=True)
        assert run.wait() == 0
        assert n_given_up >= 3
        loaded = Trace.load(trace)
        loaded.verify(root)
        cut_power(loaded, 15 + scaled(45), tmp_path)


class TestKills:
    def test_every_commit_survives(self, root: Path) -> None:
        def check_apart(history: History) -> None:
            number = max([int(words) for words in history.acknowledged], default=-1)

            def check_whole() -> None:
                with program.open_store(root, create=not (root / "data.mdb").exists()) as store:
                    last = program.last_of(store)
                    assert number <= last, history.how  # what was in flight may be there, round after round
                    assert store.verify() == []
                    for shard, rows in program.held_after(last).items():
                        assert program.unpack(store.read_shard(shard)[0]) == rows

            assert not (why := run_apart(check_whole, 60)), why

        failpoints = [
            {"FS_SHIM_FAIL": f"op=writes;path=*data.mdb;nth={nth};short={short};kill=1"}
            for nth, short in ((1, 100), (3, 5000), (6, 0), (20, 300), (31, 4096), (50, 1))
        ]
        n = 10 + scaled(20)
        report = kill_loop(
            [*PROGRAM, str(root), "100000"],
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
