"""One start of a command, its output passed on and listened to."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from ..store import CheckpointError, FencedError

_ERROR = re.compile(r"Error\b|ERROR|Exception\b")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_LAST_WORDS = 2.0  # seconds that what a command has started may go on to hold its output after it has ended


@dataclass(frozen=True)
class Ended:
    """How an attempt has ended.

    Attributes
    ----------
    code : int
        The command's; ``flwr run`` gives 0 also when the run has failed.
    fenced : bool
        Whether it said that another server has taken the run over.
    error : str
        The last error in its output, or its last line.
    """

    code: int
    fenced: bool
    error: str


class Child:
    """A command that runs.

    It has a session of its own: an interrupt from the terminal reaches it once, from us, not twice.

    Raises
    ------
    CheckpointError
        If it cannot be started.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._fenced = False
        self._error = ""
        self._line = ""
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise CheckpointError(f"{command[0]!r} cannot be started: {error.strerror}") from error
        assert self._process.stdout is not None
        self._listener = threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True)
        self._listener.start()

    def forward(self, signum: int) -> None:
        """Pass a signal on to the command and what it has started in its session."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signum)

    def wait(self) -> Ended:
        """Wait for the command's end."""
        code = self._process.wait()
        self._listener.join(_LAST_WORDS)
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Ended(code, self._fenced, self._error or self._line or f"{how}, no output")

    def _listen(self, output: IO[bytes]) -> None:
        for raw in output:
            text = raw.decode(errors="replace")
            with suppress(OSError):  # who read our output may have gone; the command must not wait for that
                sys.stdout.write(text)
                sys.stdout.flush()
            line = _COLOURS.sub("", text).strip()
            if line:
                self._line = line
            if _ERROR.search(line):
                self._error = line
            if FencedError.__name__ in line:
                self._fenced = True
