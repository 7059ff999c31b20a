"""What a run asks of a module: decide first, write later, and survive a restart in between."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from flwr.common import NDArray, Parameters, ndarrays_to_parameters
from safetensors.torch import load_file, save_file
from torch import nn

from flwr_ckpt.checkpointers import (
    BestLossTorchModuleCheckpointer,
    BestMetricTorchModuleCheckpointer,
    LatestTorchModuleCheckpointer,
    PerRoundStateCheckpointer,
)
from flwr_ckpt.parameter_exchange import FullParameterExchanger
from flwr_ckpt.server_module import (
    BaseServerCheckpointAndStateModule,
    LayerNamesServerCheckpointAndStateModule,
    NnUnetServerCheckpointAndStateModule,
    SparseCooServerCheckpointAndStateModule,
)


class Square(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)


def full(a: float, b: float) -> Parameters:
    return ndarrays_to_parameters([np.full((2, 2), value, np.float32) for value in (a, b)])


def layer(name: str, value: float) -> Parameters:
    return ndarrays_to_parameters([np.full((2, 2), value, np.float32), np.array([name])])


def sparse(name: str, value: float) -> Parameters:
    indices = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    arrays: list[NDArray] = [np.full(4, value, np.float32), indices, np.array([2, 2]), np.array([name])]
    return ndarrays_to_parameters(arrays)


def best_loss(folder: Path, name: str = "best.safetensors") -> BestLossTorchModuleCheckpointer:
    return BestLossTorchModuleCheckpointer(str(folder), name)


def base(*checkpointers: Any) -> BaseServerCheckpointAndStateModule:
    module = BaseServerCheckpointAndStateModule(Square(), FullParameterExchanger(), list(checkpointers))
    module.forget_scores()
    return module


def saved(folder: Path, name: str = "best.safetensors") -> tuple[float, float]:
    tensors = load_file(folder / name)
    assert all(len(tensor.unique()) == 1 for tensor in tensors.values())
    return float(tensors["a.weight"][0, 0]), float(tensors["b.weight"][0, 0])


def through_a_store(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What comes back of a module's state after it was stored."""
    PerRoundStateCheckpointer(folder / "store").save_checkpoint("module", state)
    return PerRoundStateCheckpointer(folder / "store").load_checkpoint("module")


def test_a_choice_is_written_when_told_to_and_not_before(tmp_path: Path) -> None:
    module = base(best_loss(tmp_path), LatestTorchModuleCheckpointer(str(tmp_path), "latest.safetensors"))
    module.take_parameters(full(1, 2))
    choices = module.offer(1, 0.5, {})
    assert [(os.path.basename(c.checkpointer.checkpoint_path), c.server_round, c.score) for c in choices] == [
        ("best.safetensors", 1, 0.5),
        ("latest.safetensors", 1, 0.0),
    ]
    assert list(tmp_path.iterdir()) == []
    module.write(choices, full(1, 2))
    assert saved(tmp_path) == saved(tmp_path, "latest.safetensors") == (1, 2)

    module.take_parameters(full(3, 4))
    worse = module.offer(2, 0.6, {})
    module.write(worse, full(3, 4))
    assert saved(tmp_path) == (1, 2)
    assert saved(tmp_path, "latest.safetensors") == (3, 4)


def test_nothing_chosen_is_nothing_written(tmp_path: Path) -> None:
    module = base(best_loss(tmp_path))
    module.take_parameters(full(1, 2))
    assert module.offer(1, float("nan"), {}) == []
    module.write([], full(1, 2))
    assert list(tmp_path.iterdir()) == []


def test_without_checkpointers_a_run_asks_in_vain() -> None:
    module = BaseServerCheckpointAndStateModule()
    module.take_parameters(full(1, 2))
    assert module.offer(1, 0.5, {}) == []
    assert module.state_dict() == {"best_scores": {}}
    module.load_state_dict({"best_scores": {}})


def test_a_missing_metric_is_an_error_of_the_hook(tmp_path: Path) -> None:
    module = base(BestMetricTorchModuleCheckpointer(str(tmp_path), "m", "accuracy", ""))
    with pytest.raises(KeyError, match=r"accuracy.*\['f1'\]"):
        module.offer(1, 0.5, {"f1": 1})


def test_best_scores_survive_and_the_last_evaluation_can_be_offered_again(tmp_path: Path) -> None:
    checkpointers = best_loss(tmp_path), LatestTorchModuleCheckpointer(str(tmp_path), "latest.safetensors")
    module = base(*checkpointers)
    module.take_parameters(full(1, 2))
    module.offer(1, 0.0, {})  # killed here: the choice was committed, its file was not
    state = through_a_store(module.state_dict(), tmp_path)
    assert state == {"best_scores": {"best.safetensors": 0.0, "latest.safetensors": 0.0}}

    restarted = base(best_loss(tmp_path), LatestTorchModuleCheckpointer(str(tmp_path), "latest.safetensors"))
    restarted.load_state_dict(state)
    restarted.take_parameters(full(1, 2))
    restarted.write(restarted.offer(1, 0.0, {}), full(1, 2))
    assert saved(tmp_path) == (1, 2)
    restarted.take_parameters(full(3, 4))
    restarted.write(restarted.offer(2, 0.1, {}), full(3, 4))
    assert saved(tmp_path) == (1, 2)
    assert saved(tmp_path, "latest.safetensors") == (3, 4)


def test_choices_of_the_resumed_round_are_made_again(tmp_path: Path) -> None:
    module = LayerNamesServerCheckpointAndStateModule(Square(), [best_loss(tmp_path), best_loss(tmp_path, "other")])
    module.load_state_dict({"best_scores": {"best.safetensors": 0.5, "other": 0.1}, "full_model": None})
    module.take_parameters(full(1, 2))
    paths = {str(tmp_path / "best.safetensors"): 0.5, str(tmp_path / "gone"): 0.3}
    choices = module.choose_again(paths, 4)
    assert [(choice.server_round, choice.score) for choice in choices] == [(4, 0.5)]
    module.take_parameters(layer("a.weight", 9))
    module.write(choices, full(1, 2))
    assert saved(tmp_path) == (1, 2)
    assert not (tmp_path / "other").exists()
    assert module.state_dict()["best_scores"] == {"best.safetensors": 0.5, "other": 0.1}


def test_scores_belong_to_files_by_name_and_by_path_where_names_meet(tmp_path: Path) -> None:
    module = base(best_loss(tmp_path / "x"), best_loss(tmp_path / "y"), best_loss(tmp_path, "other"))
    assert module.state_dict()["best_scores"] == {
        str(tmp_path / "x" / "best.safetensors"): None,
        str(tmp_path / "y" / "best.safetensors"): None,
        "other": None,
    }
    moved = base(best_loss(tmp_path / "elsewhere"), best_loss(tmp_path, "new"))
    moved.load_state_dict({"best_scores": {"best.safetensors": 0.5, "gone": 0.1}})
    assert moved.state_dict()["best_scores"] == {"best.safetensors": 0.5, "new": None}


def test_a_fresh_run_ignores_the_scores_of_old_files(tmp_path: Path) -> None:
    old = BaseServerCheckpointAndStateModule(Square(), FullParameterExchanger(), best_loss(tmp_path))
    old.maybe_checkpoint(full(1, 2), 0.001, {})
    module = BaseServerCheckpointAndStateModule(Square(), FullParameterExchanger(), best_loss(tmp_path))
    module.forget_scores()
    module.take_parameters(full(3, 4))
    module.write(module.offer(1, 0.9, {}), full(3, 4))
    assert saved(tmp_path) == (3, 4)


def test_a_model_that_a_file_holds_already_is_linked_to(tmp_path: Path) -> None:
    module = base(best_loss(tmp_path))
    record = ArrayRecord({"a.weight": torch.full((2, 2), 1.0), "b.weight": torch.full((2, 2), 2.0)})
    round_file, other = tmp_path / "round.safetensors", tmp_path / "other.safetensors"
    save_file(record.to_torch_state_dict(), round_file)
    save_file({"a.weight": torch.zeros(2, 2)}, other)
    for same_as, linked in ((other, False), (round_file, True)):
        module.take_parameters(record)
        module.write(module.offer(1, 0.5, {}), record, same_as)
        assert saved(tmp_path) == (1, 2)
        assert (tmp_path / "best.safetensors").samefile(same_as) is linked


# --- partial formats -------------------------------------------------------------------------------------------------

Partial = Callable[[str, float], Parameters]
PARTIAL: list[tuple[Callable[..., BaseServerCheckpointAndStateModule], Partial]] = [
    (LayerNamesServerCheckpointAndStateModule, layer),
    (SparseCooServerCheckpointAndStateModule, sparse),
]


@pytest.mark.parametrize(("kind", "part"), PARTIAL)
def test_every_aggregate_is_routed_also_those_that_nobody_evaluates(kind: Any, part: Partial, tmp_path: Path) -> None:
    module = kind(Square(), best_loss(tmp_path))
    for server_parameters in (full(1, 2), part("a.weight", 3), part("b.weight", 4), part("a.weight", 5)):
        module.take_parameters(server_parameters)
    module.write(module.offer(3, 0.5, {}), part("a.weight", 5))
    assert saved(tmp_path) == (5, 4)


@pytest.mark.parametrize(("kind", "part"), PARTIAL)
def test_a_choice_is_that_model_whatever_has_come_since(kind: Any, part: Partial, tmp_path: Path) -> None:
    module = kind(Square(), best_loss(tmp_path))
    module.take_parameters(full(1, 2))
    module.take_parameters(part("a.weight", 3))
    choices = module.offer(1, 0.5, {})
    module.take_parameters(part("b.weight", 9))  # the next round, before the file is written
    module.write(choices, part("a.weight", 3))
    assert saved(tmp_path) == (3, 2)

    module.write(module.offer(2, 0.1, {}), part("b.weight", 9))
    assert saved(tmp_path) == (3, 9)


@pytest.mark.parametrize(("kind", "part"), PARTIAL)
def test_the_full_model_is_state(kind: Any, part: Partial, tmp_path: Path) -> None:
    module = kind(Square(), best_loss(tmp_path))
    module.take_parameters(full(1, 2))
    module.take_parameters(part("a.weight", 3))
    state = through_a_store(module.state_dict(), tmp_path)
    assert {name: array.tolist() for name, array in state["full_model"].items()} == {
        "a.weight": [[3, 3], [3, 3]],
        "b.weight": [[2, 2], [2, 2]],
    }
    restarted = kind(Square(), best_loss(tmp_path))
    restarted.load_state_dict(state)
    restarted.take_parameters(part("a.weight", 3))  # what the resumed round holds
    restarted.take_parameters(part("b.weight", 4))
    restarted.write(restarted.offer(2, 0.5, {}), part("b.weight", 4))
    assert saved(tmp_path) == (3, 4)


def test_the_full_model_comes_back_in_any_order(tmp_path: Path) -> None:
    module = LayerNamesServerCheckpointAndStateModule(Square(), best_loss(tmp_path))
    full_model = {"b.weight": np.full((2, 2), 2.0), "a.weight": np.full((2, 2), 1.0)}
    module.load_state_dict({"best_scores": {}, "full_model": full_model})
    module.take_parameters(layer("a.weight", 3))
    module.write(module.offer(1, 0.5, {}), layer("a.weight", 3))
    assert saved(tmp_path) == (3, 2)


def test_what_is_state_keeps_its_bits(tmp_path: Path) -> None:
    module = LayerNamesServerCheckpointAndStateModule(Square(), best_loss(tmp_path))
    third = np.full((2, 2), 1 / 3)  # float64, which the model has not
    module.take_parameters(ndarrays_to_parameters([third, np.array(["a.weight"])]))
    found = through_a_store(module.state_dict(), tmp_path)["full_model"]["a.weight"]
    assert found.dtype == np.float64
    assert found.tobytes() == third.tobytes()


def test_a_full_model_of_another_architecture_shows_both_sides(tmp_path: Path) -> None:
    module = LayerNamesServerCheckpointAndStateModule(Square(), best_loss(tmp_path))
    with pytest.raises(ValueError, match=r"a.weight \(3,\) \| a.weight \(2, 2\)"):
        module.load_state_dict({"best_scores": {}, "full_model": {"a.weight": np.zeros(3), "b.weight": np.zeros(4)}})
    with pytest.raises(ValueError, match=r"nothing \| b.weight \(2, 2\)"):
        module.load_state_dict({"best_scores": {}, "full_model": {"a.weight": np.zeros((2, 2))}})


def test_a_partial_module_without_a_model_routes_nothing(tmp_path: Path) -> None:
    module = LayerNamesServerCheckpointAndStateModule()
    module.take_parameters(layer("a.weight", 1))
    state = through_a_store(module.state_dict(), tmp_path)
    assert state["full_model"] is None
    module.load_state_dict(state)


def test_a_part_that_does_not_fit_is_an_error_as_it_is_taken(tmp_path: Path) -> None:
    module = LayerNamesServerCheckpointAndStateModule(Square(), best_loss(tmp_path))
    module.take_parameters(full(1, 2))
    with pytest.raises(ValueError, match="no such entry"):
        module.take_parameters(layer("c.weight", 1))
    module.write(module.offer(1, 0.5, {}), full(1, 2))
    assert saved(tmp_path) == (1, 2)


def test_a_late_model_is_known_by_the_time_it_is_needed(tmp_path: Path) -> None:
    module = NnUnetServerCheckpointAndStateModule(None, FullParameterExchanger(), best_loss(tmp_path))
    module.take_parameters(full(0, 0))
    choices = module.offer(1, 0.5, {})
    module.model = Square()
    module.write(choices, full(1, 2))
    assert saved(tmp_path) == (1, 2)
