"""The wrapped strategy and those it wraps in turn, and what their classes are called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flwr.server.strategy import Strategy as LegacyStrategy
from flwr.serverapp.strategy import Strategy as MessageStrategy

Strategy = MessageStrategy | LegacyStrategy


def strategy_chain(strategy: Strategy) -> list[Strategy]:
    """List a strategy and, in the order found, the strategies its attributes hold, and theirs."""
    found: list[Strategy] = []
    waiting: list[Strategy] = [strategy]
    while waiting:
        item = waiting.pop(0)
        if any(item is known for known in found):
            continue
        found.append(item)
        waiting.extend(_held(item))
    return found


def _held(strategy: Strategy) -> Iterator[Any]:
    for value in vars(strategy).values():
        if isinstance(value, (MessageStrategy, LegacyStrategy)):
            yield value


def class_name(strategy: Strategy) -> str:
    """Name a class by its package and qualified name.

    Not by its module: Flower moves its own between versions, and people move theirs.
    """
    cls = type(strategy)
    return f"{cls.__module__.partition('.')[0]}:{cls.__qualname__}"
