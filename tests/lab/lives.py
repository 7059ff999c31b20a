"""Servers of many kinds whose every round is known beforehand, and that say what is durable while they live.

What a life has to end in is told by a reference: the same server, left alone.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common import FitIns, Parameters, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import strategy as legacy_strategy
from flwr.serverapp import strategy as message_strategy

from flwr_ckpt import CheckpointingStrategy, CheckpointStore, KeepAll, KeepBest, KeepEvery, KeepLatest

from . import legacy, message
from .unusual import InPlace

FROZEN = 140_000  # float64s: more than the 1 MiB from which arrays are shared over rounds
CLIENTS = 2
FIRST = 1  # the salt whose random model a run begins with

Tell = Callable[[int], None]  # that a round is durable


@dataclass(frozen=True)
class Kind:
    """A server: its strategy, and how it is checkpointed.

    Attributes
    ----------
    make : callable
        Makes the strategy; a legacy one from keyword arguments.
    frozen : bool
        Whether there is a large array that never changes.
    flush_every : int
        After how many rounds the server calls ``flush()``.
    """

    name: str
    make: Callable[..., Any]
    keep: Any
    frozen: bool = False
    flush_every: int = 3
    save_every: int = 1
    durable: str = "background"

    @property
    def is_legacy(self) -> bool:
        """Which of Flower's two APIs it uses."""
        return self.name.startswith("legacy/")

    def saved(self, server_round: int) -> int:
        """The last round that is saved as soon as this one is handed over."""
        return server_round - server_round % self.save_every


KINDS = [
    Kind("message/FedAvg", message_strategy.FedAvg, KeepLatest(3), frozen=True),
    Kind("legacy/FedAdam", lambda **given: legacy_strategy.FedAdam(eta=0.1, **given), KeepAll(), flush_every=4),
    Kind(
        "message/FedAvgM",
        lambda: message_strategy.FedAvgM(server_learning_rate=0.5, server_momentum=0.9),
        KeepBest(2, "central/loss", "min") | KeepEvery(5),
        durable="before-release",
    ),
    Kind("legacy/FedAvg", legacy_strategy.FedAvg, KeepLatest(1), frozen=True, flush_every=2),
    Kind("message/FedAdam", lambda: message_strategy.FedAdam(eta=0.1), KeepAll(), flush_every=5),
    Kind(
        "legacy/FedAvgM",
        lambda **given: legacy_strategy.FedAvgM(server_learning_rate=0.5, server_momentum=0.9, **given),
        KeepEvery(4),
        durable="before-release",
    ),
    Kind("message/FedYogi", lambda: message_strategy.FedYogi(eta=0.1), KeepLatest(3), save_every=3),
    Kind("message/InPlace", InPlace, KeepLatest(2), frozen=True, flush_every=1),
    Kind(
        "legacy/FedYogi",
        lambda **given: legacy_strategy.FedYogi(eta=0.1, **given),
        KeepBest(3, "evaluate/loss", "max"),
        frozen=True,
    ),
]


@dataclass(frozen=True)
class Reference:
    """What a server that was left alone has done.

    Attributes
    ----------
    digests : Mapping[int, str]
        Round to the digest of the model that it left.
    history : Mapping[str, Mapping[int, str]]
        As of the store, the values by ``repr``.
    told : Mapping[str, object]
        What Flower's own loop has returned.
    """

    digests: Mapping[int, str]
    history: Mapping[str, Mapping[int, str]]
    told: Mapping[str, Any]


def reference(kind: Kind, num_rounds: int) -> Reference:
    """Run a server to its end, somewhere else; nothing else of this process may use the lab meanwhile."""
    digests: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        told = live(kind, run, num_rounds, FIRST, look=digests.__setitem__)
        return Reference(digests, history_of(CheckpointStore(run)), told)


def live(
    kind: Kind,
    run: Path,
    num_rounds: int,
    salt: int,
    *,
    tell: Tell = lambda server_round: None,
    look: Callable[[int, str], object] | None = None,
    made: Callable[[Any], object] = lambda strategy: None,
) -> Any:
    """One life of a server, to its end.

    Parameters
    ----------
    salt : int
        Gives node ids, the order of replies and the first random model of this life.
    tell : callable
        Told each round that is durable, as soon as the contract says so.
    look : callable, optional
        Told round and digest of each model that is evaluated centrally.
    made : callable
        Told the strategy before it starts.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)
    options = {"keep": kind.keep, "save_every": kind.save_every, "durable": kind.durable, "seed": 5}
    serve = _serve_legacy if kind.is_legacy else _serve_message
    return serve(kind, run, num_rounds, salt, options, _Watch(kind, tell, look), made)


class _Watch:
    """Tells what is durable as a round is evaluated centrally: the server's own thread is there once a round."""

    def __init__(self, kind: Kind, tell: Tell, look: Callable[[int, str], object] | None) -> None:
        self.strategy: Any = None
        self._kind = kind
        self._tell = tell
        self._look = look

    def __call__(self, server_round: int, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
        if self._look is not None:
            self._look(server_round, digest(arrays))
        if server_round == 0 or self._kind.durable == "before-release":
            self._tell(server_round)
        elif server_round % self._kind.flush_every == 0:
            self.strategy.flush()
            self._tell(self._kind.saved(server_round))
        elif server_round >= 2:
            self._tell(self._kind.saved(server_round - 2))  # on disk before training was sent


def _serve_message(
    kind: Kind, run: Path, num_rounds: int, salt: int, options: Any, watch: _Watch, made: Callable[[Any], object]
) -> Any:
    def central(server_round: int, arrays: ArrayRecord) -> Any:
        watch(server_round, ((name, array.numpy()) for name, array in arrays.items()))
        return message.central(server_round, arrays)

    initial = message.initial_arrays(salt)
    if kind.frozen:
        initial["frozen"] = Array(np.arange(FROZEN, dtype=np.float64))
    strategy = watch.strategy = CheckpointingStrategy(kind.make(), run, **options)
    made(strategy)
    grid = message.FakeGrid(_client, salt, nodes=CLIENTS)
    return message.told(message.start(strategy, grid, num_rounds=num_rounds, arrays=initial, evaluate_fn=central))


def _client(phase: str, partition: int, content: RecordDict) -> RecordDict:
    answer = message.average_client(phase, partition, content)
    given = next(iter(content.array_records.values()))
    if phase == "train" and "frozen" in given:
        next(iter(answer.array_records.values()))["frozen"] = given["frozen"]
    return answer


def _serve_legacy(
    kind: Kind, run: Path, num_rounds: int, salt: int, options: Any, watch: _Watch, made: Callable[[Any], object]
) -> Any:
    def central(server_round: int, weights: list[np.ndarray], config: Any) -> Any:
        watch(server_round, ((f"{index:04d}", weight) for index, weight in enumerate(weights)))
        return legacy.central(server_round, weights, config)

    first = parameters_to_ndarrays(legacy.initial_parameters(salt))
    frozen = [np.arange(FROZEN, dtype=np.float64)] if kind.frozen else []
    inner = kind.make(
        initial_parameters=ndarrays_to_parameters([*first, *frozen]),
        evaluate_fn=central,
        fit_metrics_aggregation_fn=legacy.averaged,
        evaluate_metrics_aggregation_fn=legacy.averaged,
    )
    strategy = watch.strategy = CheckpointingStrategy(inner, run, **options)
    made(strategy)
    manager = legacy.clients(salt, CLIENTS, make=_Frozen if kind.frozen else legacy.FakeClient)
    history = legacy.serve(strategy, manager, num_rounds)
    strategy.close()
    return legacy.told(history, strategy.store.load().parameters())


class _Frozen(legacy.FakeClient):
    """A client that trains all but the last tensor."""

    def train(self, ins: FitIns) -> Parameters:
        trained = super().train(ins)
        return Parameters([*trained.tensors[:-1], ins.parameters.tensors[-1]], trained.tensor_type)


def digest(arrays: Iterable[tuple[str, np.ndarray]]) -> str:
    """Sum up names, types, shapes and bytes."""
    total = hashlib.sha256()
    for name, array in arrays:
        total.update(f"{name} {array.dtype.str} {array.shape} ".encode() + array.tobytes())
    return total.hexdigest()


def history_of(store: CheckpointStore) -> dict[str, dict[int, str]]:
    """The history in a form that can be compared: NaN equals NaN here."""
    return {key: {number: repr(value) for number, value in of.items()} for key, of in store.history().items()}
