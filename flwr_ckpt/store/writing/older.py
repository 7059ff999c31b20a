"""What servers before this one left in a run's folder, and what of it may go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from ..errors import CheckpointCorruptError
from ..format.generations import read_fence
from ..format.records import Commit, Extent
from ..names import (
    FENCES,
    CommitName,
    FileName,
    fence_key,
    parse_data,
    parse_fence,
    parse_manifest,
    parse_segment,
    parse_temporary,
    round_folder,
)
from ..places.files import Files
from ..reading.newest import VanishedError, read_commit


class Older:
    """The files of lower generations, from one listing that was taken after an own durable commit.

    Parameters
    ----------
    files : Files
    keys : iterable of str
        The listing.
    generation : int
        Only names of lower ones are looked at.
    head : Commit
        The newest commit: what is off its line is dead.
    spare : bool
        Whether to leave what was found damaged, or cannot be read, where it is.

    Attributes
    ----------
    on_line : list of CommitName
        The commits that a policy decides on.
    dead : list of CommitName
        The commits that nothing leads to any more.
    """

    def __init__(self, files: Files, keys: Iterable[str], generation: int, head: Commit, *, spare: bool) -> None:
        self.on_line: list[CommitName] = []
        self.dead: list[CommitName] = []
        self._files = files
        self._spare = spare
        self._manifests: set[CommitName] = set()
        self._lying: defaultdict[tuple[int, int], set[str]] = defaultdict(set)  # by generation and round
        self._fences: set[int] = set()
        self._changed = True
        self._references: dict[CommitName, frozenset[str] | None] = {}
        self._sort(keys, generation)
        spared = head.passed if spare else ()
        for name in sorted(self._manifests):
            if not any(holds(extent, name.generation, name.round) for extent in spared):
                (self.on_line if head.covers(name) else self.dead).append(name)
        live = {(name.generation, name.round) for name in self._manifests}
        self._suspects = {
            key
            for where, lying in self._lying.items()
            for key in lying
            if where not in live and not any(holds(extent, *where) for extent in spared)
        }

    def remove(self, name: CommitName) -> None:
        """Delete a commit's manifest, unless it is damaged and to be spared; its files are then in question."""
        if self._spare and self._references_of(name) is None:
            return
        self._files.remove(name.key)
        self._manifests.discard(name)
        self._changed = True
        where = (name.generation, name.round)
        if not any((other.generation, other.round) == where for other in self._manifests):
            self._suspects |= self._lying[where]

    def remove_files(self, is_needed: Callable[[str], bool]) -> set[str]:
        """Delete the files in question that are not needed and no commit here refers to; give their folders."""
        folders = set()
        for key in sorted(key for key in self._suspects if not is_needed(key)):
            name = _file_name(key)
            if name is None or self._is_referred_to(key, name):
                continue
            self._files.remove(key)
            self._suspects.discard(key)
            self._changed = True
            self._lying[name.generation, name.round].discard(key)
            folders.add(key.rpartition("/")[0])
        return folders

    def remove_fences(self) -> None:
        """Delete the fences of generations that have left nothing; a removed run's stays."""
        if not self._changed:
            return
        self._changed = False
        left = {name.generation for name in self._manifests}
        left |= {generation for (generation, _), lying in self._lying.items() if lying}
        gone = sorted(self._fences - left)
        for generation in gone:
            fence = read_fence(self._files, generation)
            if fence is not None and not fence.removed:
                self._files.remove(fence_key(generation))
            self._fences.discard(generation)
        if gone:  # else a run that loses its power again and again would have all of them back each time
            self._files.sync_folder(FENCES)

    def _sort(self, keys: Iterable[str], generation: int) -> None:
        for key in keys:
            fence, manifest, file = parse_fence(key), parse_manifest(key), _file_name(key)
            temporary = parse_temporary(key)
            if fence is not None and fence < generation:
                self._fences.add(fence)
            elif manifest is not None and manifest.generation < generation:
                self._manifests.add(manifest)
            elif file is not None and file.generation < generation:
                self._lying[file.generation, file.round].add(key)
            elif temporary is not None and temporary < generation:
                self._files.remove(key)
            elif key.endswith("/"):
                self._remove_folder(key[:-1])

    def _remove_folder(self, folder: str) -> None:
        number = folder.rpartition("-")[2]
        if number.isascii() and number.isdecimal() and folder == round_folder(int(number)):
            self._files.remove_folder(folder)

    def _is_referred_to(self, key: str, file: FileName) -> bool:
        """Whether a commit refers to a file: one of its generation or a later one, of its round or a later one."""
        return any(
            key in (self._references_of(name) or ())
            for name in self._manifests
            if name.generation >= file.generation and name.round >= file.round
        )

    def _references_of(self, name: CommitName) -> frozenset[str] | None:
        """The files a commit refers to, or ``None`` if its manifest is damaged."""
        if name not in self._references:
            try:
                commit = read_commit(self._files, name)
            except VanishedError:
                self._references[name] = frozenset()
            except CheckpointCorruptError:
                self._references[name] = None
            else:
                segments = (segment.key for segment in commit.segments)
                self._references[name] = frozenset([*(file.key for file in commit.files), *segments])
        return self._references[name]


def _file_name(key: str) -> FileName | None:
    return parse_data(key) or parse_segment(key)


def holds(extent: Extent, generation: int, server_round: int) -> bool:
    """Whether a round of a generation is among commits that were found damaged."""
    return extent.generation == generation and extent.first <= server_round <= extent.last
