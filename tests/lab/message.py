"""The message API in one process: Flower's own ``Strategy.start`` over a grid of clients that answer at once."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.server import Grid
from flwr.serverapp.strategy import Result, Strategy

from . import probe

Client = Callable[[str, int, RecordDict], RecordDict]  # (phase, partition, content) -> content


def allow_messages() -> None:
    """From 1.38 on, a Message can only be made inside a run; say that this is one.

    The only import of Flower's internals in the project: there is no public way.
    """
    with contextlib.suppress(ImportError):
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


class FakeRun:
    """What ``Grid.run`` tells of the app."""

    def __init__(self, fab_id: str = "lab/app", override_config: dict[str, Any] | None = None) -> None:
        self.run_id = 1
        self.fab_id = fab_id
        self.fab_hash = "0" * 64
        self.override_config = override_config or {}


class FakeGrid(Grid):
    """Nodes with ids that are new in every run, whose replies come in another order each time.

    Parameters
    ----------
    client : callable
        What a node answers.
    salt : int
        Makes ids and order of replies those of one run.
    nodes : int
        How many there are.
    node_ids : list of int, optional
        Ids that survive.
    """

    def __init__(
        self,
        client: Client,
        salt: int,
        nodes: int = 4,
        node_ids: list[int] | None = None,
        run: FakeRun | None = None,
    ) -> None:
        allow_messages()
        self.random = random.Random(salt)
        self.ids = node_ids or [self.random.getrandbits(62) for _ in range(nodes)]
        self.client = client
        self.sent: list[tuple[str, int]] = []
        self._run = run or FakeRun()

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        return self._run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        ids = list(self.ids)
        self.random.shuffle(ids)
        return ids

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        messages = list(messages)
        assert messages, "an empty send reached the grid"
        phase = messages[0].metadata.message_type
        config = next(iter(messages[0].content.config_records.values()))
        server_round = int(config["server-round"])  # type: ignore[arg-type]
        self.sent.append((phase, server_round))
        probe.passed(phase, server_round)
        replies = []
        for message in messages:
            partition = self.ids.index(message.metadata.dst_node_id)
            content = self.client(phase, partition, message.content)
            replies.append(Message(content, reply_to=message))
        self.random.shuffle(replies)
        return replies


def average_client(phase: str, partition: int, content: RecordDict) -> RecordDict:
    """A client that moves the arrays a little, by its partition; deterministic."""
    arrays = next(iter(content.array_records.values()))
    weights = arrays.to_numpy_ndarrays()
    step = np.float32(0.1) * np.float32(partition + 1)
    loss = float(sum(np.abs(w.astype(np.float64)).sum() for w in weights)) / (partition + 2)
    metrics = MetricRecord({"num-examples": 10 + partition, "loss": loss, "accuracy": 1.0 / (1.0 + loss)})
    if phase == "evaluate":
        return RecordDict({"metrics": metrics})
    moved = [w + (step * np.sin(w + np.float32(partition))).astype(w.dtype) for w in weights]
    return RecordDict({"arrays": ArrayRecord(dict(zip(arrays, _arrays(moved), strict=True))), "metrics": metrics})


def _arrays(arrays: list[np.ndarray]) -> list[Any]:
    from flwr.app import Array

    return [Array(array) for array in arrays]


def initial_arrays(salt: int = 0) -> ArrayRecord:
    """A small model, random in every process, as a real one's."""
    generator = np.random.default_rng(salt)
    return ArrayRecord(
        {
            "conv.weight": _arrays([generator.normal(size=(3, 4)).astype(np.float32)])[0],
            "conv.bias": _arrays([generator.normal(size=(4,)).astype(np.float32)])[0],
        }
    )


def central(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Central evaluation that depends on nothing but the arrays."""
    probe.passed("central", server_round)
    numbers = [array for array in arrays.to_numpy_ndarrays() if array.dtype.kind != "U"]  # packed lists hold names
    total = sum(float(np.abs(array).sum()) for array in numbers)
    return MetricRecord({"loss": total, "round": server_round})


def start(
    strategy: Strategy,
    grid: FakeGrid,
    *,
    num_rounds: int = 4,
    arrays: ArrayRecord | None = None,
    evaluate_fn: Any = central,
    **configs: ConfigRecord,
) -> Result:
    """Run a strategy as a ServerApp does."""
    return strategy.start(
        grid=grid,
        initial_arrays=arrays if arrays is not None else initial_arrays(),
        num_rounds=num_rounds,
        evaluate_fn=evaluate_fn,
        **configs,
    )


def told(result: Result) -> dict[str, Any]:
    """What a result says, in a form that can be compared: the bits of the arrays, metrics by ``repr``."""
    digest = hashlib.sha256()
    for name, array in result.arrays.items():
        digest.update(f"{name}/{array.dtype}/{array.shape}/{array.stype}/".encode() + bytes(array.data))
    return {
        "arrays": digest.hexdigest(),
        "metrics": {
            kind: {str(server_round): repr(dict(record)) for server_round, record in getattr(result, kind).items()}
            for kind in ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")
        },
    }
