"""A run is killed in round 5 and resumed to 8; each tracker is written to after both, and read back."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.serverapp.strategy import FedAdam
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

import to_mlflow
import to_tensorboard
import to_wandb
from flwr_ckpt import CheckpointingStrategy
from record import rounds
from tests.lab import message, probe
from tests.lab.process import in_a_process

RUN = "curves"
KILLED_IN, NUM_ROUNDS = 5, 8


def serve(log: Path, kill_at: tuple[str, int] | None, salt: int) -> None:
    probe.watch(log, kill_at)
    strategy = CheckpointingStrategy(FedAdam(eta=0.1), RUN, seed=3)
    message.start(strategy, message.FakeGrid(message.average_client, salt), num_rounds=NUM_ROUNDS)


@pytest.fixture
def lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two lives of a server; the first ends by SIGKILL while clients train."""
    monkeypatch.setenv("FLWR_CKPT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "log"
    return (
        lambda: in_a_process(lambda: serve(log, ("train", KILLED_IN), 1), tmp_path),
        lambda: in_a_process(lambda: serve(log, None, 2), tmp_path),
    )


def expected() -> dict[str, list[tuple[int, float]]]:
    """The whole curve of each metric: every round once."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for server_round, metrics in rounds(RUN).items():
        for metric, value in metrics.items():
            curves.setdefault(metric, []).append((server_round, value))
    assert [step for step, _ in curves["train/loss"]] == list(range(1, NUM_ROUNDS + 1))
    return curves


def test_tensorboard(lives: Any, tmp_path: Path) -> None:
    for life in lives:
        life()
        to_tensorboard.write(RUN, tmp_path / "runs")
    events = EventAccumulator(str(tmp_path / "runs" / RUN))
    events.Reload()
    for metric, curve in expected().items():
        shown = [(event.step, event.tensor_proto.float_val[0]) for event in events.Tensors(metric)]
        assert shown == [(step, pytest.approx(value, rel=1e-6)) for step, value in curve]


def test_mlflow(lives: Any, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    ids = []
    for life in lives:
        life()
        ids.append(to_mlflow.write(RUN, uri, "flower"))
    assert ids[0] == ids[1]
    for metric, curve in expected().items():
        history = MlflowClient(uri).get_metric_history(ids[0], metric)
        assert sorted((point.step, point.value) for point in history) == curve


def test_wandb_offline(lives: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for life in lives:
        life()
        to_wandb.write(RUN, "flower")
    newest = max((tmp_path / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    shown = read_wandb(newest)
    assert shown == expected()


def read_wandb(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Read an offline run's curves back."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        values = {item.nested_key[0] if item.nested_key else item.key: item.value_json for item in record.history.item}
        for metric in values.keys() - {"_step", "_runtime", "_timestamp"}:
            curves.setdefault(metric, []).append((int(values["_step"]), json.loads(values[metric])))
    return curves


def records(data: bytes) -> Iterator[bytes]:
    """Read a W&B file: a log as LevelDB's, in blocks of 32 KiB, behind a header of 7 bytes."""
    whole, last = (1, 4)
    place, parts = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # what is left of a block is padding
            place += 32768 - place % 32768
            continue
        size, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (whole, last):
            yield parts
            parts = b""
