"""What is newest: the one rule by which a run's commits are found, whoever asks.

Of the highest generation that has a readable manifest, its newest; and back from there along the line that this
manifest states. Whatever lies elsewhere is a dead branch: an older server's late commits, or rounds that a rewind
cut away.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from ..errors import CheckpointCorruptError
from ..format.generations import Fence, read_fence
from ..format.manifest import LARGEST, decode
from ..format.records import Commit
from ..names import CommitName, parse_fence, parse_manifest
from ..places.files import Files, is_damage

_KNOWN = 8  # manifests: those of the newest round or two
Warn = Callable[[str, str], None]  # a key that is warned of once, and the message


class VanishedError(Exception):
    """A file that was listed is gone: the run has moved on, and has to be listed again."""


def read_commit(files: Files, name: CommitName) -> Commit:
    """Read one manifest.

    Raises
    ------
    VanishedError
        If there is none.
    CheckpointCorruptError, FormatVersionError
        As `decode`.
    """
    return _decoded(_read(files, name), files.describe(name.key), name)


def _read(files: Files, name: CommitName) -> bytes:
    path = files.describe(name.key)
    try:
        size = files.size(name.key)
        # Of what is no file there is no size: reading it tells whether it is gone, or another thing in its place.
        data = files.read(name.key, 0, size) if size is None or size <= LARGEST else None
    except FileNotFoundError:
        raise VanishedError(name.key) from None
    except OSError as error:
        if not is_damage(error):
            raise
        raise CheckpointCorruptError(f"{path}: cannot be read ({error})") from error
    if data is None:
        raise CheckpointCorruptError(f"{path}: larger than any manifest, which has at most {LARGEST} bytes")
    return data


def _decoded(data: bytes, path: str, name: CommitName) -> Commit:
    commit = decode(data, path)
    if commit.name != name:
        raise CheckpointCorruptError(f"{path}: states that it is {commit.name.key}")
    return commit


class Manifests:
    """Reads manifests, and decodes again only what has changed.

    An opening looks three times what is newest, and to decode a manifest of 10,000 arrays takes a tenth of a second.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[bytes, Commit]] = {}

    def commit(self, files: Files, name: CommitName) -> Commit:
        """As `read_commit`."""
        path, data = files.describe(name.key), _read(files, name)
        known = self._known.pop(path, None)
        commit = known[1] if known is not None and known[0] == data else _decoded(data, path, name)
        self._known[path] = (data, commit)
        for oldest in list(self._known)[:-_KNOWN]:
            self._known.pop(oldest, None)
        return commit


class Line:
    """The commits of a run, newest first, as one listing of its files shows them.

    Parameters
    ----------
    files : Files
    manifests : Manifests
    keys : iterable of str
        The listing.
    warn : callable
        Told of each manifest that is damaged.

    Attributes
    ----------
    head : Commit or None
        The newest readable manifest of the highest generation that has one. Its data may be damaged.
    unreadable : list of CommitName
        The damaged manifests met so far.
    """

    def __init__(self, files: Files, manifests: Manifests, keys: Iterable[str], warn: Warn) -> None:
        self._files = files
        self._manifests = manifests
        self._warn = warn
        self._read: dict[CommitName, Commit | None] = {}
        keys = list(keys)
        self._fences = _fences(files, keys)
        removed = max((fence.generation for fence in self._fences.values() if fence.removed), default=0)
        self._names: defaultdict[int, list[CommitName]] = defaultdict(list)
        for name in sorted(filter(None, map(parse_manifest, keys)), reverse=True):
            if name.generation > removed:
                self._names[name.generation].append(name)
        self.unreadable: list[CommitName] = []
        self.head: Commit | None = None
        self.head = self._find_head()

    def commits(self) -> Iterator[Commit]:
        """Read the readable commits on the line, newest first."""
        for group in self._groups():
            yield from self._readable(group)

    def names(self) -> list[CommitName]:
        """List the commits on the line, readable or not, oldest first; within a round as far as names tell."""
        return sorted(name for group in self._groups() for name in group)

    def _groups(self) -> Iterator[list[CommitName]]:
        """Group the names on the line by generation and round, newest first."""
        for span in reversed(self.head.line if self.head else ()):
            there = self._names.get(span.generation, ())  # not by [], which would keep what a hostile line names
            names = [name for name in there if span.first <= name.round <= span.last]
            yield from _by_round(names)

    def _find_head(self) -> Commit | None:
        for generation in sorted(self._names, reverse=True):
            for group in _by_round(self._names[generation]):
                for commit in self._readable(group):
                    return commit
            if generation == min(self._names):
                break
            self._warn(
                f"generation {generation}",
                f"{self._files.describe()}: no manifest of generation {generation} can be read, so the generation "
                "before it counts. If that one was left behind by a rewind, rounds that were cut away are back",
            )
        return None

    def _readable(self, group: Sequence[CommitName]) -> list[Commit]:
        """Read the commits of one round and generation, the last first."""
        found = [commit for name in group if (commit := self._commit(name)) is not None and self._is_ours(commit)]
        return sorted(found, key=lambda commit: -commit.sequence)

    def _is_ours(self, commit: Commit) -> bool:
        """Whether a commit is its generation's, and not later than the line leaves that generation."""
        fence = self._fences.get(commit.generation)
        if fence is not None and fence.token and fence.token != commit.token:
            return False  # a late commit of a server whose run was removed, and its generation's number used again
        return self.head is None or self.head.comes_from(commit)  # while the head is looked for, all may be it

    def _commit(self, name: CommitName) -> Commit | None:
        if name not in self._read:
            try:
                self._read[name] = self._manifests.commit(self._files, name)
            except CheckpointCorruptError as error:
                self._read[name] = None
                self.unreadable.append(name)
                self._warn(name.key, f"Passing over a damaged checkpoint: {error}")
        return self._read[name]


def _fences(files: Files, keys: Iterable[str]) -> dict[int, Fence]:
    numbers = [number for key in keys if (number := parse_fence(key)) is not None]
    return {number: fence for number in numbers if (fence := read_fence(files, number)) is not None}


def _by_round(names: Sequence[CommitName]) -> Iterator[list[CommitName]]:
    """Split names, newest first, into those of one round each."""
    rounds: dict[int, list[CommitName]] = {}
    for name in names:
        rounds.setdefault(name.round, []).append(name)
    yield from rounds.values()
