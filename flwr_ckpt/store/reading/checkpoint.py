"""One round as it is looked at: arrays by name, mapped from the disk, with the types they had."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..draft import Outcome
from ..errors import CheckpointCorruptError
from ..format.array_types import NumpyType, is_shape, npy_type, plain_dtype
from ..format.history import flat_metrics
from ..format.records import Commit, Entry
from ..values import Json, from_json
from .view import view_state

if TYPE_CHECKING:
    from flwr.app import ArrayRecord
    from flwr.common import Parameters

AnyArray = np.ndarray[Any, Any]


class StoredArray:
    """An entry and its bytes, verified and mapped.

    Parameters
    ----------
    entry : Entry
    payload : memoryview
        The bytes behind the entry's header.
    """

    def __init__(self, entry: Entry, payload: memoryview) -> None:
        self.entry = entry
        self._payload = payload

    @cached_property
    def array(self) -> AnyArray:
        """The array, read-only, where it lies on the disk; what NumPy cannot express is flat ``uint8``."""
        dtype, shape, order = self._type
        array: AnyArray = np.ndarray(shape, dtype, self._payload, order=order)
        return array

    @property
    def dtype(self) -> str:
        """What the elements are, also where NumPy lacks it (``"bfloat16"``)."""
        dtype = self._type[0]
        return self.entry.dtype or "uint8" if dtype == np.uint8 else str(dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, also where NumPy lacks the type and `array` is flat."""
        return self.array.shape if self.dtype == str(self.array.dtype) else self.entry.shape

    def data(self) -> bytes:
        """Exactly the bytes that were handed over, header and all."""
        return b"".join((self.entry.header, self._payload))

    def view(self) -> memoryview:
        """The same, mapped where there is no header."""
        return memoryview(self.data()) if self.entry.header else self._payload

    @cached_property
    def _type(self) -> NumpyType:
        found = npy_type(self.entry.header) if self.entry.header else self._raw_type()
        if found is not None:
            dtype, shape, _ = found
            # A void type without fields is a stand-in for one that NumPy did not know either.
            known = dtype.names is not None or dtype.type is not np.void
            if known and math.prod(shape) * dtype.itemsize <= self._payload.nbytes:
                return found
        return np.dtype(np.uint8), (self._payload.nbytes,), "C"

    def _raw_type(self) -> NumpyType | None:
        dtype = plain_dtype(self.entry.dtype) if self.entry.kind == "raw" else None
        if dtype is None or not is_shape(self.entry.shape, dtype.itemsize):
            return None
        return dtype, self.entry.shape, "C"


class LazyArrays(Mapping[str, AnyArray]):
    """Arrays by name, each made when it is asked for.

    Parameters
    ----------
    stored : Mapping[str, StoredArray]
    """

    def __init__(self, stored: Mapping[str, StoredArray]) -> None:
        self._stored = stored

    def __getitem__(self, name: str) -> AnyArray:
        return self._stored[name].array

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __repr__(self) -> str:
        described = (f"{name!r}: {one.dtype}{list(one.array.shape)}" for name, one in self._stored.items())
        return f"LazyArrays({{{', '.join(described)}}})"


class Checkpoint:
    """A round of a run, all of it verified.

    Attributes
    ----------
    round : int
        The round whose aggregate the arrays are.
    arrays : Mapping[str, numpy.ndarray]
        The global arrays, read-only and mapped from the disk. Legacy arrays are named ``0000``, ``0001``, …. What
        NumPy cannot express (``bfloat16``, opaque tensors) is flat ``uint8``.
    dtypes : Mapping[str, str]
        What each array's elements are; differs from the array's own ``dtype`` only where NumPy lacks it.
    shapes : Mapping[str, tuple of int]
        The shape of each array; differs from the array's own ``shape`` only where NumPy lacks the type.
    metrics : dict
        The round's metrics by key as in ``CheckpointStore.history()``.
    identity : Mapping[str, object]
        Who wrote it, as plain values: API, strategy classes, app, configuration, versions; empty where not stated.
    time : float
        When it was made: seconds since 1970 by the server's clock.
    generation : int
        Which of the run's servers wrote it.
    path : str
        The manifest that states it.
    """

    def __init__(
        self,
        server_round: int,
        commit: Commit,
        payloads: Sequence[memoryview],
        documents: Mapping[str, Json],
        outcomes: Sequence[Outcome],
    ) -> None:
        entries = [*commit.arrays, *commit.state]
        stored = [StoredArray(entry, payload) for entry, payload in zip(entries, payloads, strict=True)]
        self._arrays = {one.entry.name: one for one in stored[: len(commit.arrays)]}
        self._state = {one.entry.name: one for one in stored[len(commit.arrays) :]}
        self._documents = documents
        self.round = server_round
        self.time = commit.time
        self.generation = commit.generation
        self.path = commit.path
        self.arrays: Mapping[str, AnyArray] = LazyArrays(self._arrays)
        self.metrics = metrics_of(outcomes, server_round)

    @property
    def dtypes(self) -> Mapping[str, str]:
        """What each array's elements are."""
        return {name: stored.dtype for name, stored in self._arrays.items()}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each array."""
        return {name: stored.shape for name, stored in self._arrays.items()}

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """Who wrote it."""
        stated = from_json(self._documents.get("identity", {}))
        return stated if isinstance(stated, dict) else {}

    @cached_property
    def state(self) -> dict[str, Any]:
        """The strategy's own state as a tree to look at: dicts, lists, plain values and arrays.

        Raises
        ------
        CheckpointCorruptError
            If what is stored is none.
        """
        if "state" not in self._documents:
            return {}
        try:
            return view_state(
                self._documents["state"],
                array=lambda name: self._state[name].array,
                data=lambda name: self._state[name].view(),
            )
        except Exception as error:  # what is stored may be anything, and make whatever it is handed to raise anything
            raise CheckpointCorruptError(f"{self.path}: its state is no tree of it ({error!r:.200})") from error

    def array_record(self) -> ArrayRecord:
        """The global arrays as Flower's ``ArrayRecord``, with the bytes they had; a copy."""
        from flwr.app import Array, ArrayRecord

        record = ArrayRecord()
        for name, stored in self._arrays.items():
            entry = stored.entry
            legacy = not entry.dtype and entry.kind == "npy"
            record[name] = Array(
                dtype=stored.dtype if legacy else entry.dtype,
                shape=stored.array.shape if legacy else entry.shape,
                stype=entry.stype or "numpy.ndarray",
                data=stored.data(),
            )
        return record

    def parameters(self) -> Parameters:
        """The global arrays as Flower's ``Parameters``, with the bytes they had; a copy."""
        from flwr.common import Parameters

        kinds = {stored.entry.stype for stored in self._arrays.values()} - {""}
        return Parameters(
            tensors=[stored.data() for stored in self._arrays.values()],
            tensor_type=kinds.pop() if len(kinds) == 1 else "numpy.ndarray",
        )

    def __repr__(self) -> str:
        return f"<Checkpoint of round {self.round}: {len(self._arrays)} arrays, generation {self.generation}>"


def metrics_of(outcomes: Sequence[Outcome], server_round: int) -> dict[str, Any]:
    """The metrics of one round by key, of all its phases; what was done again later counts."""
    found: dict[str, Any] = {}
    for outcome in outcomes:
        if outcome.round == server_round:
            found.update(flat_metrics(outcome))
    return found
