"""A small run with everything a manifest can hold, and the state of a strategy that holds a bit of everything."""

from __future__ import annotations

import collections
import hashlib
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg

from flwr_ckpt.state import StateRecorder, StoredState
from flwr_ckpt.store import Blob, Draft, KeepAll, Outcome, RunWriter, locate
from flwr_ckpt.store.format import history
from flwr_ckpt.store.writing import assembly, contents

from .hostile import body_of


def strategy() -> FedAvg:
    """A strategy with one attribute of many kinds."""
    made: Any = FedAvg()
    made.rate, made.counts = 0.1, collections.Counter(a=1)
    made.names, made.queue = {"a": (1, 2), 3: {4}}, collections.deque([1], maxlen=3)
    made.array, made.generator, made.dice = np.arange(6.0), np.random.default_rng(3), random.Random(5)
    made.late, made.data = collections.defaultdict(list), b"x" * 5000
    return made  # type: ignore[no-any-return]


class SmallRun:
    """The run, and what is needed to change it.

    Attributes
    ----------
    path : Path
        Its folder.
    newest : Path
        Its newest manifest; the commit before it has the same arrays.
    body : dict
        What that says.
    state : StoredState
        That of `strategy`, some of it changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(contents, "SHARED_FROM", 1)
            patch.setattr(assembly, "_INLINE", 100)
            patch.setattr(history, "MOST_ROUNDS", 1)
            patch.setattr("os.fsync", lambda descriptor: None)
            self._write(RunWriter.open(locate(path), KeepAll()))
        self.newest = path / "round-00000002/g0001-evaluate.manifest"
        self.body = body_of(self.newest)
        self.state = _state()

    @staticmethod
    def _write(writer: RunWriter) -> None:
        for number in (1, 2):
            arrays = (
                _blob("w", np.full((3, 2), number, "f4")),
                _blob("b", np.full(2, -number)),
                _blob("frozen", np.ones(4)),
            )
            tree = {"roots": {"strategy": {"$": "object", "id": "strategy", "type": "a:B", "v": {"m": 1}}}, "deep": []}
            documents = {"state": tree, "identity": {"num_rounds": 3}, "long": "x" * 120}
            trained, evaluated = (Outcome(number, phase, True, {"loss": 1 / number}) for phase in ("train", "evaluate"))
            writer.commit(
                Draft(number, "train", arrays=arrays, state=arrays[:1], documents=documents, outcomes=(trained,))
            )
            writer.commit(Draft(number, "evaluate", outcomes=(evaluated,)))

    @staticmethod
    def frame(body: bytes) -> bytes:
        """Put any bytes under a digest that is right."""
        return b'{"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'","body":' + body + b"}\n"


def _blob(name: str, array: np.ndarray[Any, Any]) -> Blob:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return Blob(name, buffer.getvalue(), "npy", str(array.dtype), array.shape, "numpy.ndarray")


def _state() -> StoredState:
    made: Any = strategy()
    recorder = StateRecorder()
    recorder.take_baseline({"strategy": made})
    made.rate, made.names["b"] = 0.2, [1.5, "é"]
    made.array += 1
    snapshot = recorder.capture({"strategy": made})
    return StoredState(snapshot.tree, snapshot.baseline, {blob.name: bytes(blob.data) for blob in snapshot.blobs})
