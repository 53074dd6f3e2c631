"""A bar on standard error: how much is done, how many events, how fast."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from tqdm import tqdm


class Progress:
    """Bytes of the file (or `unit`) as the bar, events and events per second behind it. Without `shown` it
    does nothing.

    `shown` None means: where standard error is a terminal and tqdm is installed.
    """

    def __init__(self, name: str, size: int | None, shown: bool | None, *, unit: str = "B") -> None:
        self._bar: tqdm[None] | None = None
        self._began = time.monotonic()
        if shown is False or (shown is None and not sys.stderr.isatty()):
            return
        try:
            from tqdm import tqdm
        except ModuleNotFoundError:
            if shown:
                raise
            return
        self._bar = tqdm(total=size, desc=name, unit=unit, unit_scale=True, file=sys.stderr, leave=False)

    def update(self, done: int, n_events: int) -> None:
        """So many bytes (or `unit`) and events are done in all."""
        if self._bar is None:
            return
        rate = n_events / max(time.monotonic() - self._began, 1e-9)
        self._bar.set_postfix_str(f"{n_events:,} events, {rate:,.0f}/s", refresh=False)
        self._bar.update(done - self._bar.n)

    def say(self, line: str) -> None:
        """On standard error, above the bar."""
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.write(line, file=sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
