"""A disk that fails once, at any call of a whole server: training goes on, or ends with the cause, as was asked."""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from flwr.serverapp.strategy import FedAdam

from flwr_ckpt import CheckpointError, CheckpointingStrategy, CheckpointStore, KeepAll
from flwr_ckpt.store.places.local_files import LocalFiles
from tests.lab.message import FakeGrid, average_client, start, told

WRITES = {
    "writev": (errno.ENOSPC, errno.EIO),
    "fsync": (errno.EIO, errno.ENOSPC),
    "link": (errno.ENOSPC, errno.EROFS),
    "mkdir": (errno.ENOSPC, errno.EACCES),
    "unlink": (errno.EACCES, errno.EIO),
    "scandir": (errno.EACCES, errno.EIO),
}


class Failing:
    """The module `os`, of which one call fails."""

    def __init__(self, at: int, error: int) -> None:
        self.met = ""
        self._calls = itertools.count()
        self._at = at
        self._error = error

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)

        def call(*given: Any, **options: Any) -> Any:
            if name in WRITES and next(self._calls) == self._at:
                number = WRITES[name][self._error]
                self.met = f"{errno.errorcode[number]} in {name}"
                raise OSError(number, os.strerror(number))
            return real(*given, **options)

        return call


def serve(run: Path, system: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Any, FakeGrid]:
    """One server, with such a system below."""
    grid = FakeGrid(average_client, 1)
    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles.__init__, "__defaults__", (system,))
        strategy = CheckpointingStrategy(FedAdam(eta=0.1), run, keep=KeepAll(), seed=1, **options)
        try:
            return told(start(strategy, grid)), grid
        except (CheckpointError, OSError) as error:
            return error, grid


CALLS = range(0, 300, 11)


def test_training_goes_on_and_the_next_round_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, record_property: Any
) -> None:
    expected, _ = serve(tmp_path / "alone", os, monkeypatch)
    tried = Counter[str]()
    for at, error in itertools.product(CALLS, range(2)):
        run, failing = tmp_path / f"{at}-{error}", Failing(at, error)
        caplog.clear()
        with caplog.at_level(logging.ERROR, "flwr"):
            found, grid = serve(run, failing, monkeypatch)
        if not failing.met:
            continue
        tried[failing.met] += 1
        said = [record.getMessage() for record in caplog.records]
        rounds = [line.split("(")[0] for line in said if "could not be saved in" in line]
        assert len(rounds) == len(set(rounds)) <= 1, f"{failing.met}: once a round: {said}"
        if isinstance(found, OSError):
            assert not grid.sent, f"{failing.met}: only a run that has not begun ends for it"
        else:
            assert found == expected, failing.met
            newest = CheckpointStore(run).latest()
            assert newest is not None
            assert newest.round == 4 or rounds == ["Round 4 "], f"{failing.met}: {said}"
            assert all(result.ok for result in CheckpointStore(run).verify())
        again, _ = serve(run, os, monkeypatch)
        assert again == expected, failing.met
    assert len(tried) >= 8, tried
    record_property("counted", ("a disk error in a whole server", {"errors": tried.total(), "lost": 0, "wrong": 0}))


def test_on_error_raise_ends_with_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = serve(tmp_path / "alone", os, monkeypatch)
    raised = 0
    for at in CALLS:
        run, failing = tmp_path / str(at), Failing(at, 0)
        found, _ = serve(run, failing, monkeypatch, on_error="raise")
        if isinstance(found, CheckpointError):
            assert isinstance(found.__cause__, OSError), failing.met
            raised += 1
        again, _ = serve(run, os, monkeypatch)
        assert again == expected, failing.met
    assert raised > 3
