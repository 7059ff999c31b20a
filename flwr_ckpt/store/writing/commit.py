"""Writing a run: commits by the full protocol, one generation a writer.

A commit is durable once its manifest is linked and synced and a second look has shown that no newer server had
opened the run before that. What a failed commit carried is remembered, and the next round's commit carries it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ..draft import Blob, Draft, Outcome, Phase
from ..errors import CheckpointNotFoundError, FencedError
from ..format.generations import Fence, look, take_generation
from ..format.history import Recent, archive, is_due
from ..format.manifest import encode
from ..format.records import Commit, Extent, Parent, Segment, Span
from ..names import CommitName, round_folder, segment_key
from ..places.files import Files, is_damage
from ..reading.run import Loaded, Located, RunReader
from ..values import Json
from .assembly import Assembler, Tables
from .linking import link_files
from .retention import KeepPolicy, Retention

_MAYBE = "Its manifest was made before that was noticed, so it may have taken effect: `flwr-ckpt ls` shows it"
_NOT = "It has not taken effect"


@dataclass(frozen=True)
class _Carried:
    """What failed commits were to hold."""

    arrays: Sequence[Blob] | None = None
    state: Sequence[Blob] | None = None
    documents: Mapping[str, Json] = field(default_factory=dict)
    outcomes: tuple[Outcome, ...] = ()

    def under(self, draft: Draft) -> Draft:
        """Give a draft all that it leaves as in the commit before, which failed."""
        return draft._replace(
            arrays=self.arrays if draft.arrays is None else draft.arrays,
            state=self.state if draft.state is None else draft.state,
            documents={**self.documents, **draft.documents},
            outcomes=self.outcomes + draft.outcomes,
        )


class _History(NamedTuple):
    """The outcomes that stand in a manifest, and the segments that hold those before them."""

    recent: Recent = Recent()
    segments: tuple[Segment, ...] = ()


@dataclass(frozen=True)
class _Past:
    """What the next commit builds on.

    Attributes
    ----------
    parent : Parent or None
    line : tuple of Span
        The generations before this one.
    history : _History
    """

    parent: Parent | None = None
    line: tuple[Span, ...] = ()
    history: _History = field(default_factory=_History)
    passed: tuple[Extent, ...] = ()


class RunWriter:
    """One server's hold of a run.

    Made by `open`. `commit` is for one thread; `retain` may run in another one beside it.

    Attributes
    ----------
    location : Located
    generation : int
    resumed : Loaded or None
        What was newest when the run was opened; let go of with the first commit.
    """

    def __init__(
        self,
        location: Located,
        files: Files,
        fence: Fence,
        keep: KeepPolicy,
        base: Commit | None = None,
        passed: tuple[Extent, ...] = (),
        damaged: Collection[CommitName] | None = None,
    ) -> None:
        self.location = location
        self.generation = fence.generation
        self.resumed: Loaded | None = None
        self._files = files
        self._fence = fence
        self._past = _Past(passed=passed) if base is None else _past_of(base, passed)
        self._assembler = Assembler(files, fence.generation, base)
        self._retention = Retention(files, fence.generation, keep, damaged=damaged)
        self._sequence = 0 if base is None else base.sequence
        self._first_round: int | None = None
        self._carried = _Carried()
        self._failed_round: int | None = None
        self._rooted_round: int | None = None
        self._fenced: FencedError | None = None

    @classmethod
    def open(
        cls,
        location: Located,
        keep: KeepPolicy,
        *,
        strict_history: bool = True,
        files: Files | None = None,
        after: RunReader | None = None,
    ) -> RunWriter:
        """Take a generation, and make durable what is newest.

        Parameters
        ----------
        strict_history : bool
            Whether a damaged part of the history is an error; else its metrics are left out, for good.
        after : RunReader, optional
            Who has looked at the run for the same opening.

        Raises
        ------
        CheckpointCorruptError
            If a part of the history is damaged.
        FormatVersionError
            If a newer version wrote the run; then nothing has been made.
        FencedError
            If yet another server opened the run meanwhile and is changing it.
        OSError
            If the place cannot be written.
        """
        files = files if files is not None else location.files()
        before = RunReader(location, files, after=after)
        before.newest()
        fence = take_generation(files)
        reader = RunReader(location, files, recheck=lambda: look(files, fence), after=before)
        resumed = reader.resume(strict_history=strict_history)
        if resumed is None:
            return cls(location, files, fence, keep, passed=reader.passed)
        make_durable(files, resumed.commit)
        sound = replace(resumed.commit, segments=resumed.segments)
        writer = cls(location, files, fence, keep, sound, reader.passed)
        writer.resumed = resumed
        writer.remember(resumed.outcomes)
        return writer

    def remember(self, outcomes: Sequence[Outcome]) -> None:
        """Take the metrics of the rounds before, for policies that look at them."""
        self._retention.remember(outcomes)

    def commit(self, draft: Draft) -> Commit | None:
        """Make a draft durable, or raise. Its buffers are not used after that; to release them is the caller's.

        A commit of a round of which one has failed is not tried: the next round's carries what it was to hold.

        Returns
        -------
        Commit or None
            What is durable now; None if it was not tried.

        Raises
        ------
        FencedError
            If another server has taken the run over. Nothing is written any more.
        OSError, CheckpointError, ValueError, TypeError
            If the commit failed.
        """
        # Nothing comes before the `try`: whatever goes wrong, a MemoryError anywhere, the draft is carried.
        try:
            return self._commit(draft)
        except FencedError as error:
            self._fenced = error
            raise
        except BaseException:
            self._failed_round, self._carried = draft.round, _held(self._carried.under(draft))
            raise

    def retain(self) -> None:
        """Delete what retention says. Only after an own durable commit; beside `commit`, in any thread."""
        self._retention.run()

    def close(self) -> None:
        """Let go of what is held in memory. The fence stays: the next server's is above it."""
        self.resumed = None
        self._carried = _Carried()

    def restate(self, source_files: Files | None = None) -> Commit:
        """Commit what this writer builds on once more, under names of this generation.

        Nothing is copied where there are hard links. After it no file of an older generation is needed, so that no
        older server can take anything of it away.

        Parameters
        ----------
        source_files : Files, optional
            The run that it is of, if not of this one: of that nothing but this commit is in this run.

        Raises
        ------
        FileNotFoundError
            If one of its files is gone; then nothing has happened.
        FencedError
            If another server has taken the run over; the message says if this may have taken effect nevertheless.
        """
        base = self._assembler.base
        if base is None:
            raise CheckpointNotFoundError(f"{self._files.describe()}: there is no commit that could be stated again")
        if source_files is not None:
            self._past = replace(self._past, parent=None, line=(), passed=())
        self._files.make_folder(round_folder(base.round))
        tables, segments = link_files(self._files, base, self.generation, source_files or self._files)
        history = self._past.history._replace(segments=segments)
        commit = self._commit_of(base.round, base.phase, tables, history)
        try:
            self._link(commit, history)
        except FencedError as error:
            linked = self._files.size(commit.name.key) is not None
            raise FencedError(f"{error}. {_MAYBE if linked else _NOT}") from error
        self._assembler = Assembler(self._files, self.generation, commit)
        written = [*(file.key for file in commit.files), *(segment.key for segment in commit.segments)]
        self._durable(commit, history, written, ())
        return commit

    # --- one commit ----------------------------------------------------------------------------------------------

    def _commit(self, draft: Draft) -> Commit | None:
        if self._fenced is not None:
            raise self._fenced
        full = self._carried.under(draft)
        if draft.round == self._failed_round:
            self._carried = _held(full)
            return None
        commit = self._write(full)
        self._failed_round, self._carried = None, _Carried()
        return commit

    def _write(self, draft: Draft) -> Commit:
        written: list[str] = []
        name = CommitName(draft.round, self.generation, draft.phase)
        base = self._assembler.base
        try:
            self._files.make_folder(round_folder(draft.round))
            tables = self._assembler.assemble(draft, self._retention.crowded, written)
            if written:
                # Else a power loss could leave a manifest without what it refers to: that looks like damage, and
                # is then kept for good.
                self._files.sync_folder(round_folder(draft.round))
            history = self._history(draft, written)
            commit = self._commit_of(draft.round, draft.phase, tables, history)
            self._link(commit, history)
        except BaseException as error:
            self._retention.failed(name, base, written)
            if isinstance(error, (FileNotFoundError, FileExistsError)):
                look(self._files, self._fence)  # a folder that is gone, or a name that is taken, is another's doing
            raise
        self._assembler.settle(commit)
        self._durable(commit, history, written, draft.outcomes)
        return commit

    def _history(self, draft: Draft, written: list[str]) -> _History:
        """Say which outcomes stand in the manifest, and which in segments."""
        recent, segments = self._past.history
        recent = recent.and_then(draft.outcomes)
        old, new = recent.split(draft.round)
        if not old.outcomes or not is_due(recent):
            return _History(recent, segments)
        key = segment_key(draft.round, self.generation, draft.phase)
        written.append(key)
        return _History(new, archive(self._files, key, segments, old))

    def _commit_of(
        self,
        server_round: int,
        phase: Phase,
        tables: Tables,
        history: _History,
    ) -> Commit:
        # Never a number twice, even of a commit that failed: its manifest may be there nevertheless.
        self._sequence += 1
        if self._first_round is None:
            self._first_round = server_round
        return Commit(
            path=self._files.describe(CommitName(server_round, self.generation, phase).key),
            token=self._fence.token,
            generation=self.generation,
            sequence=self._sequence,
            round=server_round,
            phase=phase,
            time=time.time(),
            parent=self._past.parent,
            line=(*self._past.line, Span(self.generation, self._first_round, server_round, self._sequence)),
            files=tables.files,
            arrays=tables.arrays,
            state=tables.state,
            stored_documents=tables.stored_documents,
            inline_documents=tables.inline_documents,
            outcomes=history.recent.outcomes,
            segments=history.segments,
            passed=self._past.passed,
        )

    def _link(self, commit: Commit, history: _History) -> None:
        """Make a commit durable, its data being so."""
        look(self._files, self._fence)
        self._files.publish(commit.name.key, encode(commit, history.recent.lines))
        if commit.round != self._rooted_round:
            # The folder's own name, also where another server made it: who did may not have come to that.
            self._files.sync_folder()
            self._rooted_round = commit.round
        look(self._files, self._fence)

    def _durable(self, commit: Commit, history: _History, written: Sequence[str], outcomes: Sequence[Outcome]) -> None:
        self.resumed = None
        parent = Parent(commit.generation, commit.sequence, commit.round, commit.phase)
        self._past = replace(self._past, parent=parent, history=history)
        self._retention.durable(commit, written, outcomes)


def make_durable(files: Files, commit: Commit) -> None:
    """Sync all that a commit consists of: whoever wrote it may not have come to that.

    What one of two copies lies in may be missing.
    """
    keys = [commit.name.key, *(file.key for file in commit.files), *(segment.key for segment in commit.segments)]
    for key in keys:
        _sync(files.sync, key)
    for folder in sorted({key.rpartition("/")[0] for key in keys}):
        _sync(files.sync_folder, folder)
    files.sync_folder()


def _sync(sync: Callable[[str], None], key: str) -> None:
    try:
        sync(key)
    except OSError as error:
        if not is_damage(error):
            raise


def _past_of(base: Commit, passed: tuple[Extent, ...]) -> _Past:
    return _Past(
        parent=Parent(base.generation, base.sequence, base.round, base.phase),
        line=base.line,
        history=_History(Recent().and_then(base.outcomes), base.segments),
        passed=tuple(dict.fromkeys((*base.passed, *passed))),
    )


def _held(draft: Draft) -> _Carried:
    """Keep what a draft holds beyond the life of its buffers, which are used again after it."""
    return _Carried(_copied(draft.arrays), _copied(draft.state), draft.documents, draft.outcomes)


def _copied(blobs: Sequence[Blob] | None) -> tuple[Blob, ...] | None:
    if blobs is None:
        return None
    return tuple(blob if isinstance(blob.data, bytes) else blob._replace(data=bytes(blob.data)) for blob in blobs)
