"""Power losses and crashes at every moment, on a simulated disk that forgets whatever it may (see `simulated`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from simulated import Disk, after_power_loss
from simulated_runs import Found, Moment, Server, World, prunes, removes, rewinds, search, small_store, unneeded

Counted = Callable[[str, Found], None]


@pytest.fixture(autouse=True)
def _a_small_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logging.getLogger("flwr"), "disabled", True)  # a search opens thousands of runs: each says so
    with small_store():
        yield


@pytest.fixture
def nothing_lost(record_property: Callable[[str, Any], None]) -> Counted:
    """Make sure that a search has found nothing; write down what it has tried."""

    def check(name: str, found: Found) -> None:
        assert found.violations == []
        assert found.states > 0
        counts = {"crash points": found.moments, "losses tried": found.losses, "different states": found.states}
        if found.sampled:
            counts["crash points with a sample of their losses"] = found.sampled
        record_property("counted", (name, {**counts, "lost": 0, "wrong": 0}))

    return check


def lived(commits: int, keep: int) -> World:
    """One server's life."""
    world = World()
    Server(world, keep).live(commits)
    return world


def taken_over(world: World, keep: int, step: int, commits: int = 3) -> Iterator[World]:
    """Worlds in which a server died at one of every so many moments, and another one went on."""
    for moment in world.moments[::step]:
        other = world.at(moment)
        Server(other, keep).live(commits)
        yield other


@pytest.mark.parametrize("keep", [1, 2])
def test_the_power_fails_at_any_moment_of_a_run(keep: int, nothing_lost: Counted) -> None:
    nothing_lost("power loss, one server", search([lived(5, keep)], keep=keep, most=8))


@pytest.mark.slow
@pytest.mark.parametrize("keep", [1, 2])
def test_the_power_fails_at_any_moment_of_a_run_in_every_way(keep: int, nothing_lost: Counted) -> None:
    nothing_lost("power loss, one server, every loss", search([lived(11, keep)], keep=keep, most=1 << 14))


@pytest.mark.parametrize("keep", [1, 2])
def test_the_process_dies_at_any_moment_of_a_run(keep: int, nothing_lost: Counted) -> None:
    nothing_lost("crash without power loss", search([lived(7, keep)], keep=keep, power=False))


def test_the_power_fails_after_another_server_has_taken_over(nothing_lost: Counted) -> None:
    nothing_lost("crash, take-over, power loss", search(taken_over(lived(3, 1), 1, step=23), keep=1, most=3))


@pytest.mark.slow
@pytest.mark.parametrize("keep", [1, 2])
def test_the_power_fails_after_another_server_has_taken_over_at_any_moment(keep: int, nothing_lost: Counted) -> None:
    worlds = taken_over(lived(5, keep), keep, step=1)
    nothing_lost("crash at any moment, take-over, power loss", search(worlds, keep=keep, most=64))


def test_a_server_that_died_in_its_first_moments_leaves_a_folder_that_the_next_makes_durable(
    nothing_lost: Counted,
) -> None:
    """Whoever finds the run's folder made must not build on a name that was never synced."""
    world = lived(0, 1)
    nothing_lost("crash, take-over, power loss", search(taken_over(world, 1, step=1, commits=1), keep=1, most=8))


def commands(keep: int) -> Iterator[World]:
    """Worlds in which a command was given after a run, and a server went on."""
    for command in (lambda world: rewinds(world, 2), lambda world: prunes(world, 1), removes):
        world = lived(7, keep)
        world.moments.clear()
        command(world)
        yield world
        other = world.at(world.moments[-1])
        Server(other, keep).live(2)
        yield other


def test_the_power_fails_at_any_moment_of_a_command(nothing_lost: Counted) -> None:
    nothing_lost("power loss in rewind, prune, rm", search(commands(3), keep=1, most=2))


@pytest.mark.slow
def test_the_power_fails_at_any_moment_of_a_command_in_every_way(nothing_lost: Counted) -> None:
    nothing_lost("power loss in rewind, prune, rm, every loss", search(commands(3), keep=1, most=1 << 12))


def died_at(place: int, times: int, power: bool) -> list[int]:
    """Let each of so many servers die at the same place after the first commit of its second round.

    That is what makes durable what it has cleared away. Says how much there was after each.
    """
    world = World()
    sizes = []
    for _ in range(times):
        Server(world, 1).live(5)
        third = [number for number, moment in enumerate(world.moments) if moment.after.startswith("durable")][2]
        moment = world.moments[min(third + place, len(world.moments) - 1)]
        world = world.at(replace(moment, disk=_fullest(moment) if power else moment.disk))
        sizes.append(len(world.disk.tree()))
    return sizes


def _fullest(moment: Moment) -> Disk:
    """Of what a power loss may leave, that with most files."""
    return max(after_power_loss(moment.disk, 32)[0], key=lambda disk: len(disk.tree()))


def check_for_heaps(places: range, record_property: Callable[[str, Any], None]) -> None:
    most = 0
    for place in places:
        for power in (False, True):
            sizes = died_at(place, 12, power)
            assert max(sizes) <= 28, f"{place}, power loss: {power}: {sizes}"  # 22 where nobody dies
            most = max(most, *sizes)
    counts = {"moments": 2 * len(places), "crashes": 24 * len(places), "files and folders at most": most}
    record_property("counted", ("crash loops", counts))


def test_servers_that_always_die_at_the_same_place_leave_no_heap(record_property: Callable[[str, Any], None]) -> None:
    check_for_heaps(range(0, 70, 12), record_property)


@pytest.mark.slow
def test_servers_that_always_die_at_any_same_place_leave_no_heap(record_property: Callable[[str, Any], None]) -> None:
    check_for_heaps(range(70), record_property)


def test_what_servers_left_that_died_in_their_first_commit_goes_with_the_first_that_is_made() -> None:
    world = lived(5, 1)
    for place in (20, 30, 40, 25):
        Server(world, 1).live(1)
        world = world.at(world.moments[min(place, len(world.moments) - 2)])
    server = Server(world, 1)
    server.live(2)
    assert unneeded(server.files) == set()
