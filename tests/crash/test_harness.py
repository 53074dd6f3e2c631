"""The harness can fail: stores that are right survive everything, and each mistake of toy.py is caught."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from . import image, shim, toy
from .image import CutReport, Image, Trace, TraceError, check_images, run_apart
from .kill import History, kill_loop

TOY = [sys.executable, "-m", toy.__name__]


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    try:
        shim.library()
    except shim.NoCompilerError as missing:
        pytest.skip(str(missing))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def run_traced(
    root: Path, command: list[str], *, fail: str = "", status: int = 0, skip_syncs: bool = True
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    trace = root.parent / "trace"
    shim.begin_trace(trace, root)
    done = subprocess.run(
        command,
        env=shim.environment(root, trace=trace, fail=fail, skip_syncs=skip_syncs),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return trace, done


def run_python(root: Path, code: str, **options: Any) -> Trace:
    path, _ = run_traced(
        root, [sys.executable, "-c", f"import os, sys\nroot = sys.argv[1]\n{code}", str(root)], **options
    )
    return Trace.load(path)


def acknowledged(image: Image) -> int:
    """How many were acknowledged; they are numbered from 0."""
    return sum(marker.startswith("ack ") for marker in image.markers)


def check_append(image: Image) -> None:
    numbers, _ = toy.read_records(image.path / "records")
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= acknowledged(image), f"{acknowledged(image)} acknowledged, {len(numbers)} there"
    assert len(numbers) <= acknowledged(image) + 1


def check_replace(image: Image) -> None:
    last = acknowledged(image) - 1
    value = image.path / "value"
    allowed = {toy.text_of(last) if last >= 0 else None, toy.text_of(last + 1)}
    assert (value.read_bytes() if value.exists() else None) in allowed


def check_lmdb(image: Image) -> None:
    import lmdb

    with lmdb.open(str(image.path / "rows"), map_size=1 << 24) as env, env.begin(write=True) as txn:
        found = dict(txn.cursor())
        for number in range(acknowledged(image)):
            for i in range(20):
                key = (number * 20 + i) * 2654435761 % 2**32
                assert found.pop(key.to_bytes(8, "big")) == toy.text_of(number)
        assert len(found) in (0, 20)
        txn.put(b"writable", b"yes")


CHECKS: dict[str, Callable[[Image], None]] = {
    "append": check_append,
    "replace": check_replace,
    "lmdb": check_lmdb,
}


def power_cuts(root: Path, store: str, mistake: str, count: int, n_cuts: int, **options: Any) -> CutReport:
    if store == "lmdb":
        # LMDB never syncs the directory of an environment it makes: made before, its names are durable.
        toy.lmdb_store(root, "none", 0)
    path, _ = run_traced(root, [*TOY, store, str(root), mistake, str(count)])
    trace = Trace.load(path, **options)
    trace.verify(root)
    assert len(trace.markers()) == count
    report = check_images(trace, trace.cuts(n_cuts, seed=1), CHECKS[store], root.parent)
    print(f"{store}, {mistake}: {report}")
    return report


class TestPowerCuts:
    def test_a_store_that_syncs_before_it_acknowledges_survives_all(self, root: Path) -> None:
        report = power_cuts(root, "append", "none", 60, 200)
        assert not report.failures, report
        assert report.uncertain > 50  # else it was never put to the test

    @pytest.mark.parametrize("call", ["fdatasync", "fsync"])
    def test_the_same_store_is_caught_when_its_syncs_do_nothing(self, root: Path, call: str) -> None:
        assert power_cuts(root, "append", "none", 20, 40, ignore_syncs=[call]).failures

    @pytest.mark.parametrize("mistake", ["never-synced", "sync-before-write", "acknowledged-before-write"])
    def test_a_store_that_acknowledges_before_the_sync_is_caught(self, root: Path, mistake: str) -> None:
        assert power_cuts(root, "append", mistake, 60, 60).failures

    def test_a_new_file_whose_directory_was_not_synced_is_caught(self, root: Path) -> None:
        assert power_cuts(root, "append", "directory-not-synced", 20, 40).failures

    def test_a_new_file_whose_directory_was_not_synced_is_let_pass_when_not_strict(self, root: Path) -> None:
        assert not power_cuts(root, "append", "directory-not-synced", 20, 40, strict=False).failures

    def test_a_file_replaced_with_care_survives_all(self, root: Path) -> None:
        assert not power_cuts(root, "replace", "none", 40, 100).failures

    @pytest.mark.parametrize("mistake", ["data-not-synced", "directory-not-synced"])
    def test_a_file_replaced_without_a_sync_is_caught(self, root: Path, mistake: str) -> None:
        assert power_cuts(root, "replace", mistake, 40, 40).failures

    def test_lmdb_with_sync_survives_all(self, root: Path) -> None:
        report = power_cuts(root, "lmdb", "none", 40, 40)
        assert not report.failures, report

    def test_lmdb_without_sync_is_caught(self, root: Path) -> None:
        report = power_cuts(root, "lmdb", "never-synced", 40, 40)
        assert len(report.failures) > 20, report


class TestImages:
    def test_the_same_cut_and_seed_give_the_same_image(self, root: Path, tmp_path: Path) -> None:
        (root / "f").write_bytes(b"")
        trace = run_python(
            root, "fd = os.open(f'{root}/f', os.O_RDWR)\nos.write(fd, b'x' * 40000)\nopen(f'{root}/g', 'w')"
        )
        for name in ("one", "two"):
            trace.crash_image(trace.n_events, 5, tmp_path / name)
            trace.crash_image(0, 5, tmp_path / f"{name} rewound")
        one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
        assert one == two
        assert (tmp_path / "one rewound" / "f").read_bytes() == b""

    def test_each_unsynced_block_survives_about_half_the_time(self, root: Path, tmp_path: Path) -> None:
        (root / "f").write_bytes(bytes(512 * 1000))
        trace = run_python(root, "fd = os.open(f'{root}/f', os.O_RDWR)\nos.pwrite(fd, b'x' * 512000, 0)")
        trace.crash_image(trace.n_events, 1, tmp_path / "image")
        data = (tmp_path / "image" / "f").read_bytes()
        assert 400 < sum(data[i] == ord("x") for i in range(0, 512000, 512)) < 600
        assert all(len(set(data[i : i + 512])) == 1 for i in range(0, 512000, 512))

    def test_what_was_there_before_is_durable(self, root: Path, tmp_path: Path) -> None:
        (root / "d").mkdir()
        (root / "d" / "f").write_bytes(b"old" * 1000)
        trace = run_python(root, "os.unlink(f'{root}/d/f')\nos.mkdir(f'{root}/e')")
        trace.crash_image(0, 1, tmp_path / "image")
        assert (tmp_path / "image" / "d" / "f").read_bytes() == b"old" * 1000

    def test_an_unsynced_name_survives_some_of_the_time(self, root: Path, tmp_path: Path) -> None:
        trace = run_python(
            root, "fd = os.open(f'{root}/f', os.O_RDWR | os.O_CREAT)\nos.write(fd, b'x')\nos.fsync(fd)"
        )
        found = [
            trace.crash_image(trace.n_events, i, tmp_path / str(i)).path.joinpath("f").exists()
            for i in range(40)
        ]
        assert 5 < sum(found) < 35

    def test_a_shrink_that_was_not_synced_may_bring_the_old_bytes_back(
        self, root: Path, tmp_path: Path
    ) -> None:
        (root / "f").write_bytes(b"o" * 2048)
        code = "fd = os.open(f'{root}/f', os.O_RDWR)\nos.ftruncate(fd, 700)\nos.ftruncate(fd, 1500)"
        trace = run_python(root, code)
        trace.verify(root)
        seen = set()
        for i in range(60):
            trace.crash_image(trace.n_events, i, tmp_path / str(i))
            seen.add((tmp_path / str(i) / "f").read_bytes())
        assert seen == {b"o" * 2048, b"o" * 700, b"o" * 700 + bytes(800)}

    def test_a_synced_write_is_torn_only_inside_itself(self, root: Path, tmp_path: Path) -> None:
        (root / "f").write_bytes(b"o" * 4096)
        code = "fd = os.open(f'{root}/f', os.O_RDWR | os.O_DSYNC)\nos.pwrite(fd, b'n' * 4096, 0)"
        trace = run_python(root, code)
        images = [
            {
                trace.crash_image(at, seed, tmp_path / f"{at} {seed}").path.joinpath("f").read_bytes()
                for seed in range(8)
            }
            for at in (trace.n_events - 2, trace.n_events - 1, trace.n_events)
        ]
        assert images[0] == {b"o" * 4096}
        assert len(images[1]) > 4
        assert images[2] == {b"n" * 4096}

    def test_a_sync_after_a_failed_one_does_not_save_what_the_failed_one_dropped(self, root: Path) -> None:
        path, _ = run_traced(
            root, [*TOY, "append", str(root), "retries-sync", "20"], fail="op=fdatasync;nth=9;errno=EIO"
        )
        trace = Trace.load(path)
        assert [os.strerror(fault.error) for fault in trace.faults()] == [os.strerror(5)]
        assert check_images(trace, trace.cuts(40, seed=1), check_append, root.parent).failures

    def test_a_change_that_escaped_the_trace_is_noticed(self, root: Path) -> None:
        (root / "f").write_bytes(b"1234")
        code = """
import ctypes
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
stream = ctypes.c_void_p(libc.fopen(f'{root}/f'.encode(), b'r+'))
libc.fputs(b'56', stream)
libc.fclose(stream)
"""
        trace = run_python(root, code)
        with pytest.raises(TraceError, match="where the shim cannot see"):
            trace.verify(root)

    def test_a_file_mapped_for_writing_is_refused_unless_volatile(self, root: Path, tmp_path: Path) -> None:
        (root / "f").write_bytes(b"1234")
        run_python(root, "import mmap\nfd = os.open(f'{root}/f', os.O_RDWR)\nmmap.mmap(fd, 4)[:2] = b'56'")
        trace = Trace.load(tmp_path / "trace")
        with pytest.raises(TraceError, match="mapped"):
            trace.crash_image(trace.n_events, 1, tmp_path / "image")
        trace = Trace.load(tmp_path / "trace", volatile=["f"])
        trace.crash_image(trace.n_events, 1, tmp_path / "other image")

    def test_every_way_to_write_is_in_the_trace(self, root: Path) -> None:
        (root / "old").write_bytes(b"inherited")
        code = """
import ctypes, shutil, subprocess, threading
a = os.open(f'{root}/a', os.O_RDWR | os.O_CREAT)
os.write(a, b'write'); os.pwrite(a, b'pwrite', 9000)
os.writev(a, [b'wri', b'', b'tev']); os.pwritev(a, [b'p'] * 9, 500)
os.posix_fallocate(a, 0, 20000); os.ftruncate(a, 15000); os.truncate(f'{root}/a', 14000)
b = os.dup(a); os.close(a); os.lseek(b, 7, os.SEEK_SET); os.write(b, b'through dup')
with open(f'{root}/append', 'ab') as f: f.write(b'1'); f.flush(); f.write(b'2')
with open(f'{root}/append', 'ab') as f: f.write(b'3')
os.mkdir(f'{root}/d'); os.chdir(f'{root}/d')
open('relative', 'w').write('x'); os.rename('relative', '../moved')
d = os.open('.', os.O_RDONLY); e = os.open('at', os.O_RDWR | os.O_CREAT, dir_fd=d)
os.write(e, b'at'); os.fsync(d)
os.link('at', 'linked'); os.replace('linked', 'at2'); os.remove('at'); os.rename(f'{root}/d', f'{root}/dd')
shutil.copyfile(f'{root}/moved', f'{root}/copied')
subprocess.run([sys.executable, '-c', 'import os; os.write(1, b"by a child")'], stdout=b, check=True)
shell = 'echo from a shell > from-shell; echo more >> from-shell; rm ../append'
subprocess.run(['sh', '-c', shell], check=True)
if os.fork() == 0:
    os.closerange(3, 4096); open(f'{root}/forked', 'w').write('x' * 70000); os._exit(0)
os.wait()
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate(b, 3, ctypes.c_long(8000), ctypes.c_long(2000))
libc.copy_file_range(e, None, b, None, ctypes.c_size_t(2), 0)
def work(i):
    fd = os.open(f'{root}/shared', os.O_RDWR | os.O_CREAT | os.O_APPEND)
    for _ in range(50): os.write(fd, b'%d' % i * 100); os.fdatasync(fd)
threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
os.rmdir(os.mkdir(f'{root}/gone') or f'{root}/gone')
"""
        trace = run_python(root, code)
        trace.verify(root)
        assert not trace.faults()


class TestFaults:
    def run(self, root: Path, fail: str, code: str) -> Trace:
        return run_python(root, f"fd = os.open(f'{{root}}/a.seg', os.O_RDWR | os.O_CREAT)\n{code}", fail=fail)

    def test_the_nth_sync_fails_and_the_store_sees_it(self, root: Path) -> None:
        command = [*TOY, "append", str(root), "none", "20"]
        path, done = run_traced(root, command, fail="op=fdatasync;path=*cords;nth=7;errno=EIO", status=1)
        assert "Input/output error" in done.stderr
        trace = Trace.load(path)
        assert len(trace.markers()) == 5  # the first of the seven syncs is recovery's
        assert not check_images(trace, trace.cuts(40, seed=1), check_append, root.parent).failures

    def test_a_fault_hits_its_call_once_or_for_good(self, root: Path) -> None:
        code = """
def tries(n):
    out = ''
    for i in range(n):
        try: os.pwrite(fd, b'x' * 100, 0); out += '.'
        except OSError as error: out += 'E'
    return out
assert tries(6) == '..E...'
import ctypes
fail = ctypes.CDLL(None).fs_shim_fail
fail(b'op=writes;nth=2;sticky=1;errno=ENOSPC'); assert tries(4) == '.EEE'
fail(b'op=pwrite;path=*.log;errno=EIO'); assert tries(3) == '...'
fail(b'op=fdatasync;errno=EIO|op=pwrite;nth=2;errno=EDQUOT'); assert tries(3) == '.E.'
fail(b''); assert tries(2) == '..'
"""
        assert len(self.run(root, "op=pwrite;path=*.seg;nth=3;errno=EIO", code).faults()) == 5

    def test_short_writes_are_short(self, root: Path) -> None:
        code = """
assert os.pwrite(fd, b'x' * 100, 0) == 100
assert os.writev(fd, [b'a' * 5, b'b' * 5, b'c' * 5]) == 7
assert os.pread(fd, 20, 0) == b'aaaaabb' + b'x' * 13
"""
        trace = self.run(root, "op=writev;short=7", code)
        trace.verify(root)
        assert len(trace.faults()) == 1

    def test_a_full_disk_takes_what_fits_and_lets_overwrites_pass(self, root: Path) -> None:
        code = """
import errno
assert os.pwrite(fd, b'x' * 600, 0) == 600
assert os.pwrite(fd, b'y' * 600, 300) == 600
assert os.pwrite(fd, b'z' * 600, 900) == 100
for call in (lambda: os.pwrite(fd, b'z', 1000), lambda: os.posix_fallocate(fd, 0, 4096)):
    try: call(); raise SystemExit('there was room')
    except OSError as error: assert error.errno == errno.ENOSPC
assert os.pwrite(fd, b'y' * 1000, 0) == 1000
"""
        self.run(root, "budget=1000", code).verify(root)

    def test_rules_in_a_file_may_change_while_the_program_runs(self, root: Path, tmp_path: Path) -> None:
        rules = tmp_path / "rules"
        code = f"""
import pathlib
rules = pathlib.Path({str(rules)!r})
def works():
    try: os.fdatasync(fd); return True
    except OSError: return False
assert works()
rules.write_text('op=syncs;sticky=1;errno=EIO'); assert not works() and not works()
rules.unlink(); assert works()
"""
        self.run(root, f"@{rules}", code)

    def test_a_process_killed_inside_a_write_leaves_what_was_written(self, root: Path) -> None:
        command = [*TOY, "append", str(root), "none", "20"]
        path, _ = run_traced(root, command, fail="op=pwrite;nth=4;short=13;kill=1", status=-signal.SIGKILL)
        trace = Trace.load(path)
        trace.verify(root)
        numbers, end = toy.read_records(root / "records")
        assert len(numbers) == 3
        assert (root / "records").stat().st_size == end + 13

    def test_a_mistake_in_the_rules_is_said_aloud(self, root: Path) -> None:
        for fail in ("op=pwirte;errno=EIO", "nth=3", "errno=EWHAT", "once=1;errno=EIO"):
            _, done = run_traced(root, [sys.executable, "-c", ""], fail=fail, status=99)
            assert "FS_SHIM_FAIL" in done.stderr


class TestKills:
    def loop(self, root: Path, mistake: str, fail: str = "") -> str:
        def check(history: History) -> None:
            numbers, _ = toy.read_records(root / "records")
            lost = {int(number) for number in history.acknowledged} - set(numbers)
            assert not lost, f"round {history.round_number}, {history.how}: lost {sorted(lost)}"

        report = kill_loop(
            [*TOY, "append", str(root), mistake, "1000000"],
            check,
            rounds=12,
            seed=1,
            delay_s=(0.0, 0.02),
            failpoints=[{"FS_SHIM_FAIL": f"op=pwrite;nth={nth};short={nth};kill=1"} for nth in (1, 5, 9)],
            environment=shim.environment(root, fail=fail),
        )
        assert report.kills == 12
        assert report.kills_at_failpoints == 3
        assert not report.failpoints_missed
        assert report.acknowledged > 12
        return str(report)

    def test_a_store_that_writes_before_it_acknowledges_loses_nothing(self, root: Path) -> None:
        print(self.loop(root, "none"))

    def test_a_kill_needs_no_sync(self, root: Path) -> None:
        self.loop(root, "never-synced")

    def test_a_store_that_acknowledges_before_it_writes_is_caught(self, root: Path) -> None:
        with pytest.raises(AssertionError, match="lost"):
            self.loop(root, "acknowledged-before-write")

    def test_a_program_that_stops_by_itself_is_an_error(self, root: Path) -> None:
        with pytest.raises(AssertionError, match="ended by itself with 3"):
            kill_loop(
                [sys.executable, "-c", "raise SystemExit(3)"],
                lambda history: None,
                rounds=1,
                seed=1,
                recovery_every=0,
            )


def test_a_check_run_apart_reports_what_killed_it() -> None:
    def fail() -> None:
        raise ValueError("this one")

    assert run_apart(lambda: None, 5) == ""
    assert "this one" in run_apart(fail, 5)
    assert run_apart(lambda: os.kill(os.getpid(), signal.SIGBUS), 5) == "died of SIGBUS"
    assert run_apart(signal.pause, 0.1) == "not done after 0.1 s"


def test_the_numbers_of_a_trace_are_the_same_in_c_and_python() -> None:
    in_c = {
        name: int(number)
        for name, number in re.findall(r"\b([KC]_[A-Z_]+) = (\d+),", shim.SOURCE.read_text())
    }
    in_python = {f"K_{name.upper().replace('-', '_')}": number for number, name in image.KIND_NAMES.items()}
    in_python |= {f"C_{name[5:]}": number for name, number in vars(image).items() if name.startswith("CALL_")}
    in_python |= {f"K_{name}": getattr(image, name) for name in ("BASE_DIRECTORY", "BASE_FILE", "BASE_DATA")}
    assert len(in_python) == 26
    assert in_python.items() <= in_c.items()


def test_what_is_run_apart_lives_beside_threads_that_call_grpc() -> None:
    """As those of an earlier test may still do; see tests/conftest.py."""
    ended = threading.Event()

    def call() -> None:
        while not ended.is_set():
            options = [("grpc.use_local_subchannel_pool", 1)]
            with contextlib.suppress(grpc.RpcError), grpc.insecure_channel(address, options) as channel:
                channel.unary_unary("/nobody/there")(b"", timeout=10)

    server = grpc.server(ThreadPoolExecutor(1))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        assert {run_apart(lambda: None, 60) for _ in range(60)} == {""}
    finally:
        ended.set()
        for thread in threads:
            thread.join()
        server.stop(None).wait()
