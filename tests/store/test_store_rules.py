"""Each rule of the store, taken out: then the search finds a way to lose something.

So the search can fail, and the rule is needed.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from simulated import Folder, Process, SimulatedFiles
from simulated_runs import HOME, ROOT, Place, Server, World, removes, rewinds, search, small_store

from flwr_ckpt.store.format import generations
from flwr_ckpt.store.names import PHASES_LAST_FIRST
from flwr_ckpt.store.reading.run import RunReader
from flwr_ckpt.store.writing.assembly import Tables
from flwr_ckpt.store.writing.older import Older

Mutant = AbstractContextManager[Any]
_REMOVAL = "flwr_ckpt.store.commands.removal"
_COMMIT, _RETENTION = "flwr_ckpt.store.writing.commit", "flwr_ckpt.store.writing.retention"


def alone() -> Iterator[World]:
    """One server's life."""
    world = World()
    Server(world).live(5)
    yield world


def taken_over() -> Iterator[World]:
    """A server died as a name had just come, and another one went on."""
    (first,) = alone()
    for moment in first.moments:
        if moment.after.startswith("link"):
            world = first.at(moment)
            Server(world).live(1)
            yield world


def overtaken(act: Callable[[World], object], step: int = 1, commits: int = 5) -> Iterator[World]:
    """A server was held ahead of any of its calls, until somebody else had done something; then it went on."""
    for pause in itertools.count(0, step):
        world, calls = World(), itertools.count()

        def before(call: str, path: Path) -> None:
            if next(calls) == pause:  # noqa: B023  # called within this turn
                act(world)  # noqa: B023

        Server(world, before=before).live(commits)
        if next(calls) <= pause:
            return
        yield world


def against_another_server() -> Iterator[World]:
    return overtaken(by_another_server)


def against_a_rewind() -> Iterator[World]:
    return overtaken(by_a_rewind)


def against_a_removal() -> Iterator[World]:
    return overtaken(by_a_removal)


def by_another_server(world: World) -> None:
    Server(world, before=lambda call, path: None).live(3)


def by_a_rewind(world: World) -> None:
    rounds = [name.round for name in RunReader(Place(SimulatedFiles(ROOT, Process(world.disk)))).names()]
    if rounds:
        rewinds(world, min(rounds), before=lambda call, path: None)


def by_a_removal(world: World) -> None:
    if world.promise.either != (frozenset(),):
        removes(world, before=lambda call, path: None)


# --- what is left out --------------------------------------------------------------------------------------------


@contextmanager
def unsynced(matches: Callable[[Path, Folder | None], bool]) -> Iterator[None]:
    """Leave out the sync of some files, or folders."""
    sync = Process.fsync

    def fsync(self: Process, descriptor: int) -> None:
        number, path = self.opened[descriptor]
        node = self.disk.nodes[number]
        if not matches(path, node if isinstance(node, Folder) else None):
            sync(self, descriptor)

    with patch.object(Process, "fsync", fsync):
        yield


def _of_round(path: Path) -> bool:
    return path.name.startswith("round-")


def _manifests(folder: Folder) -> list[str]:
    return [name for name in folder.unsynced if name.endswith(".manifest")]


def _came(folder: Folder) -> bool:
    return any(name in folder.names for name in _manifests(folder))


@contextmanager
def no_look(*left_out: int) -> Iterator[None]:
    """Leave out the first (0) or the second (1) look of each commit."""
    count = itertools.count()

    def look(files: Any, fence: Any) -> None:
        if next(count) % 2 not in left_out:
            generations.look(files, fence)

    with patch(f"{_COMMIT}.look", look):
        yield


@contextmanager
def reads_before_it_has_the_fence() -> Iterator[None]:
    """Look what is newest, and take a generation then."""
    found: list[Any] = []
    resume = RunReader.resume

    def take(files: Any) -> Any:
        found[:] = [resume(RunReader(Place(files)), strict_history=True)]
        return generations.take_generation(files)

    with patch(f"{_COMMIT}.take_generation", take), patch.object(RunReader, "resume", lambda self, **given: found[0]):
        yield


@contextmanager
def files_before_manifests() -> Iterator[None]:
    """Delete data first, then what names it."""
    unlink, later = Process.unlink, list[Any]()

    def deferred(self: Process, path: Path) -> None:
        if path.name.endswith(".manifest") and not path.name.startswith("."):
            later.append((self, path))
            return
        unlink(self, path)
        while later:
            unlink(*later.pop())

    with patch.object(Process, "unlink", deferred):
        yield


@contextmanager
def same_names_for_a_rewind() -> Iterator[None]:
    """Let the commit that is stated again refer to the files as they are."""

    def keep(files: Any, commit: Any, generation: int, source: Any) -> Any:
        tables = Tables(commit.files, commit.arrays, commit.state, commit.stored_documents, commit.inline_documents)
        return tables, commit.segments

    with patch(f"{_COMMIT}.link_files", keep):
        yield


@contextmanager
def deletes_of_any_generation() -> Iterator[None]:
    """Delete what lies off the own line, whoever's it is, and do not look whether there is a newer server."""
    sort = Older._sort

    def all_of_them(self: Older, keys: Any, generation: int) -> None:
        sort(self, keys, 1 << 30)

    with patch.object(Older, "_sort", all_of_them), patch(f"{_RETENTION}.highest_generation", lambda keys: 0):
        yield


@dataclass(frozen=True)
class Rule:
    """A rule, how to do without it, and where that shows."""

    name: str
    without: Callable[[], Mutant]
    worlds: Callable[[], Iterator[World]]
    power: bool = True


RULES = [
    Rule("arrays are synced", lambda: unsynced(lambda path, folder: path.suffix == ".safetensors"), alone),
    Rule(
        "the names of data files are synced before a manifest names them",
        lambda: unsynced(lambda path, folder: folder is not None and _of_round(path) and not _manifests(folder)),
        alone,
    ),
    Rule(
        "a manifest is synced before it has its name",
        lambda: unsynced(lambda path, folder: folder is None and "manifest" in path.name),
        alone,
    ),
    Rule(
        "a manifest's name is synced before it is reported",
        lambda: unsynced(lambda path, folder: folder is not None and _of_round(path) and _came(folder)),
        alone,
    ),
    Rule("the names of rounds are synced", lambda: unsynced(lambda path, folder: path == ROOT), alone),
    Rule("the run's own name is synced", lambda: unsynced(lambda path, folder: path == HOME), alone),
    Rule(
        "that manifests are gone is synced before their files go",
        lambda: unsynced(
            lambda path, folder: (
                folder is not None and _of_round(path) and bool(_manifests(folder)) and not _came(folder)
            )
        ),
        alone,
    ),
    Rule("manifests go before their files", files_before_manifests, alone),
    Rule(
        "of a round the last phase's manifest goes first",
        lambda: patch(f"{_RETENTION}.PHASES_LAST_FIRST", PHASES_LAST_FIRST[::-1]),
        alone,
        power=False,
    ),
    Rule("what is taken over is made durable", lambda: patch(f"{_COMMIT}.make_durable"), taken_over),
    Rule(
        "a server looks what is newest after it has a fence",
        reads_before_it_has_the_fence,
        against_another_server,
        power=False,
    ),
    Rule("a commit looks for newer servers first", lambda: no_look(0), against_another_server, power=False),
    Rule("a commit looks for newer servers again", lambda: no_look(1), against_another_server, power=False),
    Rule("a server deletes nothing of a newer one", deletes_of_any_generation, against_another_server, power=False),
    Rule("a rewind gives files names of its own", same_names_for_a_rewind, against_a_rewind, power=False),
    Rule(
        "a removal leaves a fence that says so",
        lambda: patch(f"{_REMOVAL}.take_generation", lambda files, command: generations.take_generation(files)),
        against_a_removal,
        power=False,
    ),
]


@pytest.fixture(autouse=True)
def _a_small_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logging.getLogger("flwr"), "disabled", True)
    with small_store():
        yield


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_without_it_something_is_lost(rule: Rule) -> None:
    with rule.without():
        found = search(rule.worlds(), power=rule.power, most=16, stop=True)
    assert found.violations


HELD = [by_another_server, by_a_rewind, by_a_removal]


def hold(act: Callable[[World], object], step: int, power: bool, most: int, record_property: Any) -> None:
    found = search(overtaken(act, step), power=power, most=most)
    assert found.violations == []
    counts = {"crash points": found.moments, "losses tried": found.losses, "lost": 0, "wrong": 0}
    record_property("counted", ("a server held, another meanwhile" + ", power loss" * power, counts))


@pytest.mark.parametrize("act", HELD, ids=lambda act: act.__name__)
def test_with_all_of_them_a_held_server_spoils_nothing(act: Callable[[World], object], record_property: Any) -> None:
    hold(act, 13, False, 1, record_property)


def test_with_all_of_them_two_servers_survive_a_power_loss(record_property: Any) -> None:
    hold(by_another_server, 97, True, 2, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("power", [False, True], ids=["crash", "power"])
@pytest.mark.parametrize("act", HELD, ids=lambda act: act.__name__)
def test_a_server_held_at_any_call(act: Callable[[World], object], power: bool, record_property: Any) -> None:
    hold(act, 7 if power else 1, power, 4, record_property)
