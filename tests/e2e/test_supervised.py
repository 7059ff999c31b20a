"""`flwr-ckpt supervise` around a real `flwr run`, whose server is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from flower_lab import SERVER, FlowerLab
from flwr_ckpt import CheckpointStore

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits"
NUM_ROUNDS = 4
KILLED_IN = 3


@pytest.mark.slow
def test_a_killed_server_is_started_again_until_the_run_is_finished() -> None:
    with FlowerLab() as lab:
        progress = lab.progress()
        config = {"num-clients": 2, "num-server-rounds": NUM_ROUNDS, "progress-file": str(progress.path)}
        run = lab.supervise("digits", DIGITS, config, num_supernodes=2)
        run.wait_until(lambda: KILLED_IN in progress.rounds(), timeout=300)
        begun_before = len(progress.read())
        lab.kill(*SERVER)
        code = run.exit_code(timeout=300)  # Flower takes a minute to notice that a server is gone
        log = run.log()
        assert code == 0, log
        status = CheckpointStore(lab.checkpoint_home / "digits").status()
        assert (status.finished, status.round) == (True, NUM_ROUNDS)
        assert min(progress.rounds(begun_before)) >= KILLED_IN - 1, "what was durable has been trained again"
        assert "flwr-ckpt: digits: not finished (round " in log
        assert log.count("Resumed after round ") == 1
        assert log.rstrip().endswith(f"flwr-ckpt: digits: finished, round {NUM_ROUNDS} of {NUM_ROUNDS}")
