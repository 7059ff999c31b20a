"""Exceptions thrown into a server from outside: at every line in turn, in the server's thread or in the writer's.

Flower stops a ServerApp by a ``SystemExit`` at any bytecode of its main thread; Ctrl-C is a ``KeyboardInterrupt``.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import linecache
import shutil
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from flwr_ckpt import CheckpointError, CheckpointStore

from .alone import Report, fork
from .lives import FIRST, KINDS, Kind, live

NUM_ROUNDS = 4
HANGS = 60.0  # seconds
HANDING_OVER = ("/background.py", "/saver.py", "/failures.py", "/session.py")
WRITING = (*("/commit.py", "/assembly.py", "/datafile.py", "/local_files.py", "/manifest.py"), "/generations.py")
ERRORS: dict[str, type[BaseException]] = {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt}


class Interruption:
    """Counts the lines of some files that a thread comes to, and throws an error before the n-th.

    Parameters
    ----------
    at : int
        The first line is 0.
    error : type
    files : tuple of str
        How the names of the files end.
    thread : str
        The name of the thread.
    """

    def __init__(self, at: int, error: type[BaseException], files: tuple[str, ...], thread: str = "MainThread") -> None:
        self.lines = 0
        self._at = at
        self._error = error
        self._files = files
        self._thread = thread
        self._entered: set[tuple[FrameType, int]] = set()

    def begin(self) -> None:
        """Watch this thread, and those that are started from now on."""
        threading.settrace(self._trace)
        sys.settrace(self._trace)

    def end(self) -> None:
        """Watch this thread no longer, and let go of what it has run."""
        sys.settrace(None)
        self._entered.clear()

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.endswith(self._files) or threading.current_thread().name != self._thread:
            return None
        if event == "line" and not self._leaves_with(frame) and not self._begins_try(frame):
            self.lines += 1
            if self.lines - 1 == self._at:
                raise self._error
        return self._trace

    def _begins_try(self, frame: FrameType) -> bool:
        """Python gives a signal to the server's thread alone; in the writer's, a line that does nothing cannot fail."""
        return self._thread != "MainThread" and _line(frame) == "try:"

    def _leaves_with(self, frame: FrameType) -> bool:
        """A ``with`` is traced again on its way out, before the lock is given back: there no signal can strike."""
        here = (frame, frame.f_lineno)
        before = here in self._entered
        self._entered.add(here)
        return before and _line(frame).startswith("with ")


def _line(frame: FrameType) -> str:
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()


def interrupted(folder: str, kind_name: str, error: str, thread: str, tries: int) -> dict[str, Any]:
    """Interrupt a server at lines all over its life, `tries` of them; see that a later server ends as one left alone.

    A ``SystemExit`` ends the process as Python does; after any other error the same process starts again. In the
    writer's thread it is a commit that fails.
    """
    (kind,) = (one for one in KINDS if one.name == kind_name)
    expected = _ended(kind, Path(folder) / "alone", FIRST)
    counting, code = fork(partial(_count, kind, Path(folder) / "counted", thread)).end()
    assert code == 0
    lines = int(counting[0])
    counts = {"interruptions": 0, "lost": 0, "wrong": 0}
    problems: list[str] = []
    for at in range(0, lines, max(1, lines // tries)):
        run = Path(folder) / str(at)
        life = partial(_interrupted, kind, run, at, ERRORS[error], thread)
        told, code = fork(life, python_exits=True).end()
        counts["interruptions"] += 1
        problems += [f"{error} at line {at}: {problem}" for problem in _judge(kind, run, told, code, expected)]
        shutil.rmtree(run)
    return {**counts, "problems": problems, "lines": lines}


def _files(thread: str) -> tuple[str, ...]:
    return HANDING_OVER if thread == "MainThread" else WRITING


def _count(kind: Kind, run: Path, thread: str, report: Report) -> None:
    interruption = Interruption(-1, SystemExit, _files(thread), thread)
    interruption.begin()
    live(kind, run, NUM_ROUNDS, FIRST)
    interruption.end()
    report(str(interruption.lines))


def _interrupted(kind: Kind, run: Path, at: int, error: type[BaseException], thread: str, report: Report) -> None:
    faulthandler.dump_traceback_later(HANGS, exit=True)
    interruption = Interruption(at, error, _files(thread), thread)
    interruption.begin()
    tell: Callable[[int], None] = lambda server_round: report(f"durable {server_round}")  # noqa: E731
    try:
        report(f"ended {json.dumps(live(kind, run, NUM_ROUNDS, FIRST, tell=tell))}")
    except KeyboardInterrupt:
        interruption.end()
    except CheckpointError as unsaved:
        # Where the last commit of all is hit, nothing comes after it to carry it, and close() says so.
        if thread == "MainThread" or not isinstance(unsaved.__cause__, error):
            raise
        return
    else:
        return
    gc.collect()  # what has been interrupted is nobody's any more
    report(f"ended {json.dumps(live(kind, run, NUM_ROUNDS, FIRST, tell=tell))}")


def _judge(kind: Kind, run: Path, told: list[str], code: int, expected: str) -> list[str]:
    problems = []
    if code != 0:
        problems.append(f"the process ended with {code}")
    durable = max((int(line.split()[1]) for line in told if line.startswith("durable ")), default=-1)
    latest = CheckpointStore(run).latest()
    newest = -1 if latest is None else latest.round
    if newest < durable:
        problems.append(f"round {durable} was durable, the newest is {newest}")
    problems += [problem for result in CheckpointStore(run).verify() for problem in result.problems]
    problems += ["it ended in something else" for line in told if line.startswith("ended ") and line[6:] != expected]
    if _ended(kind, run, FIRST if newest < 0 else FIRST + 1) != expected:
        problems.append("the next server ended in something else")
    return problems


def _ended(kind: Kind, run: Path, salt: int) -> str:
    """A life to its end in a process of its own."""
    lines, code = fork(lambda report: report(json.dumps(live(kind, run, NUM_ROUNDS, salt)))).end()
    assert code == 0, f"a server of {kind.name} failed by itself"
    return lines[0]
