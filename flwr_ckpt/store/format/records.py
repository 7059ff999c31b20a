"""What a manifest says, as plain data.

Of what a commit may hold 10,000, tuples are made: several times as fast as data classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..draft import Outcome, Phase
from ..names import CommitName
from ..values import Json


class Place(NamedTuple):
    """Where the bytes of an array lie.

    Attributes
    ----------
    file : str
        Key of the data file.
    offset : int
        Bytes from the beginning of the file.
    """

    file: str
    offset: int


class Entry(NamedTuple):
    """One stored array as a manifest states it.

    Attributes
    ----------
    name, kind, dtype, shape, stype
        As in the `Blob` that was handed over.
    header : bytes
        The ``.npy`` header that goes before the stored bytes; empty where there is none.
    size : int
        Stored bytes, without the header.
    crc : int
        CRC-32 of the stored bytes.
    places : tuple of Place
        Where the stored bytes lie, once or twice; nowhere if there are none.
    """

    name: str
    kind: Literal["npy", "raw"]
    dtype: str
    shape: tuple[int, ...]
    stype: str
    header: bytes
    size: int
    crc: int
    places: tuple[Place, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of ``Blob.data``."""
        return len(self.header) + self.size


class Chunk(NamedTuple):
    """A stretch of a data file with its checksum."""

    offset: int
    size: int
    crc: int


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file that a commit refers to.

    Attributes
    ----------
    key : str
    size : int
        Bytes.
    head : Chunk
        The safetensors header.
    dead : tuple of Chunk
        The arrays in it that the commit does not refer to.
    """

    key: str
    size: int
    head: Chunk
    dead: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """A file of outcomes that are no longer in the manifests.

    Attributes
    ----------
    digest : str
        SHA-256 of the file, in hexadecimal.
    first, last : int
        The rounds of the first and the last outcome that counts.
    """

    key: str
    size: int
    digest: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Span:
    """The commits of one generation that a line goes through.

    Attributes
    ----------
    first, last : int
        Rounds.
    sequence : int
        Sequence number of the last of them: a later one of the same round is off the line.
    """

    generation: int
    first: int
    last: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Extent:
    """Commits that were found damaged and passed over: rounds `first` to `last` of a generation."""

    generation: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Parent:
    """The last durable commit before this one."""

    generation: int
    sequence: int
    round: int
    phase: Phase


@dataclass(frozen=True, slots=True)
class Commit:
    """One manifest, parsed and checked against its own digest.

    Attributes
    ----------
    path : str
        The manifest's file, in full.
    token : str
        The random token of the server that wrote it.
    time : float
        Seconds since 1970, by that server's clock; nothing is decided by it.
    arrays, state, stored_documents : tuple of Entry
        The global arrays, the strategy's, and the documents too large for the manifest.
    inline_documents : dict
        The other documents.
    outcomes : tuple of Outcome
        Those since the last of `segments`, oldest first.
    passed : tuple of Extent
        What servers of this line found damaged and left where it is.
    """

    path: str
    token: str
    generation: int
    sequence: int
    round: int
    phase: Phase
    time: float
    parent: Parent | None
    line: tuple[Span, ...]
    files: tuple[DataFile, ...]
    arrays: tuple[Entry, ...]
    state: tuple[Entry, ...]
    stored_documents: tuple[Entry, ...]
    inline_documents: dict[str, Json]
    outcomes: tuple[Outcome, ...]
    segments: tuple[Segment, ...]
    passed: tuple[Extent, ...]

    @property
    def name(self) -> CommitName:
        """What the manifest's file is called."""
        return CommitName(self.round, self.generation, self.phase)

    def entries(self) -> Iterator[Entry]:
        """All that lies in data files: arrays, state, documents."""
        yield from self.arrays
        yield from self.state
        yield from self.stored_documents

    def comes_from(self, other: Commit) -> bool:
        """Whether another commit lies on the line that ends here, before this one or this one itself."""
        return any(
            span.generation == other.generation
            and span.first <= other.round <= span.last
            and other.sequence <= span.sequence
            for span in self.line
        )

    def covers(self, name: CommitName) -> bool:
        """Whether a commit lies on the line that ends here, as far as its name tells."""
        return any(span.generation == name.generation and span.first <= name.round <= span.last for span in self.line)
