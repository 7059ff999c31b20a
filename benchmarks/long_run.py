"""Does a round cost the same after thousands as at the beginning?

A disk's mood changes over minutes, so the young run that the old one is compared with is there twice: the old one's own
first rounds, and a new run that is started as the old one has ended.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord

from flwr_ckpt import CheckpointingStrategy
from flwr_ckpt.store import parse_keep

from .arrays import Layout, first_model, next_model
from .flower_loop import Clients, Rounds, prepared_strategy
from .instruments import Stopwatch

_FIRST = 10
_SAMPLE = 100  # rounds


@dataclass(frozen=True)
class Long:
    """Seconds a round.

    Attributes
    ----------
    early : list of float
        From round 10 on, of the run itself.
    late : list of float
        Its last rounds.
    anew : list of float
        From round 10 on, of a run begun after it.
    """

    early: list[float]
    late: list[float]
    anew: list[float]


def measure_long(layout: Layout, num_rounds: int, keep: str, folder: Path) -> Long:
    """Run many rounds, and some more of another run."""
    old = _seconds(layout, num_rounds, keep, folder / "old")
    young = _seconds(layout, min(num_rounds, _FIRST + _SAMPLE), keep, folder / "young")
    sample = slice(_FIRST - 1, _FIRST - 1 + _SAMPLE)
    return Long(early=old[sample], late=old[-_SAMPLE:], anew=young[sample])


def _seconds(layout: Layout, num_rounds: int, keep: str, folder: Path) -> list[float]:
    stopwatch = Stopwatch()
    rounds = _Counting(layout)
    rounds.strategy = CheckpointingStrategy(prepared_strategy(rounds, stopwatch), folder, keep=parse_keep(keep))
    rounds.strategy.start(Clients(rounds, stopwatch), rounds.model, num_rounds=num_rounds + 1)
    return rounds.seconds


class _Counting(Rounds):
    """Rounds that take as long as it takes to make them durable."""

    strategy: Any

    def __init__(self, layout: Layout) -> None:
        self.seconds: list[float] = []
        self.model = first_model(layout)
        self._layout = layout
        self._begun = 0.0

    def train(self, server_round: int) -> None:
        self.strategy.flush()
        if server_round > 1:
            self.seconds.append(time.perf_counter() - self._begun)
        self.model = next_model(self.model, self._layout)
        self._begun = time.perf_counter()

    def aggregate(self, server_round: int, strategy: Any) -> ArrayRecord:
        return self.model
