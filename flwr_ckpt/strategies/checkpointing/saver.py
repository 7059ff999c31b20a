"""Hands finished phases to the writer: what is due now, what is held back, what failed."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence

from ...state import Snapshot
from ...store import BackgroundWriter, Blob, Commit, Draft, Json, LateDocuments, Outcome, Phase, RunWriter
from .. import logs
from .failures import Failures


class Saver:
    """The writing half of a run, from the first hook that is really called.

    Parameters
    ----------
    writer : RunWriter
        This server's hold of the run.
    failures : Failures
        Where commits that failed are noted.
    save_every : int
        Commit every k-th round only; the newest of the others is held back until the run is closed.
    before_release : bool
        Whether each commit is waited for.
    """

    def __init__(self, writer: RunWriter, failures: Failures, *, save_every: int, before_release: bool) -> None:
        self._failures = failures
        self._save_every = save_every
        self._before_release = before_release
        self._background = BackgroundWriter(
            writer.commit, writer.retain, on_error=failures.met, on_durable=functools.partial(_told, failures)
        )
        self._end = weakref.finalize(self, _end, self._background, writer)
        self._pending: list[Outcome] = []
        self._held: Draft | None = None
        self._last_round = 0  # of what has been noted in this process
        self._last_submitted = 0

    @property
    def holds_unsaved(self) -> bool:
        """Whether the newest phase could not be saved, because its state could not be captured."""
        return self._held is not None and self._held.state is None

    @property
    def is_copy(self) -> bool:
        """Whether this process is a child, made by ``fork``, of the one that writes: nothing is its own to end."""
        return self._background.is_copy

    def note(self, outcome: Outcome) -> None:
        """Take an outcome down, for the next commit to carry."""
        self._pending.append(outcome)
        self._last_round = outcome.round

    def save(
        self,
        server_round: int,
        phase: Phase,
        blobs: Sequence[Blob] | None,
        snapshot: Snapshot,
        documents: Callable[[], Mapping[str, Json]],
        durable: Callable[[Commit], None],
        *,
        due: bool = True,
    ) -> None:
        """Make a commit of what has been noted and captured; hold it back if its round is not due.

        Parameters
        ----------
        blobs : sequence of Blob, or None
            The global arrays; None leaves them as they are on disk.
        snapshot : Snapshot
            The strategy's own state.
        documents : callable
            Makes, in the writer's thread, what else goes into the commit.
        durable : callable
            Called with the commit in the writer's thread, once it is durable.
        due : bool
            Whether this round is saved whatever `save_every` says.
        """
        draft = Draft(
            round=server_round,
            phase=phase,
            arrays=self._arrays(blobs),
            state=snapshot.blobs,
            documents=LateDocuments(documents),
            outcomes=tuple(self._pending),
            durable=durable,
            release=snapshot.release,
        )
        if not due and server_round % self._save_every:
            self._hold(draft)
            return
        if self._held is not None:
            self._hold(None)
        self._submit(draft)
        if self._before_release:
            self.settle()

    def skip(self, server_round: int, phase: Phase, blobs: Sequence[Blob] | None) -> None:
        """Keep the arrays of a phase whose state could not be captured, for a later commit."""
        self._hold(Draft(server_round, phase, self._arrays(blobs)))

    def attempt(self, server_round: int, count: int) -> None:
        """Write down that the training of a round is sent, and wait until that is durable."""
        self._submit(Draft(server_round, "attempt", documents={"attempts": {str(server_round): count}}))
        self.settle()

    def end(
        self,
        capture: Callable[[Json], tuple[Snapshot, Callable[[], Mapping[str, Json]]]],
        choices: Json,
        durable: Callable[[Commit], None],
    ) -> None:
        """Write what is held back, and that the run is finished.

        Parameters
        ----------
        capture : callable
            Given the choices, gives state and documents, if phases that made no commit of their own came after the
            last one.
        choices : Json
            Models that are chosen and not written yet.
        durable : callable
            As in `save`.
        """
        self._release_held()
        if self._pending:
            snapshot, documents = capture(choices)
            self.save(self._last_round, "end", None, snapshot, documents, durable)
        else:
            self._submit(Draft(self._last_round, "end", documents={"choices": choices}, durable=durable))
        self.settle()

    def wait(self, server_round: int) -> None:
        """Wait until all commits up to a round are durable or have failed; raise what is to be raised."""
        self._background.wait(server_round)
        self.raise_failure()

    def settle(self) -> None:
        """Wait for all that was handed over; raise what is to be raised."""
        self.wait(self._last_submitted)

    def flush(self) -> None:
        """Wait until all that was handed over is durable.

        Raises
        ------
        FencedError
            If another server has taken the run over.
        CheckpointError
            If a commit failed, whatever ``on_error`` says.
        """
        self.settle()
        self._failures.raise_unsaved()

    def raise_failure(self) -> None:
        """Raise that another server has taken over, or the first failure that is to be raised."""
        if (fenced := self._background.fenced) is not None:
            raise fenced
        if self._failures.first is not None:
            self._failures.raise_once()

    def close(self) -> None:
        """Write what is held back and end the writer."""
        try:
            if self._background.fenced is None:
                self._release_held()
        finally:
            self._end()
        self.raise_failure()

    def _arrays(self, blobs: Sequence[Blob] | None) -> Sequence[Blob] | None:
        """The arrays of a commit: where a phase has none, those that are held back are not on disk yet."""
        if blobs is not None:
            return blobs
        return None if self._held is None else self._held.arrays

    def _hold(self, draft: Draft | None) -> None:
        if self._held is not None:
            self._held.release()
        self._held = draft

    def _release_held(self) -> None:
        held, self._held = self._held, None
        if held is not None and held.state is not None:
            self._submit(held)

    def _submit(self, draft: Draft) -> None:
        del self._pending[: len(draft.outcomes)]  # what a draft carries is what had been noted as it was made
        self._last_submitted = draft.round
        self._background.submit(draft)


def _told(failures: Failures, commit: Commit, seconds: float) -> None:
    failures.made_good()
    logs.debug("Round %d (%s) is on disk, %.2f s after it was handed over", commit.round, commit.phase, seconds)


def _end(background: BackgroundWriter, writer: RunWriter) -> None:
    """End a run's threads. What its commits met has been noted by `Failures`, or is the writer's `fenced`."""
    try:
        background.close()
    except Exception as error:
        logs.LOGGER.debug("closing after a failed commit: %s", error)
    finally:
        writer.close()
