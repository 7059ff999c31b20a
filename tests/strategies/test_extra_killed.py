"""The strategies that Flower lacks, killed and resumed; their clients keep what is theirs in a folder."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest

from flwr_ckpt import CheckpointingStrategy, CheckpointStore
from tests.lab import legacy, message, packed
from tests.lab.catalogue import Case
from tests.strategies.test_killed import MOMENTS, compare, kill_and_resume, life, serve

NAMES = [case.name for case in packed.cases(Path())]


def case_in(folder: Path, name: str) -> Case:
    """The case, its clients starting with nothing in a folder of their own."""
    folder.mkdir()
    return next(case for case in packed.cases(folder) if case.name == name)


@functools.cache
def uninterrupted(name: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        case = case_in(Path(folder) / "clients", name)
        return life(case, Path(folder) / "run", Path(folder) / "logs" / "log", 1, None, {"seed": 5})


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: f"{moment[0]}-{moment[1]}")
@pytest.mark.parametrize("name", NAMES)
def test_a_strategy_ends_in_the_same_bits(
    name: str, moment: tuple[str, int], tmp_path: Path, record_property: Any
) -> None:
    case = case_in(tmp_path / "clients", name)
    whole, resumed = uninterrupted(name), kill_and_resume(case, tmp_path, moment, {"seed": 5})
    compare(case, whole, resumed)
    assert (resumed["arrays"] == whole["arrays"]) is not case.private  # noise is fresh, and nothing else
    record_property("killed", [case.name, *moment, "fresh noise" if case.private else "same bits"])


@pytest.mark.parametrize("name", [name for name in NAMES if "DP" not in name])
def test_without_a_seed_the_wrapped_strategy_says_what_the_bare_one_does(name: str, tmp_path: Path) -> None:
    """One client: with several the order of their answers would show in the last bits."""
    wrapped = serve_one(case_in(tmp_path / "clients", name), tmp_path / "run")
    assert wrapped == serve_one(case_in(tmp_path / "bare", name), None)


def serve_one(case: Case, run: Path | None) -> dict[str, Any]:
    strategy = case.make(salt=1)
    strategy = strategy if run is None else CheckpointingStrategy(strategy, run)
    if case.name.startswith("message/"):
        strategy.min_train_nodes = strategy.min_evaluate_nodes = strategy.min_available_nodes = 1
        return message.told(message.start(strategy, message.FakeGrid(case.client, 1, nodes=1), arrays=case.initial(1)))
    strategy.min_fit_clients = strategy.min_evaluate_clients = strategy.min_available_clients = 1
    last: list[Any] = []
    aggregate = strategy.aggregate_fit

    def kept(server_round: int, results: Any, failures: Any) -> Any:
        last.append(aggregate(server_round, results, failures))
        return last[-1]

    strategy.aggregate_fit = kept
    history = legacy.serve(strategy, legacy.clients(1, count=1, make=case.client))
    if run is not None:
        strategy.close()
    return legacy.told(history, last[-1][0])


@pytest.mark.parametrize("api", packed.APIS)
def test_scaffolds_list_is_stored_once(api: str, tmp_path: Path) -> None:
    """What the strategy keeps for the next round is the aggregate itself: it has no file of its own."""
    case = case_in(tmp_path / "clients", f"{api}/Scaffold")
    serve(case, tmp_path / "run", 1, {})
    state = CheckpointStore(tmp_path / "run").load().state["strategy"]
    assert len(state["current_arrays" if api == "message" else "current_parameters"]) == 4
    assert [path.name for path in (tmp_path / "run").glob("round-*/*.safetensors") if "strategy" in path.name] == []
