"""What carries the calls of a server's public port: the transports of this build, and how a server is told.

A test that reaches the public port takes the fixture `transport` (of the conftest beside this file), itself
or through a fixture that starts a server, and so runs once over each. One that does not depend on it says
nothing, and runs once, over what a server takes by itself.
"""

from __future__ import annotations

from featurestore.server import transport


def available() -> tuple[str, ...]:
    """Names, as `featurestore serve --transport` has them."""
    return transport.available()


def settings(transport: str) -> dict[str, str]:
    """Of ServeConfig."""
    return {"transport": transport}


def flags(transport: str) -> list[str]:
    """Of `featurestore serve`."""
    return [f"--{name}={value}" for name, value in settings(transport).items()]
