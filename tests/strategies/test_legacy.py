"""The legacy API: what a wrapped strategy says and does, through Flower's own ``Server``."""

from __future__ import annotations

import logging
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.common import FitIns, Parameters, ndarrays_to_parameters
from flwr.server import History, Server, SimpleClientManager
from flwr.server.strategy import DifferentialPrivacyServerSideFixedClipping, FedAdam, FedAvg, FedAvgM

from flwr_ckpt import CheckpointError, CheckpointingStrategy, CheckpointMismatchError, CheckpointStore
from tests.lab import catalogue
from tests.lab.legacy import FakeClient, averaged, central, clients, initial_parameters, serve


class Stopped(BaseException):
    """The server is stopped at an exact moment, within this process."""


class Counting(FakeClient):
    """A client that notes what it was asked, and stops the server where told."""

    asked: list[tuple[str, int]]
    stop_at: tuple[str, int] | None = None

    def fit(self, ins: FitIns, timeout: float | None, group_id: int | None) -> Any:
        self._note("train", group_id)
        return super().fit(ins, timeout, group_id)

    def evaluate(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
        self._note("evaluate", group_id)
        return super().evaluate(ins, timeout, group_id)

    def _note(self, phase: str, group_id: int | None) -> None:
        self.asked.append((phase, int(group_id or 0)))


def strategy_of(cls: Any = FedAvg, salt: int = 0, **kwargs: Any) -> Any:
    return cls(
        initial_parameters=initial_parameters(salt),
        fit_metrics_aggregation_fn=averaged,
        evaluate_metrics_aggregation_fn=averaged,
        **{"evaluate_fn": central, **kwargs},
    )


class Stopping(Server):
    """Flower's server, stopped as it configures a phase."""

    stop_at: tuple[str, int]

    def fit_round(self, server_round: int, timeout: float | None) -> Any:
        if self.stop_at == ("train", server_round):
            raise Stopped
        return super().fit_round(server_round, timeout)

    def evaluate_round(self, server_round: int, timeout: float | None) -> Any:
        if self.stop_at == ("evaluate", server_round):
            raise Stopped
        return super().evaluate_round(server_round, timeout)


def stopped(strategy: Any, stop_at: tuple[str, int], salt: int = 1) -> None:
    server = type("Stopping", (Stopping,), {"stop_at": stop_at})
    with pytest.raises(Stopped):
        serve(strategy, clients(salt), server=server)
    strategy.close()


def counted(strategy: Any, salt: int = 2, num_rounds: int = 4) -> tuple[History, set[tuple[str, int]]]:
    asked: list[tuple[str, int]] = []
    history = serve(strategy, clients(salt, make=type("Client", (Counting,), {"asked": asked})), num_rounds)
    return history, set(asked)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "home" / "run"


@pytest.mark.parametrize("case", catalogue.legacy_cases(), ids=str)
def test_without_seed_an_uninterrupted_run_gives_what_the_bare_strategy_gives(case: Any, run: Path) -> None:
    answers = []
    for wrap in (False, True):
        random.seed(1)
        np.random.seed(1)
        strategy = case.make(salt=0)
        strategy = CheckpointingStrategy(strategy, run) if wrap else strategy
        # One client: with more, Flower hands replies on in the order of a set, another one each time.
        manager = clients(3, make=case.client)
        order = OneByOne(client_manager=manager, strategy=strategy)
        history, _ = order.fit(3, None)
        answers.append((vars(history), [bytes(tensor) for tensor in order.parameters.tensors]))
    assert repr(answers[0]) == repr(answers[1])


class OneByOne(Server):
    """Flower's server, with replies in the order of the clients' ids."""

    def fit_round(self, server_round: int, timeout: float | None) -> Any:
        instructions = self.strategy.configure_fit(server_round, self.parameters, self._client_manager)
        instructions = sorted(instructions, key=lambda pair: int(pair[0].cid))
        results = [(client, client.fit(ins, timeout, server_round)) for client, ins in instructions]
        parameters, metrics = self.strategy.aggregate_fit(server_round, results, [])
        return parameters, metrics, (results, [])

    def evaluate_round(self, server_round: int, timeout: float | None) -> Any:
        instructions = self.strategy.configure_evaluate(server_round, self.parameters, self._client_manager)
        if not instructions:
            return None
        instructions = sorted(instructions, key=lambda pair: int(pair[0].cid))
        results = [(client, client.evaluate(ins, timeout, server_round)) for client, ins in instructions]
        return (*self.strategy.aggregate_evaluate(server_round, results, []), (results, []))


def test_what_is_on_record_is_not_asked_for_again(run: Path) -> None:
    stopped(CheckpointingStrategy(strategy_of(), run), ("evaluate", 3))
    strategy = CheckpointingStrategy(strategy_of(salt=5), run)
    history, asked = counted(strategy)
    strategy.close()
    assert asked == {("evaluate", 3), ("train", 4), ("evaluate", 4)}
    assert strategy.resumed_round == 3
    assert [server_round for server_round, _ in history.losses_distributed] == [1, 2, 3, 4]
    assert [server_round for server_round, _ in history.losses_centralized] == [0, 1, 2, 3, 4]
    assert [server_round for server_round, _ in history.metrics_distributed_fit["loss"]] == [1, 2, 3, 4]


def test_a_finished_run_is_a_no_op_that_says_so(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = CheckpointingStrategy(strategy_of(FedAdam), run)
    whole, _ = counted(first)
    first.close()
    strategy = CheckpointingStrategy(strategy_of(FedAdam), run)
    with caplog.at_level(logging.INFO, "flwr"):
        history, asked = counted(strategy)
        strategy.close()
    assert asked == set()
    assert repr(vars(history)) == repr(vars(whole))
    assert "nothing was trained" in caplog.text


def test_fewer_rounds_than_are_done_is_a_warning(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = CheckpointingStrategy(strategy_of(), run)
    counted(first)
    first.close()
    strategy = CheckpointingStrategy(strategy_of(), run)
    with caplog.at_level(logging.WARNING, "flwr"):
        _, asked = counted(strategy, num_rounds=2)
        strategy.close()
    assert asked == set()
    assert "stopped after round 2" in caplog.text


def test_a_larger_num_rounds_extends_a_finished_run(run: Path, tmp_path: Path) -> None:
    whole = CheckpointingStrategy(strategy_of(FedAvgM, server_momentum=0.9), tmp_path / "whole", seed=1)
    reference, _ = counted(whole, num_rounds=6)
    whole.close()
    first = CheckpointingStrategy(strategy_of(FedAvgM, server_momentum=0.9), run, seed=1)
    counted(first, num_rounds=4)
    first.close()
    strategy = CheckpointingStrategy(strategy_of(FedAvgM, salt=3, server_momentum=0.9), run, seed=1)
    history, asked = counted(strategy, num_rounds=6)
    strategy.close()
    assert {key for key in asked if key[0] == "train"} == {("train", 5), ("train", 6)}
    assert repr(vars(history)) == repr(vars(reference))


def test_initial_parameters_from_a_client_are_asked_for_once(run: Path) -> None:
    stopped(CheckpointingStrategy(FedAvg(), run), ("train", 3))
    strategy = CheckpointingStrategy(FedAvg(), run)
    _, asked = counted(strategy)
    strategy.close()
    assert asked == {("train", 3), ("evaluate", 3), ("train", 4), ("evaluate", 4)}
    assert CheckpointStore(run).latest().round == 4  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "value",
    [math.nan, -0.0, 2**53 + 1, b"\x00\xff", "text", True, np.float64(0.1), np.float32(0.1), [1, 2.5]],
    ids=repr,
)
def test_metrics_come_back_equal_by_repr(value: Any, run: Path) -> None:
    def evaluate_fn(server_round: int, weights: Any, config: Any) -> Any:
        return np.float64(server_round) / 3, {"value": value}

    histories = []
    for salt in (1, 2):
        strategy = CheckpointingStrategy(strategy_of(evaluate_fn=evaluate_fn), run)
        histories.append(counted(strategy, salt)[0])
        strategy.close()
    assert repr(vars(histories[1])) == repr(vars(histories[0]))


def test_a_metric_that_cannot_be_stored_is_an_error_that_names_it(run: Path) -> None:
    def evaluate_fn(server_round: int, weights: Any, config: Any) -> Any:
        return 0.0, {"handle": object()}

    with pytest.raises(CheckpointError, match=r"evaluate.*'handle'.*object"):
        counted(CheckpointingStrategy(strategy_of(evaluate_fn=evaluate_fn), run))


def test_another_model_is_refused(run: Path) -> None:
    stopped(CheckpointingStrategy(strategy_of(), run), ("train", 3))
    other = strategy_of()
    other.initial_parameters = ndarrays_to_parameters([np.zeros(3, np.float32)])
    strategy = CheckpointingStrategy(other, run)
    with pytest.raises(CheckpointMismatchError, match=r"float32\[3, 4\] there, float32\[3\] here"):
        counted(strategy)


def test_another_api_is_refused(run: Path) -> None:
    from flwr.serverapp.strategy import FedAvg as MessageFedAvg

    from tests.lab.message import FakeGrid, average_client, start

    stopped(CheckpointingStrategy(strategy_of(), run), ("train", 3))
    with pytest.raises(CheckpointMismatchError, match="API: the checkpoint's is legacy"):
        start(CheckpointingStrategy(MessageFedAvg(), run), FakeGrid(average_client, 1))


def test_a_wrapper_around_ours_is_told_to_turn_it_around(run: Path) -> None:
    inner = CheckpointingStrategy(strategy_of(), run)
    with pytest.raises(
        CheckpointError, match=r"CheckpointingStrategy\(DifferentialPrivacyServerSideFixedClipping\(FedAvg"
    ):
        counted(DifferentialPrivacyServerSideFixedClipping(inner, 0.1, 1.0, 4))


class KeepsAModelOfItsOwn(Server):
    """Adds something to what the strategy aggregated, and tells nobody."""

    def fit_round(self, server_round: int, timeout: float | None) -> Any:
        result = super().fit_round(server_round, timeout)
        assert result is not None
        parameters, metrics, replies = result
        assert parameters is not None
        changed = Parameters([bytes(tensor[:-1]) + b"\x01" for tensor in parameters.tensors], parameters.tensor_type)
        return changed, metrics, replies


class AggregatesByItself(Server):
    """Never asks the strategy to aggregate."""

    def fit_round(self, server_round: int, timeout: float | None) -> Any:
        instructions = self.strategy.configure_fit(server_round, self.parameters, self._client_manager)
        _, first = instructions[0]
        return first.parameters, {}, ([], [])


class ReadsReplies(Server):
    """Looks into the replies by itself."""

    def fit_round(self, server_round: int, timeout: float | None) -> Any:
        instructions = self.strategy.configure_fit(server_round, self.parameters, self._client_manager)
        results = [(client, client.fit(ins, timeout, server_round)) for client, ins in instructions]
        assert sum(reply.num_examples for _, reply in results) > 0
        parameters, metrics = self.strategy.aggregate_fit(server_round, results, [])
        return parameters, metrics, (results, [])


@pytest.mark.parametrize(
    ("server", "match"),
    [
        (KeepsAModelOfItsOwn, "KeepsAModelOfItsOwn hands other parameters to round 1"),
        (AggregatesByItself, "AggregatesByItself trained round 1 without the strategy's aggregate_fit"),
    ],
)
def test_a_server_that_goes_round_the_strategy_is_refused_in_its_first_round(
    server: type[Server], match: str, run: Path
) -> None:
    with pytest.raises(CheckpointError, match=match):
        serve(CheckpointingStrategy(strategy_of(), run), clients(1), server=server)


def test_a_server_that_reads_replayed_replies_is_told_so(run: Path) -> None:
    first = CheckpointingStrategy(strategy_of(), run)
    serve(first, clients(1), 2, server=ReadsReplies)
    first.close()
    with pytest.raises(CheckpointError, match="ReadsReplies reads 'num_examples' of a client's reply"):
        serve(CheckpointingStrategy(strategy_of(), run), clients(2), server=ReadsReplies)


def test_a_second_start_is_an_error(run: Path) -> None:
    strategy = CheckpointingStrategy(strategy_of(), run)
    counted(strategy)
    with pytest.raises(CheckpointError, match="already been started"):
        counted(strategy)
    strategy.close()


def test_the_users_client_manager_is_not_touched(run: Path) -> None:
    manager = clients(1)
    before = dict(vars(manager)), type(manager), list(manager.clients)
    strategy = CheckpointingStrategy(strategy_of(), run, seed=1)
    serve(strategy, manager)
    strategy.close()
    assert (dict(vars(manager)), type(manager), list(manager.clients)) == before


def test_the_interpreters_exit_ends_the_run(run: Path) -> None:
    """Nobody calls close() in a ServerApp: the last round, and that it is finished, are written all the same."""
    script = (
        "import logging; logging.disable()\n"
        "from flwr_ckpt import CheckpointingStrategy\n"
        "from tests.strategies.test_legacy import strategy_of, clients, serve\n"
        f"serve(CheckpointingStrategy(strategy_of(), {str(run)!r}, save_every=3), clients(1))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    assert CheckpointStore(run).latest().round == 4  # type: ignore[union-attr]
    assert list(run.rglob("*end.manifest"))


def test_save_every_holds_the_newest_until_close(run: Path) -> None:
    strategy = CheckpointingStrategy(strategy_of(), run, save_every=3)
    counted(strategy)
    strategy.flush()
    assert CheckpointStore(run).latest().round == 3  # type: ignore[union-attr]
    strategy.close()
    store = CheckpointStore(run)
    assert store.latest().round == 4  # type: ignore[union-attr]
    assert sorted(store.history()["evaluate/loss"]) == [1, 2, 3, 4]


class Dropping(SimpleClientManager):
    """A user's manager that puts another dict in the place of its clients."""

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        self.clients = {cid: client for cid, client in self.clients.items() if cid != "3"}
        return super().sample(*args, **kwargs)


def test_a_users_client_manager_may_replace_its_clients(run: Path) -> None:
    manager = Dropping()
    for partition, cid in enumerate("9531"):
        manager.register(FakeClient(cid, partition))
    strategy = CheckpointingStrategy(strategy_of(), run, seed=1)
    history = serve(strategy, manager, 2)
    strategy.close()
    assert len(history.losses_distributed) == 2
    assert sorted(manager.clients) == ["1", "5", "9"]


def test_after_a_refusal_the_run_can_be_opened_again(run: Path) -> None:
    first = CheckpointingStrategy(strategy_of(), run)
    counted(first, num_rounds=2)
    first.close()
    refused = CheckpointingStrategy(strategy_of(FedAdam), run)
    with pytest.raises(CheckpointMismatchError, match="strategy: flwr:FedAvg there"):
        counted(refused)
    strategy = CheckpointingStrategy(strategy_of(), run)
    _, asked = counted(strategy, num_rounds=3)
    strategy.close()
    assert ("train", 3) in asked
    assert refused.resumed_round is None
