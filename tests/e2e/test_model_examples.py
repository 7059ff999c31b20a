"""Examples whose server keeps models, under a real `flwr run`: killed, and started once more by the same command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flower_lab import SERVER, FlowerLab, Outcome, Run, Value
from flwr_ckpt import CheckpointStore

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NUM_CLIENTS = 3
NUM_ROUNDS = 5
KILLED_IN = 4

Config = dict[str, Value]


@pytest.fixture
def lab() -> Iterator[FlowerLab]:
    with FlowerLab() as lab:
        yield lab


def start(lab: FlowerLab, folder: Path, config: Config) -> Run:
    config = {
        **config,
        "num-clients": NUM_CLIENTS,
        "num-server-rounds": NUM_ROUNDS,
        "model-folder": str(lab.directory / "models"),
        "progress-file": str(lab.progress().path),
    }
    return lab.run(folder, config, num_supernodes=NUM_CLIENTS)


def killed_and_resumed(lab: FlowerLab, folder: Path, config: Config) -> dict[int, int]:
    """Kill an example's server while clients train; return how often each round was begun, over both runs."""
    progress = lab.progress()
    killed = start(lab, folder, config)
    killed.wait_until(lambda: KILLED_IN in progress.rounds())
    lab.kill(*SERVER)
    killed.abandon()
    begun_before = len(progress.read())
    start(lab, folder, config).finish()
    before = {trained.server_round for trained in progress.read()[:begun_before]}
    after = progress.rounds(begun_before)
    return {server_round: (server_round in before) + (server_round in after) for server_round in before | set(after)}


@pytest.mark.slow
def test_dp_scaffold_reports_what_was_really_spent(lab: FlowerLab) -> None:
    accountants = pytest.importorskip("opacus.accountants")
    safetensors = pytest.importorskip("safetensors.numpy")
    sample_rate, noise_multiplier, delta, epochs = 0.25, 1.5, 1e-3, 2
    config: Config = {
        "sample-rate": sample_rate,
        "noise-multiplier": noise_multiplier,
        "delta": delta,
        "local-epochs": epochs,
        "client-folder": str(lab.directory / "clients"),
    }
    attempts = killed_and_resumed(lab, EXAMPLES / "dp-scaffold", config)
    assert sorted(attempts) == [1, 2, 3, 4, 5]
    assert sum(attempts.values()) == NUM_ROUNDS + 1  # nothing that was durable is trained again

    store = CheckpointStore(lab.checkpoint_home / "dp-scaffold")
    accountant = accountants.RDPAccountant()
    spent = {0: 0.0}
    for server_round in range(1, NUM_ROUNDS + 1):
        for _ in range(attempts[server_round] * epochs * round(1 / sample_rate)):
            accountant.step(noise_multiplier=noise_multiplier, sample_rate=sample_rate)
        spent[server_round] = accountant.get_epsilon(delta)
    assert store.history()["central/epsilon"] == pytest.approx(spent, rel=1e-12)

    best = store.best("central/loss", "min")
    assert best is not None
    aggregate = list(store.load(best.round).arrays.values())
    saved = safetensors.load_file(lab.directory / "models" / "dp-scaffold" / "best.safetensors")
    assert sorted(saved) == ["linear.bias", "linear.weight"]  # a bare model's names
    assert saved["linear.weight"].tobytes() == aggregate[0].tobytes()
    assert saved["linear.bias"].tobytes() == aggregate[1].tobytes()
    assert len(aggregate) == 2 + 2  # weights, and a variate of each
    accuracy = store.history()["central/accuracy"]
    assert float(str(accuracy[NUM_ROUNDS])) > 0.8 > float(str(accuracy[0]))


@pytest.mark.slow
def test_a_late_model_survives_and_ends_in_the_same_bits(lab: FlowerLab) -> None:
    pytest.importorskip("monai")
    pytest.importorskip("nilearn")
    safetensors = pytest.importorskip("safetensors.numpy")
    folder = EXAMPLES / "brain-segmentation"
    with FlowerLab() as quiet:
        start(quiet, folder, {}).finish()
        alone = Outcome.of(CheckpointStore(quiet.directory / "models" / "run"))
        best_alone = safetensors.load_file(quiet.directory / "models" / "best.safetensors")

    attempts = killed_and_resumed(lab, folder, {})
    assert sorted(attempts) == [0, 1, 2, 3, 4, 5]
    assert attempts[0] == 1  # the plan: clients are asked for it once, before round 1
    assert attempts[KILLED_IN] == 2

    store = CheckpointStore(lab.directory / "models" / "run")
    assert Outcome.of(store) == alone
    best = safetensors.load_file(lab.directory / "models" / "best.safetensors")
    assert {name: array.tobytes() for name, array in best.items()} == {
        name: array.tobytes() for name, array in best_alone.items()
    }
    losses = store.history()["evaluate/loss"]
    assert min(losses, key=lambda server_round: float(str(losses[server_round]))) == NUM_ROUNDS
    aggregate = store.load().arrays  # of the last round, which is the best
    assert {name: array.tobytes() for name, array in best.items()} == {
        name: array.tobytes() for name, array in aggregate.items()
    }
