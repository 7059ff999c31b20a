"""The least that durable bytes can cost: one ``writev`` and ``fsync``; back again, one read."""

from __future__ import annotations

from pathlib import Path

from flwr.app import ArrayRecord

from ..instruments import write_raw
from .contender import Arrived, Saver


class RawWrite(Saver):
    """The bytes one after the other, and no word about what they are."""

    def save(self, path: Path, arrays: ArrayRecord) -> None:
        """Write the bytes from where they lie."""
        write_raw(path, arrays)

    def load(self, server_round: int, like: ArrayRecord, arrived: Arrived) -> None:
        """Read all in one piece. Nobody could make a model of it: this is the time that nothing beats."""
        data = self.path(server_round).read_bytes()
        assert len(data) == sum(len(array.data) for array in like.values())
        arrived(ArrayRecord())
