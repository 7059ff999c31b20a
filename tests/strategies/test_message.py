"""The message API: what a wrapped strategy says and does, through Flower's own ``start()``."""

from __future__ import annotations

import logging
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, Result

from flwr_ckpt import (
    CheckpointError,
    CheckpointingStrategy,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CheckpointStore,
    FencedError,
    KeepAll,
    KeepBest,
    KeepLatest,
)
from tests.lab import catalogue
from tests.lab.message import FakeGrid, FakeRun, average_client, central, initial_arrays, start, told


class Stopped(BaseException):
    """The server is stopped at an exact moment, within this process."""


class StoppingGrid(FakeGrid):
    """A grid that stops the server as messages of a phase leave."""

    def __init__(self, stop_at: tuple[str, int], salt: int = 1) -> None:
        super().__init__(average_client, salt)
        self.stop_at = stop_at

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        messages = list(messages)
        config = next(iter(messages[0].content.config_records.values()))
        if (messages[0].metadata.message_type, config["server-round"]) == self.stop_at:
            raise Stopped
        return super().send_and_receive(messages, timeout=timeout)


def stopped(strategy: Any, stop_at: tuple[str, int], **kwargs: Any) -> None:
    with pytest.raises(Stopped):
        start(strategy, StoppingGrid(stop_at), **kwargs)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "home" / "run"


def test_the_object_stays_what_it_was(run: Path) -> None:
    strategy = FedAdam(eta=0.5)
    wrapped = CheckpointingStrategy(strategy, run)
    assert wrapped is strategy
    assert isinstance(wrapped, FedAdam)
    assert isinstance(wrapped, CheckpointingStrategy)
    assert not isinstance(FedAdam(), CheckpointingStrategy)
    assert type(wrapped).__name__ == "FedAdam"
    assert wrapped.eta == 0.5
    wrapped.eta = 0.25
    assert strategy.eta == 0.25


@pytest.mark.parametrize("case", catalogue.message_cases(), ids=str)
def test_without_seed_an_uninterrupted_run_gives_what_the_bare_strategy_gives(case: Any, run: Path) -> None:
    answers = []
    for wrap in (False, True):
        random.seed(1)
        np.random.seed(1)
        strategy = case.make()
        strategy = CheckpointingStrategy(strategy, run) if wrap else strategy
        answers.append(told(start(strategy, FakeGrid(case.client, 3), arrays=case.initial(0))))
    assert answers[0] == answers[1]


def test_what_is_on_record_is_not_asked_for_again(run: Path) -> None:
    stopped(CheckpointingStrategy(FedAvg(), run), ("evaluate", 3))
    asked = []

    def evaluate_fn(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        asked.append(server_round)
        return central(server_round, arrays)

    grid = FakeGrid(average_client, 2)
    strategy = CheckpointingStrategy(FedAvg(), run)
    result = start(strategy, grid, evaluate_fn=evaluate_fn)
    assert grid.sent == [("evaluate", 3), ("train", 4), ("evaluate", 4)]
    assert asked == [3, 4]
    assert strategy.resumed_round == 3
    assert list(result.train_metrics_clientapp) == [1, 2, 3, 4]
    assert list(result.evaluate_metrics_serverapp) == [0, 1, 2, 3, 4]


def test_a_finished_run_is_a_no_op_that_says_so(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = told(start(CheckpointingStrategy(FedAdam(), run), FakeGrid(average_client, 1)))
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    grid = FakeGrid(average_client, 2)
    strategy = CheckpointingStrategy(FedAdam(), run)
    with caplog.at_level(logging.INFO, "flwr"):
        again = start(strategy, grid, arrays=initial_arrays(9))
    assert told(again) == whole
    assert grid.sent == []
    assert "nothing was trained" in caplog.text
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before


def test_a_larger_num_rounds_extends_a_finished_run(run: Path, tmp_path: Path) -> None:
    whole = told(
        start(CheckpointingStrategy(FedAdam(), tmp_path / "whole", seed=1), FakeGrid(average_client, 1), num_rounds=6)
    )
    start(CheckpointingStrategy(FedAdam(), run, seed=1), FakeGrid(average_client, 1), num_rounds=4)
    grid = FakeGrid(average_client, 2)
    extended = start(CheckpointingStrategy(FedAdam(), run, seed=1), grid, num_rounds=6)
    assert [sent for sent in grid.sent if sent[0] == "train"] == [("train", 5), ("train", 6)]
    assert told(extended) == whole


def test_fewer_rounds_than_are_done_is_an_error(run: Path) -> None:
    start(CheckpointingStrategy(FedAvg(), run), FakeGrid(average_client, 1), num_rounds=4)
    grid = FakeGrid(average_client, 2)
    with pytest.raises(CheckpointMismatchError, match=r"4 rounds are done.*num_rounds=2"):
        start(CheckpointingStrategy(FedAvg(), run), grid, num_rounds=2)
    assert grid.sent == []


def test_a_round_that_was_only_attempted_is_not_done(run: Path) -> None:
    stopped(CheckpointingStrategy(FedAvg(), run, durable="before-release"), ("train", 4))
    result = start(CheckpointingStrategy(FedAvg(), run), FakeGrid(average_client, 2), num_rounds=3)
    assert list(result.train_metrics_clientapp) == [1, 2, 3]


def test_round_zero_is_durable_before_a_client_is_asked(run: Path) -> None:
    stopped(CheckpointingStrategy(FedAvg(), run), ("train", 1), arrays=initial_arrays(4))
    stored = CheckpointStore(run).load(0)
    assert stored.array_record() == initial_arrays(4)
    result = start(CheckpointingStrategy(FedAvg(), run, seed=1), FakeGrid(average_client, 1), arrays=initial_arrays(5))
    reference = CheckpointingStrategy(FedAvg(), run.with_name("reference"), seed=1)
    assert told(result) == told(start(reference, FakeGrid(average_client, 2), arrays=initial_arrays(4)))


def test_optimizer_state_is_there_again(run: Path) -> None:
    strategy = CheckpointingStrategy(FedAvgM(server_learning_rate=0.5, server_momentum=0.9), run)
    stopped(strategy, ("train", 3))
    momentum = [array.copy() for array in strategy.momentum_vector]
    resumed = CheckpointingStrategy(FedAvgM(server_learning_rate=0.5, server_momentum=0.9), run)
    stopped(resumed, ("train", 3))
    for before, after in zip(momentum, resumed.momentum_vector, strict=True):
        np.testing.assert_array_equal(before, after)
        assert before.dtype == after.dtype


def test_configs_are_put_back_key_by_key(run: Path) -> None:
    class Decays(FedAvg):
        def configure_train(self, server_round: int, arrays: Any, config: ConfigRecord, grid: Any) -> Any:
            config["lr"] = config["lr"] * 0.5  # type: ignore[operator]
            return super().configure_train(server_round, arrays, config, grid)

    stopped(CheckpointingStrategy(Decays(), run), ("train", 3), train_config=ConfigRecord({"lr": 1.0, "name": "a"}))
    config = ConfigRecord({"lr": 1.0, "name": "b"})
    start(CheckpointingStrategy(Decays(), run), FakeGrid(average_client, 1), train_config=config)
    assert config["lr"] == 0.5**4
    assert config["name"] == "b", "a string is often a folder with today's time in it: today's stands"


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, -0.0, 2**53 + 1, 5e-324, [1.5, math.nan], [1, 2**60], 0, []],
    ids=repr,
)
def test_metrics_come_back_equal_by_repr(value: Any, run: Path) -> None:
    def evaluate_fn(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"value": value})

    first = start(CheckpointingStrategy(FedAvg(), run), FakeGrid(average_client, 1), evaluate_fn=evaluate_fn)
    second = start(CheckpointingStrategy(FedAvg(), run), FakeGrid(average_client, 2), evaluate_fn=evaluate_fn)
    assert repr(second.evaluate_metrics_serverapp) == repr(first.evaluate_metrics_serverapp)
    assert repr(CheckpointStore(run).history()["central/value"][1]) == repr(value)


def test_absent_phases_are_not_awaited(run: Path) -> None:
    def every_second(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        return central(server_round, arrays) if server_round % 2 == 0 else None

    stopped(CheckpointingStrategy(FedAvg(fraction_evaluate=0.0), run), ("train", 4), evaluate_fn=every_second)
    grid = FakeGrid(average_client, 2)
    result = start(CheckpointingStrategy(FedAvg(fraction_evaluate=0.0), run), grid, evaluate_fn=every_second)
    assert grid.sent == [("train", 4)]
    assert list(result.evaluate_metrics_serverapp) == [0, 2, 4]
    assert result.evaluate_metrics_clientapp == {}


def test_a_round_in_which_every_client_failed_is_a_finished_round(run: Path) -> None:
    def failing(phase: str, partition: int, content: RecordDict) -> RecordDict:
        config = next(iter(content.config_records.values()))
        if phase == "train" and config["server-round"] == 2:
            return RecordDict()
        return average_client(phase, partition, content)

    class Tolerant(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            if not all(reply.content.array_records for reply in replies):
                return None, None
            return super().aggregate_train(server_round, replies)

    whole = told(start(CheckpointingStrategy(Tolerant(), run.with_name("whole"), seed=1), FakeGrid(failing, 1)))
    strategy = CheckpointingStrategy(Tolerant(), run, seed=1)
    stopping = StoppingGrid(("evaluate", 2))
    stopping.client = failing
    with pytest.raises(Stopped):
        start(strategy, stopping)
    grid = FakeGrid(failing, 2)
    result = start(CheckpointingStrategy(Tolerant(), run, seed=1), grid, arrays=initial_arrays(8))
    assert ("train", 2) not in grid.sent
    assert told(result) == whole
    assert 2 not in result.train_metrics_clientapp


def test_an_exception_leaves_the_last_commit_as_the_newest(run: Path) -> None:
    class Breaks(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            if server_round == 3:
                raise ZeroDivisionError
            return super().aggregate_train(server_round, replies)

    with pytest.raises(ZeroDivisionError):
        start(CheckpointingStrategy(Breaks(), run), FakeGrid(average_client, 1))
    latest = CheckpointStore(run).latest()
    assert latest is not None
    assert latest.round == 2


def test_save_every_commits_every_kth_round_and_the_last(run: Path) -> None:
    strategy = CheckpointingStrategy(FedAvg(), run, save_every=3, keep=KeepAll())
    start(strategy, FakeGrid(average_client, 1), num_rounds=7)
    assert [record.round for record in CheckpointStore(run).rounds()] == [0, 3, 6, 7]
    assert sorted(CheckpointStore(run).history()["train/loss"]) == [1, 2, 3, 4, 5, 6, 7]


def test_retention_keeps_the_best_and_the_newest(run: Path) -> None:
    keep = KeepLatest(1) | KeepBest(1, "central/loss", mode="min")
    start(CheckpointingStrategy(FedAvg(), run, keep=keep), FakeGrid(average_client, 1), num_rounds=6)
    store = CheckpointStore(run)
    losses = store.history()["central/loss"]
    best = min((value, -server_round) for server_round, value in losses.items())
    assert {record.round for record in store.rounds()} == {6, -best[1]}


def test_a_misspelt_metric_of_the_retention_is_a_warning(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep = KeepLatest(1) | KeepBest(1, "evaluate/los", mode="min")
    with caplog.at_level(logging.WARNING, "flwr"):
        start(CheckpointingStrategy(FedAvg(), run, keep=keep), FakeGrid(average_client, 1))
        right = KeepBest(1, "evaluate/loss", mode="min")
        start(CheckpointingStrategy(FedAvg(), run.with_name("right"), keep=right), FakeGrid(average_client, 1))
    assert sum("looks at evaluate/los, which no round has" in line for line in caplog.messages) == 1
    assert sum("looks at" in line for line in caplog.messages) == 1


def test_attempts_count_what_was_sent(run: Path) -> None:
    options: dict[str, Any] = {"durable": "before-release"}
    stopped(CheckpointingStrategy(FedAvg(), run, **options), ("train", 2))
    stopped(CheckpointingStrategy(FedAvg(), run, **options), ("train", 2))
    strategy = CheckpointingStrategy(FedAvg(), run, **options)
    start(strategy, FakeGrid(average_client, 1))
    assert strategy.attempts == {1: 1, 2: 3, 3: 1, 4: 1}
    again = CheckpointingStrategy(FedAvg(), run, **options)
    start(again, FakeGrid(average_client, 1))
    assert again.attempts == {1: 1, 2: 3, 3: 1, 4: 1}


def test_the_newer_server_takes_over_and_the_older_stops(run: Path) -> None:
    newer = CheckpointingStrategy(FedAvg(), run)

    class Overtaken(FakeGrid):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            replies = super().send_and_receive(messages, timeout=timeout)
            if self.sent[-1] == ("train", 2):
                store = CheckpointStore(run)
                store.rewind(1)
            return replies

    with pytest.raises(FencedError):
        start(CheckpointingStrategy(FedAvg(), run, durable="before-release"), Overtaken(average_client, 1))
    grid = FakeGrid(average_client, 2)
    start(newer, grid)
    assert [sent for sent in grid.sent if sent[0] == "train"] == [("train", 2), ("train", 3), ("train", 4)]


# --- whose checkpoint is it? ------------------------------------------------------------------------------------------


def untouched(run: Path, refused: Any) -> None:
    """Whatever is refused leaves the disk as it was."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    refused()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def refuse(run: Path, strategy: Any, match: str, grid: FakeGrid | None = None, **kwargs: Any) -> None:
    grid = grid or FakeGrid(average_client, 2)

    def attempt() -> None:
        with pytest.raises(CheckpointMismatchError, match=match):
            start(strategy, grid, **kwargs)
        assert grid.sent == []

    untouched(run, attempt)


def test_another_model_is_refused(run: Path) -> None:
    stopped(CheckpointingStrategy(FedAvg(), run), ("train", 3))
    other = initial_arrays()
    other["conv.bias"] = Array(np.zeros(5, np.float32))
    other["extra"] = Array(np.zeros(1, np.int64))
    for resume in ("auto", "must"):
        strategy = CheckpointingStrategy(FedAvg(), run, resume=resume)
        refuse(run, strategy, r"(?s)conv\.bias.*float32\[4\] there, float32\[5\] here.*extra.*int64\[1\]", arrays=other)


def test_another_strategy_is_refused(run: Path) -> None:
    stopped(CheckpointingStrategy(FedAvg(), run), ("train", 3))
    refuse(run, CheckpointingStrategy(FedAdam(), run, resume="must"), "flwr:FedAvg there, flwr:FedAdam here")


def test_another_app_is_refused_unless_it_must_go_on(run: Path) -> None:
    stopped(CheckpointingStrategy(FedAvg(), run), ("train", 3))
    grid = FakeGrid(average_client, 2, run=FakeRun("lab/other"))
    refuse(run, CheckpointingStrategy(FedAvg(), run), "app: lab/app there, lab/other here", grid)
    start(CheckpointingStrategy(FedAvg(), run, resume="must"), grid)


def test_a_name_that_the_run_config_gives_is_no_difference(checkpoint_home: Path) -> None:
    """An app may read the run's name from a key of its own: a fork has another one."""

    def named(name: str, num_rounds: int, lr: float = 0.1) -> Result:
        grid = FakeGrid(average_client, num_rounds, run=FakeRun(override_config={"run": name, "lr": lr}))
        return start(CheckpointingStrategy(FedAvg(), name), grid, num_rounds=num_rounds)

    named("digits", 2)
    CheckpointStore("digits").fork("other")
    assert list(named("other", 3).train_metrics_clientapp) == [1, 2, 3]
    with pytest.raises(CheckpointMismatchError, match="lr"):
        named("other", 4, lr=0.2)


def test_another_configuration_is_refused_and_each_difference_listed(run: Path) -> None:
    first = FakeGrid(average_client, 1, run=FakeRun(override_config={"lr": 0.1, "num-server-rounds": 4, "n": 4}))
    start(CheckpointingStrategy(FedAvg(), run), first, train_config=ConfigRecord({"mu": 1.0, "save": "2026-01-01"}))
    changed = {"lr": 0.2, "num-server-rounds": 6, "n": 6, "checkpoint-keep": "latest:9", "new": True}
    grid = FakeGrid(average_client, 2, run=FakeRun(override_config=changed))
    refuse(
        run,
        CheckpointingStrategy(FedAvg(), run),
        r"(?s)lr.*0\.1 there, 0\.2 here.*new.*not set there, True here.*mu.*1\.0 there, 2\.0 here.*"
        r"another run name.*resume=\"must\"",
        grid,
        num_rounds=6,
        train_config=ConfigRecord({"mu": 2.0, "save": "2026-01-02"}),
    )
    grid = FakeGrid(average_client, 2, run=FakeRun(override_config={"lr": 0.1, "num-server-rounds": 6, "n": 6}))
    start(
        CheckpointingStrategy(FedAvg(), run),
        grid,
        num_rounds=6,
        train_config=ConfigRecord({"mu": 1.0, "save": "2026-01-02"}),
    )
    assert ("train", 6) in grid.sent


def test_another_number_is_another_run_once_it_is_finished(run: Path) -> None:
    start(CheckpointingStrategy(FedAdam(eta=0.1), run), FakeGrid(average_client, 1))
    refuse(run, CheckpointingStrategy(FedAdam(eta=0.2), run), r"eta.*0\.1.*0\.2")


def test_another_number_stands_while_the_run_is_not_finished(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    stopped(CheckpointingStrategy(FedAdam(eta=0.1), run), ("train", 3))
    strategy = CheckpointingStrategy(FedAdam(eta=0.2), run)
    with caplog.at_level(logging.WARNING, "flwr"):
        start(strategy, FakeGrid(average_client, 1))
    assert strategy.eta == 0.2
    assert "strategy.eta: 0.1 there, 0.2 here; what is given now stands" in caplog.text


def test_node_ids_that_are_gone_are_an_error(run: Path) -> None:
    case = next(case for case in catalogue.message_cases() if case.keyed_by_node)
    strategy = CheckpointingStrategy(case.make(), run)
    start(strategy, FakeGrid(case.client, 1), arrays=case.initial(0), num_rounds=2)
    grid = FakeGrid(case.client, 2)
    with pytest.raises(CheckpointMismatchError, match="registered_nodes is keyed by node ids"):
        start(CheckpointingStrategy(case.make(), run), grid, arrays=case.initial(0), num_rounds=4)
    assert grid.sent == []


def test_resume_must_and_never(run: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match='resume="must"'):
        start(CheckpointingStrategy(FedAvg(), run, resume="must"), FakeGrid(average_client, 1))
    assert not run.exists()
    start(CheckpointingStrategy(FedAvg(), run, resume="never"), FakeGrid(average_client, 1))
    refuse(run, CheckpointingStrategy(FedAvg(), run, resume="never"), "up to round 4")


def test_a_damaged_newest_round_is_passed_over_with_one_warning(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    start(CheckpointingStrategy(FedAvg(), run, seed=1), FakeGrid(average_client, 1), num_rounds=3, evaluate_fn=None)
    whole = told(
        start(
            CheckpointingStrategy(FedAvg(), run.with_name("whole"), seed=1),
            FakeGrid(average_client, 1),
            evaluate_fn=None,
        )
    )
    for path in (run / "round-00000003").glob("*.safetensors"):
        damaged = bytearray(path.read_bytes())
        damaged[-1] ^= 1
        path.write_bytes(damaged)
    grid = FakeGrid(average_client, 2)
    with caplog.at_level(logging.WARNING, "flwr"):
        result = start(CheckpointingStrategy(FedAvg(), run, seed=1), grid, evaluate_fn=None)
    assert grid.sent[0] == ("train", 3)
    assert told(result) == whole
    assert sum("Passing over" in record.getMessage() for record in caplog.records) == 1


# --- wrong use --------------------------------------------------------------------------------------------------------


def test_a_second_start_is_an_error(run: Path) -> None:
    strategy = CheckpointingStrategy(FedAvg(), run)
    start(strategy, FakeGrid(average_client, 1))
    with pytest.raises(CheckpointError, match="already been started"):
        start(strategy, FakeGrid(average_client, 1))


def test_two_live_objects_on_one_run_are_an_error(run: Path) -> None:
    class StartsAnother(FakeGrid):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            with pytest.raises(CheckpointError, match="another strategy of this process"):
                start(CheckpointingStrategy(FedAvg(), run), FakeGrid(average_client, 3))
            raise Stopped

    with pytest.raises(Stopped):
        start(CheckpointingStrategy(FedAvg(), run), StartsAnother(average_client, 1))


def test_a_wrapper_around_ours_is_told_to_turn_it_around(run: Path) -> None:
    from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping as Private

    grid = FakeGrid(average_client, 1)
    with pytest.raises(CheckpointError, match=r"CheckpointingStrategy\(Wrapper\(Strategy"):
        start(Private(CheckpointingStrategy(FedAvg(), run), 0.1, 1.0, 4), grid)
    assert grid.sent == []
    with pytest.raises(TypeError, match="wrapped already"):
        CheckpointingStrategy(Private(CheckpointingStrategy(FedAvg(), run), 0.1, 1.0, 4), run)
    with pytest.raises(TypeError, match="wrapped already"):
        CheckpointingStrategy(CheckpointingStrategy(FedAvg(), run), run)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"resume": "maybe"}, ValueError, "resume='maybe'"),
        ({"save_every": 0}, ValueError, "save_every=0"),
        ({"save_every": 2, "durable": "before-release"}, ValueError, "save_every=2"),
        ({"keep": 3}, TypeError, "KeepLatest"),
        ({"durable": "sometimes"}, ValueError, "durable"),
        ({"on_error": "ignore"}, ValueError, "on_error"),
        ({"exclude": "writer"}, TypeError, "exclude"),
        ({"extra_state": {"a": object()}}, TypeError, "state_dict"),
        ({"seed": 1.5}, TypeError, "seed"),
    ],
)
def test_arguments_that_make_no_sense(arguments: Any, error: type[Exception], match: str, run: Path) -> None:
    with pytest.raises(error, match=match):
        CheckpointingStrategy(FedAvg(), run, **arguments)
    assert not run.parent.exists()


@pytest.mark.parametrize("thing", [object(), FedAvg, None, "FedAvg"])
def test_what_is_not_a_strategy_is_refused(thing: Any, run: Path) -> None:
    with pytest.raises(TypeError):
        CheckpointingStrategy(thing, run)


@pytest.mark.parametrize(
    "place", ["./digits", "../digits", "a b", "", "digits/", "generations", "round-1", Path("digits")]
)
def test_places_that_are_refused(place: Any) -> None:
    with pytest.raises(ValueError, match=r"run"):
        CheckpointingStrategy(FedAvg(), place)


def test_a_name_of_the_strategys_own_wins(run: Path) -> None:
    class HasAStore(FedAvg):
        def __init__(self) -> None:
            super().__init__()
            self.flush = "mine"

        def close(self) -> str:
            return "mine too"

    strategy = CheckpointingStrategy(HasAStore(), run)
    strategy.store = "set later"
    start(strategy, FakeGrid(average_client, 1))
    assert (strategy.flush, strategy.close(), strategy.store) == ("mine", "mine too", "set later")


def test_flowers_lines_of_replayed_rounds_are_held_back(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    stopped(CheckpointingStrategy(FedAvg(), run), ("train", 3))
    caplog.clear()
    with caplog.at_level(logging.INFO, "flwr"):
        start(CheckpointingStrategy(FedAvg(), run), FakeGrid(average_client, 1))
    lines = [record.getMessage() for record in caplog.records]
    assert not any("[ROUND 1/4]" in line or "[ROUND 2/4]" in line for line in lines)
    assert any("[ROUND 3/4]" in line for line in lines)
    assert sum("Resumed after round 2 of 4" in line for line in lines) == 1
    caplog.clear()
    with caplog.at_level(logging.INFO, "flwr"):
        start(CheckpointingStrategy(FedAvg(), run), FakeGrid(average_client, 1))
    lines = [record.getMessage() for record in caplog.records]
    assert not any("MetricRecord:" in line or "[ROUND" in line for line in lines)
    assert any("Final results" in line for line in lines)
