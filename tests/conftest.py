"""What every test stands on: no telemetry, no deadline, one thread, and a checkpoint home of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when flwr is imported
# Read when NumPy is imported: over tiny arrays, threads of several processes would mostly wait for each other.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

# How long an example takes says more of the machine than of the code.
settings.register_profile("without-deadline", deadline=None)
settings.load_profile("without-deadline")


@pytest.fixture(autouse=True)
def checkpoint_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every test out of the user's own checkpoint home."""
    home = tmp_path / "checkpoint-home"
    monkeypatch.setenv("FLWR_CKPT_HOME", str(home))
    return home


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print one table of every strategy that was killed and resumed, and at which moments."""
    outcomes: dict[str, dict[tuple[str, int], str]] = {}
    for report in terminalreporter.stats.get("passed", []):
        for name, value in getattr(report, "user_properties", []):
            if name == "killed":
                strategy, phase, server_round, outcome = value
                outcomes.setdefault(strategy, {})[(phase, server_round)] = outcome
    if not outcomes:
        return
    moments = sorted({moment for row in outcomes.values() for moment in row}, key=lambda m: (m[1], m[0]))
    width = max(map(len, outcomes))
    write = terminalreporter.write_line
    terminalreporter.section("killed by SIGKILL and resumed, with new node ids and replies in another order")
    write(" " * width + "".join(f"  {phase} {server_round}".rjust(13) for phase, server_round in moments))
    for strategy, row in sorted(outcomes.items()):
        write(strategy.ljust(width) + "".join(row.get(moment, "-").rjust(13) for moment in moments))
