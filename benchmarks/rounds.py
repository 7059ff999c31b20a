"""The main measurement: rounds of one contender, each beside a raw write of the same bytes; then loads beside reads.

The reference is measured between two rounds, so that a disk that is slow for a while is slow for both; never within one
or right before it, where Flower's next lines would pay for what it has driven out of the caches.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord

from .arrays import Layout, first_model, next_model, same_numbers
from .contenders import contender
from .contenders.contender import Contender
from .flower_loop import Clients, Rounds, prepared_strategy
from .instruments import (
    Folder,
    Peak,
    Stopwatch,
    Ticker,
    anonymous_bytes,
    calm,
    seconds_of_raw_write,
    touch_own_memory,
    touch_page_cache,
    trim,
    write_raw,
)
from .strategy_state import NoState

_WARM_UP = Layout(count=2, bytes_each=4096)
_READS = 3


@dataclass(frozen=True)
class Round:
    """What one round cost.

    Attributes
    ----------
    blocked : float
        Seconds of the server's loop that were neither the clients' nor the strategy's own.
    durable : float
        Seconds from the strategy's answer until all was on the disk.
    raw : float
        Seconds of a raw write of the same arrays, in the same round.
    disk : int
        Bytes of files that were not there before.
    copy : float or None
        Seconds of a plain copy of the strategy's own arrays.
    """

    blocked: float
    durable: float
    raw: float
    disk: int
    copy: float | None


@dataclass(frozen=True)
class Load:
    """What it cost to load the last round.

    Attributes
    ----------
    seconds : float
        Until Flower had the arrays again.
    read : float
        Seconds of one read of the same bytes, beside it.
    memory : int
        Bytes that were there at most in another load, beyond what was there before.
    """

    seconds: float
    read: float
    memory: int


@dataclass(frozen=True)
class Measured:
    """What a contender cost.

    Attributes
    ----------
    model : int
        Bytes of the model's elements.
    changed : int
        Bytes of those that a round changes.
    rounds : list of Round
    memory : int
        Bytes that were there at most as a round was saved, beyond what Flower holds then: the initial model, that of
        the round before, and the round's own.
    stalled : float
        Seconds for which another thread of the process stood still at most in that round.
    loads : list of Load
    """

    model: int
    changed: int
    rounds: list[Round]
    memory: int
    stalled: float
    loads: list[Load]


def measure(name: str, layout: Layout, num_rounds: int, num_loads: int, state: NoState, folder: Path) -> Measured:
    """Run one contender.

    Parameters
    ----------
    name : str
        As in `contenders.NAMES`.
    layout : Layout
    num_rounds : int
        How many rounds are timed. One more follows for the memory: watching it takes time.
    num_loads : int
        How often the last round is loaded.
    state : NoState
        What the strategy has of its own.
    folder : Path
        Empty; on the disk that is measured.
    """
    _measure(name, _WARM_UP, 1, min(num_loads, 1), NoState(), folder / "warm-up")  # imports, threads
    return _measure(name, layout, num_rounds, num_loads, state, folder / "measured")


def _measure(name: str, layout: Layout, num_rounds: int, num_loads: int, state: NoState, folder: Path) -> Measured:
    saved = folder / "saved"
    saved.mkdir(parents=True)
    who = contender(name, saved)
    rounds = MeasuredRounds(layout, num_rounds, state, who, folder / "raw")
    last = rounds.run()
    loads = [_load(who, num_rounds + 1, last, folder / "raw", index) for index in range(num_loads)]
    return Measured(layout.nbytes, layout.changed_bytes, rounds.done, rounds.memory, rounds.stalled, loads)


class MeasuredRounds(Rounds):
    """Rounds that are timed, and the last of which is watched instead.

    Parameters
    ----------
    layout : Layout
    num_rounds : int
        How many are timed.
    state : NoState
    who : Contender
    scratch : Path
        Where arrays are written raw.
    stopwatch : Stopwatch, optional
        What times them.

    Attributes
    ----------
    done : list of Round
    memory, stalled
        As in `Measured`.
    """

    def __init__(
        self,
        layout: Layout,
        num_rounds: int,
        state: NoState,
        who: Contender,
        scratch: Path,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self.done: list[Round] = []
        self.memory = 0
        self.stalled = 0.0
        self._layout = layout
        self._watched = num_rounds + 1
        self._state = state
        self._who = who
        self._scratch = scratch
        self._stopwatch = stopwatch or Stopwatch()
        self._disk = Folder(who.folder)
        self._model: ArrayRecord = first_model(layout)
        self._older = self._next = ArrayRecord()
        self._strategy: Any = None
        self._ready = self._durable = 0.0
        self._copy: float | None = None
        self._peak: Peak | None = None
        self._ticker: Ticker | None = None
        self._before = 0

    def run(self) -> ArrayRecord:
        """Run all rounds and return the last one's arrays."""
        strategy = prepared_strategy(self, self._stopwatch)
        self._state.prepare(strategy)
        strategy = self._strategy = self._who.attach(strategy, self._model)
        self._before = anonymous_bytes()
        strategy.start(Clients(self, self._stopwatch), self._model, num_rounds=self._watched)
        self._who.wait()
        self._older, self._strategy = ArrayRecord(), None
        return self._model

    def train(self, server_round: int) -> None:
        """Close the books of the last round, and make the arrays of this one."""
        self._who.wait()
        blocked, disk = self._stopwatch.take(), self._disk.grown()
        if server_round > 1:
            raw = seconds_of_raw_write(self._scratch, self._model)
            self.done.append(Round(blocked, self._durable, raw, disk, self._copy))
        gc.collect()  # Flower's messages, and the models in them, refer to each other in circles
        # The round before's arrays stay: what Flower lets go of must not hide what the contender takes.
        self._older = self._model
        calm()
        touch_page_cache(self._scratch, self._model)
        self._next = next_model(self._model, self._layout)
        self._copy = self._state.seconds_of_copy(self._strategy)
        touch_own_memory(self._model, self._next)
        self._state.wait_for_training()

    def aggregate(self, server_round: int, strategy: Any) -> ArrayRecord:
        """Change the strategy's state and hand over the arrays."""
        self._state.change(strategy)
        self._model, self._next = self._next, ArrayRecord()
        return self._model

    def aggregated(self, server_round: int) -> None:
        """Start the clock."""
        if server_round == self._watched:
            self._peak, self._ticker = Peak(), Ticker()
        self._ready = time.perf_counter()

    def evaluate(self, server_round: int) -> None:
        """Wait for the disk, as nobody else does, and stop the clock."""
        self._who.wait()
        self._durable = time.perf_counter() - self._ready
        if self._peak is not None and self._ticker is not None:
            self.stalled = self._ticker.end()
            # There was one model before: the initial one, which Flower holds to the end.
            self.memory = max(self._peak.end() - self._before - 2 * self._layout.nbytes, 0)
        self._state.wait_for_evaluation()
        touch_own_memory(self._model)


def _load(who: Contender, server_round: int, expected: ArrayRecord, scratch: Path, index: int) -> Load:
    """Load twice, once watching the memory and once the clock, and read."""
    write_raw(scratch, expected)
    sizes = [len(array.data) for array in expected.values()]
    before, peak = anonymous_bytes(), Peak()
    seconds_of_load(who, server_round, expected)
    memory = peak.end() - before
    if index % 2:
        read = _seconds_of_read(scratch, sizes)
        return Load(seconds_of_load(who, server_round, expected), read, memory)
    return Load(seconds_of_load(who, server_round, expected), _seconds_of_read(scratch, sizes), memory)


def seconds_of_load(who: Contender, server_round: int, expected: ArrayRecord) -> float:
    """Load a round, and make sure that it is what was saved.

    Raises
    ------
    AssertionError
        If it is not.
    """
    found: list[tuple[float, ArrayRecord]] = []
    gc.collect()  # what the rounds and loads before have left is not there as a server begins
    touch_own_memory()
    begun = time.perf_counter()
    who.load(server_round, expected, lambda record: found.append((time.perf_counter(), record)))
    ended, record = found.pop()
    if record and not same_numbers(record, expected):  # a raw read makes no record
        raise AssertionError(f"{type(who).__name__} did not load what it saved")
    return ended - begun


def _seconds_of_read(path: Path, sizes: Sequence[int]) -> float:
    """Read a file into new memory, array by array: the median of some, since some memory costs a host more."""
    times = []
    for _ in range(_READS):
        trim()
        begun = time.perf_counter()
        with path.open("rb", buffering=0) as file:
            arrays = [file.read(size) for size in sizes]
        times.append(time.perf_counter() - begun)
        assert list(map(len, arrays)) == list(sizes)
        del arrays
    return statistics.median(times)
