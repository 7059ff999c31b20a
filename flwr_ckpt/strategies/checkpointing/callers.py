"""Who calls a hook? The legacy API does not say, so the frames above it are looked at."""

from __future__ import annotations

import sys
from typing import Any

from flwr.server import Server


def _frames() -> Any:
    frame = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back  # type: ignore[assignment]


def running_server() -> Server | None:
    """The Flower server whose method is calling, if one is: under a workflow there is none."""
    for frame in _frames():
        caller = frame.f_locals.get("self")
        if isinstance(caller, Server):
            return caller
    return None


def server_name() -> str:
    server = running_server()
    return "The server" if server is None else type(server).__name__


def caller_of_hook() -> Any:
    """Whoever called the hook: the first frame that is not of these hooks."""
    for frame in _frames():
        if not frame.f_globals.get("__name__", "").startswith(__package__):
            return frame.f_locals.get("self")
    return None
