"""Which server holds a run, and whether its process is still there.

A process is told from a later one of the same number by the moment at which the kernel started it, and only where
that can be compared: since the same start of the machine, in the same namespace of processes. No clock is asked.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointCorruptError
from ..names import fence_key
from ..places.files import Files, is_damage
from ..values import Json
from .manifest import unseal

_BOOT = "/proc/sys/kernel/random/boot_id"
_NAMESPACE = "/proc/self/ns/pid"
_STATE, _STARTED = 0, 19  # among what stands in /proc/<pid>/stat behind the command's name
_LARGEST = 1 << 16  # bytes that are read of a fence, which has a few hundred
_ENDED = ("Z", "X")  # has ended, and nobody has asked how


@dataclass(frozen=True, slots=True)
class Server:
    """Who made a fence.

    Attributes
    ----------
    generation : int
    host : str
    pid : int
    time : float
        When the run was opened: seconds since 1970 by that host's clock.
    mark : tuple or None
        What tells the process from every other: see `process_mark`.
    command : str
        The command of `flwr-ckpt` that it was, such as ``"rewind"``; empty for a server.
    """

    generation: int
    host: str
    pid: int
    time: float
    mark: tuple[str, str, int] | None
    command: str = ""

    @property
    def running(self) -> bool | None:
        """Whether the process is still there; ``None`` where that cannot be told, as on another host."""
        own = process_mark(os.getpid())
        if self.mark is None or own is None or self.mark[:2] != own[:2]:
            return None
        return process_mark(self.pid) == self.mark or (None if _is_hidden(self.pid) else False)

    @property
    def writing(self) -> bool:
        """Whether it is a server that is known to be there still, and no command."""
        return self.running is True and not self.command


def process_mark(pid: int) -> tuple[str, str, int] | None:
    """Give this start of the machine, the namespace of its processes, and when in it a process was started.

    Returns
    -------
    tuple or None
        ``None`` if there is no such process, or nothing to tell it by.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        if fields[_STATE] in _ENDED:
            return None
        return Path(_BOOT).read_text().strip(), os.readlink(_NAMESPACE), int(fields[_STARTED])
    except (OSError, ValueError, IndexError):
        return None


def read_server(files: Files, generation: int) -> Server | None:
    """Read who made a fence; ``None`` if there is none that can be read.

    Raises
    ------
    FormatVersionError
        If a newer version wrote it.
    """
    try:
        body = read_body(files, generation)
    except (FileNotFoundError, CheckpointCorruptError):
        return None
    host, pid, opened = body.get("host"), body.get("pid"), body.get("time")
    if not isinstance(host, str) or not isinstance(pid, int) or not isinstance(opened, (int, float)):
        return None
    command = body.get("command", "")
    return Server(
        generation, host, pid, float(opened), _mark(body.get("process")), command if isinstance(command, str) else ""
    )


def read_body(files: Files, generation: int) -> dict[str, Json]:
    """Read all that a fence says.

    Raises
    ------
    FileNotFoundError
        If there is none.
    CheckpointCorruptError, FormatVersionError
        As `unseal`.
    """
    key = fence_key(generation)
    try:
        data = files.read(key, 0, _LARGEST)
    except FileNotFoundError:
        raise
    except OSError as error:
        if not is_damage(error):
            raise
        raise CheckpointCorruptError(f"{files.describe(key)}: cannot be read ({error.strerror})") from error
    return unseal(data, files.describe(key))


def _mark(value: Json) -> tuple[str, str, int] | None:
    if isinstance(value, list) and [type(part) for part in value] == [str, str, int]:
        return value[0], value[1], value[2]
    return None


def _is_hidden(pid: int) -> bool:
    """Whether a process is there that this user may not look at."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return False
