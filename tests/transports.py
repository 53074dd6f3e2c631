"""What carries the calls of a server's public port: the transports of this build, and how a server is told.

A test that reaches the public port takes the fixture `transport` (of the conftest beside this file), itself
or through a fixture that starts a server, and so runs once over each. One that does not depend on it says
nothing, and runs once, over what a server takes by itself.
"""

from __future__ import annotations

import dataclasses
import importlib

from featurestore.config import ServeConfig


def available() -> tuple[str, ...]:
    """Names, as `featurestore serve --transport` has them."""
    try:
        built = importlib.import_module("featurestore.server.transport")
    except ModuleNotFoundError:  # of a version that cannot choose
        return ("grpcio",)
    return tuple(built.available())


def settings(transport: str) -> dict[str, str]:
    """Of ServeConfig."""
    can_choose = "transport" in {field.name for field in dataclasses.fields(ServeConfig)}
    return {"transport": transport} if can_choose else {}


def flags(transport: str) -> list[str]:
    """Of `featurestore serve`."""
    return [f"--{name}={value}" for name, value in settings(transport).items()]
