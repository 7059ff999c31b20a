"""A disk in memory that, at a power loss, forgets whatever POSIX lets it forget.

It stands below `LocalFiles`, in place of the module `os`. Every file and folder keeps what is synced apart from what
is not; `after_power_loss` gives the disks that may be found afterwards:

- of what was written to a file since its last ``fsync``: nothing, a part from the front, a part from the back with
  zeros before it, only zeros, or all;
- of the names that came or went in a folder since its last ``fsync``: each one by itself, as it is or as it was at
  any time since; a removed file may be back, a linked one gone, whatever its contents are;
- of a folder whose own name is lost: nothing that was in it.

After an ``fsync`` that failed, a later one that succeeds says nothing about what was written before (so it is on
Linux: the pages count as clean). Names are not that fragile: a file system's journal gets them written or stops.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from flwr_ckpt.store.draft import Buffer
from flwr_ckpt.store.places.local_files import LocalFiles

_T = TypeVar("_T")


@dataclass(frozen=True)
class File:
    """Contents as they are, and as they were at the last sync.

    Attributes
    ----------
    dubious : bool
        Whether a sync has failed: what was written before it can no longer be made durable.
    """

    contents: bytes = b""
    synced: bytes = b""
    dubious: bool = False

    def futures(self) -> list[bytes]:
        """What a power loss may leave."""
        if self.contents == self.synced:
            return [self.contents]
        kept, lost = len(self.synced), len(self.contents) - len(self.synced)
        torn = self.contents[: kept + lost // 2]
        reordered = self.contents[:kept] + bytes(lost // 2) + self.contents[kept + lost // 2 :]
        return _distinct([self.synced, torn, reordered, self.contents[:kept] + bytes(lost), self.contents])


@dataclass(frozen=True)
class Folder:
    """Names as they are, and for each that has changed since the last sync all that it stood for.

    Attributes
    ----------
    names : Mapping[str, int]
        Name to number of a file or folder.
    unsynced : Mapping[str, tuple]
        Name to the numbers it stood for before now, None for nothing.
    """

    names: Mapping[str, int] = field(default_factory=dict)
    unsynced: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)

    def naming(self, name: str, number: int | None) -> Folder:
        """The folder after a name came (or went: None)."""
        names = {other: value for other, value in self.names.items() if other != name}
        if number is not None:
            names[name] = number
        before = (*self.unsynced.get(name, ()), self.names.get(name))
        return Folder(names, {**self.unsynced, name: before})

    def futures(self) -> list[list[tuple[str, int | None]]]:
        """For each unsynced name, what it may stand for after a power loss."""
        return [
            [(name, number) for number in _distinct([*before, self.names.get(name)])]
            for name, before in self.unsynced.items()
        ]


class Disk:
    """Files and folders by number; number 0 is ``/``."""

    def __init__(self, nodes: Mapping[int, File | Folder] | None = None) -> None:
        self.nodes: dict[int, File | Folder] = dict(nodes if nodes is not None else {0: Folder()})

    def copy(self) -> Disk:
        """A disk that goes its own way from here."""
        return Disk(self.nodes)

    def find(self, path: Path) -> int | None:
        """Find what a path leads to."""
        number: int | None = 0
        for part in path.parts[1:]:
            node = self.nodes[number] if number is not None else None
            if isinstance(node, File):
                raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(path))
            number = node.names.get(part) if node is not None else None
        return number

    def add(self, node: File | Folder) -> int:
        """Put a new file or folder on the disk, without a name."""
        number = max(self.nodes) + 1
        self.nodes[number] = node
        return number

    def tree(self) -> frozenset[tuple[str, bytes | None]]:
        """All that is there, by path; None for a folder. Two disks with the same tree are the same to a reader."""
        found: list[tuple[str, bytes | None]] = []
        todo = [("", 0)]
        while todo:
            path, number = todo.pop()
            node = self.nodes[number]
            found.append((path, node.contents if isinstance(node, File) else None))
            if isinstance(node, Folder):
                todo += [(f"{path}/{name}", inner) for name, inner in node.names.items()]
        return frozenset(found)

    def sync_all(self) -> None:
        """Make everything durable, as time does."""
        for number, node in self.nodes.items():
            if isinstance(node, File):
                self.nodes[number] = File(node.contents, node.contents)
            else:
                self.nodes[number] = Folder(node.names)


def after_power_loss(disk: Disk, most: int) -> tuple[list[Disk], bool]:
    """Give the disks that a power loss may leave, and whether those are all.

    Where there are more than `most`, a sample: nothing lost, all lost, each thing lost alone, each kept alone, and
    random ones; always the same.
    """
    reachable = _reachable(disk)
    files = [(number, node.futures()) for number in reachable if isinstance(node := disk.nodes[number], File)]
    files = [(number, futures) for number, futures in files if len(futures) > 1]
    folders = [
        (number, futures)
        for number in reachable
        if isinstance(node := disk.nodes[number], Folder)
        for futures in node.futures()
        if len(futures) > 1
    ]
    options: list[int] = [len(futures) for _, futures in files] + [len(futures) for _, futures in folders]
    picks, complete = _picks(options, most)
    synced = disk.copy()
    synced.sync_all()
    found = []
    for pick in picks:
        lost = synced.copy()
        for (number, contents), index in zip(files, pick, strict=False):
            lost.nodes[number] = File(contents[index], contents[index])
        for (number, names), index in zip(folders, pick[len(files) :], strict=True):
            name, target = names[index]
            folder = lost.nodes[number]
            assert isinstance(folder, Folder)
            lost.nodes[number] = Folder(folder.naming(name, target).names)
        found.append(lost)
    return found, complete


def _reachable(disk: Disk) -> list[int]:
    """The numbers that some power loss may leave with a name."""
    found = [0]
    for number in found:
        node = disk.nodes[number]
        if isinstance(node, Folder):
            inner = {*node.names.values(), *itertools.chain.from_iterable(node.unsynced.values())}
            found += sorted(one for one in inner if one is not None and one not in found)
    return found


def _picks(options: Sequence[int], most: int) -> tuple[list[tuple[int, ...]], bool]:
    """Choose one of so many options at each place: in every way, or in a sample of ways."""
    total = 1
    for count in options:
        total *= count
    if total <= most:
        return list(itertools.product(*map(range, options))), True
    lost, kept = tuple(0 for _ in options), tuple(count - 1 for count in options)
    single = [
        (*base[:place], option, *base[place + 1 :])
        for base in (lost, kept)
        for place, count in enumerate(options)
        for option in range(count)
    ]
    draw = random.Random(total)
    drawn = [tuple(draw.randrange(count) for count in options) for _ in range(max(0, most - len(single) - 2))]
    return _distinct([lost, kept, *single, *drawn]), False


def _distinct(values: Sequence[_T]) -> list[_T]:
    return list(dict.fromkeys(values))


@dataclass(frozen=True)
class _Entry:
    name: str
    node: File | Folder

    def is_dir(self, *, follow_symlinks: bool) -> bool:
        return isinstance(self.node, Folder)

    def is_file(self, *, follow_symlinks: bool) -> bool:
        return isinstance(self.node, File)


class Process:
    """One process's way to the disk: what `LocalFiles` asks of the module `os`.

    Parameters
    ----------
    disk : Disk
    before : callable
        Called with the name of the call and the path ahead of each. What it raises, the call raises: a write has then
        written a part, and after a sync nobody knows what is on the disk.
    after : callable
        Called behind each call that changed something.

    Attributes
    ----------
    opened : dict
        Descriptor to the file's number and path.
    retried : list of Path
        The files that were synced again after a sync had failed that took what was not on the disk yet.
    """

    def __init__(
        self,
        disk: Disk,
        before: Callable[[str, Path], None] = lambda call, path: None,
        after: Callable[[str, Path], None] = lambda call, path: None,
    ) -> None:
        self.disk = disk
        self.opened: dict[int, tuple[int, Path]] = {}
        self.retried: list[Path] = []
        self._before = before
        self._after = after
        self._written: set[int] = set()
        self._descriptors = itertools.count(3)

    def open(self, path: Path, flags: int, mode: int = 0o777, /) -> int:
        creates = bool(flags & os.O_CREAT)
        assert not creates or flags & os.O_EXCL, "nothing is ever written over"
        self._before("create" if creates else "open", path)
        number = self.disk.find(path)
        if creates:
            number = self._create(path, number, File())
            self._after("create", path)
        elif number is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        descriptor = next(self._descriptors)
        self.opened[descriptor] = (number, path)
        return descriptor

    def close(self, descriptor: int, /) -> None:
        del self.opened[descriptor]

    def writev(self, descriptor: int, buffers: Sequence[Buffer], /) -> int:
        """The first write to a file stops half way: so the loop around it is tried too, and a crash in the middle."""
        number, path = self.opened[descriptor]
        data = b"".join(buffers)
        half = data[: max(1, len(data) // 2)]
        try:
            self._before("write", path)
        except OSError:
            self._append(number, half)
            raise
        if descriptor not in self._written:
            self._written.add(descriptor)
            data = half
        self._append(number, data)
        self._after("write", path)
        return len(data)

    def pread(self, descriptor: int, size: int, offset: int, /) -> bytes:
        number, path = self.opened[descriptor]
        self._before("read", path)
        node = self.disk.nodes[number]
        if isinstance(node, Folder):
            raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))
        return node.contents[offset : offset + size]

    def preadv(self, descriptor: int, buffers: Sequence[memoryview], offset: int, /) -> int:
        (target,) = buffers
        data = self.pread(descriptor, target.nbytes, offset)
        target[: len(data)] = data
        return len(data)

    def posix_fadvise(self, descriptor: int, offset: int, size: int, advice: int, /) -> None:
        """Change nothing: what a file holds may reach the disk at any time, advised or not."""

    def fsync(self, descriptor: int, /) -> None:
        number, path = self.opened[descriptor]
        node = self.disk.nodes[number]
        if isinstance(node, File) and node.dubious and node.contents != node.synced:
            self.retried.append(path)
        try:
            self._before("sync", path)
        except OSError:
            if isinstance(node, File):
                self.disk.nodes[number] = replace(node, dubious=True)
            raise
        node = self.disk.nodes[number]  # as it is now: somebody else may have had a turn before the call
        if isinstance(node, Folder):
            self.disk.nodes[number] = Folder(node.names)
        elif not node.dubious:
            self.disk.nodes[number] = File(node.contents, node.contents)
        self._after("sync", path)

    def fstat(self, descriptor: int, /) -> os.stat_result:
        return _status(self.disk.nodes[self.opened[descriptor][0]])

    def stat(self, path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        self._before("stat", path)
        return _status(self.disk.nodes[self._existing(path)])

    @contextmanager
    def scandir(self, path: Path, /) -> Iterator[Iterator[_Entry]]:
        self._before("list", path)
        node = self.disk.nodes[self._existing(path)]
        if isinstance(node, File):
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(path))
        yield iter([_Entry(name, self.disk.nodes[number]) for name, number in node.names.items()])

    def link(self, source: Path, target: Path, *, follow_symlinks: bool = True) -> None:
        self._before("link", target)
        number = self._existing(source)
        if self.disk.find(target) is not None:
            raise FileExistsError(errno.EEXIST, "File exists", str(target))
        self._name(target, number)
        self._after("link", target)

    def unlink(self, path: Path, /) -> None:
        self._before("unlink", path)
        if isinstance(self.disk.nodes[self._existing(path)], Folder):
            raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))
        self._name(path, None)
        self._after("unlink", path)

    def mkdir(self, path: Path, /) -> None:
        self._before("mkdir", path)
        self._create(path, self.disk.find(path), Folder())
        self._after("mkdir", path)

    def rmdir(self, path: Path, /) -> None:
        self._before("rmdir", path)
        node = self.disk.nodes[self._existing(path)]
        if isinstance(node, File):
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(path))
        if node.names:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        self._name(path, None)
        self._after("rmdir", path)

    def _existing(self, path: Path) -> int:
        number = self.disk.find(path)
        if number is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        return number

    def _create(self, path: Path, existing: int | None, node: File | Folder) -> int:
        if existing is not None:
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        self._existing(path.parent)
        number = self.disk.add(node)
        self._name(path, number)
        return number

    def _name(self, path: Path, number: int | None) -> None:
        parent = self._existing(path.parent)
        folder = self.disk.nodes[parent]
        assert isinstance(folder, Folder)
        self.disk.nodes[parent] = folder.naming(path.name, number)

    def _append(self, number: int, data: bytes) -> None:
        node = self.disk.nodes[number]
        assert isinstance(node, File)
        self.disk.nodes[number] = replace(node, contents=node.contents + data)


def _status(node: File | Folder) -> os.stat_result:
    mode = stat.S_IFREG | 0o644 if isinstance(node, File) else stat.S_IFDIR | 0o755
    size = len(node.contents) if isinstance(node, File) else 0
    return os.stat_result((mode, 0, 0, 1, 0, 0, size, 0, 0, 0))


class SimulatedFiles(LocalFiles):
    """The real code for a local disk, on a simulated one; only a memory map is read instead."""

    def view(self, key: str, offset: int = 0, size: int | None = None) -> memoryview:
        return memoryview(self.read(key, offset, size))
