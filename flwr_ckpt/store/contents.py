"""What a commit has to write, and what it can refer to.

An array is looked up only among what this generation wrote, by comparing contents. Within a round it is referred to
where it lies. Over rounds, and only if it is large, it is written a second time in the second round that holds it,
and then referred to at both places: one damaged byte must not make every round unsound that shares it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .datafile import Piece, Written, same_bytes
from .draft import Blob
from .files import Files, is_damage
from .names import FileName, parse_data
from .npy import native_type, split_npy
from .payloads import view_payload
from .records import Commit, Entry, Place

Label = Literal["arrays", "strategy", "unchanged"]

SHARED_FROM = 1 << 20  # bytes; below, a reference over rounds saves less than it keeps alive
_COPIES = 2
_PROBE = 32


@dataclass(frozen=True, slots=True)
class Slot:
    """An entry to be: what is known of it, and what is still to be written.

    Attributes
    ----------
    entry : Entry
        Complete if there is no piece; else without the piece's place, and without the checksum.
    label, index
        The data file and the number of the piece in it; -1 if nothing is to be written.
    """

    entry: Entry
    label: Label = "arrays"
    index: int = -1

    def finish(self, written: Mapping[Label, Written]) -> Entry:
        """Fill in what writing has shown."""
        if self.index < 0:
            return self.entry
        file = written[self.label]
        chunk = file.chunks[self.index]
        places = (*self.entry.places, Place(file.key, chunk.offset))
        return replace(self.entry, crc=chunk.crc, places=places)


class Contents:
    """The contents of one commit.

    Parameters
    ----------
    files : Files
    base : Commit or None
        The commit before it.
    generation, server_round : int
        Of the commit.
    whole : bool
        Whether it may refer to nothing of a lower generation: the commits that write the global arrays.
    crowded : collection of str
        Data files so full of what is dead that what lives in them is to be written anew.

    Attributes
    ----------
    pieces : dict
        What is to be written, by data file.
    """

    def __init__(
        self,
        files: Files,
        base: Commit | None,
        generation: int,
        server_round: int,
        *,
        whole: bool,
        crowded: Collection[str],
    ) -> None:
        self.pieces: defaultdict[Label, list[Piece]] = defaultdict(list)
        self._files = files
        self._generation = generation
        self._round = server_round
        self._whole = whole
        self._crowded = crowded
        named = {file.key: parse_data(file.key) for file in (base.files if base else ())}
        self._named: dict[str, FileName] = {key: name for key, name in named.items() if name is not None}
        self._views: dict[str, memoryview | None] = {}
        self._drafted: defaultdict[tuple[int, bytes], list[tuple[memoryview, Slot]]] = defaultdict(list)

    def take(
        self, blobs: Iterable[Blob], before: Sequence[Entry], label: Label, *, alias: bool, prefix: str = ""
    ) -> list[Slot]:
        """Take what was handed over.

        Parameters
        ----------
        before : sequence of Entry
            The same group in the commit before.
        alias : bool
            Whether bytes that this commit writes already need not be written again. Not for the global arrays: their
            file is to be whole for other tools.
        prefix : str
            Goes before the names in the data file.
        """
        known = {entry.name: entry for entry in before}
        return [self._take(blob, known.get(blob.name), label, alias, prefix) for blob in blobs]

    def carry(self, entries: Iterable[Entry], label: Label, prefix: str = "") -> list[Slot]:
        """Take over what the commit before holds."""
        return [self._settle(entry, None, label, prefix) if self._whole else Slot(entry) for entry in entries]

    def _take(self, blob: Blob, before: Entry | None, label: Label, alias: bool, prefix: str) -> Slot:
        header, payload = split_npy(blob.data) if blob.kind == "npy" else (b"", memoryview(blob.data).cast("B"))
        size = payload.nbytes
        entry = Entry(blob.name, blob.kind, blob.dtype, blob.shape, blob.stype, header, size, 0, ())
        probe = (size, bytes(payload[:_PROBE]) + bytes(payload[-_PROBE:]))
        if alias and size:
            for other, slot in self._drafted[probe]:
                if same_bytes(other, payload):
                    return replace(slot, entry=replace(entry, crc=slot.entry.crc, places=slot.entry.places))
        if before is not None and self._is_unchanged(before, payload):
            slot = self._settle(replace(entry, crc=before.crc, places=before.places), payload, label, prefix)
        else:
            slot = self._write(entry, payload, label, prefix)
        self._drafted[probe].append((payload, slot))
        return slot

    def _is_unchanged(self, before: Entry, payload: memoryview) -> bool:
        if before.size != payload.nbytes or not before.size:
            return False
        own = [place for place in before.places if self._named[place.file].generation == self._generation]
        here = any(self._named[place.file].round == self._round for place in own)
        if not own or not (here or before.size >= SHARED_FROM):
            return False
        view = self._view(own[0].file)
        stored = view[own[0].offset : own[0].offset + before.size] if view is not None else b""
        return same_bytes(stored, payload)

    def _settle(self, entry: Entry, payload: memoryview | None, label: Label, prefix: str) -> Slot:
        """Keep the places that may be kept, and write another one if those are too few."""
        own = [
            place
            for place in entry.places
            if self._named[place.file].generation == self._generation and place.file not in self._crowded
        ]
        here = any(self._named[place.file].round == self._round for place in own)
        if not entry.size or here or len(own) >= _COPIES:
            return Slot(replace(entry, places=tuple(own)))
        if payload is None:
            payload = view_payload(self._files, entry)
        # What is found again goes into a file of its own: beside arrays that change it would soon lie among dead ones.
        return self._write(replace(entry, places=tuple(own)), payload, "unchanged" if own else label, prefix)

    def _write(self, entry: Entry, payload: memoryview, label: Label, prefix: str) -> Slot:
        dtype, shape = native_type(entry)
        pieces = self.pieces[label]
        pieces.append(Piece(prefix + entry.name, payload, dtype, shape))
        if not entry.size:
            return Slot(entry)
        return Slot(entry, label, len(pieces) - 1)

    def _view(self, key: str) -> memoryview | None:
        if key not in self._views:
            try:
                self._views[key] = self._files.view(key)
            except OSError as error:
                if not is_damage(error):
                    raise
                self._views[key] = None
        return self._views[key]
