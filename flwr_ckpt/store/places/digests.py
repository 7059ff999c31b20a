"""What this process remembers of the files it wrote, where looking at them again would be a download."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

_MOST_FILES = 16  # a commit refers to a handful; one that is forgotten costs writing an array once more
_FIRST = 64


class Digests:
    """The buffers of the files that were written last, by file and offset."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, dict[int, _Digest]] = OrderedDict()

    def remember(self, key: str, buffers: Iterable[memoryview]) -> None:
        """Take note of a file that consists of these buffers."""
        known: dict[int, _Digest] = {}
        offset = 0
        for buffer in buffers:
            known[offset] = _Digest(buffer.nbytes, bytes(buffer[:_FIRST]), hashlib.sha256(buffer).digest())
            offset += buffer.nbytes
        self._files[key] = known
        while len(self._files) > _MOST_FILES:
            self._files.popitem(last=False)

    def forget(self, key: str) -> None:
        """Take note that a file is gone."""
        self._files.pop(key, None)

    def holds(self, key: str, offset: int, data: memoryview) -> bool:
        """Whether a file is known to hold these very bytes, as one of its buffers."""
        known = self._files.get(key, {}).get(offset)
        if known is None:
            return False
        self._files.move_to_end(key)
        # What has been trained differs at once, and need not be summed up to know it.
        same = known.size == data.nbytes and known.first == data[:_FIRST]
        return same and known.sha256 == hashlib.sha256(data).digest()


@dataclass(frozen=True, slots=True)
class _Digest:
    size: int
    first: bytes
    sha256: bytes
