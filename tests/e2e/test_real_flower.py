"""The examples under a real `flwr run`: their server is killed, and the same command is given once more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flower_lab import SERVER, SUPERLINK, FlowerLab, Outcome, Run
from flwr_ckpt import CheckpointStore

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DIGITS = EXAMPLES / "digits"
BREAST_CANCER = EXAMPLES / "breast-cancer"
NUM_ROUNDS = 5
KILLED_IN = 4
# The round before the one that was killed may still have been on its way to the disk.
FIRST_TO_TRAIN_AGAIN = KILLED_IN - 1


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

    def kill_server_in(self, server_round: int, superlink: str = "local") -> None:
        run = self.start_until(server_round, superlink)
        self.lab.kill(*SERVER)
        run.abandon()

    def outcome(self) -> Outcome:
        return Outcome.of(self.store)


@pytest.fixture
def lab() -> Iterator[FlowerLab]:
    with FlowerLab() as lab:
        yield lab


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
    app.kill_server_in(3, superlink)
    trained_again = app.finish(superlink)

    assert min(trained_again) >= 2
    assert app.outcome() == alone


@pytest.mark.slow
def test_a_server_that_lost_its_superlink_is_fenced_by_the_next(lab: FlowerLab) -> None:
    """Flower's simulation trains on as an orphan when its SuperLink dies: two servers then write one run."""
    alone = left_alone(BREAST_CANCER, num_clients=2, num_rounds=8)

    app = App(lab, BREAST_CANCER, num_clients=2, num_rounds=8)
    run = app.start_until(3)
    orphan = lab.find(*SERVER)
    orphan.suspend()  # else it may come to the end before the next server has started
    lab.kill(*SUPERLINK)
    run.abandon()

    begun_before = len(app.progress.read())
    run = app.start()
    run.wait_until(lambda: len(app.progress.read()) > begun_before)
    orphan.resume()
    run.finish()
    orphan.wait(timeout=60)

    assert {record.generation for record in app.store.rounds()} == {2}  # the newest three
    assert app.outcome() == alone
