"""Run a server in a process of its own, so that SIGKILL can end it at an exact moment.

Forked, not spawned: everything is imported already, so a server's life takes milliseconds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def kill_me() -> None:
    """Die as a server does when the machine's memory runs out: at once, with nothing cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_process(work: Callable[[], Any], folder: Path) -> Any:
    """Run `work` in a child process; return what it returned (JSON), or None if, and only if, it was killed.

    Raises
    ------
    AssertionError
        If the child failed by itself; its traceback is in the message.
    """
    answer, trace = folder / "answer.json", folder / "trace.txt"
    answer.unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            answer.write_text(json.dumps(work()))
            code = 0
        except BaseException:
            trace.write_text(traceback.format_exc())
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, f"the server died of signal {os.WTERMSIG(status)}"
        return None
    assert os.WEXITSTATUS(status) == 0, trace.read_text()
    returned = json.loads(answer.read_text())
    return "nothing" if returned is None else returned
