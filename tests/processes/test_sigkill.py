"""Servers killed by SIGKILL at random moments and inside commits: what was durable is there, and the run goes on."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from tests.lab.alone import alone
from tests.lab.kill_loop import DEATHS, STOPS, kill_loop


def _check(
    counts: dict[str, Any], kills: int, record_property: Any, deaths: Collection[str] = DEATHS, tried: str = "SIGKILL"
) -> None:
    assert counts["lost"] == []
    assert counts["wrong"] == []
    assert counts["kills"] == kills
    assert set(counts["deaths"]) == set(deaths)
    numbers = {name: counts[name] for name in ("kills", "rounds", "runs")} | counts["deaths"]
    record_property("counted", [f"{tried} of a server", {**numbers, "lost": 0, "wrong": 0}])


def test_a_few_kills(tmp_path: Path, record_property: Any) -> None:
    _check(alone(kill_loop, str(tmp_path), 12), 12, record_property)


@pytest.mark.slow
def test_a_thousand_kills(tmp_path: Path, request: pytest.FixtureRequest, record_property: Any) -> None:
    """Stopped and started again with the same ``--kills-folder``, it goes on where it was."""
    folder = request.config.getoption("--kills-folder") or str(tmp_path)
    kills = request.config.getoption("--kills")
    _check(alone(kill_loop, folder, kills, patience=24 * 3600.0), kills, record_property)


@pytest.mark.parametrize("stops", [6, pytest.param(300, marks=pytest.mark.slow)])
def test_signals_that_python_handles(stops: int, tmp_path: Path, record_property: Any) -> None:
    """An exception at any bytecode of the server's thread, and then Python's own way out."""
    counts = alone(kill_loop, str(tmp_path), stops, [*STOPS])
    _check(counts, stops, record_property, STOPS, "SIGTERM and SIGINT")
