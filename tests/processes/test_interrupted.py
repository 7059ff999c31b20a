"""A server stopped by an exception from outside, at any line: nothing durable is lost, nothing hangs, it can go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.lab import interrupting
from tests.lab.alone import alone

FEW, MANY = 4, 100
BACKGROUND = ["message/FedAdam", "legacy/FedAdam", "message/FedYogi"]
HANDED_OVER = [
    pytest.param(kind, error, MANY, marks=pytest.mark.slow)
    for kind in (*BACKGROUND, "legacy/FedAvgM", "message/FedAvgM")
    for error in interrupting.ERRORS
]


def interrupt(kind: str, error: str, thread: str, tries: int, folder: Path, record_property: Any) -> None:
    counts = alone(interrupting.interrupted, str(folder), kind, error, thread, tries)
    assert counts.pop("problems") == []
    assert counts.pop("lines") > 100
    record_property("counted", [f"{error} in the thread {thread}", counts])


@pytest.mark.parametrize(
    ("kind", "error", "tries"),
    [("message/FedAdam", "SystemExit", FEW), ("legacy/FedAvgM", "KeyboardInterrupt", FEW), *HANDED_OVER],
)
def test_a_server_interrupted_in_submit_flush_or_close(
    kind: str, error: str, tries: int, tmp_path: Path, record_property: Any
) -> None:
    """After SystemExit the process ends, with Python's own exit handlers; after Ctrl-C it starts again."""
    interrupt(kind, error, "MainThread", tries, tmp_path, record_property)


@pytest.mark.parametrize(
    ("kind", "tries"),
    [("legacy/FedAdam", FEW), *(pytest.param(kind, MANY, marks=pytest.mark.slow) for kind in BACKGROUND)],
)
def test_an_exit_in_the_middle_of_a_write(kind: str, tries: int, tmp_path: Path, record_property: Any) -> None:
    """It is a commit that failed, and the next one carries what it was to hold."""
    interrupt(kind, "SystemExit", "flwr-ckpt-writer", tries, tmp_path, record_property)
