"""An error at the k-th call of a server's life, for every k: nothing durable is lost, and the next round is saved."""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from simulated_runs import Server, World, check, search, small_store

# That a file cannot be read or looked at (EIO) is damage, and passed over: see `test_damage`.
ERRORS = {
    "open": (errno.EMFILE, errno.EACCES),
    "read": (errno.EACCES, errno.ESTALE),
    "list": (errno.EIO, errno.EACCES, errno.EMFILE),
    "stat": (errno.EACCES, errno.ESTALE),
    "create": (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EMFILE, errno.EIO),
    "write": (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EINTR),
    "sync": (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINTR),
    "link": (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS),
    "mkdir": (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS),
    "unlink": (errno.EIO, errno.EACCES, errno.EROFS),
    "rmdir": (errno.EIO, errno.EACCES, errno.EROFS),
}
STEPS = 9
Record = Callable[[str, object], None]


@pytest.fixture(autouse=True)
def _a_small_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logging.getLogger("flwr"), "disabled", True)
    with small_store():
        yield


class Unlucky:
    """Fails the k-th call, with the n-th error that such a call may meet."""

    def __init__(self, at: int, error: int) -> None:
        self.met = ""
        self._calls = itertools.count()
        self._at = at
        self._error = error

    def __call__(self, call: str, path: Path) -> None:
        if next(self._calls) == self._at and self._error < len(ERRORS[call]):
            number = ERRORS[call][self._error]
            self.met = f"{errno.errorcode[number]} in {call} {path.name}, call {self._at}"
            raise OSError(number, os.strerror(number), str(path))

    @property
    def calls(self) -> int:
        """How many calls there have been."""
        return next(self._calls)


def live(world: World, unlucky: Unlucky, keep: int) -> list[str]:
    """A server's life in which one call fails; where it cannot be started for that, somebody starts it again."""
    server = Server(world, keep, unlucky)
    try:
        server.open()
    except OSError:
        assert not server.process.opened
        server = Server(world, keep, unlucky)
        server.open()
    failed = set()
    for _ in range(STEPS):
        try:
            server.step()
        except OSError:
            failed.add(server.now.name.round)
    said = [f"left open: {server.process.opened}"] if server.process.opened else []
    said += [f"synced again after that had failed: {path}" for path in server.process.retried]
    said += [f"more than one round failed: {failed}"] if len(failed) > 1 else []
    durable = max(name.round for names in world.promise.either for name in names)
    said += [f"round {durable} is the last that was saved"] if durable < server.now.name.round - len(failed) else []
    return said


def fail_each(step: int, keep: int, begun: bool, power: bool, record_property: Record) -> None:
    """Fail every step-th call, with every error."""
    problems, points, tried = [], 0, 0
    for at in itertools.count(0, step):
        world = World()
        if begun:
            Server(world, keep).live(4)
        base, said = world, []
        for error in range(max(map(len, ERRORS.values()))):
            world = World(base.disk.copy(), base.promise)
            world.told, world.servers = dict(base.told), base.servers
            unlucky = Unlucky(at, error)
            said = live(world, unlucky, keep)
            if not unlucky.met:
                break
            tried += 1
            said += check(world.disk, world, world.promise, keep, power=False)
            if power:
                said += search([world], keep=keep, most=4, stop=True).violations
            problems += [f"{unlucky.met}: {what}" for what in said]
        if error == 0:
            break
        points += 1
    assert problems == []
    assert points > 0
    record_property(
        "counted", ("an error at the k-th call", {"error points": points, "errors": tried, "lost": 0, "wrong": 0})
    )


@pytest.mark.parametrize("begun", [False, True], ids=["new", "resumed"])
def test_an_error_at_some_calls(begun: bool, record_property: Record) -> None:
    fail_each(7, 1, begun, False, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("begun", [False, True], ids=["new", "resumed"])
def test_an_error_at_any_call(begun: bool, keep: int, record_property: Record) -> None:
    fail_each(1, keep, begun, False, record_property)


@pytest.mark.slow
def test_an_error_at_any_call_and_a_power_loss_after_it(record_property: Record) -> None:
    fail_each(5, 1, True, True, record_property)
