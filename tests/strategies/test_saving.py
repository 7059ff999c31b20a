"""What is saved when, and what happens where something cannot be."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.common import Parameters
from flwr.serverapp.strategy import FedAvg, Result

from flwr_ckpt import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointingStrategy,
    CheckpointStore,
    FormatVersionError,
    KeepAll,
    KeepLatest,
)
from flwr_ckpt.strategies.checkpointing.legacy import parameters_blobs
from flwr_ckpt.strategies.checkpointing.message import record_blobs
from tests.lab.message import FakeGrid, average_client, start, told
from tests.lab.unusual import OwnStart


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "home" / "run"


class Obstructed(FakeGrid):
    """Puts a file where the folder of round 2 has to be, and takes it away once its commit has failed."""

    def __init__(self, run: Path, strategy: Any) -> None:
        super().__init__(average_client, 1)
        self.folder = run / "round-00000002"
        self.strategy = strategy

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        replies = super().send_and_receive(messages, timeout=timeout)
        if self.sent[-1] == ("train", 2):
            self.folder.write_text("in the way")
        if self.sent[-1] == ("train", 3):
            with contextlib.suppress(CheckpointError):
                self.strategy.flush()
            self.folder.unlink(missing_ok=True)
        return replies


def test_a_round_that_cannot_be_saved_is_logged_and_the_next_carries_it(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "flwr"):
        strategy = CheckpointingStrategy(FedAvg(), run, keep=KeepAll())
        result = start(strategy, Obstructed(run, strategy))
    failed = [record.getMessage() for record in caplog.records if "could not be saved" in record.getMessage()]
    assert len(failed) == 1, "once a round"
    assert "Round 2 (train)" in failed[0]
    store = CheckpointStore(run)
    assert [record.round for record in store.rounds()] == [0, 1, 3, 4]
    assert sorted(store.history()["train/loss"]) == [1, 2, 3, 4]
    again = start(CheckpointingStrategy(FedAvg(), run), FakeGrid(average_client, 2))
    assert told(again) == told(result)


def test_on_error_raise_raises_with_the_cause(run: Path) -> None:
    strategy = CheckpointingStrategy(FedAvg(), run, on_error="raise")
    with pytest.raises(CheckpointError, match="a commit failed") as caught:
        start(strategy, Blocked(run, 2))
    assert isinstance(caught.value.__cause__, OSError)


class Blocked(FakeGrid):
    """Puts a file where the folder of a round has to be, and leaves it there."""

    def __init__(self, run: Path, server_round: int) -> None:
        super().__init__(average_client, 1)
        self.folder = run / f"round-{server_round:08d}"
        self.server_round = server_round

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        replies = super().send_and_receive(messages, timeout=timeout)
        if self.sent[-1] == ("train", self.server_round):
            self.folder.write_text("in the way")
        return replies


def test_an_end_that_is_not_on_disk_is_said_and_flush_and_close_raise(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = CheckpointingStrategy(FedAvg(), run)
    with caplog.at_level(logging.INFO, "flwr"):
        result = start(strategy, Blocked(run, 4))
    assert list(result.train_metrics_clientapp) == [1, 2, 3, 4], "the run itself is not lost for it"
    assert "the final model is not on disk" in caplog.text
    assert "The run is finished" not in caplog.text
    for wait in (strategy.flush, strategy.close):
        with pytest.raises(CheckpointError, match="a commit failed"):
            wait()
    assert CheckpointStore(run).latest().round == 3  # type: ignore[union-attr]


def test_a_run_of_which_nothing_is_sound_is_not_started_over(run: Path) -> None:
    start(CheckpointingStrategy(FedAvg(), run), FakeGrid(average_client, 1), num_rounds=2)
    for path in run.rglob("*.safetensors"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    for resume in ("auto", "must"):
        grid = FakeGrid(average_client, 2)
        with pytest.raises(CheckpointCorruptError, match="up to round 2, and none of them is sound"):
            start(CheckpointingStrategy(FedAvg(), run, resume=resume), grid)
        assert grid.sent == []


def test_flush_says_what_went_wrong(run: Path) -> None:
    strategy = CheckpointingStrategy(FedAvg(), run)

    class Flushes(Obstructed):
        raised: Exception | None = None

        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            replies = super().send_and_receive(messages, timeout=timeout)
            if self.sent[-1] == ("evaluate", 2):
                with pytest.raises(CheckpointError, match="a commit failed"):
                    strategy.flush()
                self.raised = True  # type: ignore[assignment]
            return replies

    grid = Flushes(run, strategy)
    start(strategy, grid)
    assert grid.raised


def test_flush_makes_durable(run: Path) -> None:
    strategy = CheckpointingStrategy(FedAvg(), run)

    class Looks(FakeGrid):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            phase = messages[0].metadata.message_type
            server_round = len([sent for sent in self.sent if sent[0] == "train"])
            strategy.flush()
            newest = CheckpointStore(run).latest()
            assert newest is not None
            assert newest.round == server_round
            assert phase != "evaluate" or "train" in newest.phases
            return super().send_and_receive(messages, timeout=timeout)

    start(strategy, Looks(average_client, 1))


def test_a_newer_format_is_refused_and_nothing_touched(run: Path) -> None:
    start(CheckpointingStrategy(FedAvg(), run), FakeGrid(average_client, 1), num_rounds=2)
    for path in run.rglob("*.manifest"):
        body = json.dumps({**json.loads(path.read_bytes())["body"], "format": 99}, separators=(",", ":"))
        path.write_text(f'{{"sha256":"{hashlib.sha256(body.encode()).hexdigest()}","body":{body}}}\n')
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    grid = FakeGrid(average_client, 2)
    with pytest.raises(FormatVersionError, match="99"):
        start(CheckpointingStrategy(FedAvg(), run), grid)
    assert grid.sent == []
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


# --- state that cannot be stored --------------------------------------------------------------------------------------


class Opens(FedAvg):
    """In one round an attribute becomes something that cannot be stored."""

    def __init__(self, in_round: int) -> None:
        super().__init__()
        self.in_round = in_round
        self.handle: Any = None

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        if server_round == self.in_round:
            self.handle = object()
        return super().aggregate_train(server_round, replies)


def test_an_attribute_that_becomes_unstorable_is_an_error_that_names_it(run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"strategy\.handle: .*exclude"):
        start(CheckpointingStrategy(Opens(2), run), FakeGrid(average_client, 1))
    start(CheckpointingStrategy(Opens(2), run.with_name("other"), exclude=("handle",)), FakeGrid(average_client, 1))


def test_an_old_run_is_not_ended_for_it(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "flwr"):
        result = start(CheckpointingStrategy(Opens(4), run), FakeGrid(average_client, 1), num_rounds=6)
    assert list(result.train_metrics_clientapp) == [1, 2, 3, 4, 5, 6]
    assert sum("is not saved" in record.getMessage() for record in caplog.records) >= 3
    assert "not marked as finished" in caplog.text
    newest = CheckpointStore(run).latest()
    assert newest is not None
    assert newest.round == 3
    assert not list(run.rglob("*end.manifest"))
    grid = FakeGrid(average_client, 2)
    resumed = CheckpointingStrategy(Opens(9), run, resume="must")
    start(resumed, grid, num_rounds=6)
    assert [sent for sent in grid.sent if sent[0] == "train"] == [("train", 4), ("train", 5), ("train", 6)]


class BuildsLate(FedAvg):
    """Builds an object that holds state in a hook of round 1, which replay does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.helper: Any = None

    def configure_train(self, server_round: int, arrays: Any, config: ConfigRecord, grid: Any) -> Any:
        if server_round == 1:
            self.helper = Helper()
        self.helper.seen += 1
        return super().configure_train(server_round, arrays, config, grid)


class Helper:
    def __init__(self) -> None:
        self.seen = 0


def test_state_for_an_object_that_is_not_there_is_an_error_before_a_client_is_asked(run: Path) -> None:
    start(CheckpointingStrategy(BuildsLate(), run), FakeGrid(average_client, 1), num_rounds=2)
    grid = FakeGrid(average_client, 2)
    with pytest.raises(CheckpointError, match=r"strategy\.helper.*__init__"):
        start(CheckpointingStrategy(BuildsLate(), run), grid, num_rounds=4)
    assert grid.sent == []


class Rebinds(BuildsLate):
    """Replaces what cannot be stored by another one, and keeps objects of its own for what it meets."""

    def __init__(self) -> None:
        super().__init__()
        self.ragged = np.array([np.zeros(2), np.zeros(3)], dtype=object)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        self.ragged = self.ragged + 1.0
        return super().aggregate_train(server_round, replies)


def test_what_a_resumed_run_would_miss_is_a_warning_once(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "flwr"):
        start(CheckpointingStrategy(Rebinds(), run), FakeGrid(average_client, 1))
    assert (
        sum(line.startswith("strategy.ragged is another numpy:ndarray than at the start") for line in caplog.messages)
        == 1
    )
    assert sum("strategy.helper is a" in line and "__init__" in line for line in caplog.messages) == 1


def test_the_first_commit_says_what_is_kept_and_what_is_not(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    strategy = FedAvg()
    strategy.mask = np.zeros(1000)  # type: ignore[attr-defined]
    strategy.writer = logging.getLogger("someone")  # type: ignore[attr-defined]
    with caplog.at_level(logging.INFO, "flwr"):
        start(CheckpointingStrategy(strategy, run), FakeGrid(average_client, 1), num_rounds=1)
    assert any("strategy.mask" in line and "7.8 KiB" in line for line in caplog.messages)
    assert any("strategy.writer" in line and "not" in line for line in caplog.messages)


# --- a start() of the strategy's own ----------------------------------------------------------------------------------


def test_rounds_that_retention_removed_raise_when_touched(run: Path, tmp_path: Path) -> None:
    start(CheckpointingStrategy(OwnStart(tmp_path), run, keep=KeepLatest(2)), FakeGrid(average_client, 1), num_rounds=4)
    with pytest.raises(CheckpointError, match=r"(?s)round 1.*latest:2|arrays of round 1.*KeepAll"):
        start(CheckpointingStrategy(OwnStart(tmp_path), run, keep=KeepLatest(2)), FakeGrid(average_client, 2))


def test_all_rounds_are_kept_by_default_and_the_space_is_looked_at(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "flwr"):
        start(CheckpointingStrategy(OwnStart(tmp_path), run), FakeGrid(average_client, 1), num_rounds=5)
    assert "all 5 rounds are kept" in caplog.text
    assert [record.round for record in CheckpointStore(run).rounds()] == [0, 1, 2, 3, 4, 5]
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    grid = FakeGrid(average_client, 1)
    with pytest.raises(CheckpointError, match=r"keeping 5 rounds takes about .* 100 B are free"):
        start(CheckpointingStrategy(OwnStart(tmp_path), run.with_name("other")), grid, num_rounds=5)
    assert grid.sent == []


class OddStart(FedAvg):
    """A ``start()`` that only says ``*args, **kwargs``, and takes an argument of its own."""

    def start(self, *args: Any, greeting: str = "", **kwargs: Any) -> Result:
        self.greeting = greeting
        return super().start(*args, **kwargs)


def test_any_signature_of_start_is_bound_by_flowers_names(run: Path) -> None:
    from tests.lab.message import initial_arrays

    strategy = CheckpointingStrategy(OddStart(), run)
    result = strategy.start(FakeGrid(average_client, 1), initial_arrays(), 2, greeting="hello")
    assert strategy.greeting == "hello"
    assert isinstance(result.arrays, ArrayRecord)
    assert list(result.train_metrics_clientapp) == [1, 2]


def test_what_is_handed_over_stays_as_it_was() -> None:
    """A hook's record may be changed as soon as it has returned, before the writer has looked at it."""
    record = ArrayRecord({"w": Array(np.zeros(3, np.float32)), "b": Array(np.ones(2))})
    expected = [(name, array.data, array.dtype, array.shape, array.stype) for name, array in record.items()]
    blobs = record_blobs(record)
    record["w"].data = b"others"
    record["b"] = Array(np.zeros(9))
    record["late"] = Array(np.zeros(1))
    assert len(blobs) == 2
    assert [(blob.name, blob.data, blob.dtype, blob.shape, blob.stype) for blob in blobs] == expected
    assert blobs[1].name == "b"


def test_only_what_can_change_is_copied() -> None:
    data = Array(np.arange(6.0)).data
    writable = bytearray(data)
    tensors = [data, memoryview(data), memoryview(writable), memoryview(writable).toreadonly(), memoryview(data)[::2]]
    blobs = list(parameters_blobs(Parameters(tensors, "numpy.ndarray")))  # type: ignore[arg-type]
    writable[:] = bytes(len(writable))
    assert [bytes(blob.data) for blob in blobs] == [data] * 4 + [data[::2]]
    assert blobs[0].data is data
    assert memoryview(blobs[1].data).obj is data
