"""What becomes of a commit that failed: a line in the log, or an error at the next hook."""

from __future__ import annotations

import threading

from ...store import CheckpointError, Draft
from .. import logs


class Failures:
    """Meets failed commits in the writer's thread and keeps the first one that is to be raised.

    Apart from the session, so that the writer's threads do not keep a session alive that everybody else has dropped.

    Parameters
    ----------
    where : str
        Path or URL of the run, for messages.
    raises : bool
        Whether a failure is raised at the next hook, or only logged.

    Attributes
    ----------
    first : BaseException or None
        The first failure that is to be raised and has not been.
    """

    def __init__(self, where: str, *, raises: bool) -> None:
        self._where = where
        self._raises = raises
        self.first: BaseException | None = None
        self._unsaved: BaseException | None = None
        self._lock = threading.Lock()

    def met(self, draft: Draft, failure: BaseException) -> None:
        """Take note of a failed commit."""
        with self._lock:
            self._unsaved = failure
        if self._raises:
            self.first = self.first or failure
            return
        logs.error(
            "Round %d (%s) could not be saved in %s: %s: %s. Training goes on; the next round is saved again",
            draft.round,
            draft.phase,
            self._where,
            type(failure).__name__,
            failure,
        )

    def made_good(self) -> None:
        """Take note that a commit is durable: it carries what those before it had failed to write."""
        with self._lock:
            self._unsaved = None

    @property
    def unsaved(self) -> bool:
        """Whether the newest commit has failed."""
        return self._unsaved is not None

    def raise_unsaved(self) -> None:
        """Raise if the newest commit has failed, so that what was handed over last is not on disk.

        Raises
        ------
        CheckpointError
            With the failure as its cause.
        """
        if self._unsaved is not None:
            raise self.describe(self._unsaved) from self._unsaved

    def raise_once(self) -> None:
        """Raise the first failure, if there is one that has not been raised.

        Raises
        ------
        CheckpointError
            With the failure as its cause.
        """
        failure, self.first = self.first, None
        if failure is not None:
            raise self.describe(failure) from failure

    def describe(self, failure: BaseException) -> CheckpointError:
        """Say in one error what failed and where."""
        return CheckpointError(f"{self._where}: a commit failed: {type(failure).__name__}: {failure}")
