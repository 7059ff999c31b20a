"""What every test stands on: no telemetry, no deadline, and a checkpoint home of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when flwr is imported

# How long an example takes says more of the machine than of the code.
settings.register_profile("without-deadline", deadline=None)
settings.load_profile("without-deadline")


@pytest.fixture(autouse=True)
def checkpoint_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every test out of the user's own checkpoint home."""
    home = tmp_path / "checkpoint-home"
    monkeypatch.setenv("FLWR_CKPT_HOME", str(home))
    return home
