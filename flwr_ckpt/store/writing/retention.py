"""Deleting what is provably ours and superseded, and nothing else.

Only after an own durable commit, from a listing taken after it; only names of this generation and of lower ones.
The listing is taken once. What came later is known: this generation's files are written by this process, and the
second look of each commit has shown that no higher generation was there. Lower ones can only add dead branches, which
the next server finds.

Manifests go first, then the files that no live manifest refers to. What was found damaged stays.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..draft import Outcome
from ..format.generations import highest_generation
from ..format.history import flat_metrics
from ..format.records import Commit
from ..keep import keeps_all
from ..names import HISTORY, PHASES_LAST_FIRST, CommitName, round_folder
from ..places.files import Files
from .contents import SHARED_FROM
from .older import Older


@dataclass(slots=True)
class RoundRecord:
    """A round as a policy sees it.

    Attributes
    ----------
    round : int
    metrics : dict
        As in the history: ``"evaluate/loss"`` to its value.
    """

    round: int
    metrics: dict[str, Any] = field(default_factory=dict)


class KeepPolicy(Protocol):
    """Says which rounds stay."""

    def select(self, rounds: Sequence[RoundRecord]) -> set[int]:
        """Choose among all finished rounds."""


@dataclass(frozen=True, slots=True)
class _Reference:
    """How much of a file a commit refers to, and how large the file is; both in bytes."""

    live: int
    size: int


@dataclass(frozen=True, slots=True)
class _News:
    """What the writer did: a commit that is durable, or files that a failed one may have left."""

    name: CommitName
    references: Mapping[str, _Reference]
    written: tuple[str, ...]
    outcomes: tuple[Outcome, ...] = ()
    commit: Commit | None = None


class Retention:
    """What one generation may delete.

    Parameters
    ----------
    files : Files
    generation : int
    keep : KeepPolicy
    damaged : collection of CommitName, optional
        Commits that go because they are damaged. Without it, what was found damaged stays where it is.

    Attributes
    ----------
    crowded : frozenset of str
        Own data files more than half of which no live commit refers to: the next commit is to leave them behind.
    """

    def __init__(
        self, files: Files, generation: int, keep: KeepPolicy, *, damaged: Collection[CommitName] | None = None
    ) -> None:
        self.crowded: frozenset[str] = frozenset()
        self._files = files
        self._generation = generation
        self._keep = keep
        self._damaged = damaged
        self._news: deque[_News] = deque()
        self._running = threading.Lock()
        self._head: Commit | None = None
        self._metrics: dict[int, dict[str, Any]] = {}  # by round; a record's own
        self._records: dict[int, RoundRecord] = {}
        self._names: defaultdict[int, set[CommitName]] = defaultdict(set)  # by round; what the policy decides on
        self._referrers: defaultdict[str, dict[CommitName, _Reference]] = defaultdict(dict)  # of own commits
        self._own: dict[CommitName, Mapping[str, _Reference]] = {}
        self._written: set[str] = set()  # own files that are there, as far as is known
        self._released: set[str] = set()  # those of them to which a commit less refers: perhaps none does
        self._older: Older | None = None
        # What is still to be done: a deletion that fails is tried again by the next run.
        self._condemned: set[CommitName] = set()
        self._touched: set[str] = set()

    # --- told by the writer --------------------------------------------------------------------------------------

    def remember(self, outcomes: Iterable[Outcome]) -> None:
        """Take the history up to the commit that is resumed."""
        for outcome in outcomes:
            self._metrics.setdefault(outcome.round, {}).update(flat_metrics(outcome))

    def durable(self, commit: Commit, written: Iterable[str], outcomes: Iterable[Outcome]) -> None:
        """Take note of a durable commit, and of the outcomes that are new in it."""
        self._news.append(_News(commit.name, _references(commit), tuple(written), tuple(outcomes), commit))

    def failed(self, name: CommitName, base: Commit | None, written: Iterable[str]) -> None:
        """Take note of a commit that failed, and may have left its files and even its manifest."""
        written = tuple(written)
        keys = [*(_references(base) if base is not None else ()), *written]
        self._news.append(_News(name, {key: _Reference(0, 0) for key in keys}, written))

    # --- deleting ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Delete what the policy does not keep."""
        with self._running:
            self._take_news()
            if self._head is None:
                return
            if self._older is None:
                self._older = self._list(self._head)
            if self._older is None:
                return
            self._condemn(self._head)
            self._remove_manifests(self._older)
            self._remove_files(self._older)
            self.crowded = frozenset(self._crowded(self._head.name))

    def _take_news(self) -> None:
        while self._news:
            news = self._news.popleft()
            self.remember(news.outcomes)
            self._written.update(news.written)
            self._released.update(news.written)
            self._own[news.name] = news.references
            self._names[news.name.round].add(news.name)
            for key, reference in news.references.items():
                self._referrers[key][news.name] = reference
            if news.commit is not None:
                self._head = news.commit
                self._record(news.name)

    def _list(self, head: Commit) -> Older | None:
        """Find what older servers left; not if there is a newer one, to whom that now belongs."""
        keys = self._files.keys()
        if highest_generation(keys) > self._generation:
            return None
        older = Older(self._files, keys, self._generation, head, spare=self._damaged is None)
        condemned = self._damaged or ()
        self._condemned.update(older.dead)
        self._condemned.update(name for name in older.on_line if name in condemned)
        for name in older.on_line:
            if name not in condemned:
                self._names[name.round].add(name)
                self._record(name)
        self._metrics = {number: self._metrics.get(number, {}) for number in self._names}
        return older

    def _record(self, name: CommitName) -> None:
        if name.phase != "attempt" and name.round not in self._records:
            metrics = self._metrics.setdefault(name.round, {})
            self._records[name.round] = RoundRecord(name.round, metrics)

    def _condemn(self, head: Commit) -> None:
        """Forget the rounds that are not kept; their commits are to be deleted."""
        if keeps_all(self._keep):  # asked after 10,000 rounds, a policy would have as many to say yes to, each time
            return
        kept = self._keep.select(list(self._records.values())) | {head.round, max(self._records, default=head.round)}
        for number in [number for number in self._names if number not in kept]:
            self._condemned.update(self._names.pop(number))
            self._records.pop(number, None)
            self._metrics.pop(number, None)

    def _remove_manifests(self, older: Older) -> None:
        """Delete the condemned commits, oldest round first and in a round the last phase's first."""
        for name in sorted(self._condemned, key=lambda one: (one.round, PHASES_LAST_FIRST.index(one.phase), one)):
            self._touched.add(round_folder(name.round))
            if name.generation < self._generation:
                older.remove(name)
            else:
                self._files.remove(name.key)
                for key in self._own.pop(name):
                    del self._referrers[key][name]
                    self._released.add(key)
            self._condemned.discard(name)
        # No file may go before it is certain that the manifests which refer to it do not come back.
        for folder in sorted(self._touched):
            with suppress(FileNotFoundError):  # it went with its last file
                self._files.sync_folder(folder)

    def _remove_files(self, older: Older) -> None:
        """Delete the files that no commit refers to, and the folders that are empty then."""
        for key in sorted(self._released):
            if key in self._written and not self._referrers[key]:
                self._touched.add(key.rpartition("/")[0])
                self._files.remove(key)
                self._written.discard(key)
            if not self._referrers[key]:
                del self._referrers[key]
            self._released.discard(key)
        self._touched |= older.remove_files(lambda key: key in self._referrers)
        for folder in self._touched - {HISTORY}:
            self._files.remove_folder(folder)
        self._touched.clear()
        older.remove_fences()

    def _crowded(self, head: CommitName) -> Iterator[str]:
        """Find the own files that the newest commit refers to and that are mostly dead, for older commits too."""
        for key in self._own[head]:
            # What a file still holds for the first of its referrers it holds for all: later ones refer to less.
            reference = next(iter(self._referrers[key].values()))
            dead = reference.size - reference.live
            if key in self._written and dead >= SHARED_FROM and dead > reference.live:
                yield key


def _references(commit: Commit) -> dict[str, _Reference]:
    live: dict[str, dict[int, int]] = {}
    for entry in commit.entries():
        for place in entry.places:
            live.setdefault(place.file, {})[place.offset] = entry.size
    references = {file.key: _Reference(sum(live[file.key].values()), file.size) for file in commit.files}
    # A segment has no parts that could be dead.
    return references | {segment.key: _Reference(segment.size, segment.size) for segment in commit.segments}
