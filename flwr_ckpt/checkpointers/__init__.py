"""Which models are worth a file, and where named states are kept, under FL4Health's names.

Model files are plain safetensors. Opacus is never imported here: its models are known where it has been.
"""

from __future__ import annotations

from .base import TorchModuleCheckpointer, UnknownArchitectureError
from .checkpointer import (
    BestLossTorchModuleCheckpointer,
    BestMetricTorchModuleCheckpointer,
    CheckpointScoreFunctionType,
    FunctionTorchModuleCheckpointer,
    LatestTorchModuleCheckpointer,
    decides_first,
)
from .opacus_checkpointer import BestLossOpacusCheckpointer, LatestOpacusCheckpointer, OpacusCheckpointer
from .state_checkpointer import PerRoundStateCheckpointer

__all__ = [
    "BestLossOpacusCheckpointer",
    "BestLossTorchModuleCheckpointer",
    "BestMetricTorchModuleCheckpointer",
    "CheckpointScoreFunctionType",
    "FunctionTorchModuleCheckpointer",
    "LatestOpacusCheckpointer",
    "LatestTorchModuleCheckpointer",
    "OpacusCheckpointer",
    "PerRoundStateCheckpointer",
    "TorchModuleCheckpointer",
    "UnknownArchitectureError",
    "decides_first",
]
