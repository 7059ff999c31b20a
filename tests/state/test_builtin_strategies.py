"""Every strategy that Flower ships, in both APIs: what its rounds leave in it is there after a restart."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.common import Parameters, ndarrays_to_parameters
from flwr.server import strategy as legacy
from flwr.serverapp import strategy as message
from restarts import Process

NOT_STRATEGIES = ("Strategy", "Result", "FedOpt")

VALUES: dict[str, Any] = {
    "noise_multiplier": 1.0,
    "clipping_norm": 0.1,
    "num_sampled_clients": 100,
    "clip_norm": 0.1,
    "client_learning_rate": 0.1,
    "proximal_mu": 0.1,
    "num_malicious_clients": 0,
    "num_malicious_nodes": 0,
}


def parameters() -> Parameters:
    return ndarrays_to_parameters([np.arange(3.0), np.ones((2, 2), np.float32)])


def make(api: Any, name: str) -> Any:
    """The strategy with what it cannot do without, DP wrappers around FedAdam."""
    cls = getattr(api, name)
    wanted = inspect.signature(cls).parameters
    given = {
        key: value for key, value in VALUES.items() if key in wanted and wanted[key].default is inspect.Parameter.empty
    }
    if "strategy" in wanted:
        given["strategy"] = make(api, "FedAdam")
    if "initial_parameters" in wanted and name != "FedAvgM":
        given["initial_parameters"] = parameters()
    return cls(**given)


def live(strategy: Any) -> None:
    """Leave behind what rounds leave behind (see the attributes each strategy sets)."""
    moments = {"a": np.arange(3.0), "b": np.ones(2, np.float32)}
    record = ArrayRecord({key: Array(value) for key, value in moments.items()})
    is_legacy = isinstance(strategy, legacy.Strategy)
    for target in (strategy, getattr(strategy, "strategy", strategy)):
        changes = {
            "m_t": list(moments.values()) if is_legacy else moments,
            "v_t": list(moments.values()) if is_legacy else {key: value + 1 for key, value in moments.items()},
            "current_arrays": record,
            "momentum_vector": [np.full(3, 0.5)],
            "current_bst": b"model" * 1000,
            "global_model": b"model" * 1000,
            "registered_nodes": {7: 1, 2**63: 2},
            "clipping_norm": 0.07,
            "clip_norm": 0.07,
            "proximal_mu": 0.25,
            "initial_parameters": parameters() if type(target).__name__ == "FedAvgM" else None,
        }
        for name, value in changes.items():
            if name in vars(target) or name in ("current_arrays", "current_bst"):
                setattr(target, name, value)


def content(value: Any) -> Any:
    """Comparable by bytes and by type."""
    if isinstance(value, (legacy.Strategy, message.Strategy)):
        return {name: content(held) for name, held in sorted(vars(value).items())}
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, dict):
        return {name: content(held) for name, held in value.items()}
    if isinstance(value, list):
        return [content(held) for held in value]
    return value


@pytest.mark.parametrize("name", sorted(set(legacy.__all__) - set(NOT_STRATEGIES)))
def test_legacy(name: str) -> None:
    check(legacy, name)


@pytest.mark.parametrize("name", sorted(set(message.__all__) - set(NOT_STRATEGIES)))
def test_message(name: str) -> None:
    check(message, name)


def check(api: Any, name: str) -> None:
    first = Process(make(api, name))
    live(first.strategy)
    snapshot = first.capture()
    assert snapshot.problems == ()
    snapshot.release()
    second = Process(make(api, name))
    assert second.resume(first.save()) == []
    assert content(second.strategy) == content(first.strategy)
