"""Clocks and scales: seconds, memory of a process, bytes on a disk, and the raw write that all is compared with."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord

_MAX_BUFFERS = 1024  # IOV_MAX on Linux
_CHUNK = 1 << 24
_MOST_TOUCHED = 1 << 30  # bytes
_TICK = 0.001  # seconds
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PRESENT = np.uint64(1 << 63)  # of an entry of /proc/<pid>/pagemap
_LARGEST_MAPPING = 1 << 26  # bytes; beyond are the models
_PASSES = 2  # the first may take so long that what came first in it is old again
_SAMPLER = """
import sys, threading, time
path, end = f"/proc/{sys.argv[1]}/status", threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), end.set()), daemon=True).start()
def anonymous():
    with open(path) as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))
peak = anonymous()
print("begun", flush=True)
while not end.is_set():
    peak = max(peak, anonymous())
    time.sleep(0.002)
print(max(peak, anonymous()) * 1024)
"""


def trim() -> None:
    """Give back to the kernel what has been freed: what is taken next is as new as to a process that has just begun."""
    ctypes.CDLL(None).malloc_trim(0)


def anonymous_bytes() -> int:
    """Memory of this process that is its own (``RssAnon``), after what it has freed was given back to the kernel.

    Mapped files and the page cache are the kernel's to give and take, and do not count.
    """
    trim()
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) * 1024


class Peak:
    """The most `anonymous_bytes` there were, read by another process every two milliseconds."""

    def __init__(self) -> None:
        anonymous_bytes()
        command = [sys.executable, "-S", "-c", _SAMPLER, str(os.getpid())]
        self._sampler = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._sampler.stdout is not None
        self._sampler.stdout.readline()

    def end(self) -> int:
        """Stop watching, and say how many there were."""
        printed, _ = self._sampler.communicate()
        return int(printed)


class Ticker:
    """The longest time for which another thread of this process (one that takes clients' replies, say) stood still."""

    def __init__(self) -> None:
        self._longest = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick)
        self._thread.start()

    def end(self) -> float:
        """Stop, and say how long it was."""
        self._ended.set()
        self._thread.join()
        return self._longest

    def _tick(self) -> None:
        last = time.perf_counter()
        while not self._ended.is_set():
            time.sleep(_TICK)
            now = time.perf_counter()
            self._longest, last = max(self._longest, now - last - _TICK), now


class Stopwatch:
    """Seconds that pass outside of what is excluded: between the clients and the strategy's own hooks."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._seconds = 0.0

    @contextmanager
    def excluded(self) -> Iterator[None]:
        """Leave out what happens inside."""
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
        try:
            yield
        finally:
            self._since = time.perf_counter()

    def take(self) -> float:
        """What has been counted since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class Folder:
    """Bytes that a folder takes on the disk, each file once however many names it has."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known = self._files()

    def grown(self) -> int:
        """Bytes of files that were not there at the last call."""
        now = self._files()
        new = {inode: size for inode, size in now.items() if inode not in self._known}
        self._known = now
        return sum(new.values())

    def _files(self) -> dict[tuple[int, int], int]:
        found: dict[tuple[int, int], int] = {}
        for folder, _, names in os.walk(self._root):
            for name in names:
                with suppress(FileNotFoundError):  # old rounds are being deleted meanwhile
                    status = os.lstat(os.path.join(folder, name))
                    # With the time of the last change: the number of a file that was deleted is given to another.
                    found[status.st_ino, status.st_mtime_ns] = status.st_blocks * 512
        return found


def write_raw(path: Path, record: ArrayRecord) -> None:
    """Write a model as quickly as this machine can make it durable: ``writev`` from where it lies, and ``fsync``."""
    with _written(path, record) as descriptor:
        os.fsync(descriptor)


def seconds_of_raw_write(path: Path, record: ArrayRecord) -> float:
    """Measure `write_raw`, and leave no trace of it."""
    calm()
    touch_page_cache(path, record)
    begun = time.perf_counter()
    write_raw(path, record)
    seconds = time.perf_counter() - begun
    path.unlink()
    return seconds


def touch_page_cache(path: Path, record: ArrayRecord) -> None:
    """Have the host give the memory that a write of a model takes.

    A guest gives its host back what has been free for two seconds (free page reporting of a virtio balloon), and a
    write that takes it again waits for the host, page by page: 64 MiB are copied in 175 ms then instead of 17. Each
    processor has its own list of pages that were freed last, so it is done on each. For a model that takes as long to
    write as the host waits nothing would be gained, and the giving back would go on while a round is measured.
    """
    if sum(len(array.data) for array in record.values()) > _MOST_TOUCHED:
        return
    for _ in _each_processor():
        with _written(path, record):
            path.unlink()


def touch_own_memory(*records: ArrayRecord) -> None:
    """Read one byte of each page of this process: code, Python's objects, the heads of models' arrays.

    What a guest has not used for some seconds its host may have put aside, and the first to use it waits for the host:
    here 130 µs for about each half MiB, five seconds after the last use.
    """
    pages = np.concatenate([_pages(start, end) for start, end in _mappings()])
    for _ in range(_PASSES):
        _read_bytes(pages)
    for record in records:
        for array in record.values():
            len(array.data)


def sync_tree(root: Path) -> None:
    """Make durable what a library has written and not synced itself."""
    for path in [root.parent, root, *root.rglob("*")]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def calm() -> None:
    """Let the disk finish what it was told before (deleted blocks are given back then), so that nobody pays for it."""
    os.sync()


def touch_memory(nbytes: int) -> None:
    """Have a virtual machine's host give its memory before a clock starts."""
    pages = np.ones(nbytes, np.uint8)
    del pages


def touch_disk(folder: Path, nbytes: int) -> None:
    """Write and delete as much as will be written."""
    path, block = folder / "touched", os.urandom(_CHUNK)
    with path.open("wb", buffering=0) as file:
        for _ in range(max(nbytes // _CHUNK, 1)):
            file.write(block)
        os.fsync(file.fileno())
    path.unlink()
    calm()


def _mappings() -> Iterator[tuple[int, int]]:
    """Where this process has memory that it can read, but for what is as large as a model."""
    for where, access, *_, name in map(str.split, Path("/proc/self/maps").read_text().splitlines()):
        start, end = (int(address, 16) for address in where.split("-"))
        if access.startswith("r") and not name.startswith("[v") and end - start <= _LARGEST_MAPPING:
            yield start, end


def _pages(start: int, end: int) -> np.ndarray:
    """The addresses of the pages of a mapping that are in memory."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        entries = os.pread(pagemap.fileno(), (end - start) // _PAGE * 8, start // _PAGE * 8)
    return start + np.nonzero(np.frombuffer(entries, np.uint64) & _PRESENT)[0].astype(np.uint64) * _PAGE


def _read_bytes(addresses: np.ndarray) -> None:
    """Read a byte at each address; where nothing is any more, that is an error of the call and does no harm.

    Raises
    ------
    OSError
        If this is not allowed here, as in some containers: figures would be of memory that was not touched.
    """
    read = ctypes.CDLL(None, use_errno=True).process_vm_readv
    read.restype = ctypes.c_ssize_t
    read.argtypes = (ctypes.c_int, *(ctypes.c_void_p, ctypes.c_ulong) * 2, ctypes.c_ulong)
    found = np.empty(_MAX_BUFFERS, np.uint8)
    here = np.array([(found.ctypes.data, found.nbytes)], np.uint64)
    for start in range(0, len(addresses), _MAX_BUFFERS):
        batch = addresses[start : start + _MAX_BUFFERS]
        there = np.column_stack((batch, np.ones_like(batch)))
        count = read(os.getpid(), here.ctypes.data, 1, there.ctypes.data, len(there), 0)
        if count < 0 and (code := ctypes.get_errno()) != errno.EFAULT:
            raise OSError(
                code, f"process_vm_readv: {os.strerror(code)}; memory cannot be touched before a clock starts"
            )


@contextmanager
def _written(path: Path, record: ArrayRecord) -> Iterator[int]:
    """Write a model to a file, which stays open meanwhile."""
    views = [memoryview(array.data) for array in record.values()]
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        for batch in (views[start : start + _MAX_BUFFERS] for start in range(0, len(views), _MAX_BUFFERS)):
            _write_batch(descriptor, batch)
        yield descriptor
    finally:
        os.close(descriptor)


def _each_processor() -> Iterator[int]:
    """Have this thread run on each processor in turn, and then on any."""
    processors = os.sched_getaffinity(0)
    try:
        for processor in sorted(processors):
            os.sched_setaffinity(0, {processor})
            yield processor
    finally:
        os.sched_setaffinity(0, processors)


def _write_batch(descriptor: int, views: Iterable[memoryview]) -> None:
    waiting = list(views)
    while waiting:
        written = os.writev(descriptor, waiting)
        while waiting and written >= waiting[0].nbytes:
            written -= waiting.pop(0).nbytes
        if waiting:
            waiting[0] = waiting[0][written:]
