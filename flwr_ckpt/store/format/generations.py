"""Generations: which server may write, and how it finds out that it no longer may.

A fence is a file made exclusively, with a random token. Its number is above every number in any fence or file name,
so that names of an older server, also those it is still to make, are never a newer one's.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import CheckpointCorruptError, CheckpointError, FencedError
from ..names import FENCES, fence_key, generation_of, parse_fence
from ..places.files import Files
from ..values import Json
from .manifest import FORMAT, seal
from .servers import process_mark, read_body

_UNREADABLE = ""
_TRIES = 100  # each one that fails is another server's opening; who meets that this often meets something else


@dataclass(frozen=True, slots=True)
class Fence:
    """A generation that was taken.

    Attributes
    ----------
    token : str
        Random; empty if the fence could not be read.
    owner : str
        Host and process, for messages.
    removed : bool
        Whether everything of this and of lower generations has been removed, and counts for nothing.
    """

    generation: int
    token: str
    owner: str
    removed: bool
    command: str = ""


def take_generation(files: Files, *, command: str = "") -> Fence:
    """Make the run's folder if need be, and take the next generation, durably.

    Parameters
    ----------
    command : str
        The command that takes it, such as ``"rewind"``; empty for a server. ``"rm"`` removes all that is there.

    Raises
    ------
    OSError
        If the place cannot be written.
    """
    tries = 0
    while True:
        files.make_root()
        files.make_folder(FENCES)
        generation = 1 + highest_generation(files.keys())
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        fence = Fence(generation, secrets.token_hex(16), owner, command == "rm", command)
        try:
            files.publish(fence_key(generation), seal(_to_json(fence)))
        except (FileExistsError, FileNotFoundError):
            # Another server took it in this moment, or a newer one cleared away what was half made; ours is the next.
            tries += 1
            if tries == _TRIES:
                raise
            continue
        files.sync_folder()
        return fence


def highest_generation(keys: Iterable[str]) -> int:
    """Find the highest generation in any name; 0 if there is none."""
    return max((generation for key in keys if (generation := generation_of(key)) is not None), default=0)


def read_fence(files: Files, generation: int) -> Fence | None:
    """Read a fence, or ``None`` if there is none.

    One that is damaged still fences: it is given without a token.

    Raises
    ------
    FormatVersionError
        If a newer version wrote it.
    """
    try:
        body = read_body(files, generation)
    except FileNotFoundError:
        return None
    except CheckpointCorruptError:
        return Fence(generation, _UNREADABLE, "a server whose fence is damaged", False)
    token, owner = body.get("token"), body.get("owner")
    return Fence(generation, str(token), str(owner), body.get("removed") is True)


def look(files: Files, fence: Fence) -> None:
    """Make sure that this server may still write.

    Raises
    ------
    FencedError
        If a newer server has opened the run, or the run's folder was removed.
    """
    numbers = [number for key in files.keys(FENCES) if (number := parse_fence(key)) is not None]
    newest = max(numbers, default=0)
    if newest > fence.generation:
        other = _read_other(files, newest)
        raise FencedError(
            f"{files.describe()}: another server has taken this run over ({other}, generation {newest}; this one is "
            f"{fence.generation}). This server stops writing; what it reported durable is kept. Stop one of the two "
            "if both were meant to run, or give them different run names"
        )
    own = read_fence(files, fence.generation)
    if own is None or own.token not in (fence.token, _UNREADABLE):
        raise FencedError(
            f"{files.describe(fence_key(fence.generation))}: the fence of this server is gone, so the run's folder was "
            "removed or replaced while it was running. Nothing more is written; start the server again for a new run"
        )


def _read_other(files: Files, generation: int) -> str:
    try:
        other = read_fence(files, generation)
    except (CheckpointError, OSError):
        other = None
    return other.owner if other else "a server that cannot be named"


def _to_json(fence: Fence) -> Json:
    return {
        "format": FORMAT,
        "token": fence.token,
        "generation": fence.generation,
        "owner": fence.owner,
        "removed": fence.removed,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "time": time.time(),
        "process": process_mark(os.getpid()),
        **({"command": fence.command} if fence.command else {}),
    }
