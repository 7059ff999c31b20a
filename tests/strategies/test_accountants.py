"""Privacy accountants as ``extra_state``: after kills and resumes they report what was really spent.

What was really spent is told by the log of what has left the server, over all its lives: where clients add the noise,
each time that training was sent; where the server does, each round whose aggregate left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flwr.serverapp.strategy import FedAvg

from flwr_ckpt import CheckpointingStrategy
from tests.lab import message, probe, spending
from tests.lab.process import in_a_process

ROUNDS = 3
DELTA = 1e-5
NOISE = {1: 4.0, 2: 5.0, 3: 5.0}  # changes, so that there is a history to keep
STEPS = 5  # of a client's training
POPULATION, SAMPLE = 100, 10


@dataclass(frozen=True)
class Ledger:
    """An accountant and how it is used.

    Attributes
    ----------
    make : callable
        A new accountant.
    step : callable
        ``(accountant, noise_multiplier, times)``
    """

    name: str
    make: Callable[[], Any]
    step: Callable[[Any, float, int], None]

    def __str__(self) -> str:
        return self.name

    def spend(self, accountant: Any, server_round: int, releases: int) -> None:
        if releases:
            self.step(accountant, NOISE[server_round], releases * STEPS)

    def of(self, releases: Counter[int]) -> float:
        """The ε of so many releases in each round, by an accountant that was never killed."""
        accountant = self.make()
        for server_round, count in sorted(releases.items()):
            self.spend(accountant, server_round, count)
        return float(accountant.get_epsilon(DELTA))


def opacus_accountant(mechanism: str) -> Callable[[], Any]:
    def make() -> Any:
        accountants = pytest.importorskip("opacus.accountants")
        return accountants.create_accountant(mechanism)

    return make


def opacus_step(accountant: Any, noise_multiplier: float, times: int) -> None:
    for _ in range(times):
        accountant.step(noise_multiplier=noise_multiplier, sample_rate=SAMPLE / POPULATION)


def flowers_accountant() -> Any:
    pytest.importorskip("dp_accounting", reason="Flower's accountant comes with flwr[dp], from 1.35 on")
    serverapp = pytest.importorskip("flwr.serverapp")
    if not hasattr(serverapp, "RdpAccountant"):
        pytest.skip("this Flower has no accountant")
    config = serverapp.PrivacyConfig(
        target_delta=DELTA,
        population_size=POPULATION,
        neighboring_relation=serverapp.NeighboringRelation.ADD_OR_REMOVE_ONE,
        sampling_method=serverapp.SamplingMethod.POISSON,
    )
    return serverapp.RdpAccountant(config)


def flowers_step(accountant: Any, noise_multiplier: float, times: int) -> None:
    from flwr.serverapp import GaussianPrivacyEvent

    accountant.compose(GaussianPrivacyEvent(noise_multiplier, SAMPLE, POPULATION), times)


LEDGERS = [
    Ledger("Opacus RDP", opacus_accountant("rdp"), opacus_step),
    Ledger("Opacus PRV", opacus_accountant("prv"), opacus_step),
    Ledger("Flower RDP", flowers_accountant, flowers_step),
]
KILLS = {
    "never": [],
    "in the first training": [("train", 1)],
    "in training": [("train", 2)],
    "twice in one training": [("train", 2), ("train", 2)],
    "before the commit": [("spent", 2)],  # the accountant was told, and the round is not on disk
    "in evaluation": [("evaluate", 2)],
    "everywhere": [("train", 1), ("spent", 2), ("train", 2), ("evaluate", 3)],
}


class Watched(message.FakeGrid):
    """Looks at the strategy's attempts whenever training is sent."""

    def __init__(self, salt: int, strategy: Any, log: Path) -> None:
        super().__init__(message.average_client, salt)
        self.strategy, self.log = strategy, log

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        replies = super().send_and_receive(messages, timeout=timeout)
        assert self.strategy.attempts == sent(self.log), "more has been sent than is written down, or less"
        return replies


def sent(log: Path) -> Counter[int]:
    """How often the training of each round has left, in all lives."""
    return Counter(
        {server_round: count for (phase, server_round), count in probe.noted(log).items() if phase == "train"}
    )


def serve(ledger: Ledger, on: Any, folder: Path, salt: int) -> dict[str, Any]:
    accountant = ledger.make()
    kind = on(FedAvg, lambda server_round, releases: ledger.spend(accountant, server_round, releases))
    strategy = CheckpointingStrategy(kind(), folder / "run", extra_state={"accountant": accountant})
    message.start(strategy, Watched(salt, strategy, folder / "log"), num_rounds=ROUNDS)
    attempts = {str(server_round): count for server_round, count in strategy.attempts.items()}
    return {"epsilon": float(accountant.get_epsilon(DELTA)), "attempts": attempts}


def lives(ledger: Ledger, on: Any, folder: Path, kills: list[tuple[str, int]]) -> dict[str, Any]:
    """Serve in one process after the other, each killed where it says, but for the last."""
    ledger.make()  # imports, or skips, here
    folder.mkdir()

    def work(salt: int, kill_at: tuple[str, int] | None) -> Callable[[], Any]:
        def one() -> dict[str, Any]:
            probe.watch(folder / "log", kill_at)
            return serve(ledger, on, folder, salt)

        return one

    for salt, kill_at in enumerate(kills):
        assert in_a_process(work(salt, kill_at), folder) is None, f"ended before it could be killed at {kill_at}"
    told: dict[str, Any] = in_a_process(work(len(kills), None), folder)
    return told


@pytest.mark.parametrize("kills", KILLS.values(), ids=KILLS)
@pytest.mark.parametrize("ledger", LEDGERS, ids=str)
def test_where_clients_add_the_noise_each_attempt_counts_once(
    ledger: Ledger, kills: list[tuple[str, int]], tmp_path: Path
) -> None:
    told = lives(ledger, spending.on_attempts, tmp_path / "home", kills)
    spent = sent(tmp_path / "home" / "log")
    repeated = [moment for moment in kills if moment[0] in ("train", "spent")]
    assert sum(spent.values()) == ROUNDS + len(repeated)
    assert told["attempts"] == {str(server_round): count for server_round, count in spent.items()}
    assert told["epsilon"] == ledger.of(spent)


@pytest.mark.parametrize("kills", KILLS.values(), ids=KILLS)
@pytest.mark.parametrize("ledger", LEDGERS, ids=str)
def test_where_the_server_adds_the_noise_each_committed_aggregate_counts_once(
    ledger: Ledger, kills: list[tuple[str, int]], tmp_path: Path
) -> None:
    told = lives(ledger, spending.on_aggregates, tmp_path / "home", kills)
    assert told["epsilon"] == ledger.of(Counter(range(1, ROUNDS + 1)))


@pytest.mark.parametrize("ledger", LEDGERS, ids=str)
def test_a_finished_run_reports_what_it_has_spent(ledger: Ledger, tmp_path: Path) -> None:
    """Started again, it trains nothing, and its accountant is as full as it was."""
    first = lives(ledger, spending.on_attempts, tmp_path / "home", [("train", 2)])
    again = in_a_process(lambda: serve(ledger, spending.on_attempts, tmp_path / "home", 9), tmp_path / "home")
    assert again == first
