"""Every code a command exits with."""

from __future__ import annotations

import enum

from featurestore.errors import ConfigError, FeatureStoreError, UnavailableError


class Exit(enum.IntEnum):
    OK = 0
    ERROR = 1
    USAGE = 2
    REFUSED = 3
    UNAVAILABLE = 4
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    TERMINATED = 143


MEANINGS = {
    Exit.OK: "done",
    Exit.ERROR: "it could not be done; one line on standard error says why",
    Exit.USAGE: "the command line or a setting is wrong",
    Exit.REFUSED: "done, but some events were refused, or most were late; the summary says which",
    Exit.UNAVAILABLE: "the server cannot be reached, or does not answer as it should; the message says more",
    Exit.INTERRUPTED: "interrupted (Ctrl-C)",
    Exit.BROKEN_PIPE: "whoever read our output went away",
    Exit.TERMINATED: "asked to stop (SIGTERM)",
}


def exit_of(error: FeatureStoreError) -> Exit:
    """The code for an error of ours that ended a command."""
    if isinstance(error, ConfigError):
        return Exit.USAGE
    return Exit.UNAVAILABLE if isinstance(error, UnavailableError) else Exit.ERROR


def table() -> str:
    """The codes and their meanings, for `--help`."""
    return "\n".join(f"  {code.value:>3}  {meaning}" for code, meaning in MEANINGS.items())
