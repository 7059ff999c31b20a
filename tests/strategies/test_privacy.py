"""Differential privacy across a restart: noise is fresh, and what was spent is counted, once."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
)

from flwr_ckpt import CheckpointError, CheckpointingStrategy, CheckpointStore
from tests.lab import probe
from tests.lab.catalogue import clipping_client, equal_client
from tests.lab.message import FakeGrid, average_client, start, told
from tests.lab.process import in_a_process


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "home" / "run"


class Accountant:
    """Counts releases, as an accountant does; anything whose class is called so is taken for one."""

    def __init__(self) -> None:
        self.releases = 0

    def state_dict(self) -> dict[str, Any]:
        return {"releases": self.releases}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.releases = state["releases"]


def private(accountant: Any = None) -> Any:
    arguments = {} if accountant is None else {"accountant": accountant}
    return DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.5, 1.0, 4, **arguments)


def killed(run: Path, log: Path, kill_at: tuple[str, int], make: Any, client: Any = average_client) -> None:
    def work() -> None:
        probe.watch(log, kill_at)
        start(make(), FakeGrid(client, 1))

    assert in_a_process(work, run.parent) is None


def flowers_accountant() -> Any:
    pytest.importorskip("dp_accounting", reason="Flower's accountant comes with flwr[dp], from 1.35 on")
    from flwr import serverapp

    if not hasattr(serverapp, "RdpAccountant"):
        pytest.skip("this Flower has no accountant")
    config = serverapp.PrivacyConfig(
        target_delta=1e-5,
        population_size=100,
        neighboring_relation=serverapp.NeighboringRelation.ADD_OR_REMOVE_ONE,
        sampling_method=serverapp.SamplingMethod.NO_AMPLIFICATION,
    )
    return serverapp.RdpAccountant(config)


@pytest.mark.parametrize("kill_at", [("train", 1), ("train", 3), ("evaluate", 3), ("central", 4), ("evaluate", 4)])
def test_epsilon_is_that_of_the_aggregates_that_count(kill_at: tuple[str, int], run: Path, tmp_path: Path) -> None:
    run.parent.mkdir(parents=True)
    whole = private(flowers_accountant())
    start(CheckpointingStrategy(whole, tmp_path / "whole"), FakeGrid(equal_client, 1))
    killed(
        run, tmp_path / "log", kill_at, lambda: CheckpointingStrategy(private(flowers_accountant()), run), equal_client
    )
    resumed = CheckpointingStrategy(private(flowers_accountant()), run)
    start(resumed, FakeGrid(equal_client, 2))
    assert resumed.privacy_spent() == whole.privacy_spent()
    assert resumed.privacy_spent().num_releases == 4


def test_noise_is_drawn_anew_whatever_the_seed(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    answers = []
    for name in ("one", "two"):
        random.seed(0)
        strategy = CheckpointingStrategy(private(), tmp_path / name, seed=3)
        with caplog.at_level(logging.WARNING, "flwr"):
            answers.append(told(start(strategy, FakeGrid(average_client, 1))))
    assert answers[0]["arrays"] != answers[1]["arrays"]
    assert "two runs will differ" in caplog.text


def test_a_generator_of_the_strategys_own_is_not_put_back(run: Path) -> None:
    class OwnNoise(DifferentialPrivacyServerSideFixedClipping):
        def __init__(self, salt: int) -> None:
            super().__init__(FedAvg(), 0.5, 1.0, 4)
            self.generator = np.random.default_rng(salt)

        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            self.generator.normal()
            return super().aggregate_train(server_round, replies)

    start(CheckpointingStrategy(OwnNoise(1), run), FakeGrid(average_client, 1), num_rounds=2)
    resumed = CheckpointingStrategy(OwnNoise(2), run)
    start(resumed, FakeGrid(average_client, 1), num_rounds=3)
    expected = np.random.default_rng(2)
    expected.normal()
    assert resumed.generator.bit_generator.state == expected.bit_generator.state


def test_the_clipping_norm_is_that_of_the_last_commit(run: Path, tmp_path: Path) -> None:
    def make() -> Any:
        return CheckpointingStrategy(DifferentialPrivacyClientSideAdaptiveClipping(FedAvg(), 0.1, 4), run)

    run.parent.mkdir(parents=True)
    killed(run, tmp_path / "log", ("train", 3), make, clipping_client)
    state = CheckpointStore(run).load().state["strategy"]
    seen = []

    class Looks(FakeGrid):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            seen.append(resumed.clipping_norm)
            return super().send_and_receive(messages, timeout=timeout)

    resumed = make()
    start(resumed, Looks(clipping_client, 2))
    assert state["clipping_norm"] != 0.1
    assert seen[0] == state["clipping_norm"]


def test_an_aggregate_is_on_disk_before_it_leaves(run: Path) -> None:
    """The default under privacy: what the next message carries has been recorded, also as spent."""
    accountant = Accountant()

    class Looks(FakeGrid):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            messages = list(messages)
            config = next(iter(messages[0].content.config_records.values()))
            server_round, phase = int(config["server-round"]), messages[0].metadata.message_type  # type: ignore[arg-type]
            newest = CheckpointStore(run).latest()
            assert newest is not None
            assert newest.round == (server_round if phase == "evaluate" else server_round - 1)
            accountant.releases += phase == "train"
            return super().send_and_receive(messages, timeout=timeout)

    strategy = CheckpointingStrategy(FedAvg(), run, extra_state={"accountant": accountant})
    start(strategy, Looks(average_client, 1))
    again = Accountant()
    start(CheckpointingStrategy(FedAvg(), run, extra_state={"accountant": again}), FakeGrid(average_client, 2))
    assert again.releases == 4


def test_a_commit_that_fails_raises_whatever_on_error_says(run: Path) -> None:
    class FillsTheDisk(FakeGrid):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            replies = super().send_and_receive(messages, timeout=timeout)
            if self.sent[-1] == ("train", 2):
                folder = run / "round-00000002"  # a file where the round's folder has to be, and stays
                for path in folder.iterdir():
                    path.unlink()
                folder.rmdir()
                folder.write_text("in the way")
            return replies

    with pytest.raises(CheckpointError, match="a commit failed"):
        start(CheckpointingStrategy(private(), run, on_error="warn"), FillsTheDisk(average_client, 1))
