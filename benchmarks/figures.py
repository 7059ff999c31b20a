"""From what was measured to the figures that are shown: medians, and ratios to what was measured in the same turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .arrays import MIB

Result = dict[str, Any]  # what a worker gave for a task


@dataclass(frozen=True)
class Figures:
    """One contender at one size, or one case.

    Attributes
    ----------
    blocked, durable, raw : float
        Seconds a round; `blocked` beyond the same loop in which nothing is saved, `raw` of a raw write of its arrays.
    durable_ratio : float
        Durable against raw, each within its round.
    memory_ratio : float
        Peak of extra memory against the model.
    disk_ratio : float
        Bytes on the disk a round against the bytes that changed.
    stalled : float
        Seconds for which another thread stood still at most.
    load, read : float or None
        Seconds until Flower has the arrays, and of one read of them.
    load_ratio : float or None
        One against the other, each beside its own.
    load_memory_ratio : float or None
        Peak of memory while loading, against the model.
    copy_ratio : float or None
        Blocked against a plain copy of the strategy's own arrays, each within its round.
    """

    blocked: float
    durable: float
    raw: float
    durable_ratio: float
    memory: int
    memory_ratio: float
    disk: int
    disk_ratio: float
    stalled: float
    load: float | None
    read: float | None
    load_ratio: float | None
    load_memory_ratio: float | None
    copy_ratio: float | None


def loop_of(turns: list[Result]) -> float:
    """Give seconds a round of the loop in which nothing is saved."""
    return _median(one["blocked"] for turn in turns for one in turn["rounds"])


def case_figures(result: Result, *, skip: int = 0) -> Figures:
    """Summarise a case, beside its own loop."""
    return figures([result], skip=skip, loop=loop_of([result["loop"]]))


def figures(turns: list[Result], *, skip: int = 0, loop: float) -> Figures:
    """Summarise the turns of one contender.

    Parameters
    ----------
    turns : list of dict
    skip : int
        Rounds at the beginning of each turn whose bytes on the disk do not count.
    loop : float
        What `loop_of` gave for the same layout.
    """
    rounds = [one for turn in turns for one in turn["rounds"]]
    later = [one for turn in turns for one in turn["rounds"][skip:]]
    loads = [one for turn in turns for one in turn["loads"]]
    model, changed = turns[0]["model"], turns[0]["changed"]
    memory, disk = max(turn["memory"] for turn in turns), _median(one["disk"] for one in later)
    return Figures(
        blocked=max(_median(one["blocked"] for one in rounds) - loop, 0.0),
        durable=_median(one["durable"] for one in rounds),
        raw=_median(one["raw"] for one in rounds),
        durable_ratio=_median(one["durable"] / one["raw"] for one in rounds),
        memory=memory,
        memory_ratio=memory / model,
        disk=int(disk),
        disk_ratio=disk / changed,
        stalled=max(turn["stalled"] for turn in turns),
        load=_optional(loads, lambda one: one["seconds"]),
        read=_optional(loads, lambda one: one["read"]),
        load_ratio=_optional(loads, lambda one: one["seconds"] / one["read"]),
        load_memory_ratio=_optional(loads, lambda one: one["memory"] / model),
        copy_ratio=_optional([one for one in rounds if one["copy"]], lambda one: (one["blocked"] - loop) / one["copy"]),
    )


def aged(result: Result) -> tuple[float, float, float]:
    """Give seconds a round early and late in a long run, and their ratio; early ones of it and of a new run alike."""
    early, late = _median(result["early"] + result["anew"]), _median(result["late"])
    return early, late, late / early


def seconds(value: float) -> str:
    """Write a duration so that three digits say something."""
    if value < 0.1:
        return f"{value * 1e3:.2f} ms" if value < 0.01 else f"{value * 1e3:.0f} ms"
    return f"{value:.2f} s"


def size(nbytes: float) -> str:
    """Write a number of bytes."""
    if nbytes >= 1024 * MIB:
        return f"{nbytes / MIB / 1024:g} GiB"
    return f"{nbytes / MIB:.3g} MiB" if nbytes >= MIB else f"{nbytes / 1024:.3g} KiB"


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _optional(items: list[Result], value: Callable[[Result], float]) -> float | None:
    return _median(map(value, items)) if items else None
