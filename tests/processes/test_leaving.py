"""A process that ends or forks while a write is under way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.lab import leaving
from tests.lab.alone import alone

KINDS = ["message/FedAdam", "legacy/FedAdam", "message/FedYogi"]  # the last saves every third round only


def test_the_interpreter_exits_while_a_write_is_under_way(tmp_path: Path, record_property: Any) -> None:
    counts = alone(leaving.leave, str(tmp_path), KINDS)
    assert counts.pop("problems") == []
    record_property("counted", ["exits while a write is under way", counts])


def test_forks_while_a_write_is_under_way(tmp_path: Path, record_property: Any) -> None:
    counts = alone(leaving.fork_inside, str(tmp_path), KINDS)
    assert counts.pop("problems") == []
    record_property("counted", ["forks while a write is under way", counts])


def test_a_fork_that_exits_has_nothing_to_write(tmp_path: Path) -> None:
    assert alone(leaving.fork_with_a_round_held_back, str(tmp_path)) == []
