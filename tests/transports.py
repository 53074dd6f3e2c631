"""What carries the calls of a server's public port: the transports of this build, and how a server is told.

A test that reaches the public port takes the fixture `transport` (of the conftest beside this file), itself
or through a fixture that starts a server, and so runs once over each. One that does not depend on it says
nothing, and runs once, over what a server takes by itself.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from featurestore.server import transport


def available() -> tuple[str, ...]:
    """Names, as `featurestore serve --transport` has them."""
    return transport.available()


#: Of a test, or as a module's pytestmark: what it tests is the native transport's alone.
needs_native = pytest.mark.skipif("native" not in available(), reason="built without the native transport")
#: As a module's pytestmark: `transport`, and the server on it, are native only.
only_native = [needs_native, pytest.mark.parametrize("transport", ["native"], indirect=True)]


def natively(test: Callable[..., None]) -> Callable[..., None]:
    """The same of one test among others."""
    for mark in only_native:
        test = mark(test)
    return test


def settings(transport: str) -> dict[str, str]:
    """Of ServeConfig."""
    return {"transport": transport}


def flags(transport: str) -> list[str]:
    """Of `featurestore serve`."""
    return [f"--{name}={value}" for name, value in settings(transport).items()]
