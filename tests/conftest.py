"""What every test stands on: no telemetry, no deadline, one thread, and a checkpoint home of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
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


TABLES = {  # the name under which a test records (what, phase, round, outcome): the title of the table
    "killed": "killed by SIGKILL and resumed, with new node ids and replies in another order",
    "module": "server modules with real training, killed by SIGKILL and resumed: bits, or the privacy spent",
}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print tables of everything that was killed and resumed, and at which moments."""
    for name, title in TABLES.items():
        rows: dict[str, dict[tuple[str, int], str]] = {}
        for report in terminalreporter.stats.get("passed", []):
            for recorded, value in getattr(report, "user_properties", []):
                if recorded == name:
                    what, phase, server_round, outcome = value
                    rows.setdefault(what, {})[(phase, server_round)] = outcome
        if rows:
            terminalreporter.section(title)
            _write_table(terminalreporter.write_line, rows)


def _write_table(write: Callable[[str], None], rows: dict[str, dict[tuple[str, int], str]]) -> None:
    moments = sorted({moment for row in rows.values() for moment in row}, key=lambda m: (m[1], m[0]))
    width = max(map(len, rows))
    write(" " * width + "".join(f"  {phase} {server_round}".rjust(13) for phase, server_round in moments))
    for what, row in sorted(rows.items()):
        write(what.ljust(width) + "".join(row.get(moment, "-").rjust(13) for moment in moments))
