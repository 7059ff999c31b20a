"""All that one call of the command has measured: kept as JSON, and summed up for tables and picture."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from . import machine
from .arrays import MIB, Layout
from .contenders import NOBODY
from .figures import Figures, Result, figures, loop_of
from .instruments import touch_disk, touch_memory
from .plan import Plan, layout_of
from .worker import Task, run

_TOUCHED = 3  # times the largest model
_SMALLEST = 64 * MIB
_MODELS = 4.5  # held at once: the initial one, the last, the next, and half of it as it is made


@dataclass(frozen=True)
class Results:
    """What was measured.

    Attributes
    ----------
    plan : str
        What was asked for.
    machine : dict of str to str
    comparison : dict
        By size in MiB (as text) and contender, `NOBODY` among them: what each turn gave.
    cases : dict of str to dict
        What each gave, with the task, and under ``"loop"`` what the same gave where nothing was saved.
    """

    plan: str
    machine: dict[str, str]
    comparison: dict[str, dict[str, list[Result]]]
    cases: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write all of it down."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text()))

    def loops(self) -> dict[int, float]:
        """Give seconds that a round of Flower's own loop takes at each size, where nothing is saved."""
        return {int(mib): loop_of(contenders[NOBODY]) for mib, contenders in self.comparison.items()}

    def figures(self) -> dict[int, dict[str, Figures]]:
        """Sum the comparison up."""
        return {
            mib: {
                name: figures(turns, loop=loop) for name, turns in self.comparison[str(mib)].items() if name != NOBODY
            }
            for mib, loop in self.loops().items()
        }


def measure(plan: Plan, scratch: Path, tell: Callable[[str], None], keep: Callable[[Results], None]) -> None:
    """Do all that a plan says, as far as this machine has the memory for it.

    Parameters
    ----------
    plan : Plan
    scratch : Path
        On the disk that is measured.
    tell : callable
        Gets a line as something is begun.
    keep : callable
        Gets what there is, each time there is more: a library that fails must not cost what was measured before.
    """
    sizes = [size for size in plan.sizes if _fits(layout_of(size.mib), tell)]
    cases = {name: task for name, task in plan.cases.items() if _fits(task.layout, tell)}
    largest = max([_SMALLEST, *(size.mib * MIB for size in sizes)])
    tell(f"touching {_TOUCHED} × {largest / MIB:.0f} MiB of memory and of the disk")
    touch_memory(_TOUCHED * largest)
    touch_disk(scratch, _TOUCHED * largest)
    results = Results(plan.name, machine.describe(scratch), {}, {})
    for size in sizes:
        by_contender: dict[str, list[Result]] = results.comparison.setdefault(str(size.mib), {})
        for turn in range(size.turns):
            for name in (NOBODY, *size.contenders):
                tell(f"{size.mib} MiB, turn {turn + 1} of {size.turns}: {name}")
                by_contender.setdefault(name, []).append(run(size.task(name), scratch))
                keep(results)
    for name, task in cases.items():
        tell(f"case: {name}")
        results.cases[name] = _case(task, scratch)
        keep(results)


def _fits(layout: Layout, tell: Callable[[str], None]) -> bool:
    """Whether there is room for what Flower holds and what a contender may take; else say what is left out."""
    needed = _MODELS * layout.nbytes
    if needed <= psutil.virtual_memory().available:
        return True
    tell(f"left out, for want of {needed / 2**30:.0f} GiB of memory: a model of {layout.nbytes / 2**30:.1f} GiB")
    return False


def _case(task: Task, scratch: Path) -> Result:
    beside = {} if task.kind == "long" else {"loop": run(replace(task, contender=NOBODY, loads=0), scratch)}
    return {**run(task, scratch), **beside, "task": asdict(task)}


def tell(line: str) -> None:
    """Say on standard error what is going on."""
    print(line, file=sys.stderr, flush=True)
