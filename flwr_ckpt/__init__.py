"""Checkpoint and resume for Flower servers: wrap any strategy in one line, and a server that dies carries on."""

from .store import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CheckpointStore,
    FencedError,
    FormatVersionError,
    Keep,
    KeepAll,
    KeepBest,
    KeepEvery,
    KeepLatest,
)
from .strategies import CheckpointingStrategy

__version__ = "0.1.0"

__all__ = [
    "CheckpointCorruptError",
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointNotFoundError",
    "CheckpointStore",
    "CheckpointingStrategy",
    "FencedError",
    "FormatVersionError",
    "Keep",
    "KeepAll",
    "KeepBest",
    "KeepEvery",
    "KeepLatest",
    "__version__",
]
