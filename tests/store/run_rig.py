"""What the tests of runs stand on: a small model, servers without Flower, and a disk that tells and fails."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flwr_ckpt.store import Blob, Draft, Json, KeepAll, Outcome, Phase, RunReader, RunWriter, locate
from flwr_ckpt.store.draft import Buffer
from flwr_ckpt.store.places.files import Files
from flwr_ckpt.store.places.local_files import LocalFiles
from flwr_ckpt.store.reading.run import Located

LARGE = 150_000  # float64s: more than the 1 MiB from which arrays are shared over rounds


@dataclass(frozen=True)
class Place:
    """Where a test's run lies."""

    path: Path

    @property
    def where(self) -> str:
        """For messages."""
        return str(self.path)

    def files(self) -> Files:
        """Open it."""
        return LocalFiles(self.path)


def npy(array: np.ndarray[Any, Any]) -> bytes:
    """Serialise as Flower does."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def blob(name: str, array: np.ndarray[Any, Any]) -> Blob:
    """An array as the message API hands it over."""
    return Blob(name, npy(array), "npy", str(array.dtype), array.shape, "numpy.ndarray")


def model(value: float, frozen: Sequence[str] = ()) -> tuple[Blob, ...]:
    """A model of two small layers with that value in them, and large layers that never change."""
    layers = (blob("w", np.full((3, 2), value, "f4")), blob("b", np.full(2, -value)))
    return (*layers, *(blob(name, np.arange(LARGE) + float(len(name))) for name in frozen))


def initial(**kwargs: Any) -> Draft:
    """The draft of round 0."""
    return Draft(0, "initial", **{"arrays": model(0), "state": (), "documents": {"tree": 0}, **kwargs})


def train(server_round: int, **kwargs: Any) -> Draft:
    """A train draft whose arrays, state, document and metrics all say which round it is."""
    given = {
        "arrays": model(server_round),
        "state": (blob("m", np.full(3, server_round)),),
        "documents": {"tree": server_round},
        "outcomes": (Outcome(server_round, "train", True, {"seen": server_round}),),
    }
    return Draft(server_round, "train", **{**given, **kwargs})


def later(server_round: int, phase: Phase = "evaluate", **kwargs: Any) -> Draft:
    """A draft without arrays."""
    outcome = Outcome(server_round, phase, True, {"loss": 1 / server_round if server_round else 0.5})
    return Draft(server_round, phase, **{"outcomes": (outcome,), **kwargs})


def run_to(writer: RunWriter, last: int, first: int = 1, *, retain: bool = True) -> None:
    """Write rounds as a server does; round 0 too, if the first is 1."""
    if first == 1:
        writer.commit(initial())
    for server_round in range(first, last + 1):
        for draft in (train(server_round), later(server_round)):
            writer.commit(draft)
            if retain:
                writer.retain()


def at(place: Path | str) -> Located:
    """Where a run lies: a folder, or a URL."""
    return locate(place) if isinstance(place, str) else Place(place)


def opened(path: Path | str, keep: Any = None, **kwargs: Any) -> RunWriter:
    """Open a run for writing; everything is kept unless a test says otherwise."""
    return RunWriter.open(at(path), keep or KeepAll(), **kwargs)


def reader(path: Path | str) -> RunReader:
    """Open a run to look at."""
    return RunReader(at(path))


def seen(path: Path | str) -> tuple[int, Phase, Json] | None:
    """Resume, check that all that comes back says the same round, and give round, phase and document."""
    loaded = reader(path).resume()
    if loaded is None:
        return None
    commit = loaded.commit
    trained = [outcome.round for outcome in loaded.outcomes if outcome.phase == "train"]
    assert trained == list(range(1, loaded.documents["tree"] + 1))
    assert loaded.arrays == {one.name: one.data for one in model(loaded.documents["tree"])}
    return commit.round, commit.phase, loaded.documents["tree"]


def files_in(path: Path) -> set[str]:
    """The files of a run, but for its fences."""
    return {str(one.relative_to(path)) for one in path.rglob("*") if one.is_file() and one.parent.name != "generations"}


class WatchedFiles(LocalFiles):
    """A local disk that calls `before` ahead of each operation that changes something."""

    def __init__(self, root: Path, before: Callable[[str, str], None] = lambda operation, key: None) -> None:
        super().__init__(root)
        self.before = before

    def create(self, key: str, buffers: Sequence[Buffer], *, beside: Callable[[], None] | None = None) -> None:
        self.before("create", key)
        super().create(key, buffers, beside=beside)

    def publish(self, key: str, data: bytes) -> None:
        self.before("publish", key)
        super().publish(key, data)

    def _link_or_write(self, temporary: str, key: str, data: bytes) -> None:
        self.before("link", key)
        super()._link_or_write(temporary, key, data)

    def adopt(self, files: Files, source: str, target: str) -> None:
        self.before("link", target)
        super().adopt(files, source, target)

    def make_folder(self, folder: str) -> None:
        self.before("make_folder", folder)
        super().make_folder(folder)

    def sync_folder(self, folder: str = "") -> None:
        self.before("sync_folder", folder)
        super().sync_folder(folder)

    def sync(self, key: str) -> None:
        self.before("sync", key)
        super().sync(key)

    def remove(self, key: str) -> None:
        self.before("remove", key)
        super().remove(key)

    def remove_folder(self, folder: str) -> None:
        self.before("remove_folder", folder)
        super().remove_folder(folder)

    def keys(self, folder: str = "") -> list[str]:
        self.before("keys", folder)
        return super().keys(folder)


class KilledError(BaseException):
    """The process is gone; no handler for errors may catch this."""


class Countdown:
    """Counts operations, and does something ahead of the n-th."""

    def __init__(self, at: int, action: Callable[[], None]) -> None:
        self.at = at
        self.count = 0
        self._action = action

    def __call__(self, operation: str, key: str) -> None:
        self.count += 1
        if self.count - 1 == self.at:
            self._action()


class Kill:
    """Kills the process ahead of the n-th operation: that one and all later ones are not done."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0

    def __call__(self, operation: str, key: str) -> None:
        self.count += 1
        if self.count > self.at:
            raise KilledError


class FullDisk:
    """Fails what matches, as a full disk does, while it is full."""

    def __init__(self) -> None:
        self.full_for: Callable[[str, str], bool] = lambda operation, key: False
        self.tried: list[str] = []

    def __call__(self, operation: str, key: str) -> None:
        if operation in ("create", "publish"):
            self.tried.append(key)
        if self.full_for(operation, key):
            raise OSError(28, "No space left on device")


@contextmanager
def damaged(path: Path, data: bytes | None) -> Iterator[None]:
    """Replace a file's bytes, or remove it, for a while."""
    whole = path.read_bytes()
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(whole)


def flip(path: Path, offset: int = -1) -> None:
    """Damage one byte of a file, for good."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x40
    path.write_bytes(data)
