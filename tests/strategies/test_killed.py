"""The promise: a server killed by SIGKILL carries on, and nothing shows that it had died.

Every strategy is run once without interruption, and once killed at each of nine moments and started again, in a new
process with new node ids, replies in another order and another random first model.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest

from flwr_ckpt import CheckpointingStrategy
from tests.lab import catalogue, legacy, message, probe, unusual
from tests.lab.catalogue import Case
from tests.lab.process import in_a_process

ROUNDS = 4
MOMENTS = [(phase, server_round) for server_round in (1, 2, ROUNDS) for phase in ("train", "evaluate", "central")]
BUILT_IN = [*catalogue.message_cases(), *catalogue.legacy_cases()]
UNUSUAL = [case.name for case in unusual.unusual_cases(Path(tempfile.gettempdir()))]


def serve(case: Case, run: Path, salt: int, options: dict[str, Any]) -> dict[str, Any]:
    """One life of a server, to its end."""
    ids = [11, 22, 33, 44] if case.keyed_by_node else None
    if case.name.startswith("message/"):
        strategy = CheckpointingStrategy(case.make(salt=salt), run, **options)
        grid = message.FakeGrid(case.client, salt, node_ids=ids)
        result = message.start(strategy, grid, num_rounds=ROUNDS, arrays=case.initial(salt))
        return message.told(result)
    strategy = CheckpointingStrategy(case.make(salt=salt), run, **options)
    history = legacy.serve(strategy, legacy.clients(salt, make=case.client, ids=ids), ROUNDS)
    strategy.close()
    return legacy.told(history, strategy.store.load().parameters())


def life(case: Case, run: Path, log: Path, salt: int, kill_at: tuple[str, int] | None, options: Any) -> Any:
    """One life of a server in a process of its own; None if it was killed."""

    def work() -> Any:
        probe.watch(log, kill_at)
        return serve(case, run, salt, options)

    log.parent.mkdir(parents=True, exist_ok=True)
    return in_a_process(work, log.parent)


@functools.cache
def uninterrupted(case: Case) -> Any:
    """What the strategy says if nobody kills it. The run's first model is that of salt 1 in every test."""
    with tempfile.TemporaryDirectory() as folder:
        return life(case, Path(folder) / "run", Path(folder) / "logs" / "log", 1, None, {"seed": 5})


def compare(case: Case, whole: Any, resumed: Any) -> None:
    if case.private:  # noise is fresh: the same rounds, other values
        rounds = {kind: sorted(values) for kind, values in whole["metrics"].items() if isinstance(values, dict)}
        for kind, numbers in rounds.items():
            assert sorted(resumed["metrics"][kind]) == numbers
        return
    assert resumed["metrics"] == whole["metrics"]
    assert resumed["arrays"] == whole["arrays"]


def check_sends(killed: Any, resumed: Any, kill_at: tuple[str, int], *, before_release: bool, order: list[str]) -> None:
    """No durable phase is sent again: at most the round before and the finished phases of its own."""
    phase, server_round = kill_at
    again = {key for key in killed if key in resumed and key != kill_at}
    if before_release:
        finished = {key for key in again if (key[1], order.index(key[0])) < (server_round, order.index(phase))}
        assert not finished, f"finished and durable, and yet sent again: {finished}"
    assert all(key[1] >= server_round - 1 for key in again), f"sent again: {again}"


def order_of(case: Case) -> list[str]:
    return ["train", "evaluate", "central"] if case.name.startswith("message/") else ["train", "central", "evaluate"]


def kill_and_resume(case: Case, tmp_path: Path, kill_at: tuple[str, int], options: dict[str, Any]) -> Any:
    first, second = tmp_path / "first" / "log", tmp_path / "second" / "log"
    killed = life(case, tmp_path / "run", first, 1, kill_at, options)
    assert killed is None, f"{case} ended before it could be killed"
    resumed = life(case, tmp_path / "run", second, 2, None, options)
    check_sends(
        probe.noted(first),
        probe.noted(second),
        kill_at,
        before_release=case.private or options.get("durable") == "before-release",
        order=order_of(case),
    )
    return resumed


def moments_of(case: Case) -> list[tuple[str, int]]:
    # One has no central evaluation; the other asks for it from inside its aggregate_fit, where training still goes on.
    has_central = case.name not in ("legacy/FedXgbCyclic", "legacy/QFedAvg")
    return [moment for moment in MOMENTS if has_central or moment[0] != "central"]


PARAMETERS = [
    pytest.param(case, moment, id=f"{case}-{moment[0]}-{moment[1]}") for case in BUILT_IN for moment in moments_of(case)
]


@pytest.mark.parametrize(("case", "kill_at"), PARAMETERS)
def test_a_built_in_strategy_ends_in_the_same_bits(
    case: Case, kill_at: tuple[str, int], tmp_path: Path, record_property: Any
) -> None:
    resumed = kill_and_resume(case, tmp_path, kill_at, {"seed": 5})
    compare(case, uninterrupted(case), resumed)
    record_property("killed", [case.name, *kill_at, "fresh noise" if case.private else "same bits"])


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: f"{moment[0]}-{moment[1]}")
@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_strategy_ends_in_the_same_bits(
    name: str, moment: tuple[str, int], tmp_path: Path, record_property: Any
) -> None:
    """Its files hold the same after the replay: what it writes again is what it wrote."""
    files, reference = tmp_path / "files", tmp_path / "reference"
    files.mkdir()
    reference.mkdir()
    case = _unusual(name, files)
    whole = life(_unusual(name, reference), tmp_path / "whole", tmp_path / "logs" / "log", 1, None, {"seed": 5})
    resumed = kill_and_resume(case, tmp_path, moment, {"seed": 5})
    compare(case, whole, resumed)
    assert {p.name: p.read_bytes() for p in files.iterdir()} == {p.name: p.read_bytes() for p in reference.iterdir()}
    record_property("killed", [case.name, *moment, "same bits"])


def _unusual(name: str, folder: Path) -> Case:
    return next(case for case in unusual.unusual_cases(folder) if case.name == name)


@pytest.mark.parametrize(
    ("case", "kill_at"), [p for p in PARAMETERS if p.values[1] in (("evaluate", 2), ("central", 4))]
)
def test_before_release_no_finished_phase_is_sent_again(case: Case, kill_at: tuple[str, int], tmp_path: Path) -> None:
    resumed = kill_and_resume(case, tmp_path, kill_at, {"seed": 5, "durable": "before-release"})
    compare(case, uninterrupted(case), resumed)
