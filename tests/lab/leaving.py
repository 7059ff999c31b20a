"""Servers whose process ends, or forks, while a write is under way.

What happens does so in the third round's central evaluation: the round's model has been handed over, and its write has
reached the disk but is held there until the server has come to the moment.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from flwr_ckpt import CheckpointError, CheckpointStore

from .alone import Report, fork
from .lives import FIRST, KINDS, Kind, live

NUM_ROUNDS = 4
MOMENT = 3
HELD_BACK = 2  # of the rounds of which every third is saved
FOLDER = f"/round-{MOMENT:08d}/"
HANGS = 60  # seconds
# From Python 3.12 on, and said aloud where a Flower turns warnings on: to fork beside threads is what is tried here.
warnings.filterwarnings("ignore", message=".*use of fork", category=DeprecationWarning)


class HeldWrite:
    """Holds the writer in its first ``fsync`` in the folder of the round."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._free = threading.Event()
        self._fsync = os.fsync
        os.fsync = self._hold

    def wait(self) -> None:
        """Wait until the writer is inside a write."""
        assert self._reached.wait(HANGS), "nothing is written"

    def let_go(self) -> None:
        """Let it finish."""
        self._free.set()

    def _hold(self, descriptor: int) -> None:
        if not self._reached.is_set() and FOLDER in os.readlink(f"/proc/self/fd/{descriptor}"):
            self._reached.set()
            self._free.wait(HANGS)
        self._fsync(descriptor)


@dataclass
class Server:
    """What a way of leaving may use.

    Attributes
    ----------
    held : HeldWrite
        The write that is under way.
    report : Report
    flushed : int
        The last round that is durable.
    strategy : Strategy
        The one that serves.
    """

    held: HeldWrite
    report: Report
    flushed: int
    strategy: Any = None


# --- ways out --------------------------------------------------------------------------------------------------------


def exits(server: Server) -> None:
    """As ``sys.exit()`` in the server's thread."""
    server.held.let_go()
    sys.exit(0)


def fails(server: Server) -> None:
    """An exception that nobody catches."""
    server.held.let_go()
    raise RuntimeError("nobody catches this")


def exits_at_once(server: Server) -> None:
    """No handler runs, nothing is flushed; the write is never let go of."""
    os._exit(0)


def is_interrupted(server: Server) -> None:
    """Ctrl-C."""
    server.held.let_go()
    raise KeyboardInterrupt


def serves_beside_the_main_thread(server: Server) -> None:
    """The server's thread is a daemon; the process ends under it while the writer is inside a write."""
    MAIN_MAY_END.set()
    server.held.let_go()


MAIN_MAY_END = threading.Event()
WAYS = (exits, fails, exits_at_once, is_interrupted, serves_beside_the_main_thread)


def leave(folder: str, kind_names: list[str]) -> dict[str, Any]:
    """Have servers leave in every way, and see what the next one finds."""
    counts = {"exits": 0, "lost": 0, "wrong": 0}
    problems: list[str] = []
    for kind in _kinds(kind_names):
        expected = _ended(kind, Path(folder) / "alone" / kind.name, FIRST)
        for way in WAYS:
            where = Path(folder) / way.__name__ / kind.name
            where.parent.mkdir(parents=True, exist_ok=True)
            lines, code = fork(partial(_leave, kind, where, way), python_exits=True).end()
            counts["exits"] += 1
            problems += [
                f"{kind.name} {way.__name__}: {one}" for one in _judge(kind, where, way, lines, code, expected)
            ]
    return {**counts, "problems": problems}


def _leave(kind: Kind, run: Path, way: Callable[[Server], None], report: Report) -> None:
    _errors_to(run.with_suffix(".errors"))
    serve = partial(_serve, kind, run, way, report)
    if way is serves_beside_the_main_thread:
        threading.Thread(target=serve, daemon=True).start()
        assert MAIN_MAY_END.wait(HANGS)
    else:
        serve()


def _serve(kind: Kind, run: Path, happens: Callable[[Server], None], report: Report) -> None:
    server = Server(HeldWrite(), report, kind.saved(MOMENT - 1))

    def look(server_round: int, digest: str) -> None:
        if server_round == MOMENT - 1:
            server.strategy.flush()
            report(f"durable {server.flushed}")
        if server_round == MOMENT:
            server.held.wait()
            happens(server)

    told = live(kind, run, NUM_ROUNDS, FIRST, look=look, made=partial(setattr, server, "strategy"))
    report(f"ended {json.dumps(told)}")


def _judge(
    kind: Kind, run: Path, way: Callable[[Server], None], lines: list[str], code: int, expected: str
) -> list[str]:
    problems = []
    codes = {fails: 1, is_interrupted: -2}
    if code != codes.get(way, 0):
        problems.append(f"ended with {code}")
    errors = run.with_suffix(".errors").read_text()
    if "Fatal Python error" in errors or "Exception ignored" in errors:
        problems.append(errors)
    flushed = kind.saved(MOMENT - 1)
    if lines[:1] != [f"durable {flushed}"]:
        problems.append(f"said {lines}")
    latest = CheckpointStore(run).latest()
    if latest is None or latest.round < flushed:
        problems.append(f"round {flushed} was durable, the newest is {latest}")
    problems += [problem for result in CheckpointStore(run).verify() for problem in result.problems]
    if _ended(kind, run, FIRST + 1) != expected:
        problems.append("the next server ended in something else")
    return problems


# --- forks -----------------------------------------------------------------------------------------------------------


def forks_a_child_that_exits(server: Server) -> None:
    """Through all frames of the server and Python's exit handlers."""
    if os.fork() == 0:
        sys.exit(0)
    _child_ended(server)


def forks_a_child_that_ends_at_once(server: Server) -> None:
    """As multiprocessing's children end."""
    if os.fork() == 0:
        os._exit(0)
    _child_ended(server)


def forks_a_child_that_drops_the_strategy(server: Server) -> None:
    """Its finalizers run in the child."""
    if os.fork() == 0:
        server.strategy.__dict__.clear()
        server.strategy = None
        gc.collect()
        os._exit(0)
    _child_ended(server)


def forks_a_child_that_uses_the_strategy(server: Server) -> None:
    """It may look, and may not write."""
    if os.fork() == 0:
        code = 3
        try:
            server.strategy.flush()
        except CheckpointError as error:
            looked = server.strategy.store.latest().round == server.flushed
            code = 0 if "fork" in str(error) and looked else 2
        finally:
            os._exit(code)
    _child_ended(server)


def has_a_pool_of_forks(server: Server) -> None:
    """As data loaders do."""
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]
    server.held.let_go()


FORKS = (
    forks_a_child_that_exits,
    forks_a_child_that_ends_at_once,
    forks_a_child_that_drops_the_strategy,
    forks_a_child_that_uses_the_strategy,
    has_a_pool_of_forks,
)


def _child_ended(server: Server) -> None:
    """The child has lived wholly while the write was held."""
    _, status = os.wait()
    server.held.let_go()
    server.report(f"child {os.waitstatus_to_exitcode(status)}")


def fork_inside(folder: str, kind_names: list[str]) -> dict[str, Any]:
    """Have servers fork in every way, and see that nothing of it shows."""
    counts = {"forks": 0, "lost": 0, "wrong": 0}
    problems: list[str] = []
    for kind in _kinds(kind_names):
        expected = _ended(kind, Path(folder) / "alone" / kind.name, FIRST)
        for way in FORKS:
            run = Path(folder) / way.__name__ / kind.name
            run.parent.mkdir(parents=True, exist_ok=True)
            lines, code = fork(partial(_fork, kind, run, way), python_exits=True).end()
            counts["forks"] += 1
            errors = run.with_suffix(".errors").read_text()
            children = [] if way is has_a_pool_of_forks else ["child 0"]
            said = [f"durable {kind.saved(MOMENT - 1)}", *children, f"ended {expected}"]
            if (lines, code, errors) != (said, 0, ""):
                problems.append(f"{kind.name} {way.__name__} ended with {code}: {lines} {errors}")
            problems += [problem for result in CheckpointStore(run).verify() for problem in result.problems]
    return {**counts, "problems": problems}


def _fork(kind: Kind, run: Path, way: Callable[[Server], None], report: Report) -> None:
    _errors_to(run.with_suffix(".errors"))
    _serve(kind, run, way, report)


def fork_with_a_round_held_back(folder: str) -> list[str]:
    """Have a child exit through a server that has a round in hand for later: it is not the child's to write."""
    problems = []
    for kind in (replace(kind, save_every=3) for kind in _kinds(["message/FedAdam", "legacy/FedAdam"])):
        expected = _ended(kind, Path(folder) / "alone" / kind.name, FIRST)
        run = Path(folder) / "forked" / kind.name
        run.parent.mkdir(parents=True)
        lines, code = fork(partial(_fork_with_a_round_held_back, kind, run), python_exits=True).end()
        errors = run.with_suffix(".errors").read_text()
        if (lines, code, errors) != (["child 0", f"ended {expected}"], 0, ""):
            problems.append(f"{kind.name} ended with {code}: {lines} {errors}")
    return problems


def _fork_with_a_round_held_back(kind: Kind, run: Path, report: Report) -> None:
    _errors_to(run.with_suffix(".errors"))

    def look(server_round: int, digest: str) -> None:
        if server_round == HELD_BACK:
            if os.fork() == 0:
                sys.exit(0)
            report(f"child {os.waitstatus_to_exitcode(os.wait()[1])}")

    report(f"ended {json.dumps(live(kind, run, NUM_ROUNDS, FIRST, look=look))}")


# --- small things ----------------------------------------------------------------------------------------------------


def _errors_to(path: Path) -> None:
    """Have all that this process and its children complain of in a file; what hangs is ended.

    Not by `faulthandler`: a child forked under its watchdog waits for it for ever as it exits.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    signal.alarm(HANGS)


def _kinds(names: list[str]) -> list[Kind]:
    return [kind for kind in KINDS if kind.name in names]


def _ended(kind: Kind, run: Path, salt: int) -> str:
    """A life to its end in a process of its own."""
    lines, code = fork(lambda report: report(json.dumps(live(kind, run, NUM_ROUNDS, salt)))).end()
    assert code == 0, f"a server of {kind.name} failed by itself"
    return lines[0]
