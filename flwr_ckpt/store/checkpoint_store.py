"""The public way to look at a run. Looking takes no generation, makes nothing and works on a read-only folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from .commands.fork import fork
from .commands.prunable import Prunable, prunable, require_known
from .commands.removal import remove
from .commands.rewind import prune, rewind
from .draft import Outcome, Phase
from .errors import CheckpointCorruptError, CheckpointNotFoundError
from .format.history import flat_metrics, read_outcomes
from .format.payloads import unsound_by_size
from .format.records import Commit
from .keep import Keep, Mode, ranked, require_mode
from .names import CommitName
from .places.local_files import LocalFiles
from .places.location import Location, locate, prepare
from .reading.checkpoint import Checkpoint, metrics_of
from .reading.run import RunReader
from .reading.status import RunStatus, has_checkpoints, size_of, status_of
from .reading.verify import Verified, verify

logger = logging.getLogger("flwr")

_SHOWN = 20  # rounds that an error message lists


@dataclass(frozen=True)
class RoundRecord:
    """A round that is there to be loaded.

    Attributes
    ----------
    round : int
    phases : tuple of str
        The phases that have a commit, in the order in which they were made.
    time : float
        When the last of them was made: seconds since 1970 by the server's clock.
    size : int
        Bytes of the arrays and of the strategy's state.
    metrics : Mapping[str, object]
        By key as in `CheckpointStore.history`.
    generation : int
        Which of the run's servers wrote it.
    """

    round: int
    phases: tuple[Phase, ...]
    time: float
    size: int
    metrics: Mapping[str, Any]
    generation: int


@dataclass(frozen=True)
class _Line:
    """The rounds that count, as names tell, and what the history says of them."""

    head: Commit | None
    rounds: dict[int, list[CommitName]]
    outcomes: dict[int, list[Outcome]]

    def metrics(self, server_round: int) -> dict[str, Any]:
        return metrics_of(self.outcomes.get(server_round, ()), server_round)


@dataclass(frozen=True)
class _Score:
    round: int
    metrics: Mapping[str, Any]


class CheckpointStore:
    """The checkpoints of one run.

    A place with nothing there is an empty store.

    Parameters
    ----------
    location : str, os.PathLike or Location
        As ``run`` of ``CheckpointingStrategy``: a run name, an absolute path or a URL.

    Raises
    ------
    ValueError
        If it is none of these.
    ImportError
        If it is a URL and object storage is not installed.
    """

    def __init__(self, location: str | os.PathLike[str] | Location) -> None:
        self.location = location if isinstance(location, Location) else locate(location)
        self._files = self.location.files()
        self._reader = RunReader(self.location, self._files)

    def __repr__(self) -> str:
        return f"CheckpointStore({self.location.where!r})"

    def status(self) -> RunStatus:
        """Look how far the run has come, and whether a server is still at it."""
        return status_of(self._files, self._reader)

    def size(self) -> int:
        """Sum the bytes of all files of the run; what hard links share counts once for each."""
        return size_of(self._files)

    def rounds(self) -> list[RoundRecord]:
        """List the rounds that can be loaded, oldest first."""
        line = self._line()
        return [record for number in line.rounds if (record := self._record(line, number)) is not None]

    def latest(self) -> RoundRecord | None:
        """Give the newest round, or ``None`` if there is none."""
        line = self._line()
        return next(filter(None, (self._record(line, number) for number in reversed(line.rounds))), None)

    def best(self, metric: str, mode: Mode) -> RoundRecord | None:
        """Find the best of the rounds that can be loaded.

        NaN ranks below every number; the later of two equal rounds wins.

        Parameters
        ----------
        metric : str
            A key as in `history`: ``"evaluate/loss"``.
        mode : {"min", "max"}
            Whether small or large values are good.

        Returns
        -------
        RoundRecord or None
            ``None`` if no round has the metric.

        Raises
        ------
        ValueError
            If `mode` is neither.
        """
        require_mode(mode)
        line = self._line()
        # By the history first: reading the manifests of all rounds only to rank them would take minutes after 10,000.
        ranking = ranked([_Score(number, line.metrics(number)) for number in line.rounds], metric, mode)
        return next(filter(None, (self._record(line, score.round) for score in ranking)), None)

    def load(self, round: int | None = None) -> Checkpoint:
        """Read a round; all that is returned has been verified.

        Parameters
        ----------
        round : int, optional
            The newest sound one if left out: damaged ones are passed over with a warning.

        Raises
        ------
        CheckpointNotFoundError
            If there is no such round, or none at all.
        CheckpointCorruptError
            If the given round is damaged, or all there are.
        """
        if round is not None:
            return self._open(self._of_round(round))
        commit = self._reader.newest()
        try:
            if commit is not None:
                return self._open(commit)
        except (CheckpointCorruptError, CheckpointNotFoundError):
            loaded = self._reader.resume(strict_history=False)
            if loaded is not None:
                return self._open(loaded.commit)
        if has_checkpoints(self._files, self._files.keys()):
            why = "none of the checkpoints here is sound; `flwr-ckpt verify` says why. Restore the folder from a backup"
            raise CheckpointCorruptError(f"{self.location.where}: {why}")
        raise CheckpointNotFoundError(f"{self.location.where}: there is no checkpoint here")

    def history(self) -> dict[str, dict[int, Any]]:
        """Collect the metrics of the whole run, also of rounds that retention has removed.

        Returns
        -------
        dict
            Metric → round → value, with keys such as ``"train/loss"``, ``"evaluate/loss"``, ``"central/accuracy"``.
        """
        commit = self._reader.newest()
        found: dict[str, dict[int, Any]] = {}
        for outcome in self._outcomes(commit) if commit is not None else ():
            for key, value in flat_metrics(outcome).items():
                found.setdefault(key, {})[outcome.round] = value
        return found

    def verify(self, progress: Callable[[int, int], None] = lambda done, of: None) -> list[Verified]:
        """Read every byte that the run's commits refer to, and compare it with what was written.

        Parameters
        ----------
        progress : callable, optional
            Told how many commits have been verified, and of how many.

        Returns
        -------
        list of Verified
            One for each commit that counts, by round, then one for each damaged file that is, or may have been, newer
            than they are.
        """
        return verify(self._files, self._reader, progress)

    def prunable(self, keep: Keep, *, damaged: bool = False) -> Prunable:
        """Say what `prune` would delete: which rounds, and how many bytes. Nothing is changed, nobody fenced.

        Raises
        ------
        ValueError
            If the policy looks at a metric that no round has.
        """
        self._require_known(keep)
        return prunable(self.location, keep, damaged=damaged, files=self._files)

    def prune(self, keep: Keep, *, damaged: bool = False) -> list[int]:
        """Delete the rounds that a policy does not keep; the newest sound one always stays.

        This takes the run over, as a server does: one that is running stops at its next commit.

        Parameters
        ----------
        keep : Keep
        damaged : bool
            Whether what is damaged goes too; else it is left where it is.

        Returns
        -------
        list of int
            The rounds that are gone.

        Raises
        ------
        ValueError
            If the policy looks at a metric that no round has: it would keep nothing for that.
        FencedError
            If a server opened the run while this ran.
        """
        self._require_known(keep)
        before = {record.round for record in self.rounds()}
        prune(self.location, keep, damaged=damaged)
        return sorted(before - {record.round for record in self.rounds()})

    def rewind(self, round: int) -> None:
        """Go back to a round: the next server resumes after it, and what came later no longer counts.

        This takes the run over, as a server does: one that is running stops at its next commit.

        Raises
        ------
        CheckpointNotFoundError, CheckpointCorruptError
            If the round is not there or is damaged; then nothing has happened.
        FencedError
            If a server opened the run while this ran; the message says if it may have taken effect.
        """
        self.load(round)  # fences nobody; only what can be gone back to is worth stopping a server for
        rewind(self.location, round)

    def fork(self, target: str | os.PathLike[str] | Location, round: int | None = None) -> CheckpointStore:
        """Begin a new run with a round of this one, which stays as it is.

        The new run shares nothing with this one but disk space, where there are hard links. It holds the one round,
        and the metrics of those before it.

        Parameters
        ----------
        target : str, os.PathLike or Location
            The new run; as the location of this one.
        round : int, optional
            The newest sound one if left out.

        Returns
        -------
        CheckpointStore
            The new run.

        Raises
        ------
        CheckpointNotFoundError, CheckpointCorruptError
            If the round is not there or is damaged; then nothing has happened.
        CheckpointError
            If there is a run at the target.
        """
        new = CheckpointStore(target)
        commit = self._of_round(self.load().round if round is None else round)
        loaded = self._reader.load(commit, strict_history=False)
        for line in prepare(new.location):
            logger.warning("%s", line)
        fork(loaded, self._files, new.location, new._files)
        return new

    def remove(self) -> list[str]:
        """Delete the run, so that nothing of it comes back: a server that is running stops at its next commit.

        Returns
        -------
        list of str
            What lies in the run's folder and is not the run's: it was left there.

        Raises
        ------
        CheckpointNotFoundError
            If there is no run.
        """
        return remove(self.location, self._files)

    def _require_known(self, keep: Keep) -> None:
        require_known(keep, self.history() if keep.metrics() else (), self.location.where)

    def _line(self) -> _Line:
        head = self._reader.newest()
        outcomes = self._outcomes(head) if head is not None else []
        names = [name for name in self._reader.names() if name.phase != "attempt"] if head is not None else []
        return _Line(
            head,
            {number: list(of) for number, of in groupby(names, lambda name: name.round)},
            {number: list(of) for number, of in groupby(outcomes, lambda outcome: outcome.round)},
        )

    def _record(self, line: _Line, server_round: int) -> RoundRecord | None:
        """Describe a round; ``None`` if none of its commits can be loaded, or it has been removed meanwhile."""
        found = filter(None, (self._sound(line, name) for name in line.rounds[server_round]))
        commits = sorted(found, key=lambda commit: commit.sequence)
        if not commits:
            return None
        last = commits[-1]
        return RoundRecord(
            round=server_round,
            phases=tuple(dict.fromkeys(commit.phase for commit in commits)),
            time=last.time,
            size=sum(entry.nbytes for entry in (*last.arrays, *last.state)),
            metrics=line.metrics(server_round),
            generation=last.generation,
        )

    def _sound(self, line: _Line, name: CommitName) -> Commit | None:
        try:
            commit = self._reader.commit(name)
        except (CheckpointCorruptError, CheckpointNotFoundError):
            return None
        on_line = line.head is not None and line.head.comes_from(commit)
        return commit if on_line and unsound_by_size(self._files, commit) is None else None

    def _of_round(self, server_round: int) -> Commit:
        commit = self._reader.of_round(server_round)
        if commit is not None:
            return commit
        damaged = [name for name in self._reader.names() if name.round == server_round and name.phase != "attempt"]
        if damaged:
            raise CheckpointCorruptError(
                f"{self._files.describe(damaged[-1].key)}: round {server_round} is damaged; `flwr-ckpt verify` "
                "tells what is wrong, load() takes the newest round that is sound"
            )
        there = [record.round for record in self.rounds()]
        listed = ", ".join(map(str, there[-_SHOWN:])) or "none"
        raise CheckpointNotFoundError(
            f"{self.location.where}: there is no round {server_round}; it was never finished, or retention (keep=...) "
            f"has removed it. There are {'… ' if len(there) > _SHOWN else ''}{listed}"
        )

    def _open(self, commit: Commit) -> Checkpoint:
        folder = self.location.folder
        reader = self._reader if folder is None else RunReader(self.location, _MappedOnce(folder))
        payloads = reader.views(commit, [*commit.arrays, *commit.state])
        outcomes = self._outcomes(commit)
        return Checkpoint(_arrays_round(commit, outcomes), commit, payloads, reader.documents(commit), outcomes)

    def _outcomes(self, commit: Commit) -> list[Outcome]:
        return read_outcomes(self._files, commit, strict=False)[0]


class _MappedOnce(LocalFiles):
    """Every map holds a file descriptor: one for each array of a large model would be too many."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._maps: dict[str, memoryview] = {}

    def view(self, key: str, offset: int = 0, size: int | None = None) -> memoryview:
        """Map a file into memory."""
        if key not in self._maps:
            self._maps[key] = super().view(key)
        return self._maps[key][offset : None if size is None else offset + size]


def _arrays_round(commit: Commit, outcomes: Sequence[Outcome]) -> int:
    """The round whose aggregate a commit holds: an attempt holds that of the round before."""
    if commit.phase != "attempt":
        return commit.round
    return max((outcome.round for outcome in outcomes if outcome.phase != "attempt"), default=0)
