"""Where a run survives: one folder a round, on disks that fail, with servers that die.

This room knows neither Flower nor torch; what it is handed are names, buffers and JSON.
"""

from __future__ import annotations

from .array_types import array_type
from .background import BackgroundWriter
from .checkpoint import Checkpoint
from .checkpoint_store import CheckpointStore, RoundRecord
from .commit import RunWriter
from .confidential import without_secrets
from .draft import Blob, Buffer, Draft, LateBlobs, Outcome, Phase, settled
from .errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    FencedError,
    FormatVersionError,
)
from .keep import Keep, KeepAll, KeepBest, KeepEither, KeepEvery, KeepLatest, Mode, parse_keep
from .location import Location, checkpoint_home, locate, prepare, runs_under
from .prunable import Prunable
from .readable import readable_age, readable_size
from .records import Commit, Entry
from .run import Loaded, RunReader
from .servers import Server
from .status import RunStatus
from .values import Json, dumps, from_json, to_json
from .verify import Verified
from .whole import safetensors_of

__all__ = [
    "BackgroundWriter",
    "Blob",
    "Buffer",
    "Checkpoint",
    "CheckpointCorruptError",
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointNotFoundError",
    "CheckpointStore",
    "Commit",
    "Draft",
    "Entry",
    "FencedError",
    "FormatVersionError",
    "Json",
    "Keep",
    "KeepAll",
    "KeepBest",
    "KeepEither",
    "KeepEvery",
    "KeepLatest",
    "LateBlobs",
    "Loaded",
    "Location",
    "Mode",
    "Outcome",
    "Phase",
    "Prunable",
    "RoundRecord",
    "RunReader",
    "RunStatus",
    "RunWriter",
    "Server",
    "Verified",
    "array_type",
    "checkpoint_home",
    "dumps",
    "from_json",
    "locate",
    "parse_keep",
    "prepare",
    "readable_age",
    "readable_size",
    "runs_under",
    "safetensors_of",
    "settled",
    "to_json",
    "without_secrets",
]
