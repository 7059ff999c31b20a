"""``seed=``: what makes the server's side of a run the same in every process.

Three things differ between two processes of one run: the global random generators, the node ids (new in every
run) with the order they come in, and the order in which replies arrive. Each has its answer here.
"""

from __future__ import annotations

import functools
import hashlib
import random
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
from flwr.app import Message
from flwr.common import EvaluateRes, FitRes
from flwr.server.client_proxy import ClientProxy

T = TypeVar("T")


def _number(seed: int, server_round: int, moment: str) -> int:
    digest = hashlib.sha256(f"{seed}/{server_round}/{moment}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def seed_everything(seed: int, server_round: int, moment: str) -> None:
    """Seed the global generators of ``random``, NumPy and (if imported) torch from (seed, round, moment)."""
    number = _number(seed, server_round, moment)
    random.seed(number)
    np.random.seed(number % 2**32)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(number % 2**63)


def seed_random(seed: int, server_round: int, moment: str) -> None:
    """Seed ``random`` alone, where node ids are handed out.

    Flower's heartbeat threads draw from it while sampling waits for nodes, so what was seeded at the start of the
    phase is spent by a different amount in every run when the sample is drawn.
    """
    random.seed(_number(seed, server_round, f"{moment}/sample"))


def sorted_ids(ids: Iterable[T]) -> list[T]:
    """Sort node ids, numbers (or strings of digits) by value, before other strings."""

    def key(item: T) -> tuple[bool, int, str]:
        text = str(item)
        return (False, int(text), "") if text.lstrip("-").isdigit() else (True, 0, text)

    return sorted(ids, key=key)


def _compare(left: Any, right: Any) -> int:
    return int(left > right) - int(left < right)


def _by_content(parts: Callable[[T], tuple[Any, Callable[[], Iterable[bytes]], str]]) -> Callable[[T], Any]:
    """Make a sort key of (number of examples, arrays, other metrics) that stops at the first difference."""

    def compare(left: T, right: T) -> int:
        examples, arrays, rest = parts(left)
        other_examples, other_arrays, other_rest = parts(right)
        if order := _compare(examples, other_examples):
            return order
        ours, theirs = list(arrays()), list(other_arrays())
        if order := _compare(len(ours), len(theirs)):
            return order
        for mine, his in zip(ours, theirs, strict=True):
            if mine is not his and mine != his:
                return _compare(mine, his)
        return _compare(rest, other_rest)

    return functools.cmp_to_key(compare)


def sort_replies(replies: list[Message], weighted_by_key: str) -> list[Message]:
    """Put message-API replies in an order that depends on nothing but what they say; errors come last.

    Node ids are new in every run and arrival times differ, so neither may decide. Floating-point sums depend on the
    order of their terms, which is why there has to be one.
    """

    def parts(reply: Message) -> tuple[float, Callable[[], Iterable[bytes]], str]:
        content = reply.content
        metrics = [dict(record) for _, record in sorted(content.metric_records.items())]
        examples = next((_as_number(record[weighted_by_key]) for record in metrics if weighted_by_key in record), 0.0)
        arrays = [record for _, record in sorted(content.array_records.items())]
        return (
            examples,
            lambda: (bytes(array.data) for record in arrays for array in record.values()),
            repr([sorted(record.items()) for record in metrics]),
        )

    sound = [reply for reply in replies if not reply.has_error()]
    failed = [reply for reply in replies if reply.has_error()]
    return sorted(sound, key=_by_content(parts)) + failed


def sort_results(results: list[tuple[ClientProxy, Any]]) -> list[tuple[ClientProxy, Any]]:
    """Put legacy results in an order that depends on nothing but what they say (see `sort_replies`)."""

    def parts(result: tuple[ClientProxy, FitRes | EvaluateRes]) -> tuple[float, Callable[[], Iterable[bytes]], str]:
        answer = result[1]
        tensors = answer.parameters.tensors if isinstance(answer, FitRes) else []
        loss = answer.loss if isinstance(answer, EvaluateRes) else 0.0
        return (_as_number(answer.num_examples), lambda: tensors, repr((loss, _sorted_items(answer.metrics))))

    return sorted(results, key=_by_content(parts))


def _as_number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _sorted_items(metrics: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    return sorted((metrics or {}).items())
