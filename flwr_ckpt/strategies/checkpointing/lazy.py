"""Arrays of a finished round that are read from the store when somebody looks at them, and not before.

A strategy's own ``start()`` runs again on the record when a run resumes. It is handed each round's own arrays, but
hardly ever looks at more than a few of them; and those that retention has removed cannot be read at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flwr.app import Array, ArrayRecord
from flwr.common import Parameters

from ...store import CheckpointError, Entry, Keep


def not_kept(where: str, server_round: int, keep: Keep, who: str) -> CheckpointError:
    """Say that somebody looks at the arrays of a round that retention has removed."""
    return CheckpointError(
        f"{where}: the arrays of round {server_round} were removed by {keep}, and {who} looks at them again as the run "
        "resumes; give keep=KeepAll() to such a run"
    )


class LazyArray(Array):
    """A Flower ``Array`` whose ``data`` is fetched on first use."""

    def __init__(self, entry: Entry, fetch: Callable[[], bytes]) -> None:
        # Array's own constructor insists on bytes; its fields are plain attributes but for `data`, below.
        self.__dict__.update(dtype=entry.dtype, shape=tuple(entry.shape), stype=entry.stype)
        self.__dict__["_fetch"] = fetch

    @property
    def data(self) -> bytes:
        """The serialised array, as the strategy returned it in that round."""
        fetch = self.__dict__.pop("_fetch", None)
        if fetch is not None:
            try:
                self.__dict__["_bytes"] = fetch()
            except BaseException:
                self.__dict__["_fetch"] = fetch
                raise
        data: bytes = self.__dict__["_bytes"]
        return data

    @data.setter
    def data(self, value: bytes) -> None:
        self.__dict__.pop("_fetch", None)
        self.__dict__["_bytes"] = value


def lazy_record(entries: Sequence[Entry], fetch: Callable[[Entry], bytes]) -> ArrayRecord:
    """Make an ``ArrayRecord`` of lazy arrays.

    Filled item by item: the constructor of ``ArrayRecord`` would read every array.
    """
    record = ArrayRecord()
    for entry in entries:
        record[entry.name] = LazyArray(entry, lambda entry=entry: fetch(entry))  # type: ignore[misc]
    return record


class LazyParameters(Parameters):
    """Legacy ``Parameters`` whose ``tensors`` are fetched on first use."""

    def __init__(self, tensor_type: str, fetch: Callable[[], list[bytes]]) -> None:
        self.tensor_type = tensor_type
        self._fetch = fetch
        self._tensors: list[bytes] | None = None

    @property
    def tensors(self) -> list[bytes]:
        """The tensors, as the strategy returned them in that round."""
        if self._tensors is None:
            self._tensors = self._fetch()
        return self._tensors

    @tensors.setter
    def tensors(self, value: list[bytes]) -> None:
        self._tensors = value
