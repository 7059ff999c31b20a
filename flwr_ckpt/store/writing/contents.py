"""What a commit has to write, and what it can refer to.

An array is looked up only among what this generation wrote, by comparing contents. Within a round it is referred to
where it lies. Over rounds, and only if it is large, it is written a second time in the second round that holds it,
and then referred to at both places: one damaged byte must not make every round unsound that shares it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from ..draft import Blob
from ..format.datafile import Piece, Written
from ..format.npy import native_type, split_npy
from ..format.payloads import view_payload
from ..format.records import Commit, Entry, Place
from ..names import parse_data
from ..places.files import Compare, Files, is_damage
from ..same import same_bytes

Label = Literal["arrays", "strategy", "unchanged"]

SHARED_FROM = 1 << 20  # bytes; below, a reference over rounds saves less than it keeps alive
_COPIES = 2
_PROBE = 32


class Slot(NamedTuple):
    """An entry to be: what is known of it, and what is still to be written.

    Attributes
    ----------
    entry : Entry
        Complete if there is no piece; else without the piece's place, and without the checksum.
    label, piece
        The data file and the number of the piece in it; -1 if nothing is to be written.
    """

    entry: Entry
    label: Label = "arrays"
    piece: int = -1


Group = Sequence[Slot] | tuple[Entry, ...]  # what a commit is to hold; entries, if it holds what the one before does


def finish(group: Group, written: Mapping[Label, Written]) -> tuple[Entry, ...]:
    """Fill in what writing has shown."""
    return group if isinstance(group, tuple) else tuple([_finished(slot, written) for slot in group])


def _finished(slot: Slot, written: Mapping[Label, Written]) -> Entry:
    if slot.piece < 0:
        return slot.entry
    file = written[slot.label]
    chunk = file.chunks[slot.piece]
    return slot.entry._replace(crc=chunk.crc, places=(*slot.entry.places, Place(file.key, chunk.offset)))


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
        self._whole = whole
        self._crowded = crowded
        named = {file.key: parse_data(file.key) for file in (base.files if base else ())}
        own = {key: name for key, name in named.items() if name is not None and name.generation == generation}
        self._own = set(own)  # what may be referred to; and, of that, what is of this round
        self._here = {key for key, name in own.items() if name.round == server_round}
        self._comparisons: dict[str, Compare | None] = {}
        self._drafted: list[tuple[memoryview, Slot]] = []
        self._by_probe: defaultdict[tuple[int, bytes], list[tuple[memoryview, Slot]]] = defaultdict(list)

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

    def leave(self, entries: tuple[Entry, ...], label: Label) -> Group:
        """Leave a group as it is in the commit before."""
        return self.carry(entries, label) if self._whole else entries

    def carry(self, entries: Iterable[Entry], label: Label, prefix: str = "") -> list[Slot]:
        """Take over what the commit before holds."""
        return [self._settle(entry, None, label, prefix) if self._whole else Slot(entry) for entry in entries]

    def _take(self, blob: Blob, before: Entry | None, label: Label, alias: bool, prefix: str) -> Slot:
        header, payload = split_npy(blob.data) if blob.kind == "npy" else (b"", memoryview(blob.data).cast("B"))
        entry = Entry(blob.name, blob.kind, blob.dtype, blob.shape, blob.stype, header, payload.nbytes, 0, ())
        if alias and payload.nbytes and (same := self._find_drafted(payload)) is not None:
            return same._replace(entry=entry._replace(crc=same.entry.crc, places=same.entry.places))
        if before is not None and self._is_unchanged(before, payload):
            slot = self._settle(entry._replace(crc=before.crc, places=before.places), payload, label, prefix)
        else:
            slot = self._write(entry, payload, label, prefix)
        self._drafted.append((payload, slot))
        return slot

    def _find_drafted(self, payload: memoryview) -> Slot | None:
        """Find the bytes among what this commit holds already."""
        for drafted in self._drafted:
            self._by_probe[_probe(drafted[0])].append(drafted)
        self._drafted.clear()
        found = self._by_probe.get(_probe(payload), ())
        return next((slot for other, slot in found if same_bytes(other, payload)), None)

    def _is_unchanged(self, before: Entry, payload: memoryview) -> bool:
        size = before.size
        if size != payload.nbytes or not size or (size < SHARED_FROM and not self._here):
            return False
        own = [place for place in before.places if place.file in self._own]
        if not own or (size < SHARED_FROM and not any(place.file in self._here for place in own)):
            return False
        holds = self._comparison(own[0].file)
        return holds is not None and holds(own[0].offset, payload)

    def _settle(self, entry: Entry, payload: memoryview | None, label: Label, prefix: str) -> Slot:
        """Keep the places that may be kept, and write another one if those are too few."""
        own = tuple(place for place in entry.places if place.file in self._own and place.file not in self._crowded)
        here = any(place.file in self._here for place in own)
        if not entry.size or here or len(own) >= _COPIES:
            return Slot(entry._replace(places=own))
        if payload is None:
            payload = view_payload(self._files, entry)
        # What is found again goes into a file of its own: beside arrays that change it would soon lie among dead ones.
        return self._write(entry._replace(places=own), payload, "unchanged" if own else label, prefix)

    def _write(self, entry: Entry, payload: memoryview, label: Label, prefix: str) -> Slot:
        dtype, shape = native_type(entry)
        pieces = self.pieces[label]
        pieces.append(Piece(prefix + entry.name, payload, dtype, shape))
        if not entry.size:
            return Slot(entry)
        return Slot(entry, label, len(pieces) - 1)

    def _comparison(self, key: str) -> Compare | None:
        if key not in self._comparisons:
            try:
                self._comparisons[key] = self._files.comparison(key)
            except OSError as error:
                if not is_damage(error):
                    raise
                self._comparisons[key] = None
        return self._comparisons[key]


def _probe(payload: memoryview) -> tuple[int, bytes]:
    """What bytes have to share before they are compared."""
    return payload.nbytes, bytes(payload[:_PROBE]) + bytes(payload[-_PROBE:])
