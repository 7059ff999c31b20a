"""Rounds of Flower: its own ``Strategy.start`` over clients that are not there, with aggregates made in advance.

What is left of a round is the server's loop and whoever saves.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg, Strategy

from tests.lab.message import FakeGrid

from .instruments import Stopwatch


class Rounds(Protocol):
    """What happens in the rounds."""

    def train(self, server_round: int) -> None:
        """While clients train."""

    def evaluate(self, server_round: int) -> None:
        """While clients evaluate."""

    def configure(self, server_round: int, arrays: ArrayRecord) -> None:
        """The strategy configures training, with the arrays that clients begin from."""

    def aggregate(self, server_round: int, strategy: Any) -> ArrayRecord:
        """The strategy's aggregation: the arrays of the round."""

    def aggregated(self, server_round: int) -> None:
        """The arrays are there, and the strategy gives them away."""


class Clients(FakeGrid):
    """Clients that do nothing while they train and evaluate.

    Parameters
    ----------
    rounds : Rounds
    stopwatch : Stopwatch
        Leaves them out.
    """

    def __init__(self, rounds: Rounds, stopwatch: Stopwatch) -> None:
        super().__init__(lambda phase, partition, content: content, salt=0, nodes=2)
        self._rounds = rounds
        self._stopwatch = stopwatch

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Answer nothing: the aggregate is there in advance."""
        first = next(iter(messages))
        with self._stopwatch.excluded():
            server_round = int(next(iter(first.content.config_records.values()))["server-round"])
            (self._rounds.train if first.metadata.message_type == "train" else self._rounds.evaluate)(server_round)
        return []


def prepared_strategy(rounds: Rounds, stopwatch: Stopwatch) -> Strategy:
    """Make a FedAvg whose aggregates are made by `rounds`, and whose own time does not count."""

    class Prepared(FedAvg):
        def configure_train(
            self, server_round: int, arrays: ArrayRecord, *args: Any, **kwargs: Any
        ) -> Iterable[Message]:
            with stopwatch.excluded():
                rounds.configure(server_round, arrays)
                return super().configure_train(server_round, arrays, *args, **kwargs)

        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord, MetricRecord]:
            with stopwatch.excluded():
                arrays = rounds.aggregate(server_round, self)
                rounds.aggregated(server_round)
            return arrays, MetricRecord({"loss": 1.0 / server_round})

        def configure_evaluate(self, *args: Any, **kwargs: Any) -> Iterable[Message]:
            with stopwatch.excluded():
                return super().configure_evaluate(*args, **kwargs)

        def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord:
            with stopwatch.excluded():
                return MetricRecord({"loss": 1.0 / server_round})

    return Prepared()
