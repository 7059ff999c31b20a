"""Where a run survives: one folder a round, on disks that fail, with servers that die.

This room knows neither Flower nor torch; what it is handed are names, buffers and JSON.
"""

from __future__ import annotations

from .checkpoint_store import CheckpointStore, RoundRecord
from .commands.prunable import Prunable
from .draft import Blob, Buffer, Draft, LateBlobs, LateDocuments, Outcome, Phase, settled
from .errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    FencedError,
    FormatVersionError,
)
from .format.array_types import array_type, npy_array
from .format.readable import readable_age, readable_size
from .format.records import Commit, Entry
from .format.servers import Server
from .keep import Keep, KeepAll, KeepBest, KeepEither, KeepEvery, KeepLatest, Mode, parse_keep
from .places.confidential import without_secrets
from .places.location import Location, checkpoint_home, locate, prepare, runs_under
from .reading.checkpoint import Checkpoint
from .reading.run import Loaded, RunReader
from .reading.status import RunStatus
from .reading.verify import Verified
from .reading.whole import safetensors_of
from .values import Json, dumps, from_json, to_json
from .writing.background import BackgroundWriter
from .writing.commit import RunWriter

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
    "LateDocuments",
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
    "npy_array",
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
