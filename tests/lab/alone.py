"""An interpreter of its own for work that forks: one thread, everything imported, and Python's own way out.

pytest's workers have threads, and a fork copies whatever locks they hold; their exit handlers are theirs, too. Here a
child may live and end exactly as a server does.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 600.0  # seconds; only what hangs ever takes them

Report = Callable[[str], None]


def alone(
    work: Callable[..., Any], *arguments: Any, under: Sequence[str | Path] = (), patience: float = PATIENCE
) -> Any:
    """Call a function of a module of this folder in a new interpreter; arguments and answer are JSON.

    Parameters
    ----------
    work : callable
    under : sequence of str or Path
        A command that starts the interpreter.
    patience : float
        Seconds after which it hangs.

    Raises
    ------
    AssertionError
        If it raised; what it and its children printed is in the message.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        done = subprocess.run(
            [*under, sys.executable, "-m", "tests.lab.alone", f"{work.__module__}:{work.__qualname__}", answer],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
            input=json.dumps(arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=patience,
        )
        assert answer.exists(), f"{work.__qualname__} ended with code {done.returncode}:\n{done.stdout[-8000:]}"
        return json.loads(answer.read_text())


@dataclass
class Child:
    """A forked process and what it reports.

    Attributes
    ----------
    pid : int
    reports : int
        The end of the pipe to read from; what was written to it outlives the writer.
    """

    pid: int
    reports: int

    def __post_init__(self) -> None:
        self._pipe = open(self.reports, "rb")  # noqa: SIM115  # closed once it is read to its end

    def lines(self, most: int | None = None) -> list[str]:
        """Wait for so many further lines, or until the child is gone; give them."""
        found: list[str] = []
        while most is None or len(found) < most:
            line = self._pipe.readline()
            if not line:
                break
            found.append(line.decode().rstrip("\n"))
        return found

    def wait(self) -> int:
        """Wait for its end; give its exit code, or minus the signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def end(self) -> tuple[list[str], int]:
        """Wait for its end; give its reports and its exit code."""
        lines = self.lines()
        self.close()
        return lines, self.wait()

    def close(self) -> None:
        """Read nothing more."""
        self._pipe.close()


def fork(work: Callable[[Report], object], *, python_exits: bool = False) -> Child:
    """Do work in a forked child, which reports lines to its parent.

    Parameters
    ----------
    work : callable
        Given a function that reports a line, at once.
    python_exits : bool
        Whether the child leaves as Python does, with exit handlers and all, or at once when the work is done. What the
        work raises ends the child as it would end a script.
    """
    reports, pipe = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(pipe)
        return Child(pid, reports)
    os.close(reports)
    with contextlib.nullcontext() if python_exits else _left_at_once():
        work(lambda line: _write(pipe, f"{line}\n".encode()))
        sys.exit(0)
    raise AssertionError("a child outlived its work")


@contextlib.contextmanager
def _left_at_once() -> Iterator[None]:
    code = 1
    try:
        yield
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _write(pipe: int, data: bytes) -> None:
    assert os.write(pipe, data) == len(data), "a line is short enough to be written at once"


def _main(function: str, answer: str) -> None:
    module, _, name = function.partition(":")
    work = getattr(importlib.import_module(module), name)
    result = work(*json.load(sys.stdin))
    Path(answer).write_text(json.dumps(result))


if __name__ == "__main__":
    _main(*sys.argv[1:])
