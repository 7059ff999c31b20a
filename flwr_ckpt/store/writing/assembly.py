"""From a draft to the tables of a manifest: what it holds, and in which files that lies."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from ..draft import Blob, Draft
from ..format.datafile import Written, write_data_file
from ..format.records import Chunk, Commit, DataFile, Entry
from ..names import data_key
from ..places.files import Files
from ..values import Json, dumps
from .contents import Contents, Group, Label, Slot, finish

_WHOLE = ("initial", "train")  # the phases that write the global arrays
_INLINE = 1 << 14  # bytes of a document up to which it stands in the manifest
_PREFIX = "document:"


@dataclass(frozen=True, slots=True)
class Tables:
    """The part of a manifest that says what is stored where."""

    files: tuple[DataFile, ...] = ()
    arrays: tuple[Entry, ...] = ()
    state: tuple[Entry, ...] = ()
    stored_documents: tuple[Entry, ...] = ()
    inline_documents: dict[str, Json] = field(default_factory=dict)


class Assembler:
    """Writes the data files of a generation's commits.

    Parameters
    ----------
    files : Files
    generation : int
    base : Commit or None
        The commit before the first.

    Attributes
    ----------
    base : Commit or None
        The last durable commit.
    """

    def __init__(self, files: Files, generation: int, base: Commit | None) -> None:
        self._files = files
        self._generation = generation
        self.base = base
        self._known = {} if base is None else _stretches(base)
        self._documents_held: dict[str, tuple[Json, bytes]] = {}

    def assemble(self, draft: Draft, crowded: Collection[str], written: list[str]) -> Tables:
        """Write what a draft holds and is nowhere yet, durably but for the names.

        Parameters
        ----------
        crowded : collection of str
            Data files to be left behind.
        written : list of str
            Gets the key of each file before it is made.
        """
        contents = Contents(
            self._files,
            self.base,
            self._generation,
            draft.round,
            whole=draft.phase in _WHOLE,
            crowded=crowded,
        )
        before = Tables() if self.base is None else self.base
        arrays = _group(contents, draft.arrays, before.arrays, "arrays", alias=False)
        state = _group(contents, draft.state, before.state, "strategy", alias=True)
        inline, stored = self._documents(contents, draft)
        made = self._write(contents, draft, written)
        tables = Tables(
            arrays=finish(arrays, made),
            state=finish(state, made),
            stored_documents=finish(stored, made),
            inline_documents=inline,
        )
        return replace(tables, files=self._files_of(tables, made.values()))

    def settle(self, commit: Commit) -> None:
        """Take a durable commit for the one before the next."""
        self.base = commit
        self._known = {file.key: self._known[file.key] for file in commit.files}

    def _documents(self, contents: Contents, draft: Draft) -> tuple[dict[str, Json], list[Slot]]:
        inline = dict(self.base.inline_documents) if self.base is not None else {}
        before = self.base.stored_documents if self.base is not None else ()
        blobs = []
        for name, document in draft.documents.items():
            inline.pop(name, None)
            data = self._dumped(name, document)
            if len(data) <= _INLINE:
                inline[name] = document
            else:
                blobs.append(Blob(name, data, "raw"))
        carried = [entry for entry in before if entry.name not in draft.documents]
        slots = contents.carry(carried, "strategy", _PREFIX)
        return inline, slots + contents.take(blobs, before, "strategy", alias=False, prefix=_PREFIX)

    def _dumped(self, name: str, document: Json) -> bytes:
        """Serialise a document; one that is still the object it was has been (who writes the run, the baseline)."""
        known = self._documents_held.get(name)
        if known is None or known[0] is not document:
            known = self._documents_held[name] = (document, dumps(document))
        return known[1]

    def _write(self, contents: Contents, draft: Draft, written: list[str]) -> dict[Label, Written]:
        made = {}
        for label, pieces in contents.pieces.items():
            if any(piece.payload.nbytes for piece in pieces):
                name = label if draft.phase in _WHOLE else f"{draft.phase}-{label}"
                key = data_key(draft.round, self._generation, name)
                written.append(key)
                made[label] = write_data_file(self._files, key, pieces)
        return made

    def _files_of(self, tables: Tables, made: Iterable[Written]) -> tuple[DataFile, ...]:
        """State the files that entries refer to, with what else lies in them."""
        self._known.update({file.key: file for file in made})
        used: dict[str, set[int]] = {}
        for entry in (*tables.arrays, *tables.state, *tables.stored_documents):
            for place in entry.places:
                used.setdefault(place.file, set()).add(place.offset)
        return tuple(_data_file(self._known[key], offsets) for key, offsets in used.items())


def _group(
    contents: Contents, blobs: Sequence[Blob] | None, before: tuple[Entry, ...], label: Label, *, alias: bool
) -> Group:
    if blobs is None:
        return contents.leave(before, label)
    blobs = tuple(blobs)
    names = [blob.name for blob in blobs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two arrays are named {twice!r}; each name may be given once")
    return contents.take(blobs, before, label, alias=alias)


def _data_file(file: Written, used: Collection[int]) -> DataFile:
    dead = tuple(chunk for chunk in file.chunks if chunk.size and chunk.offset not in used)
    return DataFile(file.key, file.size, file.head, dead)


def _stretches(commit: Commit) -> dict[str, Written]:
    """Find what lies in each file of a commit: what it refers to, and what it knows to be dead."""
    chunks: dict[str, dict[int, Chunk]] = {file.key: {one.offset: one for one in file.dead} for file in commit.files}
    for entry in commit.entries():
        for place in entry.places:
            chunks[place.file][place.offset] = Chunk(place.offset, entry.size, entry.crc)
    return {
        file.key: Written(file.key, file.size, file.head, tuple(chunks[file.key].values())) for file in commit.files
    }
