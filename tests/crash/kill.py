"""Kills a program again and again with SIGKILL and keeps what it had acknowledged: nothing of that may be
lost.

    report = kill_loop(command, check, rounds=200, seed=1)
    print(report)

A round starts the program on what the last round left, lets it work, kills it, and calls `check`. What is
killed, when:

- after a random time since the program said `ready` (uniform in `delay_s`);
- in one round of `recovery_every`, after a random part of the time it usually takes to become ready: mid-
  recovery;
- in rounds given by `failpoints`, by itself: the variables of a failpoint are put into its environment, for
  instance {"FS_SHIM_FAIL": "op=pwrite;nth=9;short=100;kill=1"} or a failpoint of the store's own. The
  round waits for that death; a failpoint that was never reached is counted and the program killed all the
  same.

What is acknowledged. By default the program's standard output says so, one line each: `ready` once after it
has recovered, and `ack WORDS` for each thing acknowledged, in one write() per line. For a server, pass
`is_ready`, which knows the line with which it says where it listens, and `drive`: a function that runs in a
thread once the program is ready, does what clients do, and reports each acknowledgement it got; when the
server dies its calls fail, and it returns. What was in flight then may or may not have happened: `drive` may
report it with `attempted`, before it sends, so that the checker knows what may be there besides.

`check(history)` runs after each kill, with everything acknowledged since the first round, and reads the
store (a process of its own is safest: image.run_apart) or leaves that to the next round's program. It
raises if something is wrong.
"""

from __future__ import annotations

import os
import queue
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class History:
    """What is known after some rounds: what must be there, what may be there."""

    acknowledged: list[str] = field(default_factory=list)
    attempted: list[str] = field(default_factory=list)
    """What was sent, where `drive` says so: a superset of what was acknowledged."""
    round_number: int = 0
    how: str = ""
    """How this round ended, for messages."""


@dataclass
class KillReport:
    """The counts of a kill loop: print them, they are the result."""

    kills: int = 0
    kills_at_work: int = 0
    kills_in_recovery: int = 0
    kills_at_failpoints: int = 0
    failpoints_missed: list[str] = field(default_factory=list)
    """Failpoints that were never reached; a test that wants one should see that this is empty."""
    acknowledged: int = 0
    in_flight: int = 0
    """Attempts that were never acknowledged; 0 if attempts are not reported."""

    def __str__(self) -> str:
        return (
            f"{self.kills} kills ({self.kills_at_work} at work, {self.kills_in_recovery} in recovery,"
            f" {self.kills_at_failpoints} at failpoints, {len(self.failpoints_missed)} failpoints missed);"
            f" {self.acknowledged} acknowledged, {self.in_flight} in flight when killed"
        )


class Killed:
    """One run of the program, from its start to its death."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        is_ready: Callable[[bytes], bool] = b"ready\n".__eq__,
    ) -> None:
        self._is_ready = is_ready
        self.started_s = time.monotonic()
        self.process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.ready_after_s: float | None = None
        self.ready = threading.Event()
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.errors = b""
        self._readers = [
            threading.Thread(target=self._read_output),
            threading.Thread(target=self._read_errors),
        ]
        for reader in self._readers:
            reader.start()

    def _read_output(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            # A line without its end was cut off by the kill: nobody saw that acknowledgement.
            if self._is_ready(line):
                self.ready_after_s = time.monotonic() - self.started_s
                self.ready.set()
            elif line.startswith(b"ack ") and line.endswith(b"\n"):
                self.lines.put(line[4:-1].decode())
        self.ready.set()  # or dead

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors = (self.errors + line)[-20_000:]

    def wait(self, timeout_s: float) -> bool:
        """Whether the program ended by itself within the time."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        self.process.kill()

    def bury(self) -> list[str]:
        """After death: what the program had acknowledged on its output."""
        self.process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        acknowledged = []
        while not self.lines.empty():
            acknowledged.append(self.lines.get())
        return acknowledged


Drive = Callable[[Callable[[str], None], Callable[[str], None]], None]
"""drive(attempted, acknowledged): what clients do, until the server is gone."""


def kill_loop(
    command: Sequence[str] | Callable[[int], Sequence[str]],
    check: Callable[[History], None],
    *,
    rounds: int,
    seed: int,
    delay_s: tuple[float, float] = (0.0, 0.05),
    recovery_every: int = 5,
    failpoints: Sequence[Mapping[str, str]] = (),
    environment: Mapping[str, str] | None = None,
    is_ready: Callable[[bytes], bool] = b"ready\n".__eq__,
    drive: Drive | None = None,
    timeout_s: float = 30.0,
) -> KillReport:
    """Runs `rounds` rounds, those of `failpoints` first. Raises what `check` raises.

    `command` may be a function of the round's number. A program that ends without having been killed, or is
    not ready in `timeout_s`, fails the loop with what it wrote to standard error.
    """
    coin = random.Random(f"kill {seed}")
    variables = dict(os.environ if environment is None else environment)
    history, report, usual_start_s = History(), KillReport(), 0.2
    for number in range(rounds):
        history.round_number = number
        failpoint = failpoints[number] if number < len(failpoints) else None
        in_recovery = failpoint is None and recovery_every > 0 and coin.randrange(recovery_every) == 0
        delay = coin.random() * usual_start_s if in_recovery else coin.uniform(*delay_s)
        run = Killed(
            command(number) if callable(command) else command, variables | dict(failpoint or {}), is_ready
        )
        driver = None
        try:
            if in_recovery:
                history.how = f"killed {delay:.3f} s after its start"
                run.wait(delay)
            else:
                if not run.ready.wait(timeout_s):
                    raise AssertionError(
                        f"round {number}: not ready after {timeout_s} s\n{run.errors.decode()}"
                    )
                if drive is not None and run.process.poll() is None:
                    driver = threading.Thread(
                        target=drive, args=(history.attempted.append, history.acknowledged.append)
                    )
                    driver.start()
                history.how = (
                    f"killed {delay:.3f} s after it was ready"
                    if failpoint is None
                    else f"at {dict(failpoint)}"
                )
                run.wait(delay if failpoint is None else timeout_s)
            ended = run.process.poll()
            if failpoint is not None and ended is None:
                report.failpoints_missed.append(str(dict(failpoint)))
            elif ended is not None and not (failpoint is not None and ended == -signal.SIGKILL):
                raise AssertionError(
                    f"round {number}: ended by itself with {ended}, not killed\n{run.errors.decode()}"
                )
        finally:
            run.kill()
            history.acknowledged += run.bury()
            if driver is not None:
                driver.join(timeout_s)
        if driver is not None and driver.is_alive():
            raise AssertionError(f"round {number}: the clients did not notice that the server was dead")
        if run.ready_after_s is not None:
            usual_start_s = run.ready_after_s
        report.kills += 1
        report.kills_in_recovery += in_recovery
        report.kills_at_failpoints += failpoint is not None and ended is not None
        report.kills_at_work += not in_recovery and (failpoint is None or ended is None)
        report.acknowledged = len(history.acknowledged)
        if history.attempted:
            report.in_flight = len(set(history.attempted) - set(history.acknowledged))
        check(history)
    return report
