"""Wrapped strategies whose run lies in a bucket: stopped, killed, fenced, and out of reach of it for a while."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from flwr.server.strategy import FedAdam as LegacyFedAdam
from flwr.serverapp.strategy import FedAdam, FedAvg
from typer.testing import CliRunner

from flwr_ckpt import CheckpointingStrategy, CheckpointStore, FencedError, KeepAll, KeepLatest
from flwr_ckpt.cli.app import app
from flwr_ckpt.store import Location, RunWriter, locate
from flwr_ckpt.store.places import object_files
from flwr_ckpt.store.places.cloud import open_url
from tests.lab import legacy, probe
from tests.lab.bucket import SECRET, Faults, S3Server, none, refused
from tests.lab.message import FakeGrid, average_client, initial_arrays, start, told


class Stopped(BaseException):
    """The server is stopped at an exact moment, within this process."""


class Interrupted(FakeGrid):
    """A grid that does something as the messages of a phase leave."""

    def __init__(self, moment: tuple[str, int], action: Any, salt: int = 1) -> None:
        super().__init__(average_client, salt)
        self._moment = moment
        self._action = action

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        messages = list(messages)
        config = next(iter(messages[0].content.config_records.values()))
        if (messages[0].metadata.message_type, config["server-round"]) == self._moment:
            self._action()
        return super().send_and_receive(messages, timeout=timeout)


def stop() -> None:
    raise Stopped


@pytest.fixture
def bucket(s3: S3Server) -> str:
    return f"s3://{s3.make_bucket()}"


def test_a_run_that_is_stopped_goes_on_bit_for_bit(bucket: str, tmp_path: Path) -> None:
    whole = told(start(CheckpointingStrategy(FedAdam(), tmp_path / "run", seed=1), FakeGrid(average_client, 1)))
    url = f"{bucket}/runs/digits"
    with pytest.raises(Stopped):
        start(CheckpointingStrategy(FedAdam(), url, seed=1), Interrupted(("evaluate", 3), stop))
    grid = FakeGrid(average_client, 2)
    strategy = CheckpointingStrategy(FedAdam(), url, seed=1)
    result = start(strategy, grid, arrays=initial_arrays(9))
    assert told(result) == whole
    assert grid.sent == [("evaluate", 3), ("train", 4), ("evaluate", 4)]
    assert strategy.resumed_round == 3
    assert [record.round for record in strategy.store.rounds()] == [2, 3, 4]
    assert strategy.store.status().finished


def test_a_legacy_run_that_is_stopped_goes_on_bit_for_bit(bucket: str, tmp_path: Path) -> None:
    class StoppingAdam(LegacyFedAdam):
        def configure_fit(self, server_round: int, *args: Any, **kwargs: Any) -> Any:
            if server_round == self.stop_at:
                raise Stopped
            return super().configure_fit(server_round, *args, **kwargs)

    def serve(place: str | Path, salt: int, stop_at: int) -> Any:
        strategy = StoppingAdam(
            initial_parameters=legacy.initial_parameters(1), evaluate_fn=legacy.central, min_available_clients=4
        )
        strategy.stop_at = stop_at
        strategy = CheckpointingStrategy(strategy, place, seed=1, exclude=("stop_at",))
        try:
            history = legacy.serve(strategy, legacy.clients(salt), 3)
        finally:
            strategy.close()
        return legacy.told(history, strategy.store.load().parameters())

    whole = serve(tmp_path / "run", 1, 9)
    url = f"{bucket}/digits"
    with pytest.raises(Stopped):
        serve(url, 1, 3)
    assert serve(url, 2, 9) == whole


def test_the_newer_server_takes_over_and_the_older_stops(bucket: str) -> None:
    url = f"{bucket}/digits"
    taken = []

    def take_over() -> None:
        taken.append(RunWriter.open(locate(url), KeepAll()))

    strategy = CheckpointingStrategy(FedAvg(), url, durable="before-release")
    with pytest.raises(FencedError, match=rf"{url}: another server has taken this run over"):
        start(strategy, Interrupted(("train", 3), take_over))
    assert (taken[0].resumed.commit.round, taken[0].resumed.commit.phase) == (3, "attempt")
    grid = FakeGrid(average_client, 2)
    start(CheckpointingStrategy(FedAvg(), url), grid)
    assert [sent for sent in grid.sent if sent[0] == "train"] == [("train", 3), ("train", 4)]


def test_training_goes_on_while_the_bucket_is_out_of_reach(
    bucket: str, s3: S3Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_files, "_PAUSES", ())
    monkeypatch.setattr(object_files, "_RETRIES", {"max_retries": 0})
    strategy = CheckpointingStrategy(FedAvg(), f"{bucket}/digits", keep=KeepLatest(9))

    def trouble() -> None:
        strategy.flush()
        s3.fault = Faults(*[refused(503)], at=lambda request: request.is_new_object)

    with caplog.at_level(logging.INFO):
        start(strategy, Interrupted(("train", 2), trouble))
    (error,) = [record.getMessage() for record in caplog.records if "could not be saved" in record.getMessage()]
    assert error.startswith(f"Round 2 (train) could not be saved in {bucket}/digits: OSError: ")
    assert "503 Service Unavailable, Trouble" in error
    assert error.endswith("Training goes on; the next round is saved again")
    assert strategy.store.status().finished
    assert sorted(strategy.store.history()["train/loss"]) == [1, 2, 3, 4]


def test_credentials_are_nowhere_but_in_the_environment(
    bucket: str, s3: S3Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_files, "_PAUSES", ())
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRET)
    with caplog.at_level(logging.DEBUG):
        strategy = CheckpointingStrategy(FedAdam(), f"{bucket}/digits")
        start(strategy, FakeGrid(average_client, 1), num_rounds=2)
        s3.fault = refused(403)  # the answer has a secret, too
        with pytest.raises(PermissionError) as caught:
            CheckpointStore(f"{bucket}/digits").load()
        s3.fault = none
    assert SECRET not in caplog.text + str(caught.value) + repr(strategy.store) + repr(strategy.store.location)
    files = open_url(f"{bucket}/digits")
    listed = files.keys()
    assert len(listed) > 5
    assert not any(SECRET.encode() in files.read(key) for key in listed)


def test_a_checkpoint_home_may_be_a_url(bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    config = {"checkpoint-home": f"{bucket}/flwr", "checkpoint-run": "cifar/lr-0.1"}
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=config)
    with caplog.at_level(logging.INFO):
        start(CheckpointingStrategy.from_run_config(FedAvg(), context), FakeGrid(average_client, 1), num_rounds=2)
    url = f"{bucket}/flwr/cifar/lr-0.1"
    assert f"Checkpoints of this run: {url} (a run name under the given checkpoint home)" in caplog.text
    assert [record.round for record in CheckpointStore(url).rounds()] == [0, 1, 2]


def test_a_run_in_memory_warns(caplog: pytest.LogCaptureFixture) -> None:
    start(CheckpointingStrategy(FedAvg(), "memory://warned/run"), FakeGrid(average_client, 1), num_rounds=1)
    assert "memory://warned/run is kept in this process's memory" in caplog.text
    grid = FakeGrid(average_client, 1)
    start(CheckpointingStrategy(FedAvg(), "memory://warned/run"), grid, num_rounds=2)
    assert grid.sent == [("train", 2), ("evaluate", 2)]


def test_the_command_line_looks_at_a_bucket(bucket: str, tmp_path: Path) -> None:
    url = f"{bucket}/flwr/digits"
    start(CheckpointingStrategy(FedAvg(), url), FakeGrid(average_client, 1), num_rounds=3)

    def ran(*args: str) -> str:
        result = CliRunner().invoke(app, list(args))
        assert result.exit_code == 0, result.output
        return result.output

    assert [one["run"] for one in json.loads(ran("ls", "--home", f"{bucket}/flwr", "--json"))] == ["digits"]
    assert json.loads(ran("status", url, "--json"))["round"] == 3
    assert json.loads(ran("show", url, "--json"))["round"] == 3
    ran("verify", url)
    ran("rewind", url, "2", "--yes")
    ran("export", url, "--output", str(tmp_path / "model.npz"))
    ran("fork", url, f"{bucket}/flwr/other")
    ran("rm", url, "--yes")
    assert [one["run"] for one in json.loads(ran("ls", "--home", f"{bucket}/flwr", "--json"))] == ["other"]


SERVER = """
import sys
from pathlib import Path
from flwr.server.strategy import FedAdam as LegacyFedAdam
from flwr.serverapp.strategy import FedAdam
from flwr_ckpt import CheckpointingStrategy
from tests.lab import legacy, message, probe

api, url, log, moment, salt = sys.argv[1:]
probe.watch(Path(log), (moment.split("-")[0], int(moment.split("-")[1])))
if api == "message":
    strategy = CheckpointingStrategy(FedAdam(), url, seed=1)
    message.start(strategy, message.FakeGrid(message.average_client, int(salt)))
else:
    strategy = LegacyFedAdam(
        initial_parameters=legacy.initial_parameters(1), evaluate_fn=legacy.central, min_available_clients=4
    )
    legacy.serve(CheckpointingStrategy(strategy, url, seed=1), legacy.clients(int(salt)), 4)
"""


@pytest.mark.slow
@pytest.mark.parametrize("api", ["message", "legacy"])
def test_a_server_that_is_killed_goes_on_bit_for_bit(api: str, bucket: str, s3: S3Server, tmp_path: Path) -> None:
    """A process of its own each time; the legacy one is never closed, and writes its end as it exits."""

    def life(url: str, log: Path, moment: str, salt: int) -> int:
        command = [sys.executable, "-c", SERVER, api, url, str(log), moment, str(salt)]
        return subprocess.run(command, env={**os.environ, **s3.environment()}, check=False, timeout=120).returncode

    assert life(f"{bucket}/whole", tmp_path / "whole.log", "none-0", 1) == 0
    for moment in ("train-3", "evaluate-2", "central-4"):
        url, log = f"{bucket}/{moment}", tmp_path / f"{moment}.log"
        assert life(url, log, moment, 1) == -9
        assert life(url, log, "none-0", 2) == 0
        stores = CheckpointStore(f"{bucket}/whole"), CheckpointStore(url)
        whole, resumed = (store.load() for store in stores)
        assert {name: array.tobytes() for name, array in whole.arrays.items()} == {
            name: array.tobytes() for name, array in resumed.arrays.items()
        }
        assert repr(stores[0].history()) == repr(stores[1].history())
        assert stores[1].status().finished
        trained = [count for (phase, _), count in probe.noted(log).items() if phase == "train"]
        assert len(trained) == 4


def test_a_location_shows_where_it_is() -> None:
    assert repr(locate("s3://bucket/run")) == repr(Location("s3://bucket/run", "s3://bucket/run", "a URL"))
