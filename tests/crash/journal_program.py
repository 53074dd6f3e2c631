"""A program that appends to a journal and says what is durable; see test_journal_power.py.

    python -m crash.journal_program DIRECTORY MODE N_THREADS N_FRAMES [KEEP]

Each thread appends its frames, numbered on from what the journal already holds, waits until each is
acknowledged, and says `ack POSITION THREAD NUMBER` on standard output and as a marker. Segments are small,
so they roll often. With KEEP, all but about the last KEEP positions are deleted now and then: `truncate
POSITION` says from where they must be kept. A full disk is waited out: `full` is said, and the append tried
again.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Literal

from featurestore.errors import LimitError
from featurestore.storage.journal import BATCH, Journal, JournalFrame

from . import shim

STORE_ID = bytes(range(16))
SEGMENT_BYTES = 16 << 10
Mode = Literal["group", "process"]


def body_of(thread: int, number: int) -> bytes:
    """What a frame must hold: some cross many blocks, some share one, a few are larger than a segment."""
    length = 20_000 if number % 41 == 40 else (number * 7919 + thread * 131) % 3000
    text = f"thread {thread} number {number} ".encode()
    return text * (1 + length // len(text))


def positions_of(number: int) -> int:
    return 1 + number % 5


def parse(frame: JournalFrame) -> tuple[int, int]:
    """Thread and number of a frame, after checking that it is whole."""
    _, thread, _, number, *_ = frame.body.split(b" ", 4)
    assert frame.body == body_of(int(thread), int(number)), (
        f"position {frame.first_position} holds something else"
    )
    assert frame.n_positions == positions_of(int(number))
    return int(thread), int(number)


def open_journal(directory: Path, mode: Mode = "group") -> Journal:
    """Opens it from its oldest segment on, as if a checkpoint reached just before that."""
    oldest = min((int(path.stem[8:]) for path in directory.glob("journal-*.seg")), default=1)
    return Journal(
        directory,
        STORE_ID,
        mode=mode,
        from_position=oldest,
        create=True,
        segment_bytes=SEGMENT_BYTES,
        sync_delay_ms=20,
    )


def say(text: str) -> None:
    shim.mark_here(text)
    os.write(1, f"{text}\n".encode())


def append_and_wait(journal: Journal, mode: Mode, thread: int, number: int) -> int:
    body = body_of(thread, number)
    half = len(body) // 2
    refused = False
    while True:
        try:
            first = journal.append(
                BATCH, body[:half], body[half:], n_positions=positions_of(number), now_ms=number
            )
            break
        except LimitError:
            if not refused:
                say("full")
            refused = True
            time.sleep(0.02)
    if mode == "group":
        journal.wait_durable(first)
    return first


def main() -> None:
    directory, n_threads, n_frames = Path(sys.argv[1]), int(sys.argv[3]), int(sys.argv[4])
    mode: Mode = "group" if sys.argv[2] == "group" else "process"
    keep = int(sys.argv[5]) if len(sys.argv) > 5 else 0
    journal = open_journal(directory, mode)
    next_number = dict.fromkeys(range(n_threads), 0)
    for frame in journal.read():
        thread, number = parse(frame)
        next_number[thread] = number + 1
    failures: list[Exception] = []

    def work(thread: int) -> None:
        try:
            for number in range(next_number[thread], next_number[thread] + n_frames):
                first = append_and_wait(journal, mode, thread, number)
                say(f"ack {first} {thread} {number}")
                if keep and thread == 0 and number % 20 == 19 and first > keep:
                    say(f"truncate {first - keep}")
                    journal.truncate_before(first - keep)
        except Exception as error:
            failures.append(error)

    say("ready")
    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(n_threads)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    if failures:
        say(f"failed {type(failures[0]).__name__}: {failures[0]}")
        os._exit(3)
    say("close")
    journal.close()
    say("closed")


if __name__ == "__main__":
    main()
