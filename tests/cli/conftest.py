"""Runs that many tests only look at."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cli_rig import copied, digits


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is finished: not to be changed."""
    return digits(tmp_path_factory.mktemp("finished") / "digits")


@pytest.fixture
def run(finished_run: Path, checkpoint_home: Path) -> Path:
    """The same under the name ``digits``, to be changed."""
    return copied(finished_run, checkpoint_home / "digits")


@pytest.fixture(autouse=True)
def narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eighty columns, and no settings of whoever runs the tests."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    assert os.environ["COLUMNS"] == "80"
