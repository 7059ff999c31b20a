"""Code written for FL4Health, with only its imports changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from flwr.common import NDArrays, Parameters, ndarrays_to_parameters, parameters_to_ndarrays
from torch import nn

from flwr_ckpt.checkpointers import (
    FunctionTorchModuleCheckpointer,
    LatestTorchModuleCheckpointer,
    PerRoundStateCheckpointer,
    TorchModuleCheckpointer,
)
from flwr_ckpt.parameter_exchange import FullParameterExchangerWithPacking, ParameterPacker
from flwr_ckpt.server_module import (
    BaseServerCheckpointAndStateModule,
    PackingServerCheckpointAndAndStateModule,
)


def parameters(*values: float) -> Parameters:
    return ndarrays_to_parameters([np.full((1, 1), value, np.float32) for value in values])


def linear() -> nn.Linear:
    return nn.Linear(1, 1, bias=False)


def weight_of(model: nn.Module) -> float:
    return next(model.parameters()).item()


class BranchModule(BaseServerCheckpointAndStateModule):
    """Takes the weights of one branch only, without any exchanger."""

    def __init__(self, model: nn.Module, branch: int, **kwargs: Any) -> None:
        self.branch = branch
        super().__init__(model, None, **kwargs)

    def _validate_model_checkpointer_components(self) -> None:
        assert self.model is not None

    def _hydrate_model_for_checkpointing(self, server_parameters: Parameters) -> None:
        assert self.model is not None
        weights = parameters_to_ndarrays(server_parameters)[self.branch]
        self.model.load_state_dict({"weight": torch.tensor(weights)}, strict=True)


@pytest.mark.parametrize(
    "server_parameters", [parameters(1, 2), ArrayRecord([np.full((1, 1), value) for value in (1.0, 2.0)])]
)
def test_a_hydration_of_ones_own_is_always_given_parameters(
    server_parameters: Parameters | ArrayRecord, tmp_path: Path
) -> None:
    latest = LatestTorchModuleCheckpointer(str(tmp_path), "latest.safetensors")
    state = PerRoundStateCheckpointer(tmp_path)
    module = BranchModule(linear(), 1, model_checkpointers=latest, state_checkpointer=state)
    module.maybe_checkpoint(server_parameters, 0.5, {})
    assert weight_of(latest.load_checkpoint(model=linear())) == 2
    module.save_state("server", server_parameters, {})
    loaded = module.maybe_load_state("server")
    assert loaded is not None
    assert weight_of(loaded["model"]) == 2


class BuiltFromParameters(BaseServerCheckpointAndStateModule):
    """Knows no model before it has seen parameters."""

    def _hydrate_model_for_checkpointing(self, server_parameters: Parameters) -> None:
        weight = parameters_to_ndarrays(server_parameters)[0]
        self.model = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.model.load_state_dict({"weight": torch.tensor(weight)})


def test_a_hydration_that_builds_the_model(tmp_path: Path) -> None:
    state = PerRoundStateCheckpointer(tmp_path)
    for server_parameters in (parameters(3), ArrayRecord([np.full((1, 1), 3.0)])):
        module = BuiltFromParameters(state_checkpointer=state)
        module.save_state("server", server_parameters, {})
        loaded = BuiltFromParameters(state_checkpointer=state).maybe_load_state("server")
        assert loaded is not None
        assert {name: tensor.tolist() for name, tensor in loaded["model"].items()} == {"weight": [[3]]}


class OwnExchanger:
    """An exchanger by duck typing: everything is halved on the way."""

    def push_parameters(self, model: nn.Module, initial_model: Any = None, config: Any = None) -> NDArrays:
        return [value.cpu().numpy() * 2 for value in model.state_dict().values()]

    def pull_parameters(self, parameters: NDArrays, model: nn.Module, config: Any = None) -> None:
        tensors = [torch.tensor(array / 2) for array in parameters]
        model.load_state_dict(dict(zip(model.state_dict(), tensors, strict=True)), strict=True)


@pytest.mark.parametrize("server_parameters", [parameters(8), ArrayRecord({"weight": torch.tensor([[8.0]])})])
def test_an_exchanger_by_duck_typing(server_parameters: Parameters | ArrayRecord, tmp_path: Path) -> None:
    latest = LatestTorchModuleCheckpointer(str(tmp_path), "latest.safetensors")
    module = BaseServerCheckpointAndStateModule(linear(), OwnExchanger(), latest)
    module.maybe_checkpoint(server_parameters, 0.5, {})
    assert weight_of(latest.load_checkpoint(model=linear())) == 4


class FirstIsExtra(ParameterPacker[float]):
    def pack_parameters(self, model_weights: NDArrays, additional_parameters: float) -> NDArrays:
        return [np.array(additional_parameters), *model_weights]

    def unpack_parameters(self, packed_parameters: NDArrays) -> tuple[NDArrays, float]:
        return packed_parameters[1:], float(packed_parameters[0])


class Prefixed(PackingServerCheckpointAndAndStateModule):
    def __init__(self, model: nn.Module, model_checkpointers: Any) -> None:
        super().__init__(model, FullParameterExchangerWithPacking(FirstIsExtra()), model_checkpointers)


def test_a_packer_of_ones_own(tmp_path: Path) -> None:
    latest = LatestTorchModuleCheckpointer(str(tmp_path), "latest.safetensors")
    packed = ndarrays_to_parameters([np.array(0.1), np.full((1, 1), 5.0)])
    Prefixed(linear(), latest).maybe_checkpoint(packed, 0.5, {})
    assert weight_of(latest.load_checkpoint(model=linear())) == 5


class EveryModel(TorchModuleCheckpointer):
    """A checkpointer of one's own, with a file of its own kind."""

    def __init__(self, checkpoint_dir: str, checkpoint_name: str) -> None:
        super().__init__(checkpoint_dir, checkpoint_name)
        self.best_score: float | None = None

    def maybe_checkpoint(self, model: nn.Module, loss: float, metrics: dict[str, Any]) -> None:
        self.best_score = loss if self.best_score is None else min(loss, self.best_score)
        with open(self.checkpoint_path, "a") as file:
            file.write(f"{weight_of(model)} {loss} {metrics['f1']}\n")


class Announced(FunctionTorchModuleCheckpointer):
    """One of ours, but for what it does first."""

    def maybe_checkpoint(self, model: nn.Module, loss: float, metrics: dict[str, Any]) -> None:
        Path(self.checkpoint_path).with_suffix(".announced").write_text(str(loss))
        super().maybe_checkpoint(model, loss, metrics)


class ByDuckTyping:
    def __init__(self, folder: Path) -> None:
        self.checkpoint_path = str(folder / "duck")
        self.seen: list[float] = []

    def maybe_checkpoint(self, model: nn.Module, loss: float, metrics: dict[str, Any]) -> None:
        self.seen.append(weight_of(model))


@pytest.mark.parametrize("in_a_run", [False, True])
def test_checkpointers_of_ones_own_save_as_they_like(in_a_run: bool, tmp_path: Path) -> None:
    duck = ByDuckTyping(tmp_path)
    announced = Announced(str(tmp_path), "announced.safetensors", lambda loss, _: loss, "loss")
    checkpointers: list[Any] = [EveryModel(str(tmp_path), "all.txt"), announced, duck]
    module = BaseServerCheckpointAndStateModule(linear(), OwnExchanger(), checkpointers)
    for server_round, loss in ((1, 0.5), (2, 0.25)):
        if in_a_run:
            module.take_parameters(parameters(2 * server_round))
            assert module.offer(server_round, loss, {"f1": 0.1}) == []
        else:
            module.maybe_checkpoint(parameters(2 * server_round), loss, {"f1": 0.1})
    assert (tmp_path / "all.txt").read_text() == "1.0 0.5 0.1\n2.0 0.25 0.1\n"
    assert (tmp_path / "announced.announced").read_text() == "0.25"
    assert weight_of(announced.load_checkpoint(model=linear())) == 2
    assert duck.seen == [1, 2]
    assert module.state_dict()["best_scores"] == {"all.txt": 0.25, "announced.safetensors": 0.25}


def test_one_checkpointer_by_duck_typing_is_a_list_of_one(tmp_path: Path) -> None:
    duck: Any = ByDuckTyping(tmp_path)
    assert BaseServerCheckpointAndStateModule(linear(), OwnExchanger(), duck).model_checkpointers == [duck]


class InMemory:
    """A state checkpointer of one's own, which gives back what it was given."""

    def __init__(self) -> None:
        self.states: dict[str, dict[str, Any]] = {}

    def save_checkpoint(self, checkpoint_name: str, checkpoint_dict: dict[str, Any]) -> None:
        self.states[checkpoint_name] = checkpoint_dict

    def load_checkpoint(self, checkpoint_name: str) -> dict[str, Any]:
        return self.states[checkpoint_name]

    def checkpoint_exists(self, checkpoint_name: str) -> bool:
        return checkpoint_name in self.states


def test_a_state_checkpointer_of_ones_own_is_given_the_model_itself() -> None:
    state: Any = InMemory()
    model = linear()
    module = BaseServerCheckpointAndStateModule(model, OwnExchanger(), None, state)
    module.save_state("server", parameters(4), {"current_round": 1})
    loaded = module.maybe_load_state("server")
    assert loaded == {"current_round": 1, "server_parameters": parameters(4), "model": model}
    assert weight_of(model) == 2
