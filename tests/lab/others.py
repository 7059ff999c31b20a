"""Strategies and servers of the kinds that people publish, each with what is special about its kind."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.common import FitRes, GetParametersRes, Parameters, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import Server
from flwr.server.server import fit_clients
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.serverapp.strategy import FedAdagrad, FedAvg, Result

from . import message as lab
from . import probe
from .catalogue import Case
from .legacy import OK, FakeClient, averaged, central, initial_parameters
from .unusual import learning_rate_client

# --- message API: strategies with their own start() -------------------------------------------------------------------


class SavesTheBest(FedAdagrad):
    """Starts its own loop, halves the rate in round 3, and saves each model that is better than all before it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(eta=0.1)
        self.folder = folder

    def configure_train(self, server_round: int, arrays: Any, config: ConfigRecord, grid: Any) -> Iterable[Message]:
        config.setdefault("lr", 0.5)
        if server_round == 3:
            config["lr"] = 0.5 * float(config["lr"])  # type: ignore[arg-type]
        return super().configure_train(server_round, arrays, config, grid)

    def start(self, grid: Any, initial_arrays: ArrayRecord, num_rounds: int = 3, **kwargs: Any) -> Result:
        self.best = float("inf")
        config, result, arrays = ConfigRecord(), Result(), initial_arrays
        result.evaluate_metrics_serverapp[0] = kwargs["evaluate_fn"](0, arrays)
        for server_round in range(1, num_rounds + 1):
            replies = grid.send_and_receive(self.configure_train(server_round, arrays, config, grid))
            arrays, metrics = self.aggregate_train(server_round, replies)
            result.arrays, result.train_metrics_clientapp[server_round] = arrays, metrics
            replies = grid.send_and_receive(self.configure_evaluate(server_round, arrays, config, grid))
            result.evaluate_metrics_clientapp[server_round] = self.aggregate_evaluate(server_round, replies)
            measured = kwargs["evaluate_fn"](server_round, arrays)
            result.evaluate_metrics_serverapp[server_round] = measured
            self._save_if_best(server_round, measured["loss"], arrays)
        return result

    def _save_if_best(self, server_round: int, loss: float, arrays: ArrayRecord) -> None:
        if loss < self.best:
            self.best = loss
            content = b"".join(bytes(array.data) for array in arrays.values())
            (self.folder / "best.bin").write_bytes(content)
            (self.folder / f"round-{server_round}-loss-{loss:.6f}.bin").write_bytes(content)


class GivesUp(FedAvg):
    """Counts in its own loop the rounds that brought nothing, and ends in round 3 of 4 for it."""

    def start(self, grid: Any, initial_arrays: ArrayRecord, num_rounds: int = 3, **kwargs: Any) -> Result:
        self.bad, self.best = 0, float("inf")
        config, result, arrays = ConfigRecord(), Result(), initial_arrays
        for server_round in range(1, num_rounds + 1):
            replies = grid.send_and_receive(self.configure_train(server_round, arrays, config, grid))
            arrays, metrics = self.aggregate_train(server_round, replies)
            result.arrays, result.train_metrics_clientapp[server_round] = arrays, metrics
            replies = grid.send_and_receive(self.configure_evaluate(server_round, arrays, config, grid))
            measured = self.aggregate_evaluate(server_round, replies)
            result.evaluate_metrics_clientapp[server_round] = measured
            improved = float(measured["loss"]) < 0.9 * self.best
            self.best = min(self.best, float(measured["loss"]))
            self.bad = 0 if improved else self.bad + 1
            if self.bad == 2:
                break
        return result


class Remembers(FedAvg):
    """Hands on the mean of the last two models, which only its own loop holds."""

    def start(self, grid: Any, initial_arrays: ArrayRecord, num_rounds: int = 3, **kwargs: Any) -> Result:
        config, result, before, arrays = ConfigRecord(), Result(), initial_arrays, initial_arrays
        for server_round in range(1, num_rounds + 1):
            replies = grid.send_and_receive(self.configure_train(server_round, _mean(before, arrays), config, grid))
            before = arrays
            arrays, result.train_metrics_clientapp[server_round] = self.aggregate_train(server_round, replies)
            replies = grid.send_and_receive(self.configure_evaluate(server_round, arrays, config, grid))
            result.evaluate_metrics_clientapp[server_round] = self.aggregate_evaluate(server_round, replies)
        result.arrays = _mean(before, arrays)
        return result


def _mean(left: ArrayRecord, right: ArrayRecord) -> ArrayRecord:
    means = [(a + b) / np.float32(2) for a, b in zip(left.to_numpy_ndarrays(), right.to_numpy_ndarrays(), strict=True)]
    return ArrayRecord(dict(zip(left, ArrayRecord(means).values(), strict=True)))


# --- legacy API -------------------------------------------------------------------------------------------------------


class StepRate:
    """A schedule of the shape of torch's ``MultiStepLR``: its milestones are a ``Counter``."""

    def __init__(self) -> None:
        self.rate = 0.5
        self.milestones = collections.Counter([2, 2, 3])
        self.last_epoch = 0

    def step(self) -> None:
        self.last_epoch += 1
        self.rate *= 0.5 ** self.milestones[self.last_epoch]

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class Schedules(LegacyFedAvg):
    """Sends a rate that it steps in ``configure_fit``, and a budget by client that it makes anew every round."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scheduler = StepRate()
        self.mapping: dict[str, float] = {}

    def configure_fit(self, server_round: int, parameters: Parameters, client_manager: Any) -> Any:
        instructions = super().configure_fit(server_round, parameters, client_manager)
        self.mapping = {client.cid: self.scheduler.rate for client, _ in instructions}
        for _, ins in instructions:
            ins.config["rate"] = self.scheduler.rate
        self.scheduler.step()
        return instructions


class RateClient(FakeClient):
    """Steps by the rate it is sent."""

    def train(self, ins: Any) -> Parameters:
        rate = np.float32(ins.config["rate"])
        return ndarrays_to_parameters(
            [w + rate * np.sin(w + np.float32(self.partition)) for w in parameters_to_ndarrays(ins.parameters)]
        )


class SwapsItsFunction(LegacyFedAvg):
    """Collects statistics in round 1, takes what clients prepared in round 2, and neither from round 3 on."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fit_metrics_aggregation_fn = SwapsItsFunction.statistics
        self.prepared: list[float] | None = None

    def configure_fit(self, server_round: int, parameters: Parameters, client_manager: Any) -> Any:
        instructions = super().configure_fit(server_round, parameters, client_manager)
        for _, ins in instructions:
            ins.config["rate"] = 0.1 * sum(self.prepared or [1.0]) / (1 + server_round)
        return instructions

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        if server_round == 2:
            self.fit_metrics_aggregation_fn = SwapsItsFunction.preparations
        elif server_round > 2:
            self.fit_metrics_aggregation_fn = None
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        if isinstance(metrics, list):
            self.prepared, metrics = metrics, {}
        return parameters, metrics

    @staticmethod
    def statistics(metrics: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
        return {json.dumps({"mean": sum(count for count, _ in metrics)}): 0}

    @staticmethod
    def preparations(metrics: list[tuple[int, dict[str, Any]]]) -> Any:
        return [float(values["loss"]) for _, values in metrics]


class SavesWhatItMakes(LegacyFedAvg):
    """Writes each round's model in ``aggregate_fit``, and one growing file of results in ``evaluate``."""

    def __init__(self, folder: Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.folder = folder
        self.results: dict[int, Any] = {}
        self.best = 0.0

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        assert parameters is not None
        (self.folder / f"round-{server_round}.bin").write_bytes(b"".join(parameters.tensors))
        return parameters, metrics

    def evaluate(self, server_round: int, parameters: Parameters) -> Any:
        answer = super().evaluate(server_round, parameters)
        assert answer is not None
        self.best = max(self.best, answer[0])
        self.results[server_round] = {"loss": answer[0], "best": self.best, **answer[1]}
        (self.folder / "results.json").write_text(json.dumps(self.results))
        return answer


class Estimates(LegacyFedAvg):
    """Has no first model to give; keeps the one it is shown in round 0, and an estimate that a coin's toss drops."""

    def __init__(self, salt: int, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "initial_parameters": None})
        self.model: list[np.ndarray] | None = None
        self.estimate: list[np.ndarray] | None = None
        self.coin = np.random.default_rng(salt)
        self.received = 0

    def evaluate(self, server_round: int, parameters: Parameters) -> Any:
        if server_round == 0:
            self.model = parameters_to_ndarrays(parameters)
        return super().evaluate(server_round, parameters)

    def configure_fit(self, server_round: int, parameters: Parameters, client_manager: Any) -> Any:
        if self.coin.random() < 0.5:
            self.estimate = None
        return super().configure_fit(server_round, parameters, client_manager)

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        assert parameters is not None
        assert self.model is not None
        step = parameters_to_ndarrays(parameters)
        if self.estimate is None:
            self.estimate = step
        else:
            for kept, new in zip(self.estimate, step, strict=True):
                kept += np.float32(0.25) * new
        for weight, direction in zip(self.model, self.estimate, strict=True):
            weight -= np.float32(0.1) * direction
        return ndarrays_to_parameters(self.model), metrics

    def aggregate_evaluate(self, server_round: int, results: Any, failures: Any) -> Any:
        self.received += sum(answer.num_examples for _, answer in results)
        loss, metrics = super().aggregate_evaluate(server_round, results, failures)
        return loss, {**metrics, "received": self.received}


class Asked(FakeClient):
    """Has a first model to give, another one in each run."""

    def get_parameters(self, *_: Any, **__: Any) -> GetParametersRes:
        probe.passed("initial", 0)
        return GetParametersRes(OK, initial_parameters(self.node_id % 1000))


class KnowsItsClients(LegacyFedAvg):
    """Notes in round 1 what each client is, by its id, and looks that up from then on. Keeps the app's context."""

    def __init__(self, context: Context, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.context = context
        self.partition_of: dict[str, int] = {}

    def configure_fit(self, server_round: int, parameters: Parameters, client_manager: Any) -> Any:
        instructions = super().configure_fit(server_round, parameters, client_manager)
        if server_round == 1:
            self.partition_of = {client.cid: client.partition for client, _ in instructions}
        for client, ins in instructions:
            ins.config["rate"] = 0.1 * self.partition_of[client.cid]
        return instructions


class KeepsTheManager(LegacyFedAvg):
    """Holds on to the client manager that it was handed."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.client_manager: Any = None

    def configure_fit(self, server_round: int, parameters: Parameters, client_manager: Any) -> Any:
        self.client_manager = client_manager
        return super().configure_fit(server_round, parameters, client_manager)


OPTIONS: dict[str, Any] = {
    "evaluate_fn": central,
    "fit_metrics_aggregation_fn": averaged,
    "evaluate_metrics_aggregation_fn": averaged,
}


def other_cases(folder: Path) -> list[Case]:
    """The strategies of this module that end in the same bits; `folder` is where some of them write files."""

    def message(name: str, make: Any, client: Any = lab.average_client) -> Case:
        return Case(f"message/{name}", lambda salt=0: make(), client, lab.initial_arrays)

    def legacy(cls: Any, client: Any = FakeClient, **options: Any) -> Case:
        return Case(
            f"legacy/{cls.__name__}",
            lambda salt=0: cls(**{"initial_parameters": initial_parameters(salt), **OPTIONS, **options}),
            client,
            initial_parameters,
        )

    return [
        message("SavesTheBest", lambda: SavesTheBest(folder), learning_rate_client),
        message("GivesUp", GivesUp),
        message("Remembers", Remembers),
        legacy(Schedules, RateClient),
        legacy(SwapsItsFunction, RateClient),
        legacy(SavesWhatItMakes, folder=folder),
        legacy(KeepsTheManager),
        Case(
            "legacy/Estimates",
            lambda salt=0: Estimates(salt, **OPTIONS),
            Asked,
            initial_parameters,
        ),
    ]


# --- servers ----------------------------------------------------------------------------------------------------------


class AddsItsOwn(Server):
    """Applies what the strategy aggregated as an update, to parameters that only this server has."""

    def fit_round(self, server_round: int, timeout: float | None) -> Any:
        answer = super().fit_round(server_round, timeout)
        assert answer is not None
        update, metrics, replies = answer
        assert update is not None
        pairs = zip(parameters_to_ndarrays(self.parameters), parameters_to_ndarrays(update), strict=True)
        return ndarrays_to_parameters([mine + np.float32(0.1) * new for mine, new in pairs]), metrics, replies


class AggregatesByItself(Server):
    """Never asks the strategy to aggregate what clients trained."""

    def fit_round(self, server_round: int, timeout: float | None) -> Any:
        instructions = self.strategy.configure_fit(server_round, self.parameters, self._client_manager)
        results, failures = fit_clients(instructions, self.max_workers, timeout, server_round)
        updates = [parameters_to_ndarrays(answer.parameters) for _, answer in results]
        return (
            ndarrays_to_parameters([sum(layers) / len(updates) for layers in zip(*updates, strict=True)]),
            {},
            (
                results,
                failures,
            ),
        )


class ReadsReplies(Server):
    """Looks at what each client sent, after the strategy has aggregated it."""

    def fit_round(self, server_round: int, timeout: float | None) -> Any:
        answer = super().fit_round(server_round, timeout)
        assert answer is not None
        for _, reply in answer[2][0]:
            self.seen(reply)
        return answer

    def seen(self, reply: FitRes) -> None:
        assert len(reply.parameters.tensors) == 2


class PairsParameters(Server):
    """Never asks the strategy for the first model, and carries something of its own along with the parameters."""

    def _get_initial_parameters(self, *_: Any, **__: Any) -> Any:
        return initial_parameters(7), ["trees"]


class AddsToMetrics(Server):
    """Puts something of its own into the metrics that it was handed, counts rounds, and stops early."""

    def fit(self, num_rounds: int, timeout: float | None) -> Any:
        return super().fit(num_rounds - 1, timeout)

    def fit_round(self, server_round: int, timeout: float | None) -> Any:
        answer = super().fit_round(server_round, timeout)
        assert answer is not None
        answer[1]["server"] = server_round
        return answer

    def evaluate_round(self, server_round: int, timeout: float | None) -> Any:
        answer = super().evaluate_round(server_round, timeout)
        assert answer is not None
        answer[1]["server"] = server_round
        return answer
