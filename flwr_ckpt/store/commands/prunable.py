"""What pruning would delete, before anybody is asked whether it may."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ..errors import CheckpointCorruptError, CheckpointNotFoundError
from ..format.history import flat_metrics
from ..format.records import Commit, Extent
from ..keep import Keep
from ..names import CommitName, FileName, parse_data, parse_fence, parse_manifest, parse_segment, parse_temporary
from ..places.files import Files
from ..reading.run import Loaded, Located, RunReader
from ..writing.older import holds
from ..writing.retention import KeepPolicy, RoundRecord
from .rewind import damaged_commits


@dataclass(frozen=True)
class Prunable:
    """What pruning would delete.

    Attributes
    ----------
    rounds : tuple of int
        Rounds of which nothing would be left.
    size : int
        Bytes of the files that would go; what hard links share with other runs counts.
    """

    rounds: tuple[int, ...]
    size: int


def prunable(location: Located, keep: KeepPolicy, *, damaged: bool = False, files: Files | None = None) -> Prunable:
    """Say what `prune` would delete. This fences nobody and changes nothing."""
    files = files if files is not None else location.files()
    reader = RunReader(location, files)
    loaded = reader.resume(strict_history=False)
    if loaded is None:
        return Prunable((), 0)
    condemned = damaged_commits(reader) if damaged else set()
    passed = () if damaged else (*loaded.commit.passed, *reader.passed)
    names = reader.names()
    counting = [name for name in names if name not in condemned and not _is_among(name, passed)]
    kept = _kept(loaded, counting, keep)
    keys = files.keys()
    needed = _references(loaded.commit) | _spared(keys, passed)
    for name in counting:
        needed |= _needed(reader, name, keys, kept=name.round in kept, damaged=damaged)
    rounds = {name.round for name in names if name.phase != "attempt"} - kept
    gone = [key for key in keys if _may_go(key) and key not in needed]
    return Prunable(tuple(sorted(rounds)), sum(files.size(key) or 0 for key in gone))


def _kept(loaded: Loaded, names: Iterable[CommitName], keep: KeepPolicy) -> set[int]:
    records = {name.round: RoundRecord(name.round) for name in names if name.phase != "attempt"}
    for outcome in loaded.outcomes:
        if outcome.round in records:
            records[outcome.round].metrics.update(flat_metrics(outcome))
    return keep.select(list(records.values())) | {loaded.commit.round}


def _needed(reader: RunReader, name: CommitName, keys: Iterable[str], *, kept: bool, damaged: bool) -> set[str]:
    """What stays for the sake of one commit."""
    try:
        commit = reader.commit(name)
    except CheckpointNotFoundError:
        return set()
    except CheckpointCorruptError:
        if damaged:
            return set()
        lying = _spared(keys, [Extent(name.generation, name.round, name.round)])
        return {name.key} | {key for key in lying if parse_manifest(key) is None}
    return _references(commit) if kept else set()


def _references(commit: Commit) -> set[str]:
    return {commit.name.key, *(file.key for file in commit.files), *(segment.key for segment in commit.segments)}


def _spared(keys: Iterable[str], extents: Collection[Extent]) -> set[str]:
    """The files of rounds that were found damaged: they are left where they are."""
    return {key for key in keys if extents and (name := _name_of(key)) is not None and _is_among(name, extents)}


def _is_among(name: CommitName | FileName, extents: Iterable[Extent]) -> bool:
    return any(holds(extent, name.generation, name.round) for extent in extents)


def _name_of(key: str) -> CommitName | FileName | None:
    return parse_manifest(key) or parse_data(key) or parse_segment(key)


def _may_go(key: str) -> bool:
    return parse_fence(key) is None and (_name_of(key) is not None or parse_temporary(key) is not None)


def require_known(keep: Keep, known: Collection[str], where: str) -> None:
    """Refuse a policy that looks at a metric that no round has: it would keep nothing for that.

    Raises
    ------
    ValueError
        Naming the metric, and those there are.
    """
    if unknown := sorted(set(keep.metrics()) - set(known)):
        raise ValueError(f"{where}: no round has {', '.join(unknown)}; there are {', '.join(sorted(known)) or 'none'}")
