"""Reading a run: no generation is taken, and nothing is made, moved or deleted."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ..draft import Outcome
from ..errors import CheckpointCorruptError, CheckpointError, CheckpointNotFoundError
from ..format.generations import highest_generation
from ..format.history import HistoryCorruptError, check_segment, read_outcomes
from ..format.payloads import problems_of, read_blob, read_blobs, unsound_by_size, view_payloads
from ..format.records import Commit, Entry, Extent, Segment
from ..format.servers import Server, read_server
from ..names import FENCES, CommitName, parse_manifest, round_folder
from ..places.files import Files
from ..values import Json
from .newest import Line, Manifests, VanishedError, read_commit

__all__ = ["Commit", "Entry", "Loaded", "RunReader"]

logger = logging.getLogger("flwr")

_TRIES = 20  # a live server deletes a round a round; who meets that this often meets something else
_T = TypeVar("_T")


class Located(Protocol):
    """A place, as far as the store needs it."""

    @property
    def where(self) -> str:
        """Its path or URL, for messages."""

    def files(self) -> Files:
        """Open it."""


@dataclass(frozen=True)
class Loaded:
    """A commit with all that it holds, verified.

    Attributes
    ----------
    commit : Commit
    arrays, state : dict
        Name to exactly the ``Blob.data`` that was handed over, in order.
    documents : dict
        The JSON documents by name.
    outcomes : list of Outcome
        The whole history up to the commit, oldest first.
    segments : tuple of Segment
        Those of the commit's history segments that are sound.
    """

    commit: Commit
    arrays: dict[str, bytes]
    state: dict[str, bytes]
    documents: dict[str, Json]
    outcomes: list[Outcome]
    segments: tuple[Segment, ...]


class RunReader:
    """One run, to look at.

    Parameters
    ----------
    location : Located
        A place with nothing there is a run without commits.
    files : Files, optional
        If not the location's own.
    recheck : callable, optional
        Called when something seems damaged: a writer makes sure here that no newer server is deleting it.
    after : RunReader, optional
        The reader before, of the same opening: what it has warned of is not said again, and what it has decoded need
        not be decoded again.

    Attributes
    ----------
    passed : tuple of Extent
        What the last `resume` found damaged and passed over.
    """

    def __init__(
        self,
        location: Located,
        files: Files | None = None,
        *,
        recheck: Callable[[], None] = lambda: None,
        after: RunReader | None = None,
    ) -> None:
        self.location = location
        self._files = files if files is not None else location.files()
        self._recheck = recheck
        self.passed: tuple[Extent, ...] = ()
        self._warned: set[str] = after._warned if after is not None else set()
        self._manifests: Manifests = after._manifests if after is not None else Manifests()
        self._known: tuple[list[str], Commit] | None = None  # the fences, and the newest commit under them

    def newest(self) -> Commit | None:
        """Find the newest commit whose manifest is sound and whose files have their sizes.

        Raises
        ------
        FormatVersionError
            If a newer version of this package wrote the run.
        """
        fences = self._files.keys(FENCES)
        commit = self._steadily(self._newest)
        self._known = (fences, commit) if commit is not None else None
        return commit

    def resume(self, *, strict_history: bool = True) -> Loaded | None:
        """Load the newest commit that verifies, passing over damaged ones with one warning each.

        Parameters
        ----------
        strict_history : bool
            Whether a damaged part of the history is an error; else its metrics are left out.

        Raises
        ------
        CheckpointCorruptError
            If a part of the history is damaged; the message names its rounds.
        FormatVersionError
            If a newer version of this package wrote the run.
        """
        return self._steadily(lambda line: self._resume(line, strict_history))

    def server(self) -> Server | None:
        """Say who opened the run last; ``None`` if nobody can be named."""
        return read_server(self._files, highest_generation(self._files.keys()))

    def commits(self) -> list[Commit]:
        """Read every readable commit on the line of the newest, oldest first."""
        return self._steadily(lambda line: list(line.commits()))[::-1]

    def names(self) -> list[CommitName]:
        """List every commit on the line of the newest, readable or not, by round."""
        return self._steadily(Line.names)

    def commit(self, name: CommitName) -> Commit:
        """Read one manifest.

        Raises
        ------
        CheckpointCorruptError, CheckpointNotFoundError
        """
        try:
            return read_commit(self._files, name)
        except VanishedError:
            raise self._gone(name.round, name.key) from None

    def of_round(self, server_round: int) -> Commit | None:
        """Find the newest commit on the line that holds the arrays as that round left them."""
        head = self._line_head(server_round)
        keys = self._files.keys(round_folder(server_round)) if head is not None else []
        found = []
        for name in filter(None, map(parse_manifest, keys)):
            if name.phase == "attempt" or head is None or not head.covers(name):
                continue
            try:
                commit = read_commit(self._files, name)
            except VanishedError:
                continue
            except CheckpointCorruptError as error:
                self._warn(name.key, f"Passing over a damaged checkpoint: {error}")
                continue
            if head.comes_from(commit) and unsound_by_size(self._files, commit) is None:
                found.append(commit)
        return max(found, key=lambda commit: commit.sequence, default=None)

    def outcomes(self, commit: Commit) -> list[Outcome]:
        """Read the whole history up to a commit, oldest first.

        Raises
        ------
        CheckpointCorruptError
            If a part of it is damaged; the message names its rounds.
        """
        return read_outcomes(self._files, commit, strict=True)[0]

    def documents(self, commit: Commit) -> dict[str, Json]:
        """Read the documents of a commit.

        Raises
        ------
        CheckpointCorruptError, CheckpointNotFoundError
            As `read`.
        """
        return self._present(commit, lambda: self._documents(commit))

    def load(self, commit: Commit, *, strict_history: bool = True) -> Loaded:
        """Read and verify all that a commit holds.

        Parameters
        ----------
        strict_history : bool
            Whether a damaged part of the history is an error; else its metrics are left out.

        Raises
        ------
        CheckpointCorruptError
            If any of it is damaged.
        CheckpointNotFoundError
            If the round has been removed meanwhile.
        """
        return self._present(commit, lambda: self._load_sized(commit, strict_history))

    def read(self, commit: Commit, entry: Entry) -> bytes:
        """Read exactly the ``Blob.data`` that was handed over, verified.

        Raises
        ------
        CheckpointCorruptError
            If no copy of it is sound.
        CheckpointNotFoundError
            If the round has been removed meanwhile.
        """
        return self._present(commit, lambda: read_blob(self._files, entry))

    def views(self, commit: Commit, entries: Sequence[Entry]) -> list[memoryview]:
        """Map the elements of entries (without their headers) from the disk, verified.

        Raises
        ------
        CheckpointCorruptError, CheckpointNotFoundError
            As `read`.
        """
        return self._present(commit, lambda: view_payloads(self._files, entries))

    def problems(self, commit: Commit) -> list[str]:
        """Verify every byte of every file that a commit refers to, dead ones too; say what is wrong."""
        found = list(problems_of(self._files, commit))
        for segment in commit.segments:
            try:
                check_segment(self._files, segment)
            except CheckpointCorruptError as error:
                found.append(str(error))
        return found

    def _steadily(self, work: Callable[[Line], _T]) -> _T:
        """Work on one listing, and begin again when something in it turns out to be gone, or newer than all of it.

        A listing is not of one moment: while it is taken, a live server may add a round beyond where it has come to
        and remove the last one that it has not come to.
        """
        vanished = ""
        for _ in range(_TRIES):
            keys = self._files.keys()
            try:
                result = work(Line(self._files, self._manifests, keys, self._warn))
            except VanishedError as error:
                vanished = str(error)
                continue
            if _newest_name(keys) == _newest_name(self._files.keys()):
                return result
        raise CheckpointError(
            f"{self._files.describe()}: the run changes faster than it can be read"
            + (f"; the last file to vanish was {vanished}. Is something else deleting files?" if vanished else "")
        )

    def _newest(self, line: Line) -> Commit | None:
        for commit in line.commits():
            problem = unsound_by_size(self._files, commit)
            if problem is None:
                return commit
            self._damaged(commit, problem)
        return None

    def _resume(self, line: Line, strict_history: bool) -> Loaded | None:
        unsound: list[CommitName] = []
        loaded = None
        for commit in line.commits():
            try:
                loaded = self._load_sized(commit, strict_history)
                break
            except HistoryCorruptError:
                raise
            except CheckpointCorruptError as error:
                self._damaged(commit, str(error))
                unsound.append(commit.name)
        self.passed = _extents([*line.unreadable, *unsound])
        return loaded

    def _load_sized(self, commit: Commit, strict_history: bool) -> Loaded:
        problem = unsound_by_size(self._files, commit)
        if problem is not None:
            raise CheckpointCorruptError(problem)
        return self._load(commit, strict_history)

    def _load(self, commit: Commit, strict_history: bool) -> Loaded:
        blobs = read_blobs(self._files, [*commit.arrays, *commit.state])
        arrays, state = blobs[: len(commit.arrays)], blobs[len(commit.arrays) :]
        documents = self._documents(commit)
        outcomes, segments = read_outcomes(self._files, commit, strict=strict_history)
        return Loaded(
            commit=commit,
            arrays={entry.name: data for entry, data in zip(commit.arrays, arrays, strict=True)},
            state={entry.name: data for entry, data in zip(commit.state, state, strict=True)},
            documents=documents,
            outcomes=outcomes,
            segments=segments,
        )

    def _documents(self, commit: Commit) -> dict[str, Json]:
        documents = dict(commit.inline_documents)
        for entry in commit.stored_documents:
            try:
                documents[entry.name] = json.loads(read_blob(self._files, entry))
            except (ValueError, RecursionError) as error:
                if isinstance(error, CheckpointCorruptError):
                    raise
                raise CheckpointCorruptError(f"{commit.path}: the document {entry.name!r} is no JSON") from error
        return documents

    def _present(self, commit: Commit, read: Callable[[], _T]) -> _T:
        """Read from a commit; what is missing because the round has been removed is not damage."""
        try:
            return read()
        except CheckpointCorruptError:
            if self._files.size(commit.name.key) is None:
                raise self._gone(commit.round, commit.name.key) from None
            raise

    def _damaged(self, commit: Commit, problem: str) -> None:
        """Look a second time, then say that a commit is passed over."""
        self._recheck()
        if self._files.size(commit.name.key) is None:
            raise VanishedError(commit.name.key)
        # One file may hold the arrays of every commit of its round: that is one thing to say, not four.
        message = f"Passing over round {commit.round} ({commit.phase}), which is damaged: {problem}"
        self._warn(f"{commit.generation}/{commit.round}", message)

    def _line_head(self, server_round: int) -> Commit | None:
        """The newest commit; found again only if a server has opened the run, or that round came later."""
        if self._known is not None:
            fences, head = self._known
            if head.round > server_round and fences == self._files.keys(FENCES):
                return head
        return self.newest()

    def _gone(self, server_round: int, key: str) -> CheckpointNotFoundError:
        return CheckpointNotFoundError(
            f"{self._files.describe(key)}: round {server_round} is no longer there: retention (keep=...) or somebody "
            "has removed it. Keep more rounds to have it, or take one of those that `flwr-ckpt ls` lists"
        )

    def _warn(self, about: str, message: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            logger.warning("%s", message)


def _newest_name(keys: Sequence[str]) -> tuple[int, int] | None:
    names = [(name.generation, name.round) for name in map(parse_manifest, keys) if name is not None]
    return max(names, default=None)


def _extents(names: Sequence[CommitName]) -> tuple[Extent, ...]:
    """Sum commits up, one extent a generation: those passed over lie together."""
    rounds: dict[int, list[int]] = {}
    for name in names:
        rounds.setdefault(name.generation, []).append(name.round)
    return tuple(Extent(generation, min(of), max(of)) for generation, of in sorted(rounds.items()))
