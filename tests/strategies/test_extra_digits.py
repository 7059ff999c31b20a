"""The strategies that Flower lacks, learning to read: SCAFFOLD against FedAvg, and the others by themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord
from flwr.common import NDArrays
from flwr.serverapp.strategy import FedAvg

from flwr_ckpt import CheckpointingStrategy
from flwr_ckpt.strategies import (
    ClientLevelDPFedAvgM,
    FedAvgDynamicLayer,
    FedAvgSparseCooTensor,
    FedAvgWithAdaptiveConstraint,
    Scaffold,
)
from tests.lab import probe
from tests.lab.message import FakeGrid
from tests.lab.packed import Answer, Variates, message_client, train_scaffold
from tests.lab.process import in_a_process
from tests.lab.softmax import Digits, first_weights

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

SEEDS = (0, 1, 2, 3, 4)
NUM_CLIENTS = 10  # as many as digits: nearly every client has one of them alone
NUM_ROUNDS = 12
STEPS = 20
LEARNING_RATE = 0.5


def run(strategy: Any, answer: Answer, salt: int = 1) -> NDArrays:
    grid = FakeGrid(message_client(answer, [1] * NUM_CLIENTS), salt, nodes=NUM_CLIENTS)
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord(first_weights()), num_rounds=NUM_ROUNDS)
    arrays: NDArrays = result.arrays.to_numpy_ndarrays()
    return arrays


def fedavg(digits: Digits, folder: Path) -> tuple[FedAvg, Answer]:
    def answer(received: NDArrays, partition: int, server_round: int) -> NDArrays:
        return digits.gradients(partition, server_round).descend(received, STEPS, LEARNING_RATE)

    return FedAvg(fraction_evaluate=0.0), answer


def scaffold(digits: Digits, folder: Path) -> tuple[FedAvg, Answer]:
    variates = Variates(folder)

    def answer(received: NDArrays, partition: int, server_round: int) -> NDArrays:
        own = variates.before(server_round, partition, received[2:])
        gradients = digits.gradients(partition, server_round)
        local, new = train_scaffold(received, own, gradients, STEPS, LEARNING_RATE)
        variates.write(server_round, partition, new)
        return [*local, *(after - before for after, before in zip(new, own, strict=True))]

    return Scaffold(fraction_evaluate=0.0, initial_control_variates=ArrayRecord(first_weights())), answer


Setup = Callable[[Digits, Path], tuple[FedAvg, Answer]]


def learn(setup: Setup, seed: int, folder: Path, kill_at: tuple[str, int] | None = None) -> list[float] | None:
    """Train in a process of its own; return train loss and accuracy, or None if it was killed."""
    (folder / "clients").mkdir(parents=True, exist_ok=True)
    digits = Digits.split(NUM_CLIENTS, seed)

    def work() -> list[float]:
        probe.watch(None, kill_at)
        strategy, answer = setup(digits, folder / "clients")
        wrapped = CheckpointingStrategy(strategy, folder / "run", seed=seed)
        weights = run(wrapped, answer, salt=1 if kill_at else 2)[:2]
        return [digits.train_loss(weights), digits.accuracy(weights)]

    result: list[float] | None = in_a_process(work, folder)
    return result


def test_scaffold_beats_fedavg_where_clients_differ_and_after_a_kill_as_well(
    tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    results: dict[str, list[list[float]]] = {"FedAvg": [], "SCAFFOLD": [], "SCAFFOLD, killed in round 7": []}
    for seed in SEEDS:
        results["FedAvg"].append(learn(fedavg, seed, tmp_path / f"fedavg-{seed}") or [])
        results["SCAFFOLD"].append(learn(scaffold, seed, tmp_path / f"scaffold-{seed}") or [])
        assert learn(scaffold, seed, tmp_path / f"killed-{seed}", ("train", 7)) is None
        results["SCAFFOLD, killed in round 7"].append(learn(scaffold, seed, tmp_path / f"killed-{seed}") or [])
    with capsys.disabled():
        show(request, results)
    losses = {name: [loss for loss, _ in values] for name, values in results.items()}
    accuracies = {name: [accuracy for _, accuracy in values] for name, values in results.items()}
    assert max(losses["SCAFFOLD"]) < 0.6 * min(losses["FedAvg"])
    assert all(ours > theirs for ours, theirs in zip(accuracies["SCAFFOLD"], accuracies["FedAvg"], strict=True))
    assert results["SCAFFOLD, killed in round 7"] == results["SCAFFOLD"]


def show(request: pytest.FixtureRequest, results: dict[str, list[list[float]]]) -> None:
    """Write the range over the seeds into the test's output."""
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    if reporter is None:  # a worker of pytest-xdist has none
        return
    reporter.write_line(f"\ndigits by label, {NUM_CLIENTS} clients, {NUM_ROUNDS} rounds, {len(SEEDS)} seeds")
    for name, values in results.items():
        losses, accuracies = zip(*values, strict=True)
        reporter.write_line(
            f"  {name:28} train loss {min(losses):.3f} to {max(losses):.3f}, "
            f"accuracy {min(accuracies):.3f} to {max(accuracies):.3f}"
        )


def test_the_constraint_adapts_and_the_model_learns() -> None:
    digits = Digits.split(NUM_CLIENTS, 0)

    def answer(received: NDArrays, partition: int, server_round: int) -> NDArrays:
        start, weight = received[:-1], float(received[-1])
        gradients = digits.gradients(partition, server_round)
        local = start
        for _ in range(STEPS):
            penalised = [g + weight * (y - x) for g, y, x in zip(gradients(local), local, start, strict=True)]
            local = [y - LEARNING_RATE * g for y, g in zip(local, penalised, strict=True)]
        return [*local, np.array(gradients.loss(start))]

    strategy = FedAvgWithAdaptiveConstraint(adapt_loss_weight=True, initial_loss_weight=0.3, loss_weight_patience=3)
    weights = run(strategy, answer)
    assert float(weights[-1]) < 0.3  # the loss fell nearly all the time
    assert digits.accuracy(weights[:-1]) > 0.6


def test_dp_learns_and_its_bound_finds_the_median_norm() -> None:
    digits = Digits.split(NUM_CLIENTS, 0)
    norms: list[float] = []

    def answer(received: NDArrays, partition: int, server_round: int) -> NDArrays:
        weights, bound = received[:-1], received[-1].item()
        local = digits.gradients(partition, server_round).descend(weights, STEPS, LEARNING_RATE)
        differences = [y - x for y, x in zip(local, weights, strict=True)]
        norm = float(np.sqrt(sum(np.square(difference).sum() for difference in differences)))
        norms.append(norm)
        return [*(d * min(1.0, bound / norm) for d in differences), np.array(float(norm <= bound))]

    strategy = ClientLevelDPFedAvgM(
        adaptive_clipping=True,
        initial_clipping_bound=0.2,
        weight_noise_multiplier=0.1,
        clipping_noise_multiplier=0.2,
        beta=0.5,
    )
    weights = run(strategy, answer)
    last = norms[-NUM_CLIENTS:]
    assert min(last) / 2 < strategy.clipping_bound < max(last) * 2
    assert digits.accuracy(weights[:-1]) > 0.6


def routed(
    model: dict[str, np.ndarray], received: NDArrays, unpack: Callable[[NDArrays], dict[str, np.ndarray]]
) -> None:
    """Put what was received into a model: the plain list of round 0, or the tensors that a packed one names."""
    model.update(unpack(received) if received[-1].dtype.kind == "U" else dict(zip(("w", "b"), received, strict=True)))


def test_layers_exchanged_one_at_a_time_learn() -> None:
    digits = Digits.split(NUM_CLIENTS, 0)
    models: list[dict[str, np.ndarray]] = [{} for _ in range(NUM_CLIENTS)]

    def layers(received: NDArrays) -> dict[str, np.ndarray]:
        return dict(zip(received[-1].tolist(), received[:-1], strict=True))

    def answer(received: NDArrays, partition: int, server_round: int) -> NDArrays:
        model = models[partition]
        routed(model, received, layers)
        local = digits.gradients(partition, server_round).descend([model["w"], model["b"]], STEPS, LEARNING_RATE)
        model.update(zip(("w", "b"), local, strict=True))
        name = "b" if (partition + server_round) % 3 == 0 else "w"
        return [model[name], np.array([name])]

    model: dict[str, np.ndarray] = {}
    routed(model, run(FedAvgDynamicLayer(), answer), layers)
    assert list(model) in (["w", "b"], ["b", "w"])
    assert digits.accuracy([model["w"], model["b"]]) > 0.6


def test_sparse_tensors_learn() -> None:
    digits = Digits.split(NUM_CLIENTS, 0)

    def dense(received: NDArrays) -> dict[str, np.ndarray]:
        names = received[-1].tolist()
        tensors = {}
        for i, name in enumerate(names):
            values, indices, shape = received[i : -1 : len(names)]
            tensors[name] = np.zeros(shape)
            tensors[name][tuple(indices.T)] = values
        return tensors

    def answer(received: NDArrays, partition: int, server_round: int) -> NDArrays:
        model: dict[str, np.ndarray] = {}
        routed(model, received, dense)
        local = digits.gradients(partition, server_round).descend([model["w"], model["b"]], STEPS, LEARNING_RATE)
        kept = [np.abs(array) >= np.quantile(np.abs(array), 0.5) for array in local]  # the larger half of each
        return [
            *(array[mask] for array, mask in zip(local, kept, strict=True)),
            *(np.argwhere(mask) for mask in kept),
            *(np.array(mask.shape) for mask in kept),
            np.array(["w", "b"]),
        ]

    model = dense(run(FedAvgSparseCooTensor(), answer))
    assert digits.accuracy([model["w"], model["b"]]) > 0.6
