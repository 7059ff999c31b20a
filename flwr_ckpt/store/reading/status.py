"""How far a run has come, without reading its arrays."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import CheckpointCorruptError
from ..format.generations import highest_generation, read_fence
from ..format.records import Commit
from ..format.servers import Server, read_server
from ..names import parse_fence, parse_manifest
from ..places.files import Files
from ..values import Json
from .run import RunReader


@dataclass(frozen=True)
class RunStatus:
    """How far a run has come.

    Attributes
    ----------
    exists : bool
        Whether a server has opened the run, and nobody has removed it since.
    damaged : bool
        Whether there are checkpoints of which none can be read.
    round : int or None
        The newest finished round; ``None`` if nothing is saved, or nothing of it can be read.
    num_rounds : int or None
        How many rounds its server was asked for; ``None`` where that is not known, as in the legacy API.
    finished : bool
        Whether its server has come to the end.
    phase : str or None
        The newest phase that is on disk.
    generation : int
        Of the newest commit; 0 if there is none.
    time : float or None
        When that was made: seconds since 1970 by its server's clock.
    restarts : tuple of int
        The first rounds that other servers saved than the one before them.
    server : Server or None
        Who opened the run last.
    """

    exists: bool
    damaged: bool
    round: int | None
    num_rounds: int | None
    finished: bool
    phase: str | None
    generation: int
    time: float | None
    restarts: tuple[int, ...]
    server: Server | None


def status_of(files: Files, reader: RunReader) -> RunStatus:
    """Look how far a run has come."""
    head = reader.newest()
    keys = files.keys()
    highest = highest_generation(keys)
    return RunStatus(
        exists=highest > highest_removed(files, keys),
        damaged=head is None and has_checkpoints(files, keys),
        round=None if head is None else head.round - (head.phase == "attempt"),
        num_rounds=None if head is None else _num_rounds(reader, head),
        finished=head is not None and head.phase == "end",
        phase=None if head is None else head.phase,
        generation=0 if head is None else head.generation,
        time=None if head is None else head.time,
        restarts=() if head is None else tuple(dict.fromkeys(span.first for span in head.line[1:])),
        server=read_server(files, highest),
    )


def size_of(files: Files) -> int:
    """Sum the sizes of all files of a run."""
    keys = files.keys()
    return sum(files.size(key) or 0 for key in keys)


def has_checkpoints(files: Files, keys: Iterable[str]) -> bool:
    """Whether there are manifests that count, readable or not."""
    keys = list(keys)
    removed = highest_removed(files, keys)
    return any(name.generation > removed for name in map(parse_manifest, keys) if name is not None)


def highest_removed(files: Files, keys: Iterable[str]) -> int:
    """Find the generation with which the run was last removed; 0 if it never was."""
    fences = (read_fence(files, number) for number in map(parse_fence, keys) if number is not None)
    return max((fence.generation for fence in fences if fence is not None and fence.removed), default=0)


def _num_rounds(reader: RunReader, commit: Commit) -> int | None:
    try:
        identity = _document(reader, commit, "identity")
    except CheckpointCorruptError:
        return None  # that is for `verify` to say
    value = identity.get("num_rounds") if isinstance(identity, dict) else None
    return value if type(value) is int else None


def _document(reader: RunReader, commit: Commit, name: str) -> Json:
    """Read one document: the state tree beside it may be far larger."""
    entry = next((entry for entry in commit.stored_documents if entry.name == name), None)
    if entry is None:
        return commit.inline_documents.get(name)
    return json.loads(reader.read(commit, entry))
