"""Where a run survives: one folder a round, on disks that fail, with servers that die.

This room knows neither Flower nor torch; what it is handed are names, buffers and JSON.
"""

from __future__ import annotations

from .background import BackgroundWriter
from .draft import Blob, Buffer, Draft, Outcome, Phase
from .errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    FencedError,
    FormatVersionError,
)
from .keep import Keep, KeepAll, KeepBest, KeepEither, KeepEvery, KeepLatest, Mode, parse_keep
from .location import Location, locate, prepare
from .values import Json, dumps, from_json, to_json

__all__ = [
    "BackgroundWriter",
    "Blob",
    "Buffer",
    "CheckpointCorruptError",
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointNotFoundError",
    "Draft",
    "FencedError",
    "FormatVersionError",
    "Json",
    "Keep",
    "KeepAll",
    "KeepBest",
    "KeepEither",
    "KeepEvery",
    "KeepLatest",
    "Location",
    "Mode",
    "Outcome",
    "Phase",
    "dumps",
    "from_json",
    "locate",
    "parse_keep",
    "prepare",
    "to_json",
]
