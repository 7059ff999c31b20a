"""The legacy API in one process: Flower's own ``Server`` over client proxies that answer at once."""

from __future__ import annotations

import contextlib
import hashlib
import random
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from flwr.common import (
    Code,
    DisconnectRes,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    GetParametersRes,
    GetPropertiesRes,
    Parameters,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.server import History, Server, SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import Strategy

from . import probe

OK = Status(code=Code.OK, message="")


@contextlib.contextmanager
def said() -> Iterator[None]:
    """Say why a client failed: Flower only counts it, and trains on without."""
    try:
        yield
    except BaseException:
        traceback.print_exc()
        raise


class FakeClient(ClientProxy):
    """A client that moves the parameters a little, by its partition; deterministic."""

    def __init__(self, cid: str, partition: int) -> None:
        super().__init__(cid)
        self.node_id = int(cid)
        self.partition = partition

    def get_properties(self, *_: Any, **__: Any) -> GetPropertiesRes:
        return GetPropertiesRes(OK, {})

    def get_parameters(self, *_: Any, **__: Any) -> GetParametersRes:
        return GetParametersRes(OK, initial_parameters(7))

    def reconnect(self, *_: Any, **__: Any) -> DisconnectRes:
        return DisconnectRes("")

    def fit(self, ins: FitIns, timeout: float | None, group_id: int | None) -> FitRes:
        with said():
            probe.passed("train", int(group_id or 0))
            return FitRes(OK, self.train(ins), 10 + self.partition, self.metrics(ins.parameters))

    def evaluate(self, ins: EvaluateIns, timeout: float | None, group_id: int | None) -> EvaluateRes:
        with said():
            probe.passed("evaluate", int(group_id or 0))
            metrics = self.metrics(ins.parameters)
            return EvaluateRes(OK, float(metrics["loss"]), 10 + self.partition, metrics)

    def train(self, ins: FitIns) -> Parameters:
        step = np.float32(0.1) * np.float32(self.partition + 1)
        weights = parameters_to_ndarrays(ins.parameters)
        return ndarrays_to_parameters(
            [w + (step * np.sin(w + np.float32(self.partition))).astype(w.dtype) for w in weights]
        )

    def metrics(self, parameters: Parameters) -> dict[str, Any]:
        loss = float(sum(np.abs(w.astype(np.float64)).sum() for w in parameters_to_ndarrays(parameters)))
        return {"loss": loss / (self.partition + 2), "norm_bit": 1, "dpfedavg_norm_bit": 1.0}


def initial_parameters(salt: int = 0) -> Parameters:
    """A small model, random in every process, as a real one's."""
    generator = np.random.default_rng(salt)
    return ndarrays_to_parameters(
        [generator.normal(size=(3, 4)).astype(np.float32), generator.normal(size=(4,)).astype(np.float32)]
    )


def central(server_round: int, weights: list[np.ndarray], config: Any) -> tuple[float, dict[str, Any]]:
    """Central evaluation that depends on nothing but the parameters."""
    probe.passed("central", server_round)
    numbers = [w for w in weights if w.dtype.kind != "U"]  # packed lists hold names
    return sum(float(np.abs(w).sum()) for w in numbers), {"round": server_round}


def averaged(metrics: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    """A metrics aggregation function as users write them."""
    total = sum(count for count, _ in metrics)
    return {"loss": sum(count * float(values["loss"]) for count, values in metrics) / total}


def clients(
    salt: int,
    count: int = 4,
    make: Callable[..., FakeClient] = FakeClient,
    ids: list[int] | None = None,
) -> SimpleClientManager:
    """A manager with clients whose ids are new in every run, registered in another order each time."""
    generator = random.Random(salt)
    ids = ids or [generator.getrandbits(62) for _ in range(count)]
    proxies = [make(str(cid), partition) for partition, cid in enumerate(ids)]
    generator.shuffle(proxies)
    manager = SimpleClientManager()
    for proxy in proxies:
        manager.register(proxy)
    return manager


def serve(
    strategy: Strategy, manager: SimpleClientManager, num_rounds: int = 4, server: type[Server] = Server
) -> History:
    """Run a strategy as Flower's legacy server does."""
    serving = server(client_manager=manager, strategy=strategy)
    # One client after the other: in a forked child that is short of time, threads that all begin at once have been seen
    # to fail by themselves, and Flower trains on without such a client. Replies still come in the order of a set.
    serving.set_max_workers(1)
    history, _ = serving.fit(num_rounds, None)
    return history


def told(history: History, parameters: Parameters) -> dict[str, Any]:
    """What a run says, in a form that can be compared: the bits of the parameters, the history by ``repr``."""
    digest = hashlib.sha256()
    for tensor in parameters.tensors:
        digest.update(bytes(tensor))
    return {"arrays": digest.hexdigest(), "metrics": {key: repr(value) for key, value in vars(history).items()}}
