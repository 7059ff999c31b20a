"""Where our own time goes: a sampling profiler over commits and over resumes, by room of the house.

A thread looks every millisecond at what every other one is doing, and counts the time since it last looked for that: a
call that keeps the interpreter to itself counts in full, for the line behind it. What waits for another thread, and
what is not ours, does not count. What is called (`fsync`, a checksum, NumPy) counts for the function of ours that calls
it. Of what keeps the server's loop from going on, which is over before that thread has looked, each call is timed.
"""

from __future__ import annotations

import cProfile
import logging
import pstats
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

from flwr.app import ArrayRecord

from .arrays import Layout
from .contenders import contender
from .contenders.contender import Contender
from .figures import seconds, size
from .instruments import Stopwatch
from .markdown import table
from .plan import OURS, layout_of
from .rounds import MeasuredRounds, seconds_of_load
from .strategy_state import ArraysInPlace, NoState

_INTERVAL = 0.001
_SWITCH = 0.0005  # seconds after which a thread that computes lets the profiler look
_TIMES = 5
_SHOWN = 12
_PACKAGE = "flwr_ckpt"
_WAITS_FOR_WORK = "store.writing.background: _take"  # in a call that has no frame


@dataclass(frozen=True)
class Place:
    """Where a thread was.

    Attributes
    ----------
    thread : str
    room : str
    function : str
    """

    thread: str
    room: str
    function: str


class Sampler:
    """Looks at all threads while it is entered.

    Attributes
    ----------
    seconds : dict of Place to float
    """

    def __init__(self) -> None:
        self.seconds: dict[Place, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._switch = sys.getswitchinterval()

    def __enter__(self) -> Sampler:
        sys.setswitchinterval(_SWITCH)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        sys.setswitchinterval(self._switch)

    def _look(self) -> None:
        last = time.perf_counter()
        while not self._ended.wait(_INTERVAL):
            now = time.perf_counter()
            names = {thread.ident: thread.name for thread in threading.enumerate()}
            for ident, frame in sys._current_frames().items():
                place = _place(frame, names.get(ident, "?"))
                if place is not None:
                    self.seconds[place] = self.seconds.get(place, 0.0) + now - last
            last = now


def _place(frame: FrameType, thread: str) -> Place | None:
    if frame.f_globals.get("__name__") == "threading":
        return None
    found: FrameType | None = frame
    while found is not None:
        module = found.f_globals.get("__name__", "")
        if module.startswith("benchmarks."):
            return None
        if module.startswith(f"{_PACKAGE}."):
            _, room, *rest = module.split(".")
            function = f"{'.'.join([room, *rest])}: {found.f_code.co_name}"
            return None if function == _WAITS_FOR_WORK else Place(_plain(thread), room, function)
        found = found.f_back
    return None


class TimedCalls(Stopwatch):
    """Times each call in what a stopwatch counts.

    Attributes
    ----------
    rounds : list of cProfile.Profile
        The first has the opening of the run in it; what follows the last is left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rounds: list[cProfile.Profile] = []
        self._profile = cProfile.Profile()

    @contextmanager
    def excluded(self) -> Iterator[None]:
        """Leave out what happens inside."""
        self._profile.disable()
        with super().excluded():
            yield
        self._profile.enable()

    def take(self) -> float:
        """What has been counted since the last call, and its calls."""
        self.rounds.append(self._profile)
        self._profile = cProfile.Profile()
        return super().take()


def _plain(thread: str) -> str:
    if thread == "MainThread":
        return "server loop"
    return "readers" if thread.startswith("ThreadPool") else thread


def profile(mib: int, folder: Path) -> str:
    """Profile commits and resumes of some kinds of models, and describe what was found as Markdown.

    Parameters
    ----------
    mib : int
        The size of the model and of the strategy's arrays.
    folder : Path
        Empty.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)
    plain, many, small = layout_of(mib), Layout(10_000, 1024), Layout(10, 1024)
    parts = ["# Where the time goes", (__doc__ or "").partition("\n\n")[2].strip()]
    for layout in (plain, many):
        title = f"{layout.count:,} arrays of {size(layout.bytes_each)}"
        parts += [f"## {title}: hooks of a round", _calls(layout, folder / f"{title}, hooks")]
        parts += [f"## {title}: {_TIMES} commits", _tables(_commits(layout, NoState(), folder / title))]
        parts += [f"## {title}: {_TIMES} resumes", _tables(_resumes(layout, folder / f"{title} again"))]
    title = f"Strategy arrays of {size(plain.nbytes)}, changed in place"
    state = ArraysInPlace(plain.count, plain.bytes_each)
    parts += [f"## {title}: {_TIMES} commits", _tables(_commits(small, state, folder / title))]
    return "\n\n".join(parts) + "\n"


def _commits(layout: Layout, state: NoState, folder: Path) -> Sampler:
    who = _ours(folder)
    with Sampler() as sampler:
        _rounds(who, layout, state)
    return sampler


def _resumes(layout: Layout, folder: Path) -> Sampler:
    who = _ours(folder)
    last = _rounds(who, layout, NoState())
    with Sampler() as sampler:
        for _ in range(_TIMES):
            seconds_of_load(who, _TIMES, last)
    return sampler


def _calls(layout: Layout, folder: Path) -> str:
    """The calls that take longest between Flower's loop and the writer's thread: those of a round, on average."""
    timed = TimedCalls()
    _rounds(_ours(folder), layout, NoState(), timed)
    _, *rounds = timed.rounds
    stats = pstats.Stats(*rounds).stats  # type: ignore[attr-defined]  # there, and unknown to typeshed
    longest = sorted(stats.items(), key=lambda item: -item[1][2])
    rows = [
        (
            f"`{Path(file).stem}: {name}`" if line else f"`{name}`",
            f"{count / len(rounds):.0f}",
            _micro(spent / len(rounds)),
        )
        for (file, line, name), (_, count, spent, _, _) in longest[:_SHOWN]
    ]
    counted, spent = (sum(one[index] for one in stats.values()) / len(rounds) for index in (1, 2))
    return table(("function", "calls", "in itself"), [*rows, ("all", f"{counted:.0f}", _micro(spent))])


def _micro(spent: float) -> str:
    return f"{spent * 1e6:.0f} µs"


def _ours(folder: Path) -> Contender:
    saved = folder / "saved"
    saved.mkdir(parents=True)
    return contender(OURS, saved)


def _rounds(who: Contender, layout: Layout, state: NoState, stopwatch: Stopwatch | None = None) -> ArrayRecord:
    return MeasuredRounds(layout, _TIMES - 1, state, who, who.folder.parent / "raw", stopwatch).run()


def _tables(sampler: Sampler) -> str:
    threads: dict[str, float] = {}
    rooms: dict[tuple[str, str], float] = {}
    for place, spent in sampler.seconds.items():
        threads[place.thread] = threads.get(place.thread, 0.0) + spent
        rooms[place.thread, place.room] = rooms.get((place.thread, place.room), 0.0) + spent
    by_room = [
        (thread, room, seconds(spent), f"{spent / threads[thread]:.0%}")
        for (thread, room), spent in sorted(rooms.items(), key=lambda item: -item[1])
    ]
    top = sorted(sampler.seconds.items(), key=lambda item: -item[1])[:_SHOWN]
    by_function = [
        (place.thread, f"`{place.function}`", seconds(spent), f"{spent / threads[place.thread]:.0%}")
        for place, spent in top
    ]
    head = ("thread", "{}", "seconds", "of the thread")
    return "\n\n".join(
        table([column.format(what) for column in head], rows)
        for what, rows in {"room": by_room, "function": by_function}.items()
    )
