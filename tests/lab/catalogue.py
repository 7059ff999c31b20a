"""Every strategy that Flower ships, in both APIs, with the clients and the first model that it needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.common import FitIns, Parameters
from flwr.server import strategy as legacy
from flwr.serverapp import strategy as message

from . import legacy as legacy_lab
from . import message as message_lab
from . import probe


@dataclass(frozen=True)
class Case:
    """A strategy and what it trains with.

    Attributes
    ----------
    private : bool
        Noise is fresh after a kill: rounds and history agree, bits do not.
    keyed_by_node : bool
        Its state speaks of node ids, or it trains them in turn; they have to survive.
    """

    name: str
    make: Callable[..., Any]  # (salt) -> strategy; what is random in every process comes from the salt
    client: Any
    initial: Callable[[int], Any]
    private: bool = False
    keyed_by_node: bool = False

    def __str__(self) -> str:
        return self.name


def booster(trees: int, value: float) -> bytes:
    """A boosted model of the shape that Flower's XGBoost strategies take apart."""
    model = {
        "gbtree_model_param": {"num_trees": str(trees), "num_parallel_tree": "1"},
        "iteration_indptr": list(range(trees + 1)),
        "tree_info": [0] * trees,
        "trees": [{"id": index, "leaf": value} for index in range(trees)],
    }
    return json.dumps({"learner": {"gradient_booster": {"model": model}}}).encode()


def booster_record(data: bytes) -> ArrayRecord:
    return ArrayRecord([np.frombuffer(data, dtype=np.uint8)])


def booster_client(phase: str, partition: int, content: RecordDict) -> RecordDict:
    arrays = next(iter(content.array_records.values()))
    size = len(arrays["0"].data)
    metrics = MetricRecord({"num-examples": 10 + partition, "size": float(size)})
    if phase == "evaluate":
        return RecordDict({"metrics": metrics})
    return RecordDict({"arrays": booster_record(booster(1, partition + size / 1000)), "metrics": metrics})


def clipping_client(phase: str, partition: int, content: RecordDict) -> RecordDict:
    answer = message_lab.average_client(phase, partition, content)
    next(iter(answer.metric_records.values()))["norm_bit"] = partition % 2
    return answer


def equal_client(phase: str, partition: int, content: RecordDict) -> RecordDict:
    """A client that counts as much as any other: what privacy accounting asks for."""
    answer = message_lab.average_client(phase, partition, content)
    next(iter(answer.metric_records.values()))["num-examples"] = 1
    return answer


def _fedavg() -> Any:
    return message.FedAvg()


def _message(name: str, make: Callable[[], Any], client: Any = message_lab.average_client, **flags: bool) -> Case:
    return Case(f"message/{name}", lambda salt=0: make(), client, message_lab.initial_arrays, **flags)


def message_cases() -> list[Case]:
    """All message-API strategies."""
    s = message
    return [
        _message("FedAvg", s.FedAvg),
        _message("FedProx", lambda: s.FedProx(proximal_mu=0.1)),
        _message("FedAvgM", lambda: s.FedAvgM(server_learning_rate=0.5, server_momentum=0.9)),
        _message("FedAdagrad", lambda: s.FedAdagrad(eta=0.1)),
        _message("FedAdam", lambda: s.FedAdam(eta=0.1)),
        _message("FedYogi", lambda: s.FedYogi(eta=0.1)),
        _message("FedMedian", s.FedMedian),
        _message("FedTrimmedAvg", lambda: s.FedTrimmedAvg(beta=0.25)),
        _message("Krum", lambda: s.Krum(num_malicious_nodes=1)),
        _message("MultiKrum", lambda: s.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=2)),
        _message("Bulyan", lambda: s.Bulyan(num_malicious_nodes=0)),
        _message("QFedAvg", lambda: s.QFedAvg(client_learning_rate=0.1, q=0.2, train_loss_key="loss")),
        _message(
            "DPServerFixed",
            lambda: s.DifferentialPrivacyServerSideFixedClipping(_fedavg(), 0.1, 1.0, 4),
            private=True,
        ),
        _message(
            "DPClientFixed",
            lambda: s.DifferentialPrivacyClientSideFixedClipping(_fedavg(), 0.1, 1.0, 4),
            private=True,
        ),
        _message(
            "DPServerAdaptive",
            lambda: s.DifferentialPrivacyServerSideAdaptiveClipping(_fedavg(), 0.1, 4),
            private=True,
        ),
        _message(
            "DPClientAdaptive",
            lambda: s.DifferentialPrivacyClientSideAdaptiveClipping(_fedavg(), 0.1, 4),
            clipping_client,
            private=True,
        ),
        Case(
            "message/FedXgbBagging",
            lambda salt=0: s.FedXgbBagging(),
            booster_client,
            lambda salt: booster_record(booster(1, 0.5)),
        ),
        Case(
            "message/FedXgbCyclic",
            lambda salt=0: s.FedXgbCyclic(),
            booster_client,
            lambda salt: booster_record(booster(1, 0.5)),
            keyed_by_node=True,
        ),
    ]


class BoosterClient(legacy_lab.FakeClient):
    """A client of Flower's XGBoost strategies."""

    def train(self, ins: FitIns) -> Parameters:
        return Parameters([booster(1, self.partition + len(ins.parameters.tensors[0]) / 1000)], "")

    def metrics(self, parameters: Parameters) -> dict[str, Any]:
        return {"loss": float(len(parameters.tensors[0])) / (self.partition + 1)}


def android_parameters(salt: int) -> Parameters:
    """Parameters as Android clients send them: bare elements, no ``.npy`` header."""
    return Parameters([np.random.default_rng(salt).normal(size=6).astype(np.float32).tobytes()], "android")


class AndroidClient(legacy_lab.FakeClient):
    """A client that speaks in bare float32 elements."""

    def train(self, ins: FitIns) -> Parameters:
        weights = np.frombuffer(ins.parameters.tensors[0], np.float32)
        return Parameters([(weights + np.float32(self.partition) * np.float32(0.1)).tobytes()], "android")

    def metrics(self, parameters: Parameters) -> dict[str, Any]:
        return {"loss": float(np.abs(np.frombuffer(parameters.tensors[0], np.float32)).sum())}


def _central_parameters(server_round: int, parameters: Parameters, config: Any) -> tuple[float, dict[str, Any]]:
    probe.passed("central", server_round)
    return float(len(parameters.tensors[0])), {"round": server_round}


def _legacy(name: str, make: Callable[..., Any], private: bool = False) -> Case:
    arguments = {
        "evaluate_fn": legacy_lab.central,
        "fit_metrics_aggregation_fn": legacy_lab.averaged,
        "evaluate_metrics_aggregation_fn": legacy_lab.averaged,
    }
    # The first model is random in every process, as a real one's; a run goes on with its own.
    return Case(
        f"legacy/{name}",
        lambda salt=0: make(initial_parameters=legacy_lab.initial_parameters(salt), **arguments),
        legacy_lab.FakeClient,
        legacy_lab.initial_parameters,
        private=private,
    )


def _booster_strategy(cls: Any, **arguments: Any) -> Callable[..., Any]:
    return lambda salt=0: cls(
        initial_parameters=Parameters([booster(1, 0.5)], ""),
        evaluate_metrics_aggregation_fn=legacy_lab.averaged,
        **arguments,
    )


def legacy_cases() -> list[Case]:
    """All legacy strategies that run by themselves."""
    s = legacy
    cases = [
        _legacy("FedAvg", s.FedAvg),
        Case(
            "legacy/FedAvgAndroid",
            lambda salt=0: s.FedAvgAndroid(initial_parameters=android_parameters(salt), evaluate_fn=legacy_lab.central),
            AndroidClient,
            android_parameters,
        ),
        _legacy("FaultTolerantFedAvg", s.FaultTolerantFedAvg),
        _legacy("FedProx", lambda **rest: s.FedProx(proximal_mu=0.1, **rest)),
        _legacy("FedAvgM", lambda **rest: s.FedAvgM(server_learning_rate=0.5, server_momentum=0.9, **rest)),
        _legacy("FedAdagrad", lambda **rest: s.FedAdagrad(eta=0.1, **rest)),
        _legacy("FedAdam", lambda **rest: s.FedAdam(eta=0.1, **rest)),
        _legacy("FedYogi", lambda **rest: s.FedYogi(eta=0.1, **rest)),
        _legacy("FedMedian", s.FedMedian),
        _legacy("FedTrimmedAvg", lambda **rest: s.FedTrimmedAvg(beta=0.25, **rest)),
        _legacy("Krum", lambda **rest: s.Krum(num_malicious_clients=1, num_clients_to_keep=2, **rest)),
        _legacy("QFedAvg", lambda **rest: s.QFedAvg(qffl_learning_rate=0.1, **rest)),
        _legacy(
            "DPServerFixed",
            lambda **rest: s.DifferentialPrivacyServerSideFixedClipping(s.FedAvg(**rest), 0.1, 1.0, 4),
            private=True,
        ),
        _legacy(
            "DPClientFixed",
            lambda **rest: s.DifferentialPrivacyClientSideFixedClipping(s.FedAvg(**rest), 0.1, 1.0, 4),
            private=True,
        ),
        _legacy(
            "DPServerAdaptive",
            lambda **rest: s.DifferentialPrivacyServerSideAdaptiveClipping(s.FedAvg(**rest), 0.1, 4),
            private=True,
        ),
        _legacy(
            "DPClientAdaptive",
            lambda **rest: s.DifferentialPrivacyClientSideAdaptiveClipping(s.FedAvg(**rest), 0.1, 4),
            private=True,
        ),
        _legacy("DPFedAvgFixed", lambda **rest: s.DPFedAvgFixed(s.FedAvg(**rest), 4, 1.0, 0.1), private=True),
        _legacy(
            "DPFedAvgAdaptive",
            lambda **rest: s.DPFedAvgAdaptive(s.FedAvg(**rest), 4, clip_count_stddev=2.0),
            private=True,
        ),
    ]
    for cls, arguments in ((s.FedXgbBagging, {"evaluate_function": _central_parameters}), (s.FedXgbCyclic, {})):
        cases.append(
            Case(
                f"legacy/{cls.__name__}",
                _booster_strategy(cls, **arguments),
                BoosterClient,
                lambda salt: Parameters([booster(1, 0.5)], ""),
                keyed_by_node=cls is s.FedXgbCyclic,
            )
        )
    return cases
