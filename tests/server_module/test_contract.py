"""What FL4Health documents of its modules: construction, saving models, named states, and wrong use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from flwr.common import NDArrays, Parameters, ndarrays_to_parameters, parameters_to_ndarrays
from torch import nn

import flwr_ckpt.server_module as family
from flwr_ckpt.checkpointers import (
    BestLossOpacusCheckpointer,
    BestLossTorchModuleCheckpointer,
    BestMetricTorchModuleCheckpointer,
    LatestTorchModuleCheckpointer,
    PerRoundStateCheckpointer,
)
from flwr_ckpt.parameter_exchange import (
    FullParameterExchanger,
    FullParameterExchangerWithPacking,
    ParameterPackerAdaptiveConstraint,
)
from flwr_ckpt.server_module import (
    BaseServerCheckpointAndStateModule,
    DpScaffoldServerCheckpointAndStateModule,
    LayerNamesServerCheckpointAndStateModule,
    NnUnetServerCheckpointAndStateModule,
    OpacusServerCheckpointAndStateModule,
    PackingServerCheckpointAndAndStateModule,
    PackingServerCheckpointAndStateModule,
)

WITH_EXCHANGER = ["Base", "Packing", "Opacus", "NnUnet"]
WITH_THEIR_OWN = ["Scaffold", "AdaptiveConstraint", "ClippingBit", "LayerNames", "SparseCoo", "DpScaffold"]


def class_of(name: str) -> type[BaseServerCheckpointAndStateModule]:
    found: type[BaseServerCheckpointAndStateModule] = getattr(family, f"{name}ServerCheckpointAndStateModule")
    return found


def linear(weight: float) -> nn.Linear:
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, weight)
    nn.init.constant_(model.bias, weight)
    return model


def parameters(weight: float) -> Parameters:
    return ndarrays_to_parameters([np.full((1, 2), weight, np.float32), np.full(1, weight, np.float32)])


def weight_of(model: nn.Module) -> float:
    return float(next(model.parameters()).detach()[0, 0])


def best_loss(folder: Path, name: str = "best.safetensors") -> BestLossTorchModuleCheckpointer:
    return BestLossTorchModuleCheckpointer(str(folder), name)


# --- construction ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*WITH_EXCHANGER, *WITH_THEIR_OWN])
def test_arguments_are_fl4healths(name: str, tmp_path: Path) -> None:
    state = PerRoundStateCheckpointer(tmp_path)
    module = class_of(name)(model=None, model_checkpointers=None, state_checkpointer=state)
    assert module.model is None
    assert module.model_checkpointers is None
    assert module.state_checkpointer is state
    model = linear(0)
    positional = (
        class_of(name)(model, None, None, state) if name in WITH_EXCHANGER else class_of(name)(model, None, state)
    )
    assert positional.model is model
    assert positional.state_checkpointer is state


def test_the_spelling_of_fl4health() -> None:
    assert PackingServerCheckpointAndAndStateModule is PackingServerCheckpointAndStateModule


@pytest.mark.parametrize("name", ["Base", "Packing", *WITH_THEIR_OWN])
def test_checkpointers_need_a_model(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpointers and no model"):
        class_of(name)(model_checkpointers=best_loss(tmp_path))


@pytest.mark.parametrize("name", WITH_EXCHANGER)
def test_checkpointers_need_an_exchanger(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpointers and no parameter_exchanger"):
        class_of(name)(model=linear(0), model_checkpointers=best_loss(tmp_path))


def test_an_empty_list_of_checkpointers_needs_nothing() -> None:
    assert BaseServerCheckpointAndStateModule(model_checkpointers=[]).model_checkpointers == []


def test_one_checkpointer_is_a_list_of_one(tmp_path: Path) -> None:
    checkpointer = best_loss(tmp_path)
    module = BaseServerCheckpointAndStateModule(linear(0), FullParameterExchanger(), checkpointer)
    assert module.model_checkpointers == [checkpointer]


def test_two_checkpointers_cannot_have_one_path(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    pairs = [(best_loss(tmp_path), best_loss(tmp_path)), (best_loss(tmp_path), best_loss(tmp_path / "sub" / ".."))]
    for pair in pairs:
        with pytest.raises(ValueError, match=r"best.safetensors.*have to be unique"):
            BaseServerCheckpointAndStateModule(linear(0), FullParameterExchanger(), pair)
    apart = [best_loss(tmp_path), best_loss(tmp_path / "sub")]
    assert BaseServerCheckpointAndStateModule(linear(0), FullParameterExchanger(), apart).model_checkpointers == apart


@pytest.mark.parametrize("exchanger", [object(), ParameterPackerAdaptiveConstraint(), "full"])
@pytest.mark.parametrize("name", WITH_EXCHANGER)
def test_an_exchanger_without_its_methods(name: str, exchanger: Any) -> None:
    with pytest.raises(TypeError, match="has no push_parameters and no pull_parameters"):
        class_of(name)(linear(0), exchanger)


def test_packing_needs_an_exchanger_that_unpacks(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="FullParameterExchanger, has no unpack_parameters"):
        PackingServerCheckpointAndStateModule(linear(0), FullParameterExchanger())
    packing = FullParameterExchangerWithPacking(ParameterPackerAdaptiveConstraint())
    assert PackingServerCheckpointAndStateModule(linear(0), packing).parameter_exchanger is packing


def test_opacus_modules_take_opacus_checkpointers_only(tmp_path: Path) -> None:
    mixed = [BestLossOpacusCheckpointer(str(tmp_path), "opacus"), best_loss(tmp_path)]
    with pytest.raises(TypeError, match=r"BestLossTorchModuleCheckpointer cannot save .* use OpacusCheckpointer"):
        OpacusServerCheckpointAndStateModule(linear(0), FullParameterExchanger(), mixed)
    with pytest.raises(TypeError, match=r"BestLossTorchModuleCheckpointer cannot save .* use OpacusCheckpointer"):
        DpScaffoldServerCheckpointAndStateModule(linear(0), mixed)


def test_opacus_checkpointers_refuse_a_bare_model(tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    checkpointer = BestLossOpacusCheckpointer(str(tmp_path), "opacus")
    module = OpacusServerCheckpointAndStateModule(linear(0), FullParameterExchanger(), checkpointer)
    with pytest.raises(TypeError, match="GradSampleModule"):
        module.maybe_checkpoint(parameters(1), 0.5, {})


# --- models ----------------------------------------------------------------------------------------------------------


def test_every_checkpointer_is_asked(tmp_path: Path) -> None:
    latest = LatestTorchModuleCheckpointer(str(tmp_path), "latest.safetensors")
    best = best_loss(tmp_path)
    accuracy = BestMetricTorchModuleCheckpointer(str(tmp_path), "accuracy.safetensors", "accuracy", "", maximize=True)
    module = BaseServerCheckpointAndStateModule(linear(0), FullParameterExchanger(), [latest, best, accuracy])
    for weight, loss, score in ((1, 0.3, 0.5), (2, 0.2, 0.9), (3, 0.4, 0.7)):
        module.maybe_checkpoint(parameters(weight), loss, {"accuracy": score})
    assert [weight_of(c.load_checkpoint(model=linear(0))) for c in (latest, best, accuracy)] == [3, 2, 2]
    assert weight_of(module.model or linear(0)) == 3


def test_without_checkpointers_nothing_is_saved(tmp_path: Path) -> None:
    module = BaseServerCheckpointAndStateModule(linear(7), FullParameterExchanger())
    module.maybe_checkpoint(parameters(1), 0.5, {})
    assert list(tmp_path.iterdir()) == []
    assert weight_of(module.model or linear(0)) == 7


def test_a_missing_metric_lists_those_there_are(tmp_path: Path) -> None:
    checkpointer = BestMetricTorchModuleCheckpointer(str(tmp_path), "m", "accuracy")
    module = BaseServerCheckpointAndStateModule(linear(0), FullParameterExchanger(), checkpointer)
    with pytest.raises(KeyError, match=r"val - prediction - accuracy.*\['f1'\]"):
        module.maybe_checkpoint(parameters(1), 0.5, {"f1": 0.5})
    with pytest.raises(ValueError, match="a number is needed"):
        module.maybe_checkpoint(parameters(1), 0.5, {"val - prediction - accuracy": "high"})


def test_nnunets_model_comes_later(tmp_path: Path) -> None:
    module = NnUnetServerCheckpointAndStateModule(None, FullParameterExchanger(), best_loss(tmp_path))
    with pytest.raises(ValueError, match="no model to put parameters into; set `model`"):
        module.maybe_checkpoint(parameters(1), 0.5, {})
    module.model = linear(0)
    module.maybe_checkpoint(parameters(1), 0.5, {})
    assert weight_of(best_loss(tmp_path).load_checkpoint(model=linear(0))) == 1


# --- state -----------------------------------------------------------------------------------------------------------


def arrays_of(server_parameters: Any) -> NDArrays:
    if isinstance(server_parameters, ArrayRecord):
        return server_parameters.to_numpy_ndarrays()
    return parameters_to_ndarrays(server_parameters)


def test_state_needs_a_state_checkpointer() -> None:
    module = BaseServerCheckpointAndStateModule(linear(0), FullParameterExchanger())
    with pytest.raises(ValueError, match="no state_checkpointer to save"):
        module.save_state("server", parameters(1), {})
    with pytest.raises(ValueError, match="no state_checkpointer to load"):
        module.maybe_load_state("server")


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    module = BaseServerCheckpointAndStateModule(state_checkpointer=PerRoundStateCheckpointer(tmp_path))
    assert module.maybe_load_state("server") is None


@pytest.mark.parametrize("key", ["model", "server_parameters"])
def test_keys_of_its_own_are_refused(key: str, tmp_path: Path) -> None:
    state = PerRoundStateCheckpointer(tmp_path)
    module = BaseServerCheckpointAndStateModule(linear(0), FullParameterExchanger(), None, state)
    with pytest.raises(ValueError, match=f"a key '{key}'"):
        module.save_state("server", parameters(1), {key: 1})
    assert module.maybe_load_state("server") is None


@pytest.mark.parametrize("make", [ndarrays_to_parameters, ArrayRecord])
def test_state_comes_back_with_raw_parameters_and_model(make: Any, tmp_path: Path) -> None:
    arrays = [np.full((1, 2), 0.1), np.full(1, 0.1)]  # float64, which the model has not
    module = BaseServerCheckpointAndStateModule(
        linear(0), FullParameterExchanger(), None, PerRoundStateCheckpointer(tmp_path)
    )
    module.save_state("server", make(arrays), {"current_round": 3, "history": {"loss": [0.5]}})

    restarted = linear(9)
    loaded = BaseServerCheckpointAndStateModule(
        restarted, FullParameterExchanger(), None, PerRoundStateCheckpointer(tmp_path)
    ).maybe_load_state("server")
    assert loaded is not None
    assert set(loaded) == {"current_round", "history", "server_parameters", "model"}
    assert loaded["current_round"] == 3
    assert loaded["history"] == {"loss": [0.5]}
    assert type(loaded["server_parameters"]) is type(make(arrays))
    found = arrays_of(loaded["server_parameters"])
    assert [(a.dtype, a.tolist()) for a in found] == [(a.dtype, a.tolist()) for a in arrays]
    assert loaded["model"] is restarted
    assert restarted.weight.tolist() == torch.full((1, 2), 0.1).tolist()


def test_a_state_checkpointer_alone_needs_no_model(tmp_path: Path) -> None:
    module = BaseServerCheckpointAndStateModule(state_checkpointer=PerRoundStateCheckpointer(tmp_path))
    packed = ndarrays_to_parameters([np.ones(2), np.array(["any", "thing"])])
    module.save_state("server", packed, {"current_round": 1})
    loaded = module.maybe_load_state("server")
    assert loaded == {"current_round": 1, "server_parameters": packed}


@pytest.mark.parametrize("name", WITH_THEIR_OWN)
def test_no_module_needs_a_model_for_its_state(name: str, tmp_path: Path) -> None:
    module = class_of(name)(state_checkpointer=PerRoundStateCheckpointer(tmp_path))
    module.save_state("server", parameters(1), {})
    assert module.maybe_load_state("server") == {"server_parameters": parameters(1)}


def test_a_model_that_nobody_knows_yet_comes_back_as_its_weights(tmp_path: Path) -> None:
    state = PerRoundStateCheckpointer(tmp_path)
    NnUnetServerCheckpointAndStateModule(linear(0), FullParameterExchanger(), None, state).save_state(
        "server", parameters(4), {"plans": {"kernels": [3, 3]}}
    )
    late = NnUnetServerCheckpointAndStateModule(
        None, FullParameterExchanger(), None, PerRoundStateCheckpointer(tmp_path)
    )
    loaded = late.maybe_load_state("server")
    assert loaded is not None
    late.model = linear(0)  # built from the plans
    late.model.load_state_dict(loaded["model"], strict=True)
    assert weight_of(late.model) == 4


def test_a_stored_model_that_does_not_fit_shows_both_sides(tmp_path: Path) -> None:
    state = PerRoundStateCheckpointer(tmp_path)
    BaseServerCheckpointAndStateModule(linear(0), FullParameterExchanger(), None, state).save_state(
        "server", parameters(4), {}
    )
    other = nn.Linear(3, 1)
    before = other.weight.tolist()
    module = BaseServerCheckpointAndStateModule(other, FullParameterExchanger(), None, state)
    with pytest.raises(ValueError, match=r"weight \(1, 2\) \| weight \(1, 3\)"):
        module.maybe_load_state("server")
    assert other.weight.tolist() == before


def test_a_stored_model_that_is_not_whole_shows_what_is_missing(tmp_path: Path) -> None:
    state = PerRoundStateCheckpointer(tmp_path)
    without_bias = nn.Linear(2, 1, bias=False)
    BaseServerCheckpointAndStateModule(without_bias, FullParameterExchanger(), None, state).save_state(
        "server", ndarrays_to_parameters([np.ones((1, 2))]), {}
    )
    with pytest.raises(ValueError, match=r"nothing \| bias \(1,\)"):
        BaseServerCheckpointAndStateModule(linear(0), FullParameterExchanger(), None, state).maybe_load_state("server")


def test_parameters_that_do_not_fit_the_model_are_not_saved(tmp_path: Path) -> None:
    state = PerRoundStateCheckpointer(tmp_path)
    module = BaseServerCheckpointAndStateModule(linear(0), FullParameterExchanger(), None, state)
    with pytest.raises(ValueError, match="1 arrays were given, and Linear has 2"):
        module.save_state("server", ndarrays_to_parameters([np.zeros((1, 2))]), {})
    with pytest.raises(ValueError, match="no parameter_exchanger"):
        BaseServerCheckpointAndStateModule(linear(0), state_checkpointer=state).save_state("server", parameters(1), {})
    assert module.maybe_load_state("server") is None


def test_what_cannot_be_stored_names_its_key(tmp_path: Path) -> None:
    module = BaseServerCheckpointAndStateModule(state_checkpointer=PerRoundStateCheckpointer(tmp_path))
    with pytest.raises(TypeError, match="reporter"):
        module.save_state("server", parameters(1), {"reporter": (tmp_path for _ in range(3))})


def test_a_partial_format_goes_on_from_the_state_that_was_loaded(tmp_path: Path) -> None:
    def layers(**named: float) -> Parameters:
        shapes = {"weight": (1, 2), "bias": (1,)}
        return ndarrays_to_parameters([*(np.full(shapes[k], v) for k, v in named.items()), np.array(list(named))])

    state = PerRoundStateCheckpointer(tmp_path)
    trained = linear(0)
    module = LayerNamesServerCheckpointAndStateModule(trained, None, state)
    module.save_state("server", parameters(1), {})
    nn.init.constant_(trained.bias, 9)  # whoever evaluates may use the same module
    module.save_state("server", layers(weight=2), {})

    model = linear(9)
    restarted = LayerNamesServerCheckpointAndStateModule(model, None, PerRoundStateCheckpointer(tmp_path))
    assert restarted.maybe_load_state("server") is not None
    nn.init.constant_(model.weight, 9)
    restarted.save_state("server", layers(bias=3), {})
    assert (trained.weight.tolist(), trained.bias.tolist()) == ([[2, 2]], [1])
    assert (model.weight.tolist(), model.bias.tolist()) == ([[2, 2]], [3])
