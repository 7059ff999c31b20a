"""A legacy strategy under ``DefaultWorkflow``, where no ``Server`` waits for replies.

Flower's own clients answer here (``ClientApp`` over a ``NumPyClient``), and Flower's own thread keeps the client
manager up to date, as it does under ``flwr run`` for every legacy app.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.server import LegacyContext, Server, ServerApp, ServerAppComponents, ServerConfig, SimpleClientManager
from flwr.server.strategy import FedAdam, FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow

from flwr_ckpt import CheckpointingStrategy, CheckpointStore
from tests.lab import legacy, message, probe
from tests.lab.process import in_a_process

ROUNDS = 4
IDS = [11, 22, 33, 44]
MOMENTS = [(phase, server_round) for server_round in (1, 2, ROUNDS) for phase in ("train", "evaluate", "central")]


class Participant(NumPyClient):
    """Moves the weights a little, by its partition."""

    def __init__(self, partition: int) -> None:
        self.partition = partition

    def fit(self, parameters: list[np.ndarray], config: Any) -> Any:
        step = np.float32(0.1) * np.float32(self.partition + 1)
        moved = [w + (step * np.sin(w + np.float32(self.partition))).astype(w.dtype) for w in parameters]
        return moved, 10 + self.partition, {"loss": self.loss(parameters)}

    def evaluate(self, parameters: list[np.ndarray], config: Any) -> Any:
        return self.loss(parameters), 10 + self.partition, {"loss": self.loss(parameters)}

    def loss(self, parameters: list[np.ndarray]) -> float:
        return float(sum(np.abs(w.astype(np.float64)).sum() for w in parameters)) / (self.partition + 2)


def client_fn(context: Context) -> Any:
    """Make the client of a node."""
    return Participant(int(context.node_config["partition-id"])).to_client()


def context_of(node_id: int, partition: int = 0) -> Context:
    """What Flower hands to an app."""
    return Context(
        run_id=1, node_id=node_id, node_config={"partition-id": partition}, state=RecordDict(), run_config={}
    )


class LegacyGrid(message.FakeGrid):
    """Nodes that run a legacy client, and a heartbeat that draws from the global generator as Flower's does."""

    def __init__(self, salt: int, node_ids: list[int] | None, mods: list[Any]) -> None:
        super().__init__(lambda *_: RecordDict(), salt, node_ids=node_ids)
        self.beats = salt
        self.lost_round = 0  # no node trains in it
        self.apps = {}
        for partition, node_id in enumerate(self.ids):
            self.apps[node_id] = (ClientApp(client_fn=client_fn, mods=mods), context_of(node_id, partition))

    def get_node_ids(self) -> Iterable[int]:
        for _ in range(self.beats):
            random.random()
        return super().get_node_ids()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        outgoing = list(messages)
        metadata = outgoing[0].metadata
        probe.passed(metadata.message_type, int(metadata.group_id))
        if metadata.message_type == "train" and int(metadata.group_id) == self.lost_round:
            return [Message(Error(1, "gone"), reply_to=item) for item in outgoing]
        replies = []
        for item in outgoing:
            app, context = self.apps[item.metadata.dst_node_id]
            replies.append(app(_travelled(item), context))
        self.random.shuffle(replies)
        return replies


def _travelled(sent: Message) -> Message:
    """What a node receives: messages share content when they are made, and a mod takes it apart."""
    metadata = sent.metadata
    return Message(
        copy.deepcopy(sent.content),
        dst_node_id=metadata.dst_node_id,
        message_type=metadata.message_type,
        group_id=metadata.group_id,
    )


def strategy_of(cls: Any, salt: int, **options: Any) -> Any:
    return cls(
        initial_parameters=legacy.initial_parameters(salt),
        evaluate_fn=legacy.central,
        fit_metrics_aggregation_fn=legacy.averaged,
        evaluate_metrics_aggregation_fn=legacy.averaged,
        **options,
    )


def work_through(strategy: Any, grid: LegacyGrid, num_rounds: int, fit_workflow: Any) -> Any:
    """Run a strategy as an app with a workflow does, and return its History."""
    context = LegacyContext(
        context=context_of(1),
        config=ServerConfig(num_rounds=num_rounds),
        strategy=strategy,
    )
    DefaultWorkflow(fit_workflow=fit_workflow)(grid, context)
    return context.history


def life(folder: Path, salt: int, kill_at: tuple[str, int] | None = None, **options: Any) -> Any:
    """One life of a server in a process of its own: its History, what the store tells, and what was logged."""
    cls, ids, mods = options.pop("cls", FedAdam), options.pop("ids", None), options.pop("mods", [])
    fit_workflow, lost_round = options.pop("fit_workflow", None), options.pop("lost_round", 0)

    def work() -> Any:
        probe.watch(folder / f"log-{salt}", kill_at)
        lines = Lines()
        logging.getLogger("flwr").addHandler(lines)
        strategy = CheckpointingStrategy(strategy_of(cls, salt, **options), folder / "run", seed=5)
        grid = LegacyGrid(salt, ids, mods)
        grid.lost_round = lost_round
        history = work_through(strategy, grid, ROUNDS, fit_workflow)
        strategy.close()
        flower = {key: repr(value) for key, value in vars(history).items()}
        return told(strategy.store) | {"flower": flower, "log": lines.text}

    folder.mkdir(parents=True, exist_ok=True)
    return in_a_process(work, folder)


def told(store: CheckpointStore) -> dict[str, Any]:
    tensors = store.load().parameters().tensors
    return {
        "arrays": hashlib.sha256(b"".join(bytes(tensor) for tensor in tensors)).hexdigest(),
        "metrics": {metric: repr(values) for metric, values in store.history().items()},
    }


class Lines(logging.Handler):
    """Collects what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.text: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.text.append(record.getMessage())


@pytest.mark.parametrize("kill_at", MOMENTS, ids=lambda moment: f"{moment[0]}-{moment[1]}")
def test_a_workflow_ends_in_the_same_bits(kill_at: tuple[str, int], tmp_path: Path) -> None:
    whole = life(tmp_path / "whole", 1)
    assert life(tmp_path / "killed", 1, kill_at) is None
    resumed = life(tmp_path / "killed", 2)
    assert resumed["arrays"] == whole["arrays"]
    assert resumed["metrics"] == whole["metrics"]


def test_its_history_begins_at_the_resumed_round_and_the_log_says_where_it_is_whole(tmp_path: Path) -> None:
    whole = life(tmp_path / "whole", 1)
    assert not any("history()" in line for line in whole["log"])
    assert life(tmp_path / "killed", 1, ("evaluate", 3)) is None
    resumed = life(tmp_path / "killed", 2)
    assert "(2, " not in resumed["flower"]["losses_distributed"]
    assert "(4, " in resumed["flower"]["losses_distributed"]
    assert resumed["flower"]["losses_centralized"] == whole["flower"]["losses_centralized"]
    assert resumed["metrics"] == whole["metrics"]
    pointers = [line for line in resumed["log"] if "store.history()" in line]
    assert len(pointers) == 1
    assert "History" in pointers[0]


def test_nothing_that_is_durable_is_sent_to_a_node_again(tmp_path: Path) -> None:
    assert life(tmp_path, 1, ("train", 4)) is None
    life(tmp_path, 2)
    again = set(probe.noted(tmp_path / "log-1")) & set(probe.noted(tmp_path / "log-2"))
    assert {moment for moment in again if moment[0] != "central"} <= {("train", 3), ("evaluate", 3), ("train", 4)}


@pytest.mark.parametrize("kill_at", [("train", 3), ("evaluate", 2)], ids=lambda moment: f"{moment[0]}-{moment[1]}")
def test_node_ids_that_survive_are_sampled_alike(kill_at: tuple[str, int], tmp_path: Path) -> None:
    """Flower shadows the methods of the client manager with its own; the order has to reach through them."""
    options = {"cls": FedAvg, "ids": IDS, "fraction_fit": 0.5, "fraction_evaluate": 0.5}
    whole = life(tmp_path / "whole", 1, **options)
    assert life(tmp_path / "killed", 1, kill_at, **options) is None
    resumed = life(tmp_path / "killed", 2, **options)
    assert resumed["arrays"] == whole["arrays"]
    assert resumed["metrics"] == whole["metrics"]


def test_under_a_server_too_node_ids_that_survive_are_sampled_alike(tmp_path: Path) -> None:
    samples = []
    for salt in (1, 2):
        strategy = CheckpointingStrategy(
            strategy_of(FedAvg, 1, fraction_fit=0.5, fraction_evaluate=0.5), tmp_path / f"run-{salt}", seed=5
        )
        samples.append(_sampled_by_a_server(strategy, LegacyGrid(salt, IDS, [])))
        strategy.close()
    assert samples[0] == samples[1]
    assert len({tuple(sample) for sample in samples[0]}) > 1  # another sample each round


def _sampled_by_a_server(strategy: Any, grid: LegacyGrid) -> list[list[int]]:
    sampled = []

    class Noting(Server):
        def fit_round(self, server_round: int, timeout: float | None) -> Any:
            _, _, (results, failures) = answer = super().fit_round(server_round, timeout)
            assert not failures
            sampled.append(sorted(int(client.cid) for client, _ in results))
            return answer

    def server_fn(context: Context) -> ServerAppComponents:
        server = Noting(client_manager=SimpleClientManager(), strategy=strategy)
        return ServerAppComponents(server=server, config=ServerConfig(num_rounds=6))

    ServerApp(server_fn=server_fn)(grid, context_of(1))
    return sampled


SECURE = {
    "cls": FedAvg,
    "fit_workflow": SecAggPlusWorkflow(num_shares=3, reconstruction_threshold=2, clipping_range=50.0),
    "mods": [secaggplus_mod],
}


@pytest.mark.parametrize("lost_round", [0, 2])
@pytest.mark.parametrize("kill_at", [("train", 1), ("train", 3), ("evaluate", 2)], ids=lambda m: f"{m[0]}-{m[1]}")
def test_secure_aggregation_goes_on(kill_at: tuple[str, int], lost_round: int, tmp_path: Path) -> None:
    """Also after a round that it halted for want of clients: that is a finished round without new parameters.

    Quantisation is random on the clients, so a resumed run has the same rounds, and other bits.
    """
    options = {**SECURE, "lost_round": lost_round}
    assert life(tmp_path, 1, kill_at, **options) is None
    resumed = life(tmp_path, 2, **options)
    history = CheckpointStore(tmp_path / "run").history()
    assert sorted(history["evaluate/loss"]) == [1, 2, 3, 4]
    assert sorted(history["central/loss"]) == [0, 1, 2, 3, 4]
    assert (history["central/loss"][2] == history["central/loss"][1]) is (lost_round == 2)
    assert "(4, " in resumed["flower"]["losses_distributed"]
    again = [moment for moment in probe.noted(tmp_path / "log-2") if moment[0] == "train"]
    assert min(again)[1] >= kill_at[1] - 1
