"""SCAFFOLD under a real `flwr run`: its server is killed, and its clients have kept their control variates."""

from __future__ import annotations

from pathlib import Path

import pytest

from flower_lab import SERVER, FlowerLab, Outcome
from flwr_ckpt import CheckpointStore

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "scaffold-digits"
NUM_CLIENTS = 3
NUM_ROUNDS = 5
KILLED_IN = 4


def run(lab: FlowerLab, *, kill_in: int | None = None) -> dict[int, int]:
    """Give the command once; return how often each round was trained by it."""
    progress = lab.progress()
    begun_before = len(progress.read())
    config = {
        "num-clients": NUM_CLIENTS,
        "num-server-rounds": NUM_ROUNDS,
        "learning-rate": 0.1,
        "progress-file": str(progress.path),
        "client-folder": str(lab.directory / "clients"),
    }
    started = lab.run(EXAMPLE, config, num_supernodes=NUM_CLIENTS)
    if kill_in is None:
        started.finish()
    else:
        started.wait_until(lambda: kill_in in progress.rounds())
        lab.kill(*SERVER)
        started.abandon()
    return progress.rounds(begun_before)


def store(lab: FlowerLab) -> CheckpointStore:
    return CheckpointStore(lab.checkpoint_home / "scaffold-digits")


@pytest.mark.slow
def test_scaffold_killed_ends_as_one_that_was_left_alone() -> None:
    with FlowerLab() as lab:
        run(lab)
        alone = Outcome.of(store(lab))
    with FlowerLab() as lab:
        run(lab, kill_in=KILLED_IN)
        trained_again = run(lab)
        assert min(trained_again) >= KILLED_IN - 1
        assert Outcome.of(store(lab)) == alone
        arrays = store(lab).load().arrays
    accuracy = alone.history["central/accuracy"]
    assert float(str(accuracy[NUM_ROUNDS])) > 0.5 > float(str(accuracy[0]))
    assert len(arrays) == 8 + 8  # weights, and a variate of each
