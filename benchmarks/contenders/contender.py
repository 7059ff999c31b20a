"""What a contender is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy

Arrived = Callable[[ArrayRecord], None]


class Contender(ABC):
    """Saves the rounds of a Flower server in a folder.

    Parameters
    ----------
    folder : Path
        Made by the caller.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def attach(self, strategy: Strategy, initial: ArrayRecord) -> Strategy:
        """Have a strategy's aggregates saved; it will be started with the initial arrays."""

    @abstractmethod
    def wait(self) -> None:
        """Return once all that was saved is on the disk."""

    @abstractmethod
    def load(self, server_round: int, like: ArrayRecord, arrived: Arrived) -> None:
        """Do all that a restarted server does until Flower has a round's arrays again, and then call `arrived`.

        Parameters
        ----------
        like : ArrayRecord
            Another model of the same shapes, such as a restarted server begins with.
        """


class Nobody(Contender):
    """Saves nothing: what is measured is Flower's own loop."""

    def attach(self, strategy: Strategy, initial: ArrayRecord) -> Strategy:
        """Leave it as it is."""
        return strategy

    def wait(self) -> None:
        """Nothing."""

    def load(self, server_round: int, like: ArrayRecord, arrived: Arrived) -> None:
        """There is nothing to load."""
        raise NotImplementedError  # no plan asks for it: a task of this contender has no loads


class Saver(Contender):
    """A library that is called as a strategy has aggregated, as Flower's how-to does."""

    @abstractmethod
    def save(self, path: Path, arrays: ArrayRecord) -> None:
        """Save one round, or begin to."""

    def path(self, server_round: int) -> Path:
        """Where a round lies."""
        return self.folder / f"round-{server_round:05d}"

    def wait(self) -> None:
        """Nothing: `save` returns once it is done."""

    def attach(self, strategy: Strategy, initial: ArrayRecord) -> Strategy:
        """Put the library's call behind the aggregation."""
        save, path = self.save, self.path

        class Saving(type(strategy)):  # type: ignore[misc]  # a base known only when it runs
            def aggregate_train(self, server_round: int, *args: Any) -> Any:
                arrays, metrics = super().aggregate_train(server_round, *args)
                save(path(server_round), arrays)
                return arrays, metrics

        strategy.__class__ = Saving
        return strategy
