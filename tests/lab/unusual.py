"""Strategies unlike any that Flower ships, as users write them."""

from __future__ import annotations

import collections
import enum
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import Parameters, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import strategy as legacy
from flwr.serverapp.strategy import FedAdam, FedAvg, Result, Strategy

from . import message as lab
from .catalogue import Case
from .legacy import FakeClient, averaged, central, initial_parameters


def _mapped(record: ArrayRecord, change: Any) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(change(array.numpy()))) for name, array in record.items()})


class InPlace(FedAvg):
    """Keeps a running sum of what it aggregated, in one array that is changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.total = np.zeros(4, dtype=np.float64)
        self.view = self.total[:2]  # a second name for the same memory
        self.seen = 0

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.total += arrays["conv.bias"].numpy()
        self.seen += 1
        return _mapped(arrays, lambda a: (a + 0.01 * self.total.sum() / self.seen).astype(a.dtype)), metrics


class OwnStart(FedAdam):
    """Brings its own ``start()``: keeps the best model in files, an average between the hooks, and gives up early."""

    def __init__(self, folder: Path) -> None:
        super().__init__(eta=0.1)
        self.folder = str(folder)
        self.best: float | None = None
        self.bad = 0

    def start(self, grid: Any, initial_arrays: ArrayRecord, num_rounds: int = 3, *args: Any, **kwargs: Any) -> Result:
        self.best, self.bad = None, 0  # as Flower's tutorial resets what it keeps
        evaluate_fn = kwargs.get("evaluate_fn")
        train_config, evaluate_config = ConfigRecord(), ConfigRecord()
        result, arrays, average = Result(), initial_arrays, initial_arrays
        for server_round in range(1, num_rounds + 1):
            replies = grid.send_and_receive(self.configure_train(server_round, arrays, train_config, grid))
            aggregated, metrics = self.aggregate_train(server_round, replies)
            arrays = aggregated if aggregated is not None else arrays
            average = _merged(average, arrays)
            result.train_metrics_clientapp[server_round] = metrics
            replies = grid.send_and_receive(self.configure_evaluate(server_round, average, evaluate_config, grid))
            measured = self.aggregate_evaluate(server_round, replies)
            result.evaluate_metrics_clientapp[server_round] = measured
            if evaluate_fn is not None:
                result.evaluate_metrics_serverapp[server_round] = evaluate_fn(server_round, average)
            self._keep_best(server_round, measured["loss"], average)
            if self.bad >= 3:
                break
        result.arrays = average
        return result

    def _keep_best(self, server_round: int, loss: float, arrays: ArrayRecord) -> None:
        if self.best is None or loss < self.best:
            self.best, self.bad = loss, 0
            content = b"".join(bytes(array.data) for array in arrays.values())
            (Path(self.folder) / f"best-{server_round}.bin").write_bytes(content)
        else:
            self.bad += 1


def _merged(left: ArrayRecord, right: ArrayRecord) -> ArrayRecord:
    return ArrayRecord(
        {name: Array((0.5 * left[name].numpy() + 0.5 * right[name].numpy()).astype(np.float32)) for name in left}
    )


class HoldsAnother(Strategy):
    """A wrapper that holds a strategy, and adds a little to what it aggregates."""

    def __init__(self, inner: Strategy) -> None:
        self.inner = inner
        self.rounds = 0

    def summary(self) -> None:
        self.inner.summary()

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Iterable[Message]:
        return self.inner.configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = self.inner.aggregate_train(server_round, replies)
        self.rounds += 1
        return _mapped(arrays, lambda a: (a * (1 - 0.01 * self.rounds)).astype(a.dtype)), metrics

    def configure_evaluate(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Iterable[Message]:
        return self.inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> Any:
        return self.inner.aggregate_evaluate(server_round, replies)


class ChangesConfigs(FedAvg):
    """Halves the learning rate every second round, in the config that Flower passes by reference."""

    def configure_train(self, server_round: int, arrays: Any, config: ConfigRecord, grid: Any) -> Iterable[Message]:
        config["lr"] = float(config.get("lr", 0.5)) * (0.5 if server_round % 2 == 0 else 1.0)  # type: ignore[arg-type]
        return super().configure_train(server_round, arrays, config, grid)


def learning_rate_client(phase: str, partition: int, content: RecordDict) -> RecordDict:
    """A client that steps by the learning rate it is sent."""
    answer = lab.average_client(phase, partition, content)
    if phase == "train":
        rate = float(next(iter(content.config_records.values()))["lr"])  # type: ignore[arg-type]
        answer["arrays"] = _mapped(answer["arrays"], lambda a: (a * np.float32(1 + rate)).astype(a.dtype))  # type: ignore[arg-type]
    return answer


class Draws(FedAvg):
    """Adds noise from generators of its own, and a direction that was drawn once."""

    def __init__(self, salt: int) -> None:
        super().__init__()
        self.generator = np.random.default_rng(salt)
        self.twister = np.random.RandomState(salt)
        self.random = random.Random(salt)
        self.direction = np.random.default_rng(salt + 100).normal(size=4)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        step = self.generator.normal() + self.twister.normal() + self.random.random() + self.direction.sum()
        return _mapped(arrays, lambda a: (a + 0.01 * step).astype(a.dtype)), metrics


class Mood(enum.Enum):
    """What a strategy thinks of a round."""

    CALM = "calm"
    WORRIED = "worried"


@dataclass
class Notes:
    """What a strategy keeps beside arrays."""

    losses: list[float] = field(default_factory=list)
    moods: collections.Counter[str] = field(default_factory=collections.Counter)
    recent: collections.deque[float] = field(default_factory=lambda: collections.deque(maxlen=2))
    mood: Mood = Mood.CALM


class Scheduler:
    """Anything with ``state_dict``."""

    def __init__(self) -> None:
        self.step_count = 0

    def step(self) -> float:
        self.step_count += 1
        return 1.0 / self.step_count

    def state_dict(self) -> dict[str, Any]:
        return {"step_count": self.step_count, "milestones": collections.Counter({2: 1})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step_count = state["step_count"]


class TakesNotes(FedAvg):
    """Learns from evaluation: what it notes there moves the next round's arrays."""

    def __init__(self) -> None:
        super().__init__()
        self.notes = Notes()
        self.scheduler = Scheduler()
        self.weights = {"a": np.float64(1.0), 2: 1.0}

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        shift = self.scheduler.step() + sum(self.notes.recent) + float(self.weights["a"])
        return _mapped(arrays, lambda a: (a + 0.001 * shift).astype(a.dtype)), metrics

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        metrics = super().aggregate_evaluate(server_round, replies)
        assert metrics is not None
        loss = float(metrics["loss"])  # type: ignore[arg-type]
        self.notes.losses.append(loss)
        self.notes.recent.append(loss)
        self.notes.mood = Mood.WORRIED if loss > self.notes.losses[0] else Mood.CALM
        self.notes.moods[self.notes.mood.value] += 1
        self.weights["a"] = np.float64(loss)
        self.weights[server_round] = loss
        return metrics


class Packs(legacy.FedAvg):
    """Sends one array more than the model has: control values that only the server keeps."""

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        assert parameters is not None
        weights = parameters_to_ndarrays(parameters)
        weights[-1] = np.asarray(weights[-1] + server_round, dtype=np.float64)
        return ndarrays_to_parameters(weights), metrics


class PackingClient(FakeClient):
    """A client of `Packs`."""

    def train(self, ins: Any) -> Parameters:
        *weights, control = parameters_to_ndarrays(ins.parameters)
        moved = [w + (np.float32(0.1) * np.sin(w + np.float32(self.partition))).astype(w.dtype) for w in weights]
        return ndarrays_to_parameters([*moved, control * 1.5])


def packed_parameters(salt: int) -> Parameters:
    return Parameters(
        initial_parameters(salt).tensors + ndarrays_to_parameters([np.float64(salt)]).tensors, "numpy.ndarray"
    )


class LegacyMomentum(legacy.FedAvg):
    """A legacy strategy of a user's, with state in plain attributes, a nested helper and a generator."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.velocity: list[np.ndarray] | None = None
        self.notes = Notes()
        self.random = random.Random(kwargs["initial_parameters"].tensors[0][-8:])

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        assert parameters is not None
        weights = parameters_to_ndarrays(parameters)
        if self.velocity is None:
            self.velocity = [np.zeros_like(w) for w in weights]
        for velocity, weight in zip(self.velocity, weights, strict=True):
            velocity *= np.float32(0.9)
            velocity += np.float32(0.01 + 0.01 * self.random.random()) * weight
        return ndarrays_to_parameters([w - v for w, v in zip(weights, self.velocity, strict=True)]), metrics

    def aggregate_evaluate(self, server_round: int, results: Any, failures: Any) -> Any:
        loss, metrics = super().aggregate_evaluate(server_round, results, failures)
        self.notes.losses.append(float(loss or 0))
        self.random.random()
        return loss, metrics


def unusual_cases(folder: Path) -> list[Case]:
    """The strategies of this module; `folder` is where one of them writes files."""

    def message(name: str, make: Any, client: Any = lab.average_client) -> Case:
        return Case(f"message/{name}", lambda salt=0: make(), client, lab.initial_arrays)

    options: dict[str, Any] = {
        "evaluate_fn": central,
        "fit_metrics_aggregation_fn": averaged,
        "evaluate_metrics_aggregation_fn": averaged,
    }
    return [
        message("InPlace", InPlace),
        message("OwnStart", lambda: OwnStart(folder)),
        message("WrappedTwice", lambda: HoldsAnother(HoldsAnother(FedAdam(eta=0.1)))),
        message("ChangesConfigs", ChangesConfigs, learning_rate_client),
        Case("message/Draws", lambda salt=0: Draws(salt), lab.average_client, lab.initial_arrays),
        message("TakesNotes", TakesNotes),
        Case(
            "legacy/Packs",
            lambda salt=0: Packs(initial_parameters=packed_parameters(salt), **options),
            PackingClient,
            packed_parameters,
        ),
        Case(
            "legacy/LegacyMomentum",
            lambda salt=0: LegacyMomentum(initial_parameters=initial_parameters(salt), **options),
            FakeClient,
            initial_parameters,
        ),
    ]
