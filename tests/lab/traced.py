"""What one server does to the disk, call by call, as the kernel saw it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .alone import alone
from .lives import KINDS, live

CALLS = "openat,writev,write,fsync,fdatasync,link,linkat,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat"

_LINE = re.compile(r"(?P<pid>\d+) +(?P<rest>.*)")
_WHOLE = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)(?P<opened><[^>]*>)?.*")
_BEGUN = re.compile(r"(?P<name>\w+)\((?P<arguments>.*) <unfinished \.\.\.>")
_ENDED = re.compile(r"<\.\.\. (?P<name>\w+) resumed>(?P<arguments>.*)\) += (?P<result>-?\d+)(?P<opened><[^>]*>)?.*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_DESCRIPTOR = re.compile(r"\d+<([^>]*)>")


@dataclass(frozen=True)
class Call:
    """A system call that succeeded.

    Attributes
    ----------
    name : str
    paths : tuple of str
        The file that a descriptor stands for, or the names that were given.
    text : str
        All arguments.
    begun, ended : int
        Its place among the beginnings and ends of all calls.
    """

    name: str
    paths: tuple[str, ...]
    text: str
    begun: int
    ended: int

    def __lt__(self, other: Call) -> bool:
        """Whether it had returned before the other one began."""
        return self.ended < other.begun


def why_not() -> str | None:
    """Say why no server can be traced here; ``None`` if one can."""
    strace = shutil.which("strace")
    if strace is None:
        return "there is no strace on this machine"
    tried = subprocess.run([strace, "-o", os.devnull, "true"], capture_output=True, text=True)
    return None if tried.returncode == 0 else f"strace may not trace here: {tried.stderr.strip()}"


def trace(kind: str, run: Path, num_rounds: int, output: Path) -> list[Call]:
    """Run one server and give its calls; those that report a round write ``durable N`` to a pipe."""
    strace = ("strace", "-f", "-y", "-s", "64", "-e", f"trace={CALLS}", "-o", output)
    alone(serve, kind, str(run), num_rounds, under=strace)
    return parse(output.read_text(errors="replace").splitlines())


def serve(kind: str, run: str, num_rounds: int) -> None:
    """One life of a server."""
    _, pipe = os.pipe()
    (chosen,) = (one for one in KINDS if one.name == kind)
    live(chosen, Path(run), num_rounds, 1, tell=lambda server_round: os.write(pipe, b"durable %d\n" % server_round))


def parse(lines: list[str]) -> list[Call]:
    """Read strace's output; a call that another thread's interrupted stands in two lines."""
    calls: list[Call] = []
    begun: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(lines):
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        pid, rest = match["pid"], match["rest"]
        if unfinished := _BEGUN.fullmatch(rest):
            begun[pid] = (number, unfinished["arguments"])
        elif resumed := _ENDED.fullmatch(rest):
            start, first = begun.pop(pid)
            _add(calls, resumed, first + resumed["arguments"], start, number)
        elif whole := _WHOLE.fullmatch(rest):
            _add(calls, whole, whole["arguments"], number, number)
    assert not begun, f"calls that never ended: {begun}"
    return calls


def _add(calls: list[Call], match: re.Match[str], arguments: str, begun: int, ended: int) -> None:
    if int(match["result"]) < 0:
        return
    name = match["name"]
    if name in ("write", "writev", "fsync", "fdatasync"):
        descriptor = _DESCRIPTOR.match(arguments)
        paths = (descriptor[1],) if descriptor else ()
    elif name == "openat":
        paths = (match["opened"][1:-1],)
    else:
        paths = tuple(_QUOTED.findall(arguments))
    calls.append(Call(name, paths, arguments, begun, ended))
