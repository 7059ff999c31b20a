"""Servers on a simulated disk: what each commit was to hold, what was promised, and whether that is kept."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from run_rig import npy
from simulated import Disk, Process, SimulatedFiles, after_power_loss

from flwr_ckpt.store import Blob, Commit, Draft, FencedError, KeepLatest, Loaded, Outcome, RunReader, RunWriter
from flwr_ckpt.store.commands.removal import remove
from flwr_ckpt.store.commands.rewind import prune, rewind
from flwr_ckpt.store.format.generations import read_fence
from flwr_ckpt.store.names import FENCES, HISTORY, CommitName, generation_of, parse_fence
from flwr_ckpt.store.places.files import Files

_tokens = threading.local()  # what is random is the same in every run, so that states are seen to be the same

HOME = Path("/home")
ROOT = HOME / "digits"


@dataclass(frozen=True)
class Place:
    """The run, as one process reaches it."""

    opened: Files
    where: str = str(ROOT)

    def files(self) -> Files:
        return self.opened


@dataclass(frozen=True)
class Told:
    """What a commit was to hold.

    Attributes
    ----------
    line : frozenset of CommitName
        The commit, and all that it was built on.
    """

    name: CommitName
    arrays: dict[str, bytes] = field(default_factory=dict)
    state: dict[str, bytes] = field(default_factory=dict)
    documents: dict[str, Any] = field(default_factory=dict)
    outcomes: tuple[Outcome, ...] = ()
    line: frozenset[CommitName] = frozenset()


@dataclass(frozen=True)
class Promise:
    """What has to be there, and what must never be there again.

    Attributes
    ----------
    either : tuple of frozenset
        Commits that are all on the line of what opens; where there are several sets, those of one of them: while
        a rewind or a removal is on its way, it may or may not have taken effect.
    never : frozenset of CommitName
        Commits that a rewind or a removal has cut off.
    """

    either: tuple[frozenset[CommitName], ...] = (frozenset(),)
    never: frozenset[CommitName] = frozenset()

    def adding(self, name: CommitName) -> Promise:
        """One more commit is durable; if a rewind takes effect that has a higher generation, it is cut off."""
        return replace(
            self,
            either=tuple(
                names if any(one.generation > name.generation for one in names) else names | {name}
                for names in self.either
            ),
        )


@dataclass(frozen=True)
class Moment:
    """Where the power may fail, or every process die."""

    disk: Disk
    promise: Promise
    after: str


class World:
    """A disk, the servers that have been at it, and all moments that were seen.

    Parameters
    ----------
    disk : Disk, optional
        An empty one with a home, if none is given.
    before : callable
        Called ahead of every call of every process.
    """

    def __init__(self, disk: Disk | None = None, promise: Promise | None = None) -> None:
        if disk is None:
            disk = Disk()
            Process(disk).mkdir(HOME)
            disk.sync_all()
        self.disk = disk
        self.promise = promise or Promise()
        self.told: dict[CommitName, Told] = {}
        self.moments: list[Moment] = []
        self.wrong: list[str] = []
        self.before: Callable[[str, Path], None] = lambda call, path: None
        self.servers = 0
        self.removed = 0  # up to which generation all has been removed

    def at(self, moment: Moment) -> World:
        """Another world that goes on from a moment of this one, all processes being dead."""
        other = World(moment.disk.copy(), moment.promise)
        other.told = dict(self.told)
        other.servers, other.removed = self.servers, self.removed
        return other

    def note(self, after: str, path: Path | str = "") -> None:
        """Note a moment."""
        self.moments.append(Moment(self.disk.copy(), self.promise, f"{after} {path}"))

    def highest_fence(self) -> int:
        """The newest server that has opened the run."""
        keys = SimulatedFiles(ROOT, Process(self.disk)).keys(FENCES)
        return max((number for key in keys if (number := parse_fence(key)) is not None), default=0)

    def process(self, before: Callable[[str, Path], None] | None = None) -> Process:
        """A process at this world's disk."""
        return Process(self.disk, before or (lambda call, path: self.before(call, path)), self.note)


class Server:
    """A server without Flower, that trains by itself: what it saves says who trained it, in which round.

    Parameters
    ----------
    keep : int
        How many rounds are kept.
    before : callable, optional
        Called ahead of every call of this process; the world's, if none is given.
    """

    def __init__(self, world: World, keep: int = 1, before: Callable[[str, Path], None] | None = None) -> None:
        world.servers += 1
        self.number = world.servers
        self.world = world
        self.process = world.process(before)
        self.files = SimulatedFiles(ROOT, self.process)
        self.keep = KeepLatest(keep)
        self.now = Told(CommitName(-1, 0, "evaluate"))
        self.fenced = False

    def open(self) -> None:
        """Take the run over."""
        _tokens.left = itertools.count(self.number << 16)
        self.writer = RunWriter.open(Place(self.files), self.keep)
        resumed = self.writer.resumed
        if resumed is not None:
            self.now = self.world.told[resumed.commit.name]
            self.world.promise = self.world.promise.adding(resumed.commit.name)  # it is what the log says
            self.world.note("resumed", str(resumed.commit.name))

    def step(self) -> None:
        """Make the next commit, and clear away after it."""
        server_round, phase = self.now.name.round, self.now.name.phase
        if phase == "train":
            self.commit(server_round, "evaluate")
        else:
            self.commit(server_round + 1, "train" if server_round >= 0 else "initial")
        self.writer.retain()

    def live(self, commits: int) -> None:
        """Open, and make so many commits, or as many as another server lets happen."""
        try:
            self.open()
            for _ in range(commits):
                self.step()
        except FencedError:
            self.fenced = True

    def commit(self, server_round: int, phase: Any) -> None:
        """Make a commit and promise it."""
        draft = self._draft(server_round, phase)
        told = self.tell(draft)
        too_late = self.world.highest_fence() > self.writer.generation
        self.now = replace(told, line=self.now.line)  # where it fails, the next one carries what it was to hold
        try:
            made = self.writer.commit(draft)
        finally:
            if too_late and self.files.size(told.name.key) is not None:
                self.world.wrong.append(f"wrong: {told.name} was made although a newer server was there before it")
        if made is not None:
            assert made.name == told.name
            if told.name.generation > self.world.removed:  # else the run was removed as this was reported
                self.world.promise = self.world.promise.adding(told.name)
            self.now = told
            self.world.note("durable", str(told.name))

    def tell(self, draft: Draft) -> Told:
        """Write down what a commit is to hold."""
        name = CommitName(draft.round, self.writer.generation, draft.phase)
        told = Told(
            name,
            self.now.arrays if draft.arrays is None else {one.name: bytes(one.data) for one in draft.arrays},
            self.now.state if draft.state is None else {one.name: bytes(one.data) for one in draft.state},
            {**self.now.documents, **draft.documents},
            (*self.now.outcomes, *draft.outcomes),
            self.now.line | {name},
        )
        self.world.told[name] = told
        return told

    def _draft(self, server_round: int, phase: Any) -> Draft:
        value = server_round + self.number / 16
        if phase == "evaluate":
            return Draft(server_round, phase, outcomes=(Outcome(server_round, phase, True, {"loss": value}),))
        outcomes = (Outcome(server_round, "train", True, {"seen": value}),) if phase == "train" else ()
        return Draft(server_round, phase, model(value), state(value), {"tree": value}, outcomes)


def model(value: float) -> tuple[Blob, ...]:
    """A layer that changes in every round, one that changes in every fourth, one that never does."""
    layers = {"w": np.full(2, value), "slow": np.full(32, value // 4), "frozen": np.arange(16.0)}
    return tuple(Blob(name, npy(array), "npy", "float64", array.shape) for name, array in layers.items())


def state(value: float) -> tuple[Blob, ...]:
    """What a strategy keeps."""
    return (Blob("m", np.full(2, -value).tobytes(), "raw", "float64", (2,)),)


@contextmanager
def small_store() -> Iterator[None]:
    """Share arrays from few bytes on and archive the history of few rounds; and let every run be the same."""
    clock = SimpleNamespace(time=lambda: 0.0)
    with (
        patch("flwr_ckpt.store.writing.contents.SHARED_FROM", 64),
        patch("flwr_ckpt.store.writing.retention.SHARED_FROM", 64),
        patch("flwr_ckpt.store.format.history.MOST_ROUNDS", 1),
        patch("secrets.token_hex", lambda size: f"{next(_tokens.left):0{2 * size}x}"),
        patch("flwr_ckpt.store.writing.commit.time", clock),
        patch("flwr_ckpt.store.format.generations.time", clock),
        patch("flwr_ckpt.store.places.local_files.done_beside", _at_once),
    ):
        yield


@contextmanager
def _at_once(work: Callable[[], None]) -> Iterator[None]:
    """Instead of a thread, which would take longer than all that a simulated disk does."""
    work()
    yield


# --- commands ----------------------------------------------------------------------------------------------------


def rewinds(world: World, server_round: int, before: Callable[[str, Path], None] | None = None) -> None:
    """Go back to a round, and note all moments on the way."""
    files = SimulatedFiles(ROOT, world.process(before))
    target = RunReader(Place(SimulatedFiles(ROOT, Process(world.disk)))).of_round(server_round)
    assert target is not None
    stated = _stated_again(world, target.name)
    old = world.promise
    world.promise = replace(old, either=(*old.either, frozenset({stated.name})))
    _tokens.left = itertools.count(1 << 32)
    rewind(Place(files), server_round)
    cut = {name for name in world.told if name.generation < stated.name.generation} - stated.line
    world.promise = Promise((frozenset({stated.name}),), old.never | cut)
    world.note("went back to", str(stated.name))


def prunes(world: World, keep: int, before: Callable[[str, Path], None] | None = None) -> None:
    """Clear away by command, and note all moments on the way."""
    files = SimulatedFiles(ROOT, world.process(before))
    newest = RunReader(Place(SimulatedFiles(ROOT, Process(world.disk)))).newest()
    assert newest is not None
    stated = _stated_again(world, newest.name)
    _tokens.left = itertools.count(1 << 32)
    prune(Place(files), KeepLatest(keep))
    world.promise = world.promise.adding(stated.name)
    world.note("pruned", str(stated.name))


def removes(world: World, before: Callable[[str, Path], None] | None = None) -> None:
    """Remove the run, and note all moments on the way."""
    files = SimulatedFiles(ROOT, world.process(before))
    old = world.promise
    world.promise = replace(old, either=(*old.either, frozenset()))
    _tokens.left = itertools.count(1 << 32)
    remove(Place(files), files)
    world.promise = Promise((frozenset(),), old.never | set(world.told))
    world.removed = world.highest_fence()
    world.note("removed")


def _stated_again(world: World, name: CommitName) -> Told:
    told = world.told[name]
    again = replace(name, generation=world.highest_fence() + 1)
    world.told[again] = replace(told, name=again, line=told.line | {again})
    return world.told[again]


# --- what a disk says --------------------------------------------------------------------------------------------


def check(disk: Disk, world: World, promise: Promise, keep: int, power: bool = True) -> list[str]:
    """Say what of a promise a disk does not keep, or does not let the next server keep."""
    try:
        return list(_broken(disk, world, promise, keep, power)) or list(_broken_by_the_next(disk, world, promise, keep))
    except Exception as error:  # whatever it is, nobody could go on from there
        return [f"stuck: {error!r}"]


def _broken(disk: Disk, world: World, promise: Promise, keep: int, power: bool) -> Iterator[str]:
    reader = RunReader(Place(SimulatedFiles(ROOT, Process(disk))))
    loaded = reader.resume()
    yield from _opens(loaded, world, promise)
    if reader.passed:
        yield f"half: {reader.passed} looks damaged"
    if loaded is not None:
        there = {commit.name: commit for commit in reader.commits()}
        promised = frozenset().union(*promise.either) & world.told[loaded.commit.name].line
        yield from _kept(reader, world, promised, there, keep)
        if not power:  # names that go together are not synced one by one
            yield from _holes(world, promised, set(there))


def _opens(loaded: Loaded | None, world: World, promise: Promise) -> Iterator[str]:
    """What opens is whole, and all that was promised is on its line."""
    if loaded is None:
        if not any(not names for names in promise.either):
            yield "lost: nothing opens"
        return
    told = world.told.get(loaded.commit.name)
    if told is None:
        yield f"wrong: {loaded.commit.name} opens, which nobody made"
        return
    yield from _differences(told, loaded)
    if not any(names <= told.line for names in promise.either):
        missing = min((sorted(names - told.line) for names in promise.either), key=len)
        yield f"lost: {missing} is not on the line of what opens, {told.name}"
    if told.line & promise.never:
        yield f"wrong: {sorted(told.line & promise.never)} is back"


def _differences(told: Told, loaded: Loaded) -> Iterator[str]:
    for what in ("arrays", "state", "documents"):
        if getattr(loaded, what) != getattr(told, what):
            yield f"wrong: the {what} of {told.name}"
    if tuple(loaded.outcomes) != told.outcomes:
        yield f"wrong: the history of {told.name}: {len(loaded.outcomes)} outcomes of {len(told.outcomes)}"


def _kept(
    reader: RunReader, world: World, promised: Set[CommitName], there: Mapping[CommitName, Commit], keep: int
) -> Iterator[str]:
    """What a policy keeps is there; and what is there of what was promised is whole."""
    for server_round in sorted({name.round for name in promised})[-keep:]:
        if not any(name.round == server_round for name in there):
            yield f"lost: round {server_round}, which retention was to keep"
    for name in sorted(promised & set(there)):
        try:
            yield from _differences(world.told[name], reader.load(there[name]))
        except Exception as error:  # whatever it is, it is told
            yield f"lost: {name} cannot be loaded: {error}"


def _holes(world: World, promised: Set[CommitName], there: Set[CommitName]) -> Iterator[str]:
    """What is left of a round is an earlier moment of it."""
    for name in sorted(promised & there):
        before = {one for one in world.told[name].line & promised if one.round == name.round}
        if before - there:
            yield f"half: {sorted(before - there)} is gone, and {name} is left"


def _broken_by_the_next(disk: Disk, world: World, promise: Promise, keep: int) -> Iterator[str]:
    """Let a server take over, save, and clear away."""
    after = World(disk.copy(), promise)
    after.told = dict(world.told)
    after.servers = world.servers
    server = Server(after, keep)
    server.open()
    server.step()
    server.step()
    yield from _opens(RunReader(Place(server.files)).resume(), after, after.promise)
    if server.process.opened:
        yield f"wrong: left open: {server.process.opened}"
    garbage = unneeded(server.files)
    if garbage:
        yield f"garbage: {sorted(garbage)}"


def unneeded(files: Files) -> set[str]:
    """What lies in a run's folder that no commit of the line needs.

    But the fences of generations that left files, and of a run that was removed; and an empty folder for history.
    """
    needed = {f"{HISTORY}/"}
    for commit in RunReader(Place(files)).commits():
        needed.add(commit.name.key)
        needed.update(file.key for file in commit.files)
        needed.update(segment.key for segment in commit.segments)
    keys = files.keys()
    generations = {generation_of(key) for key in needed}
    fences = [number for key in keys if (number := parse_fence(key)) is not None]
    generations.add(max(fences, default=0))
    generations.update(number for number in fences if (fence := read_fence(files, number)) and fence.removed)
    return {key for key in keys if key not in needed and parse_fence(key) not in generations}


# --- the search --------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """What a search has tried.

    Attributes
    ----------
    moments, losses, states : int
        Crash points; what a power loss may leave at all of them; different disks among these.
    sampled : int
        Crash points at which not every loss was tried, since there are too many.
    """

    moments: int = 0
    losses: int = 0
    states: int = 0
    sampled: int = 0
    violations: list[str] = field(default_factory=list)


def search(
    worlds: Iterable[World], *, keep: int = 1, power: bool = True, most: int = 4096, stop: bool = False
) -> Found:
    """Try every loss at every moment of some worlds.

    Parameters
    ----------
    power : bool
        Whether the power fails; else every process dies and the disk is as it was.
    most : int
        How many losses to try at one moment.
    stop : bool
        Whether one violation is enough.
    """
    found = Found()
    seen: set[Any] = set()
    for world in worlds:
        found.violations += world.wrong
        for moment in world.moments:
            found.moments += 1
            disks, complete = after_power_loss(moment.disk, most) if power else ([moment.disk], True)
            found.losses += len(disks)
            found.sampled += not complete
            for disk in disks:
                key = (disk.tree(), moment.promise)
                if key in seen:
                    continue
                seen.add(key)
                found.states += 1
                found.violations += [
                    f"{moment.after}: {what}" for what in check(disk, world, moment.promise, keep, power)
                ]
                if stop and found.violations:
                    return found
    return found
