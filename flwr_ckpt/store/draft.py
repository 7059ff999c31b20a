"""What one commit is to hold, as the caller hands it over: references, not copies.

Nothing here touches a disk. A `Draft` is made by ``strategies/`` (from what ``state/`` captured), queued by
`flwr_ckpt.store.writing.background` and written by `flwr_ckpt.store.writing.commit`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, overload

from .values import Json

Phase = Literal["initial", "attempt", "train", "evaluate", "central", "end"]
Buffer = bytes | memoryview


class Blob(NamedTuple):
    """One array as it lies in memory. A tuple: there may be 10,000 of them in a draft.

    Attributes
    ----------
    name : str
        Unique within its group (the global arrays, or the strategy's).
    data : bytes or memoryview
        Must not change until the commit is written. With ``kind="npy"`` a whole ``.npy`` file (its header is
        parsed by the writer, not here), or, if it does not parse as one, opaque bytes, kept as they are.
        With ``kind="raw"`` the C-order little-endian elements of an array of `dtype` and `shape`.
    kind : {"npy", "raw"}
    dtype, shape, stype
        For ``"npy"`` the fields that Flower's ``Array`` states beside its data (kept verbatim, never believed;
        empty for legacy ``Parameters``). For ``"raw"``: the type as NumPy or torch names it (``"float32"``,
        ``"bfloat16"``) and the shape; an empty `dtype` means opaque bytes.
    """

    name: str
    data: Buffer
    kind: Literal["npy", "raw"] = "npy"
    dtype: str = ""
    shape: tuple[int, ...] = ()
    stype: str = ""


class LateBlobs(Sequence[Blob]):
    """Blobs that are made when they are read, in the writer's thread: the caller's takes references, and goes on.

    Parameters
    ----------
    length : int
        How many there are.
    make : callable
        Makes them all, from what cannot change any more.
    """

    def __init__(self, length: int, make: Callable[[], Iterator[Blob]]) -> None:
        self._length = length
        self._make = make

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Blob]:
        return self._make()

    @overload
    def __getitem__(self, index: int) -> Blob: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Blob]: ...
    def __getitem__(self, index: int | slice) -> Blob | Sequence[Blob]:
        return tuple(self._make())[index]


class LateDocuments(Mapping[str, Json]):
    """Documents that are made when they are first read, as `LateBlobs` are.

    Parameters
    ----------
    make : callable
        Makes them all, from what cannot change any more.
    """

    def __init__(self, make: Callable[[], Mapping[str, Json]]) -> None:
        self._make = make

    @functools.cached_property
    def _made(self) -> Mapping[str, Json]:
        return self._make()

    def __getitem__(self, name: str) -> Json:
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


def settled(data: Any) -> Buffer:
    """Refer to bytes that nobody can change any more: exactly ``bytes``, or a read-only view of them; else copy."""
    if type(data) is bytes:
        return data
    if type(data) is memoryview and data.readonly and type(data.obj) is bytes and data.c_contiguous and data.nbytes:
        return data.cast("B")
    return bytes(data)


class Outcome(NamedTuple):
    """What a phase of a round answered: the line of the run's history that replay reads. A tuple, as `Draft` is.

    Attributes
    ----------
    metrics : Mapping[str, object] or None
        Plain values (numbers, strings, bytes, lists of numbers), in order; ``None`` if the hook answered none.
    loss : float or None
        Legacy API only: the loss that stands beside the metrics.
    answered : bool
        Whether the hook gave a result at all: for ``train`` whether it returned arrays; for the others whether
        the phase took place.
    detail : Mapping[str, object]
        Plain values that the caller wants back with the outcome; the store does not look at them.
    """

    round: int
    phase: Phase
    answered: bool
    metrics: Mapping[str, object] | None = None
    loss: float | None = None
    detail: Mapping[str, object] = MappingProxyType({})


class Draft(NamedTuple):
    """One commit to be. A tuple: two are made a round while training waits.

    Attributes
    ----------
    arrays : sequence of Blob, or None
        The global arrays; ``None`` means as in the commit before.
    state : sequence of Blob, or None
        The arrays of the strategy's own state; ``None`` means as in the commit before.
    documents : Mapping[str, Json]
        JSON documents by name (the state tree, the baseline, who wrote it). One that is left out is as in the
        commit before. Large ones are stored, and found unchanged, like arrays.
    outcomes : tuple of Outcome
        The outcomes since the last draft handed over, oldest first.
    durable : callable
        Called with the `Commit`, in the writer's thread, once it is durable and before the next one is begun.
    release : callable
        Called once the draft's buffers are no longer read, whether it was written or not.
    """

    round: int
    phase: Phase
    arrays: Sequence[Blob] | None = None
    state: Sequence[Blob] | None = None
    documents: Mapping[str, Json] = MappingProxyType({})
    outcomes: tuple[Outcome, ...] = ()
    durable: Callable[[Any], None] = lambda commit: None
    release: Callable[[], None] = lambda: None
