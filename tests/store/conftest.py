"""What tests of the store may ask for."""

from __future__ import annotations

import pytest


@pytest.fixture
def patient_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip ``fsync`` in tests of order and bookkeeping, which make hundreds of commits and lose no power."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
