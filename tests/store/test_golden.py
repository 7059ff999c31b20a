"""Stores that released versions have written stay readable, and go on."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flwr_ckpt import CheckpointStore
from tests.lab import golden
from tests.lab.lives import FIRST, KINDS, history_of, live

STORES = sorted(path for path in (Path(__file__).parents[1] / "golden").glob("*/*") if path.is_dir())


@pytest.fixture(autouse=True)
def _level() -> Iterator[None]:
    """A life in this process makes Flower's logger quiet."""
    logger = logging.getLogger("flwr")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(params=STORES, ids=lambda path: f"{path.parent.name}/{path.name}")
def store(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any]:
    """A copy of a golden store, and what has to be read from it."""
    path: Path = request.param
    shutil.copytree(path, tmp_path / path.name)
    return tmp_path / path.name, json.loads(path.with_suffix(".json").read_text())


def test_it_is_read_as_it_was_written(store: tuple[Path, Any]) -> None:
    run, expected = store
    assert golden.read(run) == expected
    assert not expected["problems"]


def test_a_server_goes_on_from_it(store: tuple[Path, Any]) -> None:
    run, expected = store
    (kind,) = (kind for kind in KINDS if kind.name.replace("/", "-") == run.name)
    live(kind, run, golden.ROUNDS + 1, FIRST + 9)
    then = history_of(CheckpointStore(run))
    assert CheckpointStore(run).latest().round == golden.ROUNDS + 1  # type: ignore[union-attr]
    for key, values in expected["history"].items():
        assert {str(number): value for number, value in then[key].items()}.items() >= values.items()
    assert all(golden.ROUNDS + 1 in values for values in then.values())


def test_there_are_some() -> None:
    assert {path.name for path in STORES} == {name.replace("/", "-") for name in golden.NAMES}
