"""Servers that are killed again and again until they have finished, one kind after the other.

The loop keeps what it knows in its folder after every life, so that it can be stopped, itself by a kill, and goes on.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flwr_ckpt import CheckpointStore
from flwr_ckpt.store.writing.retention import RoundRecord

from . import dying
from .alone import Child, Report, fork
from .lives import FIRST, KINDS, Kind, Reference, digest, history_of, live, reference

NUM_ROUNDS = 40
MOST_SECONDS = 0.03  # after a report; a few rounds
MOST_TOLD = 12  # rounds of a life
SEED = 20

OUTSIDE = "at any moment, from outside"
INSIDE = "inside a system call"
AS_TOLD = "as a round is reported durable"
DEATHS = (OUTSIDE, INSIDE, AS_TOLD)

TERMINATED = "SIGTERM, a SystemExit anywhere in the server"
INTERRUPTED = "SIGINT, a KeyboardInterrupt anywhere in the server"
STOPS = {TERMINATED: signal.SIGTERM, INTERRUPTED: signal.SIGINT}  # after which Python's own way out is taken
HANGS = 120  # seconds


@dataclass
class Progress:
    """What the loop has done so far.

    Attributes
    ----------
    kills, rounds, runs, lives : int
        How many there were; runs are those that came to their end.
    deaths : dict
        How many of the kills came at which moments.
    reported : int
        The highest round of the current run that was reported durable; -1 for none.
    lost, wrong : list of str
        What must not be: rounds that were durable and are gone, or are not what they were.
    """

    kills: int = 0
    rounds: int = 0
    runs: int = 0
    lives: int = 0
    reported: int = -1
    deaths: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def kill_loop(folder: str, kills: int, deaths: Sequence[str] = DEATHS) -> dict[str, Any]:
    """Go on until so many kills have been done in this folder, of such kinds; give the counts."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another loop there is waited for: each knows only its own servers
        return _kill_until(kills, place, deaths)


def _kill_until(kills: int, place: Path, deaths: Sequence[str]) -> dict[str, Any]:
    state = place / "progress.json"
    progress = Progress(**json.loads(state.read_text())) if state.exists() else Progress()
    references: dict[str, Reference] = {}
    while progress.kills < kills and not progress.lost and not progress.wrong:
        kind = KINDS[progress.runs % len(KINDS)]
        if kind.name not in references:
            references[kind.name] = _reference(kind)
        _one_life(kind, place / f"run-{progress.runs:04d}", references[kind.name], progress, deaths)
        temporary = state.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(progress)))
        temporary.replace(state)
    return asdict(progress)


def _reference(kind: Kind) -> Reference:
    lines, code = fork(lambda report: report(json.dumps(asdict(reference(kind, NUM_ROUNDS))))).end()
    assert code == 0, f"{kind.name} failed when it was left alone"
    told = json.loads(lines[0])
    history = {key: _by_round(values) for key, values in told["history"].items()}
    return Reference(_by_round(told["digests"]), history, told["told"])


def _by_round(values: dict[str, str]) -> dict[int, str]:
    return {int(number): value for number, value in values.items()}


def _one_life(kind: Kind, run: Path, expected: Reference, progress: Progress, deaths: Sequence[str]) -> None:
    """Have a server live until it is killed or has finished, and see what it has left."""
    chance = random.Random(f"{SEED}/{progress.lives}")
    death = chance.choice(deaths)
    before = _newest(run)

    def work(report: Report) -> None:
        if death in STOPS:
            _be_stoppable()
        told_until_death = chance.randrange(MOST_TOLD) if death == AS_TOLD else -1
        if death == INSIDE:
            name = chance.choice(sorted(dying.CALLS))
            dying.at_call([name], chance.randrange(dying.CALLS[name]), chance.choice(dying.MOMENTS))

        def tell(server_round: int) -> None:
            nonlocal told_until_death
            report(str(server_round))
            if told_until_death == 0:
                dying.kill_me()
            told_until_death -= 1

        # Until the first model is on disk, the run has none, and another one would be another run.
        salt = FIRST if before < 0 else progress.lives
        report(f"finished {json.dumps(live(kind, run, NUM_ROUNDS, salt, tell=tell))}")

    child = fork(work, python_exits=death in STOPS)
    lines: list[str] = []
    seen = -1
    if death == OUTSIDE or death in STOPS:
        lines = child.lines(chance.randrange(MOST_TOLD))
        wait(child, chance.uniform(0.0, MOST_SECONDS))
        if chance.random() < 0.3:
            seen = _newest(run)  # what a reader sees is durable, too
        os.kill(child.pid, STOPS.get(death, signal.SIGKILL))
    rest, code = child.end()
    lines += rest
    assert code in (0, -STOPS.get(death, signal.SIGKILL)), (
        f"life {progress.lives} of {kind.name} in {run} ended with {code}"
    )
    finished = [line.partition(" ")[2] for line in lines if line.startswith("finished ")]
    told = [int(line) for line in lines if not line.startswith("finished ")]
    progress.lives += 1
    progress.reported = max(progress.reported, seen, *told, -1)
    _check(kind, run, expected, progress)
    progress.rounds += _newest(run) - before
    if finished:
        _check_end(kind, json.loads(finished[0]), expected, progress)
        progress.runs += 1
        progress.reported = -1
        if not progress.lost and not progress.wrong:
            shutil.rmtree(run)
    else:
        progress.kills += 1
        progress.deaths[death] = progress.deaths.get(death, 0) + 1


def _be_stoppable() -> None:
    """Take signals as Flower's ServerApp and Python do; end what hangs."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.alarm(HANGS)


def wait(child: Child, seconds: float) -> None:
    """Give a child that long, or until it has ended: the kill comes from outside, at any moment."""
    until = time.monotonic() + seconds
    descriptor = os.pidfd_open(child.pid)
    try:
        select.select([descriptor], [], [], max(0.0, until - time.monotonic()))
    finally:
        os.close(descriptor)


def _newest(run: Path) -> int:
    latest = CheckpointStore(run).latest()
    return -1 if latest is None else latest.round


def _check(kind: Kind, run: Path, expected: Reference, progress: Progress) -> None:
    """See with fresh eyes that all that was durable is there, bit for bit, and nothing else."""
    where = f"life {progress.lives}, {kind.name} in {run}: "
    store = CheckpointStore(run)
    there = [record.round for record in store.rounds()]
    newest = max(there, default=-1)
    if newest < progress.reported:
        progress.lost.append(f"{where}round {progress.reported} was durable, the newest is {newest}")
    missing = _to_be_kept(kind, store, there) - set(there)
    if missing:
        progress.lost.append(f"{where}{missing} should have been kept by {kind.keep}")
    for server_round in there:
        if digest(store.load(server_round).arrays.items()) != expected.digests[server_round]:
            progress.wrong.append(f"{where}round {server_round} has other bits")
    for key, values in history_of(store).items():
        for server_round, value in values.items():
            if value != expected.history[key][server_round]:
                progress.wrong.append(f"{where}{key} of round {server_round} is {value}")
    progress.wrong.extend(f"{where}{problem}" for result in store.verify() for problem in result.problems)


def _to_be_kept(kind: Kind, store: CheckpointStore, there: Sequence[int]) -> set[int]:
    metrics = store.history()
    rounds = [
        RoundRecord(number, {key: of[number] for key, of in metrics.items() if number in of})
        for number in _saved(kind, there)
    ]
    return kind.keep.select(rounds)


def _saved(kind: Kind, there: Sequence[int]) -> Iterable[int]:
    """Those that were due, and those that a server wrote as it was closed."""
    due = {number for number in range(max(there, default=-1) + 1) if number in (kind.saved(number), NUM_ROUNDS)}
    return sorted(due.union(there))


def _check_end(kind: Kind, told: Any, expected: Reference, progress: Progress) -> None:
    if told != expected.told:
        progress.wrong.append(f"life {progress.lives}, {kind.name}: the end is another one")
