"""Strategies and servers as people publish them: killed and resumed, or refused with the reason."""

from __future__ import annotations

import functools
import logging
import tempfile
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, MetricRecord, RecordDict
from flwr.server import Server
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.serverapp.strategy import FedAvg

from flwr_ckpt import CheckpointError, CheckpointingStrategy, CheckpointMismatchError, CheckpointStore, KeepLatest
from tests.lab import legacy, message, others, probe
from tests.lab.catalogue import Case
from tests.lab.process import in_a_process
from tests.strategies.test_killed import MOMENTS, ROUNDS, life

NAMES = [case.name for case in others.other_cases(Path(tempfile.gettempdir()))]
IDS = [11, 22, 33, 44]


def case_of(name: str, folder: Path) -> Case:
    folder.mkdir(exist_ok=True)
    return next(case for case in others.other_cases(folder) if case.name == name)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@functools.cache
def uninterrupted(name: str) -> tuple[Any, dict[str, bytes]]:
    """What the strategy says, and the files it leaves, if nobody kills it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        return lived(name, folder, 1), files_in(folder / "files")


# What is rebuilt every round by client, and need not outlive the clients.
OPTIONS: dict[str, dict[str, Any]] = {"legacy/Schedules": {"exclude": ("mapping",)}}


def lived(name: str, folder: Path, salt: int, kill_at: tuple[str, int] | None = None) -> Any:
    """One life of a server, in a process of its own."""
    case = case_of(name, folder / "files")
    return life(case, folder / "run", folder / f"log-{salt}", salt, kill_at, {"seed": 5, **OPTIONS.get(name, {})})


def has(name: str, moment: tuple[str, int]) -> bool:
    phase, server_round = moment
    return not (name in ("message/GivesUp", "message/Remembers") and phase == "central") and not (
        name == "message/GivesUp" and server_round == ROUNDS
    )


PARAMETERS = [
    pytest.param(name, moment, id=f"{name}-{moment[0]}-{moment[1]}")
    for name in NAMES
    for moment in [*MOMENTS, ("train", 3), ("evaluate", 3), ("central", 3)]
    if has(name, moment)
]


@pytest.mark.parametrize(("name", "kill_at"), PARAMETERS)
def test_it_ends_in_the_same_bits_and_leaves_the_same_files(
    name: str, kill_at: tuple[str, int], tmp_path: Path, record_property: Any
) -> None:
    whole, whole_files = uninterrupted(name)
    assert lived(name, tmp_path, 1, kill_at) is None
    written = files_in(tmp_path / "files")
    assert lived(name, tmp_path, 2) == whole
    assert files_in(tmp_path / "files") == whole_files
    kept = {file for file in written if file.startswith("round-")}
    assert all((tmp_path / "files" / file).read_bytes() == written[file] for file in kept)
    record_property("killed", [name, *kill_at, "same bits"])


def test_the_loop_that_gives_up_does_so_in_the_round_before_the_last() -> None:
    whole, _ = uninterrupted("message/GivesUp")
    assert sorted(whole["metrics"]["train_metrics_clientapp"]) == ["1", "2", "3"]


def test_a_client_is_asked_for_the_first_model_once(tmp_path: Path) -> None:
    assert lived("legacy/Estimates", tmp_path, 1, ("train", 2)) is None
    lived("legacy/Estimates", tmp_path, 2)
    assert probe.noted(tmp_path / "log-1")[("initial", 0)] == 1
    assert probe.noted(tmp_path / "log-2")[("initial", 0)] == 0


def test_a_start_that_looks_at_removed_rounds_is_told_which_and_why(tmp_path: Path) -> None:
    strategy = CheckpointingStrategy(others.Remembers(), tmp_path / "run", keep=KeepLatest(1))
    message.start(strategy, message.FakeGrid(message.average_client, 1), num_rounds=4)
    again = CheckpointingStrategy(others.Remembers(), tmp_path / "run", keep=KeepLatest(1))
    with pytest.raises(CheckpointError, match=r"round [12] were removed by .*1.*KeepAll"):
        message.start(again, message.FakeGrid(message.average_client, 2), num_rounds=5)


# --- what is new in every process ------------------------------------------------------------------------------------


def folder_of(moment: str) -> ConfigRecord:
    return ConfigRecord({"save_path": f"/results/{moment}", "epochs": 2})


class SeesConfigs:
    """A client that notes where it is told to save."""

    def __init__(self) -> None:
        self.folders: set[Any] = set()

    def __call__(self, phase: str, partition: int, content: RecordDict) -> RecordDict:
        if phase == "train":
            self.folders.add(next(iter(content.config_records.values()))["save_path"])
        return message.average_client(phase, partition, content)


def test_a_folder_with_todays_time_in_the_config_is_no_other_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = CheckpointingStrategy(FedAvg(), tmp_path / "run", seed=1)
    message.start(first, message.FakeGrid(SeesConfigs(), 1), num_rounds=2, train_config=folder_of("monday"))
    saved: list[int] = []

    def save_every_second(server_round: int, arrays: Any) -> MetricRecord:
        if server_round % 2 == 0:
            saved.append(server_round)
        return MetricRecord({})

    client = SeesConfigs()
    second = CheckpointingStrategy(FedAvg(), tmp_path / "run", seed=1)
    with caplog.at_level(logging.INFO, "flwr"):
        message.start(
            second,
            message.FakeGrid(client, 2),
            num_rounds=4,
            train_config=folder_of("tuesday"),
            evaluate_fn=save_every_second,
        )
    assert second.resumed_round == 2
    assert client.folders == {"/results/tuesday"}
    assert saved == [4]
    told = [line for line in caplog.messages if "monday" in line and "tuesday" in line]
    assert len(told) == 1
    assert "save_path" in told[0]


def test_a_number_in_the_config_is_another_run(tmp_path: Path) -> None:
    first = CheckpointingStrategy(FedAvg(), tmp_path / "run")
    message.start(first, message.FakeGrid(SeesConfigs(), 1), num_rounds=2, train_config=folder_of("monday"))
    config = folder_of("monday")
    config["epochs"] = 3
    second = CheckpointingStrategy(FedAvg(), tmp_path / "run")
    with pytest.raises(CheckpointMismatchError, match=r"epochs.*2 there, 3 here"):
        message.start(second, message.FakeGrid(SeesConfigs(), 2), num_rounds=4, train_config=config)


# --- state by node id ------------------------------------------------------------------------------------------------


def knows_its_clients(run: Path, salt: int, ids: list[int] | None, rounds: int, **options: Any) -> Any:
    context = Context(run_id=salt, node_id=salt, node_config={}, state=RecordDict(), run_config={"salt": salt})
    bare = others.KnowsItsClients(context, initial_parameters=legacy.initial_parameters(salt), **others.OPTIONS)
    strategy = CheckpointingStrategy(bare, run, seed=5, **options)
    manager = legacy.clients(salt, make=others.RateClient, ids=ids)
    try:
        legacy.serve(strategy, manager, rounds)
    finally:
        strategy.close()
    assert strategy.context is context
    return strategy


def test_node_ids_that_survive_find_their_state(tmp_path: Path) -> None:
    knows_its_clients(tmp_path / "run", 1, IDS, 2)
    resumed = knows_its_clients(tmp_path / "run", 2, IDS, 4)
    whole = knows_its_clients(tmp_path / "whole", 1, IDS, 4)
    assert resumed.partition_of == {"11": 0, "22": 1, "33": 2, "44": 3}
    assert resumed.store.load().parameters().tensors == whole.store.load().parameters().tensors


@pytest.mark.parametrize("rounds", [1, 2])
def test_node_ids_that_are_gone_are_named_before_the_strategy_trips_over_them(rounds: int, tmp_path: Path) -> None:
    knows_its_clients(tmp_path / "run", 1, None, rounds)
    with pytest.raises(CheckpointMismatchError, match=r"strategy\.partition_of is keyed by node ids.*SuperNodes keys"):
        knows_its_clients(tmp_path / "run", 2, None, 4)
    with pytest.raises(KeyError):  # asked for: the old entries, with which this strategy fails
        knows_its_clients(tmp_path / "run", 3, None, 4, resume="must")


# --- servers ---------------------------------------------------------------------------------------------------------


def strategy_for(run: Path, salt: int = 1, **options: Any) -> Any:
    bare = legacy_strategy(salt, **options)
    return CheckpointingStrategy(bare, run, seed=5)


def legacy_strategy(salt: int, **options: Any) -> Any:
    return LegacyFedAvg(initial_parameters=legacy.initial_parameters(salt), **{**others.OPTIONS, **options})


@pytest.mark.parametrize(
    "options", [{}, {"evaluate_fn": None}, {"evaluate_fn": None, "fraction_evaluate": 0.0}], ids=repr
)
@pytest.mark.parametrize("server", [others.AddsItsOwn, others.AggregatesByItself])
def test_a_server_that_goes_round_the_strategy_is_refused_before_round_2_is_sent(
    server: type[Server], options: dict[str, Any], tmp_path: Path
) -> None:
    strategy = strategy_for(tmp_path / "run", **options)
    reason = f"{server.__name__} (hands other parameters|trained round 1 without)"
    probe.watch(tmp_path / "log")
    try:
        with pytest.raises(CheckpointError, match=reason):
            legacy.serve(strategy, legacy.clients(1), server=server)
    finally:
        probe.watch(None)
    assert ("train", 1) in probe.noted(tmp_path / "log")
    assert ("train", 2) not in probe.noted(tmp_path / "log")
    strategy.close()
    store = CheckpointStore(tmp_path / "run")
    assert all("end" not in record.phases for record in store.rounds())


def test_a_server_with_parameters_of_another_kind_is_refused(tmp_path: Path) -> None:
    strategy = strategy_for(tmp_path / "run")
    with pytest.raises(CheckpointError, match="PairsParameters handed over a tuple as parameters"):
        legacy.serve(strategy, legacy.clients(1), server=others.PairsParameters)
    strategy.close()
    assert not (tmp_path / "run").exists()


class ReturnsMore(LegacyFedAvg):
    """Returns something along with the parameters."""

    def aggregate_fit(self, *args: Any) -> Any:
        parameters, metrics = super().aggregate_fit(*args)
        return [parameters, ["trees"]], metrics


def test_a_strategy_that_returns_parameters_of_another_kind_is_refused(tmp_path: Path) -> None:
    bare = ReturnsMore(initial_parameters=legacy.initial_parameters(1), **others.OPTIONS)
    strategy = CheckpointingStrategy(bare, tmp_path / "run")
    with pytest.raises(CheckpointError, match="aggregate_fit of ReturnsMore returned a list as parameters"):
        legacy.serve(strategy, legacy.clients(1))
    strategy.close()


def test_a_server_that_reads_replies_is_named_when_a_round_is_replayed(tmp_path: Path) -> None:
    first = strategy_for(tmp_path / "run")
    legacy.serve(first, legacy.clients(1), 2, server=others.ReadsReplies)
    first.close()
    second = strategy_for(tmp_path / "run", 2)
    with pytest.raises(CheckpointError, match="ReadsReplies reads 'parameters' of a client's reply"):
        legacy.serve(second, legacy.clients(2), 4, server=others.ReadsReplies)
    second.close()


@pytest.mark.parametrize("kill_at", [("train", 1), ("evaluate", 2), ("central", 3)], ids=lambda m: f"{m[0]}-{m[1]}")
def test_what_a_server_puts_into_metrics_is_not_on_record_twice(kill_at: tuple[str, int], tmp_path: Path) -> None:
    def served(folder: str, salt: int, kill: tuple[str, int] | None) -> Any:
        def work() -> Any:
            probe.watch(None, kill)
            strategy = strategy_for(tmp_path / folder, salt)
            history = legacy.serve(strategy, legacy.clients(salt), 4, server=others.AddsToMetrics)
            strategy.close()
            return legacy.told(history, strategy.store.load().parameters()) | {"store": repr(strategy.store.history())}

        return in_a_process(work, tmp_path)

    whole = served("whole", 1, None)
    assert served("run", 1, kill_at) is None
    assert served("run", 2, None) == whole
    assert "'server': [(1, 1), (2, 2), (3, 3)]" in whole["metrics"]["metrics_distributed"]
    assert "server" not in whole["store"]
