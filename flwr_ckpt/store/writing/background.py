"""Commits beside the training: one thread writes, another one clears away, the caller hands over and goes on.

The caller's thread may be hit by ``SystemExit`` or ``KeyboardInterrupt`` at any point (Flower stops a ServerApp
that way). So what belongs to nobody is decided by looking at the queue, not by flags set on the way, and whoever
waits wakes the other side first: an interrupted call may have queued a draft without telling the writer.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from ..draft import Draft
from ..errors import CheckpointError, FencedError
from ..format.records import Commit

logger = logging.getLogger("flwr")

_NOTICEABLE_SECONDS = 0.5


class _Job:
    """A draft on its way. Compared by identity: two drafts may be equal."""

    def __init__(self, draft: Draft, since: float) -> None:
        self.draft, self.since = draft, since
        self.heavy = bool(draft.arrays) or bool(draft.state)
        self.taken = False


class BackgroundWriter:
    """Write drafts one after the other in a thread of its own.

    At most one draft *with arrays* waits behind the one being written; the next such blocks its caller until the
    writer has taken the waiting one, so that memory is bounded. Drafts without arrays queue without limit, in order.
    Every draft's ``release`` is called exactly once, whether it was written or not.

    Parameters
    ----------
    commit : callable
        Writes a draft; once it returns, the draft is durable. Runs in the writer thread, and the draft's ``durable``
        after it.
    retain : callable
        Deletes what retention says, after a durable commit, in a second thread. Calls that come while one is
        running are joined into one.
    on_error : callable
        Given a draft and why its commit failed, in the writer thread; later drafts are written nevertheless. Not
        called for a `FencedError`, which ends all writing and is raised to the caller instead.
    on_durable : callable
        Given a commit and how many seconds it took from when it was handed over, in the writer thread, ahead of the
        draft's own ``durable``.
    clock : callable
        Monotonic seconds.

    Attributes
    ----------
    fenced : FencedError or None
        Why nothing is written any more, once another server has taken the run over.
    """

    def __init__(
        self,
        commit: Callable[[Draft], Commit | None],
        retain: Callable[[], None],
        *,
        on_error: Callable[[Draft, BaseException], None],
        on_durable: Callable[[Commit, float], None] = lambda commit, seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._commit = commit
        self._retain = retain
        self._on_error = on_error
        self._on_durable = on_durable
        self._clock = clock
        self._pid = os.getpid()
        # Entered as a plain lock: the `__enter__` of a Condition is Python code, where an exception thrown into
        # the caller's thread could leave it locked for good.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._written = threading.Condition(self._lock)  # what retention waits for
        # What the writer waits for: a token for each job, at least. To wake it by a condition takes the caller longer.
        self._work: SimpleQueue[None] = SimpleQueue()
        self._queue: deque[_Job] = deque()
        self._writing: _Job | None = None
        self._failure: BaseException | None = None
        self.fenced: FencedError | None = None
        self._retention_due = False
        self._closing = False
        self._waited = 0.0
        self._report_from = _NOTICEABLE_SECONDS
        # Both are started here: at interpreter exit, where close() may be called, no thread can be started any more.
        self._threads = (
            threading.Thread(target=self._write_all, name="flwr-ckpt-writer", daemon=True),
            threading.Thread(target=self._retain_all, name="flwr-ckpt-retention", daemon=True),
        )
        for thread in self._threads:
            thread.start()

    @property
    def is_copy(self) -> bool:
        """Whether this process is a child, made by ``fork``, of the one whose threads write."""
        return os.getpid() != self._pid

    def submit(self, draft: Draft) -> float:
        """Hand a draft over to be written.

        Returns
        -------
        float
            Seconds that the caller was blocked because a draft with arrays was still waiting.

        Raises
        ------
        FencedError
            If another server has taken the run over. The draft is released, not written.
        CheckpointError
            After `close`, or in a child process made by ``fork``.
        """
        job = _Job(draft, self._clock())
        try:
            if os.getpid() != self._pid:
                raise self._foreign()
            return self._enqueue(job)
        except BaseException:
            if self._is_nobodys(job):
                _release(draft)
            raise

    def wait(self, server_round: int) -> None:
        """Wait until every draft handed over of a round up to `server_round` has been written or has failed."""
        if os.getpid() != self._pid:
            raise self._foreign()
        with self._lock:
            if self._is_written(server_round):
                return  # so it is in most rounds, and training waits for this
            waited = self._wait_while(lambda: not self._is_written(server_round))
        self._report(waited, f"before round {server_round} was written")

    def flush(self) -> None:
        """Wait until everything handed over has been written or has failed.

        Raises
        ------
        FencedError
            If another server has taken the run over.
        BaseException
            The first failure of a commit since the last flush, as the commit raised it.
        """
        if os.getpid() != self._pid:
            raise self._foreign()
        with self._lock:
            self._wait_while(lambda: not self._is_idle())
            failure, self._failure = self._failure, None
            error = self.fenced or failure
        if error is not None:
            raise error

    def close(self) -> None:
        """Flush, finish retention and end the threads. Closing again does nothing.

        In a child process made by ``fork`` there is nothing to close, and nothing is done.

        Raises
        ------
        FencedError, BaseException
            As `flush`; the threads are ended all the same.
        """
        if self.is_copy or not any(thread.is_alive() for thread in self._threads):
            return
        try:
            self.flush()
        finally:
            self._end_threads()

    def _enqueue(self, job: _Job) -> float:
        with self._lock:
            waited = 0.0
            if job.heavy and self._queue:
                waited = self._wait_while(
                    lambda: not self._closing and self.fenced is None and any(other.heavy for other in self._queue)
                )
            if self.fenced is not None:
                raise self.fenced
            if self._closing:
                raise CheckpointError(f"round {job.draft.round} was handed to a checkpoint writer that is closed")
            self._queue.append(job)
        self._work.put(None)
        if waited:
            self._report(waited, "to hand over the next one")
        return waited

    def _is_nobodys(self, job: _Job) -> bool:
        if self.is_copy:
            return True  # and the lock, copied in whatever state it was, is not to be touched
        with self._lock:
            return job not in self._queue and not job.taken

    def _end_threads(self) -> None:
        with self._lock:
            self._closing = True
            self._changed.notify_all()
            self._written.notify_all()
        self._work.put(None)
        for thread in self._threads:
            thread.join()

    def _is_written(self, server_round: int) -> bool:
        """Whether nothing up to a round is pending."""
        if self._writing is not None and self._writing.draft.round <= server_round:
            return False
        return all(job.draft.round > server_round for job in self._queue)

    def _is_idle(self) -> bool:
        return self._writing is None and not self._queue

    def _wait_while(self, condition: Callable[[], bool]) -> float:
        """Wait, holding the lock, until the condition no longer holds; return the seconds that took."""
        if not condition():
            return 0.0
        start = self._clock()
        self._work.put(None)
        while condition():
            self._changed.wait()
        return self._clock() - start

    def _report(self, seconds: float, what: str) -> None:
        """Say that the disk holds up training: at the first noticeable wait, then each time the total has doubled."""
        self._waited += seconds
        if seconds < _NOTICEABLE_SECONDS or self._waited < self._report_from:
            return
        self._report_from = 2 * self._waited
        logger.warning(
            "Training waited %.1f s %s (%.1f s in all so far): checkpoints are written more slowly than rounds "
            "are trained. A faster disk, or a larger save_every, would help.",
            seconds,
            what,
            self._waited,
        )

    def _foreign(self) -> CheckpointError:
        return CheckpointError(
            f"this checkpoint writer belongs to process {self._pid} and was used in process {os.getpid()}, a "
            "child made by fork. Only the process that opened a run writes to it: use the strategy there, or "
            "start children with the 'spawn' method"
        )

    def _write_all(self) -> None:
        while (job := self._take()) is not None:
            error = self._write(job)
            self._finish(job, error)

    def _take(self) -> _Job | None:
        while True:
            with self._lock:
                if self._queue:
                    job = self._queue[0]
                    # Taken before it leaves the queue: at no moment does it look like nobody's.
                    job.taken = True
                    self._writing = self._queue.popleft()
                    self._changed.notify_all()
                    return job
                if self._closing:
                    return None
            self._work.get()

    def _write(self, job: _Job) -> BaseException | None:
        try:
            if self.fenced is not None:
                return self.fenced
            commit = self._commit(job.draft)
            if commit is not None:
                self._on_durable(commit, self._clock() - job.since)
                job.draft.durable(commit)
            return None
        # Everything, MemoryError too: a writer thread that ended would leave its callers waiting for ever.
        except BaseException as error:
            return error
        finally:
            _release(job.draft)

    def _finish(self, job: _Job, error: BaseException | None) -> None:
        if error is not None and not isinstance(error, FencedError):
            try:
                self._on_error(job.draft, error)
            except Exception:  # the writer goes on, whatever its caller's handler does
                logger.exception("Handling a failed commit of round %d failed itself.", job.draft.round)
        with self._lock:
            if isinstance(error, FencedError):
                self.fenced = self.fenced or error
            elif error is not None:
                self._failure = self._failure or error
            else:
                self._retention_due = True
            self._writing = None
            self._changed.notify_all()
            self._written.notify_all()

    def _retain_all(self) -> None:
        while self._take_retention():
            try:
                self._retain()
            except FencedError as error:
                with self._lock:
                    self.fenced = self.fenced or error
                    self._changed.notify_all()
            except Exception as error:  # nothing is lost by a round too many; a thread that ended would keep them all
                logger.warning("Old rounds could not be removed (%s); it is tried again after the next commit.", error)

    def _take_retention(self) -> bool:
        with self._lock:
            while not self._retention_due:
                if self._closing and self._is_idle():
                    return False
                self._written.wait()
            self._retention_due = False
            return self.fenced is None


def _release(draft: Draft) -> None:
    try:
        draft.release()
    except Exception:  # the commit itself is not undone by it, and the queue has to go on
        logger.exception("Releasing the buffers of round %d failed.", draft.round)
