"""What supervising decides: start again, give up, or leave the run to another server.

The store is asked, not the command: whether it is finished, whether anything new is durable, and who holds it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from ..store import CheckpointStore, RunStatus
from .attempts import Ended
from .codes import ExitCode
from .listing import rounds_done, server_said
from .render import counted, note

_POLL_SECONDS = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Attempt(Protocol):
    """A command that runs."""

    def forward(self, signum: int) -> None:
        """Pass a signal on."""

    def wait(self) -> Ended:
        """Wait for its end."""


class Supervisor:
    """Starts a command until a run is finished.

    Parameters
    ----------
    store : CheckpointStore
        The run.
    name : str
        What it is called in messages.
    start : callable
        Starts the command.
    patience : int
        How many attempts in a row may bring nothing.
    pause : float
        Seconds between two attempts.
    """

    def __init__(
        self, store: CheckpointStore, name: str, start: Callable[[], Attempt], *, patience: int, pause: float
    ) -> None:
        self._store = store
        self._name = name
        self._start = start
        self._patience = patience
        self._pause = pause
        self._attempt: Attempt | None = None
        self._stopped = threading.Event()
        self._signum = 0

    def run(self) -> int:
        """Do it; the exit code."""
        in_vain = 0
        while True:
            before = self._when_nobody_writes()
            if self._stopped.is_set():
                return self._stop(before)
            ended = self._once()
            after = self._store.status()
            if self._stopped.is_set():
                return self._stop(after)
            if _taken_over(before, after, ended):
                note(f"{self._name}: another server has taken this run over: {server_said(after.server)}")
                return ExitCode.TAKEN_OVER
            after = self._when_nobody_writes()
            if before.exists and not after.exists:
                note(f"{self._name}: the run has been removed meanwhile; it is not started again")
                return ExitCode.MISSING
            if _finished(before, after, ended):
                self._say_finished(before, after)
                return ExitCode.DONE
            in_vain = 0 if _position(after) != _position(before) else in_vain + 1
            if in_vain >= self._patience:
                return self._give_up(after, ended)
            if not self._stopped.is_set():
                note(f"{self._name}: not finished (round {rounds_done(after)}); starting again. Last: {ended.error}")
            self._stopped.wait(self._pause)

    @contextmanager
    def taking_signals(self) -> Iterator[None]:
        """Forward what would end this process to the command, for a while."""
        before = {signum: signal.signal(signum, self._on_signal) for signum in _SIGNALS}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._signum = signum
        self._stopped.set()
        if self._attempt is not None:
            self._attempt.forward(signum)

    def _once(self) -> Ended:
        self._attempt = self._start()
        if self._stopped.is_set():  # by a signal that came before there was anybody to pass it on to
            self._attempt.forward(self._signum)
        ended = self._attempt.wait()
        self._attempt = None
        return ended

    def _when_nobody_writes(self) -> RunStatus:
        """Wait until no server of this host has the run: two would push each other aside for ever."""
        said = False
        while True:
            status = self._store.status()
            if status.finished or status.server is None or not status.server.running or self._stopped.is_set():
                return status
            if not said:
                note(f"{self._name}: {server_said(status.server)}; waiting for it to end")
                said = True
            self._stopped.wait(_POLL_SECONDS)

    def _say_finished(self, before: RunStatus, after: RunStatus) -> None:
        old = before.finished and _position(before) == _position(after)
        note(f"{self._name}: {'was finished already' if old else 'finished'}, round {rounds_done(after)}")

    def _give_up(self, status: RunStatus, ended: Ended) -> int:
        nowhere = status.round is None
        where = f" at {self._store.location.where} (is that where the server keeps it?)" if nowhere else ""
        note(
            f"{self._name}: giving up: {counted(self._patience, 'attempt')} in a row without a new commit{where}; "
            f"round {rounds_done(status)}. The last error: {ended.error}"
        )
        return ExitCode.FAILED

    def _stop(self, status: RunStatus) -> int:
        note(f"{self._name}: stopped by {signal.Signals(self._signum).name}, round {rounds_done(status)}")
        if status.server is not None and status.server.running and not status.finished:
            note(f"{self._name}: {server_said(status.server)}; `flwr ls` and `flwr stop` end it")
        return 128 + self._signum


def _position(status: RunStatus) -> tuple[int | None, str | None]:
    """How far a run has come; that training was sent once more is not further."""
    return status.round, None if status.phase == "attempt" else status.phase


def _finished(before: RunStatus, after: RunStatus, ended: Ended) -> bool:
    """Whether nothing is left to do. A run that was finished before and is as it was may be one to be extended."""
    unchanged = before.finished and _position(before) == _position(after)
    return after.finished and not (unchanged and ended.code)


def _taken_over(before: RunStatus, after: RunStatus, ended: Ended) -> bool:
    """Whether another server has the run: a command opens it once, so a second opening is somebody else's."""
    opened = (after.server.generation if after.server else 0) - (before.server.generation if before.server else 0)
    another = ended.fenced or opened > 1
    return another and not after.finished and after.server is not None and after.server.running is not False
