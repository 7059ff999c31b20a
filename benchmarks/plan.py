"""What is measured: how large, how often, by whom.

A dozen rounds, or nearly: the first two or three of a process cost more than those of the weeks that follow, and now
and then a virtual machine stands still for some milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .arrays import MIB, Layout
from .contenders import NAMES, NOBODY
from .worker import Task

OURS = "flwr_ckpt"
_ARRAYS = 100


@dataclass(frozen=True)
class Size:
    """A model of 100 arrays, and how often it is saved.

    Attributes
    ----------
    mib : int
    turns : int
        How often each contender has its turn, in a process of its own.
    rounds : int
        Timed in each turn.
    loads : int
    contenders : sequence of str
        In every turn the loop in which nothing is saved comes first.
    """

    mib: int
    turns: int
    rounds: int
    loads: int
    contenders: Sequence[str] = tuple(NAMES)

    def task(self, contender: str) -> Task:
        """One turn."""
        return Task("rounds", contender, layout_of(self.mib), self.rounds, 0 if contender == NOBODY else self.loads)


@dataclass(frozen=True)
class Plan:
    """What one call of the command does.

    Attributes
    ----------
    name : str
    sizes : sequence of Size
    cases : Mapping[str, Task]
        What stands in the table beside the comparison.
    """

    name: str
    sizes: Sequence[Size]
    cases: Mapping[str, Task] = field(default_factory=dict)


def layout_of(mib: int) -> Layout:
    """A model in 100 arrays."""
    return Layout(_ARRAYS, mib * MIB // _ARRAYS // 4 * 4)


def smoke() -> Plan:
    """Everything, but so small that the figures say nothing."""
    return Plan("smoke", (Size(4, 1, 2, 1),), _cases(shrink=128, rounds=110, values=1000))


def usual() -> Plan:
    """What the table of targets needs, and the other libraries at two sizes."""
    sizes = (Size(64, 3, 12, 2), Size(512, 2, 8, 2), Size(2048, 1, 8, 3, ("raw", OURS)))
    return Plan("usual", sizes, _cases(shrink=1, rounds=10_000, values=1_000_000))


def full() -> Plan:
    """The same with more turns, and with the other libraries at every size."""
    sizes = (Size(64, 5, 12, 2), Size(512, 3, 8, 2), Size(2048, 2, 8, 2))
    return Plan("full", sizes, _cases(shrink=1, rounds=10_000, values=1_000_000))


def _cases(*, shrink: int, rounds: int, values: int) -> dict[str, Task]:
    small = Layout(10, 1024)
    frozen = Layout(_ARRAYS, 2038 * MIB // _ARRAYS // shrink // 4 * 4, adapters=20, adapter_bytes=MIB // 2 // shrink)
    return {
        "many": Task("rounds", OURS, Layout(10_000 // shrink, 1024), 12, 1),
        "huge": Task("rounds", OURS, Layout(1, 4096 * MIB // shrink), 1),
        "lora": Task("rounds", OURS, frozen, 4, 1),
        "in_place": Task("rounds", OURS, small, 12, state="arrays", state_size=512 * MIB // shrink),
        "values": Task("rounds", OURS, small, 1, state="values", state_size=values),
        "best": Task("rounds", "best_model", layout_of(64 // min(shrink, 16)), 4),
        "waiting": Task("rounds", OURS, layout_of(64 // min(shrink, 16)), 8, state="long"),
        "keep_latest": Task("long", OURS, small, rounds, keep="latest:3"),
        "keep_all": Task("long", OURS, small, rounds, keep="all"),
    }
