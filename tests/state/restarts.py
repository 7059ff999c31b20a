"""A server that dies and starts again, as far as state is concerned: everything goes through JSON and bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flwr.serverapp.strategy import FedAvg

from flwr_ckpt.state import Snapshot, StateRecorder, StoredState

S = TypeVar("S")


class Plain(FedAvg):
    """A strategy of the user's whose attributes are whatever a test gives it."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)


def stored(snapshot: Snapshot) -> StoredState:
    """The snapshot as a store gives it back; its own memory is overwritten, as the next capture may do."""
    read = {blob.name: bytes(blob.data) for blob in snapshot.blobs}
    assert len(read) == len(snapshot.blobs), "two arrays have one name"
    for blob in snapshot.blobs:
        if isinstance(blob.data, memoryview) and not blob.data.readonly:
            blob.data[:] = b"\xff" * blob.data.nbytes
    tree, baseline = (json.loads(json.dumps(part, allow_nan=False)) for part in (snapshot.tree, snapshot.baseline))
    snapshot.release()
    return StoredState(tree, baseline, read)


@dataclass
class Process:
    """One life of a server."""

    strategy: Any
    roots: Mapping[str, Any] = field(default_factory=dict)
    exclude: Sequence[str] = ()
    private: bool = False

    def __post_init__(self) -> None:
        self.recorder = StateRecorder(exclude=self.exclude, private=self.private)
        self.recorder.take_baseline(self.all_roots())

    def all_roots(self) -> dict[str, Any]:
        return {"strategy": self.strategy, **self.roots}

    def capture(self) -> Snapshot:
        return self.recorder.capture(self.all_roots())

    def save(self) -> StoredState:
        snapshot = self.capture()
        assert snapshot.problems == ()
        return stored(snapshot)

    def resume(self, state: StoredState) -> list[str]:
        return self.recorder.restore(self.all_roots(), state)


def restart(make: Callable[[], S], run: Callable[[S], object], **options: Any) -> tuple[S, list[str]]:
    """Make a strategy, run it, kill it, make it again, put its state back; the new one, and the warnings."""
    return resume(make, died(make, run, **options), **options)


def died(make: Callable[[], S], run: Callable[[S], object], **options: Any) -> StoredState:
    """What a process leaves behind."""
    first = Process(make(), **options)
    run(first.strategy)
    return first.save()


def resume(make: Callable[[], S], state: StoredState, **options: Any) -> tuple[S, list[str]]:
    """A new process that takes it up."""
    second = Process(make(), **options)
    warnings = second.resume(state)
    return second.strategy, warnings
