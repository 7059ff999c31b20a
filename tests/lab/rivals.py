"""Two servers on one run, each a process of its own: paused between any two system calls, begun in one instant, or on
hosts that share nothing but a folder.

Who wrote a round stands in it, so that a round of another server with the same number is no excuse.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from flwr_ckpt import CheckpointStore, FencedError, KeepAll, KeepLatest
from flwr_ckpt.store import Draft, RunWriter
from flwr_ckpt.store.commands.removal import remove
from flwr_ckpt.store.commands.rewind import rewind
from tests.store.run_rig import Place, initial, later, model, opened, reader, train

from . import dying
from .alone import Report, fork
from .lives import FIRST, KINDS, Kind, live

OVERTAKEN_ROUNDS = 6
FIRST_ROUNDS = 3  # what a server has written before anything happens to it
MS_BIND, MS_PRIVATE_AND_BELOW = 0x1000, 0x44000
CLONE_NEWNS, CLONE_NEWUTS = 0x20000, 0x4000000


def written_by(who: str, server_round: int) -> Draft:
    """A round that says whose it is."""
    return train(server_round, documents={"tree": server_round, "by": who})


# --- paused ----------------------------------------------------------------------------------------------------------


def _old_server(run: Path, pause_at: int, report: Report) -> None:
    """A server that is paused in its fourth round's commits or retention, and goes on as if nothing had been."""
    writer = opened(run, KeepLatest(2))
    writer.commit(initial())
    for server_round in range(1, FIRST_ROUNDS + 1):
        _round(writer, "old", server_round, report)
    put_back = dying.at_call(dying.CALLS, pause_at, stop=dying.pause_me)
    try:
        _round(writer, "old", FIRST_ROUNDS + 1, report)
        put_back()
        _round(writer, "old", FIRST_ROUNDS + 2, report)
    except FencedError:
        report("fenced")


def _round(writer: RunWriter, who: str, server_round: int, report: Report) -> None:
    writer.commit(written_by(who, server_round))
    report(str(server_round))
    writer.commit(later(server_round))
    with contextlib.suppress(OSError):  # as the thread does that retention has of its own: it is only logged
        writer.retain()


def _newer_server(run: Path) -> str:
    writer = opened(run, KeepLatest(2))
    taken = writer.resumed.commit.round if writer.resumed is not None else 0
    writer.commit(written_by("new", taken + 1))
    writer.retain()
    return f"new server after {taken}"


def _newer_server_that_waits(run: Path) -> str:
    opened(run, KeepLatest(2))
    return "new server that has only opened"


def _rewind(run: Path) -> str:
    rewind(Place(run), FIRST_ROUNDS)
    return "rewind"


def _removed_by_hand(run: Path) -> str:
    shutil.rmtree(run)
    return "rm -rf"


def _removed(run: Path) -> str:
    """As the command does it: a fence that says so stays, and a new run of the name begins above it."""
    remove(Place(run), Place(run).files())
    writer = opened(run, KeepLatest(2))
    assert writer.resumed is None
    writer.commit(initial())
    writer.commit(written_by("new", 1))
    writer.retain()
    return "rm, and a new run"


MEANWHILE: dict[str, Callable[[Path], str]] = {
    function.__name__.lstrip("_"): function
    for function in (_newer_server, _newer_server_that_waits, _rewind, _removed_by_hand, _removed)
}


def paused(folder: str, meanwhile: str, step: int) -> dict[str, Any]:
    """Pause a server before every `step`-th system call in turn, do something else meanwhile, let it go on."""
    counts = {"pauses": 0, "fenced": 0, "lost": 0, "wrong": 0}
    problems: list[str] = []
    at, reached = 0, True
    while reached:
        run = Path(folder) / str(at)
        child = fork(partial(_old_server, run, at))
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        reached = os.WIFSTOPPED(status)
        if reached:
            counts["pauses"] += 1
            try:
                MEANWHILE[meanwhile](run)
            finally:
                os.kill(child.pid, signal.SIGCONT)
            lines, code = child.end()
            counts["fenced"] += "fenced" in lines
            problems += [f"paused at {at}: {problem}" for problem in _judge(run, meanwhile, lines, code)]
        else:
            child.close()
        shutil.rmtree(run, ignore_errors=True)
        at += step
    return {**counts, "problems": problems}


def _judge(run: Path, meanwhile: str, lines: list[str], code: int) -> Iterator[str]:
    """See what the old server, woken up, has done to the newer one's run."""
    if code != 0:
        yield f"the old server ended with {code}"
    durable = [int(line) for line in lines if line != "fenced"]
    if "fenced" not in lines:
        yield f"the old server was not fenced: {lines}"
    if meanwhile == "removed_by_hand":
        if run.exists():
            yield f"a removed run is there again: {sorted(map(str, run.rglob('*')))}"
        return
    if max(durable) > FIRST_ROUNDS + 1:
        yield f"the old server went on to round {max(durable)}"
    yield from _judge_contents(run, meanwhile, max(durable))


def _judge_contents(run: Path, meanwhile: str, durable: int) -> Iterator[str]:
    loaded = reader(run).resume()
    if loaded is None:
        yield "nothing is left"
        return
    newest, who = loaded.documents["tree"], loaded.documents.get("by")
    if loaded.arrays != {one.name: one.data for one in model(newest)}:
        yield f"round {newest} has other bits"
    expected = {
        "newer_server": [("new", number) for number in (FIRST_ROUNDS + 1, FIRST_ROUNDS + 2)],
        "newer_server_that_waits": [("old", number) for number in (FIRST_ROUNDS, FIRST_ROUNDS + 1)],
        "rewind": [("old", FIRST_ROUNDS)],
        "removed": [("new", 1)],
    }[meanwhile]
    if (who, newest) not in expected:
        yield f"the newest is round {newest} of {who}, and not one of {expected}"
    if meanwhile.startswith("newer") and newest < durable:
        yield f"round {durable} was durable, the newest is {newest}"
    yield from (problem for result in CheckpointStore(run).verify() for problem in result.problems)
    writer = opened(run, KeepLatest(2))  # and the run goes on
    writer.commit(written_by("next", newest + 1))
    writer.retain()
    after = reader(run).resume()
    if after is None or after.documents["tree"] != newest + 1:
        yield "the next server cannot go on"


def overtaken(folder: str, pauses: list[int]) -> dict[str, Any]:
    """Pause a whole server, strategy and threads, at such calls; let another one finish the run; let it go on."""
    counts = {"pauses": 0, "fenced": 0, "lost": 0, "wrong": 0}
    problems: list[str] = []
    for kind in (KINDS[0], KINDS[1]):
        alone = _life(kind, Path(folder) / "alone" / kind.name, [])
        for at in pauses:
            run = Path(folder) / str(at) / kind.name
            old = fork(partial(_overtaken, kind, run, at))
            _, status = os.waitpid(old.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status), f"a server of {kind.name} makes fewer than {at} calls"
            newer = _life(kind, run, list(CheckpointStore(run).rounds()))
            os.kill(old.pid, signal.SIGCONT)
            lines, code = old.end()
            counts["pauses"] += 1
            counts["fenced"] += "fenced" in lines
            if code != 0 or lines not in (["fenced"], alone):
                problems.append(f"{kind.name} paused at {at} ended with {code}: {lines}")
            if newer != alone or _life(kind, run, [0]) != alone:
                problems.append(f"{kind.name} paused at {at}: the newer server's result is another one")
    return {**counts, "problems": problems}


def _overtaken(kind: Kind, run: Path, pause_at: int, report: Report) -> None:
    dying.at_call(dying.CALLS, pause_at, stop=dying.pause_me)
    try:
        report(json.dumps(live(kind, run, OVERTAKEN_ROUNDS, FIRST)))
    except FencedError:
        report("fenced")


def _life(kind: Kind, run: Path, there: list[Any]) -> list[str]:
    """A life to its end in a process of its own; with another first model, if the run has one already."""
    salt = FIRST + 1 if there else FIRST
    return fork(lambda report: report(json.dumps(live(kind, run, OVERTAKEN_ROUNDS, salt)))).end()[0]


# --- in one instant --------------------------------------------------------------------------------------------------


def races(folder: str, tries: int, servers: int, rounds: int) -> dict[str, Any]:
    """Have several servers open one run in the same instant, again and again."""
    counts = {"races": 0, "servers": 0, "fenced": 0, "lost": 0, "wrong": 0}
    problems: list[str] = []
    for number in range(tries):
        run = Path(folder) / str(number)
        ended = _race(run, [f"server {who}" for who in range(servers)], rounds)
        counts["races"] += 1
        counts["servers"] += servers
        counts["fenced"] += sum("fenced" in lines for lines, _ in ended)
        problems += [f"race {number}: {problem}" for problem in _judge_race(run, rounds, ended)]
        shutil.rmtree(run)
    return {**counts, "problems": problems}


def _race(run: Path, names: list[str], rounds: int) -> list[tuple[list[str], int]]:
    hold, release = os.pipe()
    children = [fork(partial(_racer, run, who, rounds, hold, release)) for who in names]
    os.close(hold)
    os.close(release)  # the last end that could be written to: all waiting reads return
    return [child.end() for child in children]


def _racer(run: Path, who: str, rounds: int, hold: int, release: int, report: Report) -> None:
    os.close(release)
    os.read(hold, 1)
    _serve(run, who, rounds, report)


def _serve(run: Path, who: str, rounds: int, report: Report) -> None:
    """One server: it resumes, writes to the end, and reports each round as durable; or is fenced, and says by whom."""
    try:
        writer = opened(run, KeepAll())
        first = 1 if writer.resumed is None else writer.resumed.documents["tree"] + 1
        report(f"generation {writer.generation}")
        if writer.resumed is None:
            writer.commit(initial())
        for server_round in range(first, rounds + 1):
            writer.commit(written_by(who, server_round))
            report(f"durable {server_round} {who}")
            writer.retain()
    except FencedError as error:
        report("fenced")
        report(f"by {error}")
    else:
        report("finished")


def _judge_race(run: Path, rounds: int, ended: list[tuple[list[str], int]]) -> Iterator[str]:
    said = [line for lines, _ in ended for line in lines]
    if any(code != 0 for _, code in ended):
        yield f"servers ended with {[code for _, code in ended]}"
    yield from _judge_numbers([lines for lines, _ in ended])
    if "finished" not in said:
        yield "no server came to the end"
    if any("finished" in lines and "fenced" in lines for lines, _ in ended):
        yield "a server finished although it was fenced"
    there = dict(_owners(run))
    for line in said:
        if line.startswith("durable "):
            _, server_round, who = line.split(" ", 2)
            if there.get(int(server_round)) != who:
                yield f"round {server_round} of {who} was durable, and is {there.get(int(server_round))}'s"
    if sorted(there) != list(range(1, rounds + 1)):
        yield f"rounds {sorted(there)} are there"
    yield from (problem for result in CheckpointStore(run).verify() for problem in result.problems)


def _judge_numbers(told: list[list[str]]) -> Iterator[str]:
    """A number is given twice only where a newer server has cleared away a fence that had nothing behind it.

    Whoever has it is then fenced before anything of it is durable.
    """
    numbers = [int(line.split()[1]) for lines in told for line in lines[:1] if line.startswith("generation ")]
    for lines in told:
        number = int(lines[0].split()[1]) if lines[0].startswith("generation ") else 0
        wrote = any(line.startswith("durable ") for line in lines)
        if number and numbers.count(number) > 1 and (number == max(numbers) or wrote):
            yield f"two servers had one generation, and wrote: {told}"


def _owners(run: Path) -> Iterator[tuple[int, str]]:
    """Who wrote each round that counts; its bits are looked at, too."""
    view = reader(run)
    for commit in view.commits():
        loaded = view.load(commit)
        server_round = loaded.documents["tree"]
        assert loaded.arrays == {one.name: one.data for one in model(server_round)}
        if "by" in loaded.documents:
            yield server_round, loaded.documents["by"]


# --- across hosts ----------------------------------------------------------------------------------------------------


def across_hosts(folder: str) -> dict[str, Any]:
    """Two servers see one folder at two places, by two host names, and neither can lock a file."""
    shared, mine, theirs = (Path(folder) / name for name in ("shared", "mine", "theirs"))
    for place in (shared, mine, theirs):
        place.mkdir()
    hold, release = os.pipe()

    def first(report: Report) -> None:
        os.close(release)
        if not _moved_to_host("first-host", shared, mine, report):
            return
        writer = opened(mine / "run", KeepAll())
        writer.commit(initial())
        for server_round in (1, 2):
            writer.commit(written_by("first", server_round))
            report(f"durable {server_round} first")
        report("waits")
        os.read(hold, 1)
        try:
            writer.commit(written_by("first", 3))
        except FencedError as error:
            report("fenced")
            report(f"by {error}")

    def second(report: Report) -> None:
        os.close(release)
        if _moved_to_host("second-host", shared, theirs, report):
            _serve(theirs / "run", "second", 4, report)

    one = fork(first)
    begun = one.lines(3)  # two rounds, and that it waits; or why it could not begin
    ended_two, code_two = fork(second).end()
    os.close(hold)
    os.close(release)
    rest, code_one = one.end()
    return {
        "first": [*begun, *rest],
        "second": ended_two,
        "codes": [code_one, code_two],
        "seen at": [str(path) for path in (mine, theirs) if (path / "run").exists()],
        "owners": dict(_owners(shared / "run")) if (shared / "run").exists() else {},
    }


def _moved_to_host(name: str, shared: Path, place: Path, report: Report) -> bool:
    """Give this process mounts and a host name of its own, the shared folder at a place of its own, and no locks."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWUTS) != 0:
        report(f"not permitted: unshare says {os.strerror(ctypes.get_errno())}")
        return False
    assert libc.mount(b"none", b"/", None, MS_PRIVATE_AND_BELOW, None) == 0, os.strerror(ctypes.get_errno())
    assert libc.mount(bytes(shared), bytes(place), None, MS_BIND, None) == 0, os.strerror(ctypes.get_errno())
    assert libc.sethostname(name.encode(), len(name)) == 0, os.strerror(ctypes.get_errno())

    def no_locks(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    for function in ("flock", "lockf", "fcntl"):
        setattr(fcntl, function, no_locks)
    return True
