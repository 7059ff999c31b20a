"""What a strategy has of its own and changes in every aggregation, and how long its clients take."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

_TRAINING = 5.0  # seconds
_EVALUATION = 0.3
_CHANGED = 100  # one of so many values is another one each round


class NoState:
    """A stateless strategy, such as FedAvg."""

    def prepare(self, strategy: Any) -> None:
        """Give a new strategy its state."""

    def change(self, strategy: Any) -> None:
        """Change it, as an aggregation does."""

    def seconds_of_copy(self, strategy: Any) -> float | None:
        """How long a plain copy of it takes, where it consists of arrays."""
        return None

    def wait_for_training(self) -> None:
        """Have clients train for a while, where it matters that they do not answer at once."""

    def wait_for_evaluation(self) -> None:
        """Have clients evaluate for a while, as above."""


class LongTraining(NoState):
    """None, and clients whose training takes so long that the server's memory is not what was used last."""

    def wait_for_training(self) -> None:
        """Wait as for clients."""
        time.sleep(_TRAINING)


class ArraysInPlace(NoState):
    """Arrays that each round changes where they lie, such as momentum.

    Parameters
    ----------
    count : int
    bytes_each : int
    """

    def __init__(self, count: int, bytes_each: int) -> None:
        self._copies = [np.ones(bytes_each // 4, np.float32) for _ in range(count)]

    def prepare(self, strategy: Any) -> None:
        """Give a new strategy its state."""
        strategy.momentum = [copy * np.float32(index) for index, copy in enumerate(self._copies)]

    def change(self, strategy: Any) -> None:
        """Change it, as an aggregation does."""
        for array in strategy.momentum:
            array += np.float32(1)

    def seconds_of_copy(self, strategy: Any) -> float | None:
        """Copy the arrays into memory that is there already."""
        begun = time.perf_counter()
        for copy, array in zip(self._copies, strategy.momentum, strict=True):
            np.copyto(copy, array)
        return time.perf_counter() - begun

    def wait_for_evaluation(self) -> None:
        """Wait until old rounds are deleted: that keeps a processor busy for a tenth of a second, and copies slow."""
        time.sleep(_EVALUATION)


class ManyValues(NoState):
    """A dictionary of plain numbers, of which each round changes some.

    Parameters
    ----------
    count : int
    """

    def __init__(self, count: int) -> None:
        self._count = count

    def prepare(self, strategy: Any) -> None:
        """Give a new strategy its state."""
        strategy.seen = {index: index / 7 for index in range(self._count)}

    def change(self, strategy: Any) -> None:
        """Change it, as an aggregation does."""
        for index in range(0, self._count, _CHANGED):
            strategy.seen[index] += 1.0
