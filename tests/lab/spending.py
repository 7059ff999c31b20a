"""A strategy whose privacy accountant is told of each round what that round has spent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import probe

Spend = Callable[[int, int], None]  # (server_round, how many releases)


def on_attempts(kind: type, spend: Spend) -> type:
    """Clients add the noise: every attempt that was sent has spent, also those that nobody aggregated."""

    class SpendsOnAttempts(kind):  # type: ignore[misc]
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            answer = super().aggregate_train(server_round, replies)
            spend(server_round, self.attempts[server_round])
            probe.passed("spent", server_round)
            return answer

    return SpendsOnAttempts


def on_aggregates(kind: type, spend: Spend) -> type:
    """The server adds the noise: an aggregate has spent, if it leaves."""

    class SpendsOnAggregates(kind):  # type: ignore[misc]
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            arrays, metrics = super().aggregate_train(server_round, replies)
            spend(server_round, int(arrays is not None))
            probe.passed("spent", server_round)
            return arrays, metrics

    return SpendsOnAggregates
