"""What must survive: a strategy's own state as a tree of plain values and arrays, and back.

This room knows no storage; torch it knows only where torch is loaded already, or tensors have to be made again.
"""

from __future__ import annotations

from .recorder import Snapshot, StateRecorder, StoredState
from .tree import dicts_keyed_by

__all__ = ["Snapshot", "StateRecorder", "StoredState", "dicts_keyed_by"]
