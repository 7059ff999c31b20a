"""The examples under a real `flwr run`: their server is killed, and the same command is given once more."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flower_lab import SERVER, SUPERLINK, FlowerLab, Outcome, Run, wait_for_end
from flwr_ckpt import CheckpointStore

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DIGITS = EXAMPLES / "digits"
BREAST_CANCER = EXAMPLES / "breast-cancer"
NUM_ROUNDS = 5
KILLED_IN = 4
# The round before the one that was killed may still have been on its way to the disk.
FIRST_TO_TRAIN_AGAIN = KILLED_IN - 1
STOPPED_ROUNDS = 6  # a server that is asked to stop finishes a round or two more
STOPPED_IN = 2


class App:
    """One example in one lab, always started by the same command."""

    def __init__(self, lab: FlowerLab, folder: Path, *, num_clients: int, num_rounds: int = NUM_ROUNDS) -> None:
        self.lab = lab
        self.folder = folder
        self.num_clients = num_clients
        self.num_rounds = num_rounds
        self.progress = lab.progress()
        self.store = CheckpointStore(lab.checkpoint_home / folder.name)

    def start(self, superlink: str = "local") -> Run:
        config = {
            "num-clients": self.num_clients,
            "num-server-rounds": self.num_rounds,
            "progress-file": str(self.progress.path),
        }
        num_supernodes = self.num_clients if superlink == "local" else None
        return self.lab.run(self.folder, config, num_supernodes=num_supernodes, superlink=superlink)

    def finish(self, superlink: str = "local") -> dict[int, int]:
        """Run to the end, and return how often each round was trained on the way."""
        begun_before = len(self.progress.read())
        self.start(superlink).finish()
        return self.progress.rounds(begun_before)

    def start_until(self, server_round: int, superlink: str = "local") -> Run:
        """Run until clients train in this round, or fail."""
        run = self.start(superlink)
        run.wait_until(lambda: server_round in self.progress.rounds())
        return run

    def kill_server_in(self, server_round: int, superlink: str = "local") -> str:
        """Kill the server as clients train in this round; return what it had logged."""
        run = self.start_until(server_round, superlink)
        self.lab.kill(*SERVER)
        run.abandon()
        return run.log()

    def outcome(self) -> Outcome:
        return Outcome.of(self.store)


def count(record_property: Any, tried: str) -> None:
    record_property("counted", [tried, {"runs": 1, "lost": 0, "wrong": 0}])


@pytest.fixture
def lab() -> Iterator[FlowerLab]:
    with FlowerLab() as lab:
        yield lab


@functools.cache
def left_alone(folder: Path, *, num_clients: int, num_rounds: int = NUM_ROUNDS) -> Outcome:
    """Run an example in a lab of its own and kill nothing."""
    with FlowerLab() as lab:
        app = App(lab, folder, num_clients=num_clients, num_rounds=num_rounds)
        app.finish()
        return app.outcome()


def test_a_lab_ends_what_it_started() -> None:
    with FlowerLab() as lab:
        lab.deploy(1)
        started = [lab.find("flower-superlink"), lab.find("flower-supernode")]
        assert all(process.is_running() for process in started)
    assert not any(process.is_running() for process in started)
    assert not lab.directory.exists()


def test_more_rounds_extend_a_finished_run(lab: FlowerLab) -> None:
    app = App(lab, BREAST_CANCER, num_clients=2, num_rounds=1)
    assert app.finish() == {1: 2}
    app.num_rounds = 2
    assert app.finish() == {2: 2}
    assert list(app.store.history()["central/loss"]) == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("folder", [DIGITS, BREAST_CANCER], ids=lambda folder: folder.name)
def test_a_killed_simulation_ends_as_one_that_was_left_alone(folder: Path, lab: FlowerLab) -> None:
    alone = left_alone(folder, num_clients=4)

    app = App(lab, folder, num_clients=4)
    app.kill_server_in(KILLED_IN)
    trained_again = app.finish()

    assert min(trained_again) >= FIRST_TO_TRAIN_AGAIN
    assert max(trained_again) == NUM_ROUNDS
    assert app.outcome() == alone


@pytest.mark.slow
def test_a_finished_run_trains_nothing(lab: FlowerLab) -> None:
    app = App(lab, DIGITS, num_clients=2, num_rounds=1)
    app.finish()
    outcome = app.outcome()
    assert app.finish() == {}
    assert app.outcome() == outcome


@pytest.mark.slow
def test_a_killed_deployment_ends_as_one_that_was_left_alone(lab: FlowerLab) -> None:
    """A simulation with the same partitions is the deployment that was left alone: clients cannot tell them apart."""
    alone = left_alone(DIGITS, num_clients=2, num_rounds=3)

    app = App(lab, DIGITS, num_clients=2, num_rounds=3)
    superlink = lab.deploy(app.num_clients)
    log = app.kill_server_in(3, superlink)
    trained_again = app.finish(superlink)

    assert min(trained_again) >= 2
    assert app.outcome() == alone, log  # a node that did not answer in time shows there, and in the history


WAYS_TO_STOP: dict[str, Callable[[FlowerLab, Run], object]] = {
    "flwr-stop": lambda lab, run: lab.stop(run),
    "SIGTERM": lambda lab, run: lab.terminate(*SERVER),
}


@pytest.mark.slow
@pytest.mark.parametrize("deployed", [False, True], ids=["simulation", "deployment"])
@pytest.mark.parametrize("way", WAYS_TO_STOP)
def test_a_stopped_run_ends_as_one_that_was_left_alone(
    way: str, deployed: bool, lab: FlowerLab, record_property: Any
) -> None:
    """In a deployment that is a SystemExit anywhere in the server; a simulation is gone in seconds."""
    alone = left_alone(BREAST_CANCER, num_clients=2, num_rounds=STOPPED_ROUNDS)

    app = App(lab, BREAST_CANCER, num_clients=2, num_rounds=STOPPED_ROUNDS)
    superlink = lab.deploy(app.num_clients) if deployed else "local"
    run = app.start_until(STOPPED_IN, superlink)
    WAYS_TO_STOP[way](lab, run)
    run.abandon()
    durable = [record.round for record in app.store.rounds()]
    trained_again = app.finish(superlink)

    assert not any(server_round < max(durable) for server_round in trained_again)
    assert app.outcome() == alone
    count(record_property, f"{way}, real Flower")


@pytest.mark.slow
def test_a_deployment_whose_superlink_is_stopped_goes_on_under_another(lab: FlowerLab, record_property: Any) -> None:
    """The server it leaves behind may sit in Flower's retries for long: the next one does not wait for its end."""
    alone = left_alone(BREAST_CANCER, num_clients=2, num_rounds=STOPPED_ROUNDS)

    app = App(lab, BREAST_CANCER, num_clients=2, num_rounds=STOPPED_ROUNDS)
    run = app.start_until(STOPPED_IN, lab.deploy(app.num_clients))
    lab.terminate(*SUPERLINK)
    run.abandon()
    app.finish(lab.deploy(app.num_clients))

    assert app.outcome() == alone
    count(record_property, "SIGTERM of the SuperLink, real Flower")


@pytest.mark.slow
@pytest.mark.parametrize("end_superlink", [FlowerLab.kill, FlowerLab.terminate], ids=["SIGKILL", "SIGTERM"])
def test_a_server_that_lost_its_superlink_is_fenced_by_the_next(
    end_superlink: Callable[..., object], lab: FlowerLab, record_property: Any
) -> None:
    """Flower's simulation trains on as an orphan when its SuperLink dies: two servers then write one run."""
    alone = left_alone(BREAST_CANCER, num_clients=2, num_rounds=STOPPED_ROUNDS)

    app = App(lab, BREAST_CANCER, num_clients=2, num_rounds=STOPPED_ROUNDS)
    run = app.start_until(STOPPED_IN)
    orphan = lab.find(*SERVER)
    orphan.suspend()  # else it may come to the end before the next server has started
    end_superlink(lab, *SUPERLINK)
    run.abandon()
    durable = max(record.round for record in app.store.rounds())

    begun_before = len(app.progress.read())
    run = app.start()
    run.wait_until(lambda: len(app.progress.read()) > begun_before)
    orphan.resume()
    run.finish()
    wait_for_end(orphan)

    assert {record.generation for record in app.store.rounds()} == {2}  # the newest three
    assert min(app.progress.rounds(begun_before)) >= durable, "what was durable is not trained again by the newer"
    assert app.outcome() == alone
    count(record_property, "orphan of a simulation, real Flower")
