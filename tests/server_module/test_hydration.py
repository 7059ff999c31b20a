"""How parameters become a model: each module, against lists written out here by hand, in both of Flower's types."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.common import NDArray, NDArrays, Parameters, ndarrays_to_parameters
from safetensors.torch import load_file
from torch import nn

from flwr_ckpt.checkpointers import LatestOpacusCheckpointer, LatestTorchModuleCheckpointer
from flwr_ckpt.parameter_exchange import (
    FixedLayerExchanger,
    FullParameterExchanger,
    FullParameterExchangerWithPacking,
    ParameterPackerWithClippingBit,
)
from flwr_ckpt.server_module import (
    AdaptiveConstraintServerCheckpointAndStateModule,
    BaseServerCheckpointAndStateModule,
    ClippingBitServerCheckpointAndStateModule,
    DpScaffoldServerCheckpointAndStateModule,
    LayerNamesServerCheckpointAndStateModule,
    NnUnetServerCheckpointAndStateModule,
    OpacusServerCheckpointAndStateModule,
    PackingServerCheckpointAndStateModule,
    ScaffoldServerCheckpointAndStateModule,
    SparseCooServerCheckpointAndStateModule,
)


class Net(nn.Module):
    """Seven entries, four of which are trained; two layers have one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3)
        self.bn = nn.BatchNorm1d(3)


class Plain(nn.Module):
    """Nothing that Opacus refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3)


WEIGHTS: dict[str, NDArray] = {
    "fc.weight": np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float32),
    "fc.bias": np.array([7, 8, 9], dtype=np.float32),
    "bn.weight": np.array([10, 11, 12], dtype=np.float32),
    "bn.bias": np.array([13, 14, 15], dtype=np.float32),
    "bn.running_mean": np.array([16, 17, 18], dtype=np.float32),
    "bn.running_var": np.array([19, 20, 21], dtype=np.float32),
    "bn.num_batches_tracked": np.array(22, dtype=np.int64),
}
VARIATES: NDArrays = [np.full((3, 2), 0.5), np.full(3, 0.5), np.full(3, 0.5), np.full(3, 0.5)]


def weights() -> NDArrays:
    return list(WEIGHTS.values())


def from_positions(arrays: NDArrays) -> ArrayRecord:
    return ArrayRecord(arrays)


def grad_sample(model: nn.Module) -> nn.Module:
    opacus = pytest.importorskip("opacus")
    wrapped: nn.Module = opacus.GradSampleModule(model)
    return wrapped


def saved(path: Path) -> dict[str, Any]:
    """What a model file holds, opened with plain safetensors."""
    return {name: tensor.tolist() for name, tensor in load_file(path).items()}


def expected(*names: str) -> dict[str, Any]:
    return {name: WEIGHTS[name].tolist() for name in names or WEIGHTS}


def module_of(kind: str, folder: Path) -> BaseServerCheckpointAndStateModule:
    """One of the ten, with a checkpointer that takes every model."""
    latest = LatestTorchModuleCheckpointer(str(folder), "latest.safetensors")
    if kind in ("opacus", "dp-scaffold"):
        wrapped, checkpointer = grad_sample(Plain()), LatestOpacusCheckpointer(str(folder), "latest.safetensors")
        if kind == "opacus":
            return OpacusServerCheckpointAndStateModule(wrapped, FullParameterExchanger(), checkpointer)
        return DpScaffoldServerCheckpointAndStateModule(wrapped, checkpointer)
    if kind == "nnunet":
        module = NnUnetServerCheckpointAndStateModule(None, FullParameterExchanger(), latest)
        module.model = Net()
        return module
    if kind == "base":
        return BaseServerCheckpointAndStateModule(Net(), FullParameterExchanger(), latest)
    if kind == "packing":
        packing = FullParameterExchangerWithPacking(ParameterPackerWithClippingBit())
        return PackingServerCheckpointAndStateModule(Net(), packing, latest)
    return OF_FORMAT[kind](Net(), latest)


OF_FORMAT: dict[str, Callable[..., BaseServerCheckpointAndStateModule]] = {
    "scaffold": ScaffoldServerCheckpointAndStateModule,
    "adaptive": AdaptiveConstraintServerCheckpointAndStateModule,
    "clipping": ClippingBitServerCheckpointAndStateModule,
    "layers": LayerNamesServerCheckpointAndStateModule,
    "sparse": SparseCooServerCheckpointAndStateModule,
}
PLAIN_WEIGHTS = [WEIGHTS["fc.weight"], WEIGHTS["fc.bias"]]
ALL_LAYERS_REVERSED = [*reversed(weights()), np.array(list(reversed(WEIGHTS)))]
SPARSE_BY_HAND = [
    np.array([1, 2, 3, 4, 5, 6], dtype=np.float32),
    np.array([7, 8, 9], dtype=np.float32),
    np.array([[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]),
    np.array([[0], [1], [2]]),
    np.array([3, 2]),
    np.array([3]),
    np.array(["fc.weight", "fc.bias"]),
]
LISTS: dict[str, NDArrays] = {
    "base": weights(),
    "nnunet": weights(),
    "packing": [*weights(), np.array([0.1])],
    "scaffold": [*weights(), *VARIATES],
    "adaptive": [*weights(), np.array(0.1)],
    "clipping": [*[array.astype(np.float64) for array in weights()], np.array([0.1])],
    "layers": ALL_LAYERS_REVERSED,
    "sparse": SPARSE_BY_HAND,
    "opacus": PLAIN_WEIGHTS,
    "dp-scaffold": [*PLAIN_WEIGHTS, np.full((3, 2), 0.5), np.full(3, 0.5)],
}
ONLY_FC = {"sparse", "opacus", "dp-scaffold"}


@pytest.mark.parametrize("make", [ndarrays_to_parameters, from_positions])
@pytest.mark.parametrize("kind", LISTS)
def test_the_file_holds_the_weights_of_the_list(
    kind: str, make: Callable[[NDArrays], Parameters | ArrayRecord], tmp_path: Path
) -> None:
    module = module_of(kind, tmp_path)
    module.maybe_checkpoint(make(LISTS[kind]), 0.5, {})
    found = saved(tmp_path / "latest.safetensors")
    if kind in ONLY_FC:
        assert {name: found[name] for name in ("fc.weight", "fc.bias")} == expected("fc.weight", "fc.bias")
    else:
        assert found == expected()
        Net().load_state_dict(load_file(tmp_path / "latest.safetensors"), strict=True)


@pytest.mark.parametrize("kind", ["base", "nnunet", "packing", "scaffold", "adaptive", "clipping", "layers", "sparse"])
def test_a_record_under_the_models_names_is_a_plain_model_in_any_order(kind: str, tmp_path: Path) -> None:
    record = ArrayRecord({name: torch.from_numpy(WEIGHTS[name]) for name in reversed(WEIGHTS)})
    module_of(kind, tmp_path).maybe_checkpoint(record, 0.5, {})
    assert saved(tmp_path / "latest.safetensors") == expected()


@pytest.mark.parametrize("prefix", ["", "_module."])
@pytest.mark.parametrize("kind", ["opacus", "dp-scaffold"])
def test_a_wrapped_model_goes_by_its_own_names_too(kind: str, prefix: str, tmp_path: Path) -> None:
    record = ArrayRecord({f"{prefix}{name}": torch.from_numpy(WEIGHTS[name]) for name in ("fc.bias", "fc.weight")})
    module_of(kind, tmp_path).maybe_checkpoint(record, 0.5, {})
    assert saved(tmp_path / "latest.safetensors") == expected("fc.weight", "fc.bias")
    Plain().load_state_dict(load_file(tmp_path / "latest.safetensors"), strict=True)


def without(name: str) -> dict[str, NDArray]:
    return {key: array for key, array in WEIGHTS.items() if key != name}


@pytest.mark.parametrize(
    "record",
    [
        {**without("fc.bias"), "fc.bais": WEIGHTS["fc.bias"]},
        without("fc.bias"),
        {**WEIGHTS, "extra": np.zeros(1)},
        {"1": np.zeros(1), "2": np.zeros(1)},
    ],
)
@pytest.mark.parametrize("kind", ["base", "scaffold", "layers"])
def test_a_record_under_other_names_is_refused_with_both_sides(
    kind: str, record: dict[str, NDArray], tmp_path: Path
) -> None:
    named = ArrayRecord({name: torch.from_numpy(np.asarray(array)) for name, array in record.items()})
    message = rf"it holds {len(record)} arrays \({next(iter(record))}, .*model 7 arrays \(fc.weight, fc.bias, bn"
    with pytest.raises(ValueError, match=message):
        module_of(kind, tmp_path).maybe_checkpoint(named, 0.5, {})


def test_one_name_with_and_without_a_prefix_is_refused(tmp_path: Path) -> None:
    record = ArrayRecord({name: torch.zeros(2, 3) for name in ("fc.weight", "fc.bias", "_module.fc.bias")})
    with pytest.raises(ValueError, match="neither the model's nor 0, 1"):
        module_of("opacus", tmp_path).maybe_checkpoint(record, 0.5, {})


def test_arrays_of_another_serialisation_are_refused(tmp_path: Path) -> None:
    record = ArrayRecord({name: torch.from_numpy(array) for name, array in WEIGHTS.items()})
    whole = record["fc.bias"]
    record["fc.bias"] = Array(dtype=whole.dtype, shape=whole.shape, stype="raw", data=whole.data)
    with pytest.raises(ValueError, match=r"fc.bias: .* stype 'raw'"):
        module_of("base", tmp_path).maybe_checkpoint(record, 0.5, {})


def test_names_of_layers_go_in_the_order_of_the_exchanger(tmp_path: Path) -> None:
    latest = LatestTorchModuleCheckpointer(str(tmp_path), "latest.safetensors")
    exchanger = FixedLayerExchanger(["bn.bias", "fc.bias"])  # of one shape
    module = BaseServerCheckpointAndStateModule(Net(), exchanger, latest)
    record = ArrayRecord({name: torch.from_numpy(WEIGHTS[name]) for name in ("fc.bias", "bn.bias")})
    module.maybe_checkpoint(record, 0.5, {})
    found = saved(tmp_path / "latest.safetensors")
    assert {name: found[name] for name in ("fc.bias", "bn.bias")} == expected("fc.bias", "bn.bias")


WRONG: list[tuple[str, NDArrays, str]] = [
    ("base", weights()[:-1], r"6 arrays were given, and Net has 7"),
    ("base", [*weights(), np.zeros(1)], r"8 arrays were given, and Net has 7"),
    ("base", [WEIGHTS["fc.weight"].T, *weights()[1:]], r"0: \(2, 3\) \| fc.weight \(3, 2\)"),
    ("nnunet", weights()[:-1], r"6 arrays were given, and Net has 7"),
    ("packing", weights(), r"6 arrays were given, and Net has 7"),
    ("packing", [], "the last of 0 arrays"),
    ("scaffold", weights()[:-1], "6 arrays were given; 7 weights and the control variates"),
    ("scaffold", weights(), r"0 arrays .* trainable parameters of Net \(control variates\) has 4"),
    ("scaffold", [*weights(), *VARIATES[1:]], r"3 arrays .*0: \(3,\) \| fc.weight \(3, 2\)"),
    ("scaffold", [*weights(), *VARIATES, np.zeros(3)], "5 arrays .* has 4"),
    ("scaffold", [*weights(), *weights()], "7 arrays .* has 4"),
    ("adaptive", [*weights(), np.array([0.1, 0.2])], r"the last of 8 arrays has shape \(2,\).* one number"),
    ("adaptive", [*weights()[1:], np.array(0.1)], "6 arrays were given, and Net has 7"),
    ("clipping", [*weights(), np.array(0.1), np.array(0.1)], "8 arrays were given, and Net has 7"),
    ("clipping", [*weights()[:-1], np.array(0.1)], "6 arrays were given, and Net has 7"),
    ("layers", weights()[:-1], "6 arrays were given, and Net has 7"),
    ("layers", [*weights()[:3], np.array(["fc.weight", "fc.bias"])], "3 layers and 2 names"),
    ("layers", [WEIGHTS["fc.bias"], np.array(["fc.weight"])], r"fc.weight \(3,\) \| fc.weight \(3, 2\)"),
    ("layers", [WEIGHTS["fc.bias"], np.array(["fc9.bias"])], r"fc9.bias \(3,\) \| no such entry"),
    ("sparse", SPARSE_BY_HAND[1:], "6 arrays were given with 2 names"),
    ("sparse", [*SPARSE_BY_HAND[:-1], np.array(["fc.weight", "fc9"])], r"fc9 \(3,\) \| no such entry"),
    ("opacus", [*PLAIN_WEIGHTS, np.zeros(1)], "3 arrays were given, and GradSampleModule.* has 2"),
    ("dp-scaffold", PLAIN_WEIGHTS, "0 arrays .* has 2"),
]


@pytest.mark.parametrize(("kind", "arrays", "message"), WRONG)
def test_a_list_that_does_not_fit_shows_both_sides_and_saves_nothing(
    kind: str, arrays: NDArrays, message: str, tmp_path: Path
) -> None:
    module = module_of(kind, tmp_path)
    assert module.model is not None
    before = {name: tensor.tolist() for name, tensor in module.model.state_dict().items()}
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        module.maybe_checkpoint(ndarrays_to_parameters(arrays), 0.5, {})
    assert {name: tensor.tolist() for name, tensor in module.model.state_dict().items()} == before
    assert not (tmp_path / "latest.safetensors").exists()


def test_frozen_parameters_have_no_variate(tmp_path: Path) -> None:
    model = Net()
    model.bn.requires_grad_(False)
    module = ScaffoldServerCheckpointAndStateModule(model, LatestTorchModuleCheckpointer(str(tmp_path), "m"))
    module.maybe_checkpoint(ndarrays_to_parameters([*weights(), *VARIATES[:2]]), 0.5, {})
    assert saved(tmp_path / "m") == expected()


WHOLE = ndarrays_to_parameters(weights()).tensors


@pytest.mark.parametrize(
    "tensor", [b'{"a": 1}', b"", WHOLE[1][:-1], WHOLE[1][:20], WHOLE[1].replace(b"'<f4'", b"'|O' ")]
)
def test_tensors_that_are_no_arrays(tensor: bytes, tmp_path: Path) -> None:
    what = Parameters([WHOLE[0], tensor, *WHOLE[2:]], "numpy.ndarray")
    with pytest.raises(ValueError, match=r"do not hold NumPy arrays.* tensor 1 is none"):
        module_of("base", tmp_path).maybe_checkpoint(what, 0.5, {})


def test_weights_in_any_layout(tmp_path: Path) -> None:
    odd = [np.asfortranarray(weights()[0]), weights()[1].astype(">f4"), *weights()[2:]]
    module_of("base", tmp_path).maybe_checkpoint(ndarrays_to_parameters(odd), 0.5, {})
    assert saved(tmp_path / "latest.safetensors") == expected()


def test_what_is_neither_of_flowers_types(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"server_parameters is a list; .* is needed"):
        module_of("base", tmp_path).maybe_checkpoint(weights(), 0.5, {})  # type: ignore[arg-type]


# --- partial formats -------------------------------------------------------------------------------------------------


def layers(**named: NDArray) -> Parameters:
    return ndarrays_to_parameters([*named.values(), np.array([name.replace("__", ".") for name in named])])


@pytest.mark.parametrize("kind", ["layers", "sparse"])
def test_what_a_round_does_not_name_is_that_of_the_last_full_model(kind: str, tmp_path: Path) -> None:
    module = module_of(kind, tmp_path)
    module.maybe_checkpoint(ndarrays_to_parameters(weights()), 0.5, {})  # before round 1: a plain list
    bias = np.array([0, 0, 30], dtype=np.float32)
    part: dict[str, NDArrays] = {
        "layers": [bias, np.array(["bn.bias"])],
        "sparse": [np.array([30.0]), np.array([[2]]), np.array([3]), np.array(["bn.bias"])],
    }
    module.maybe_checkpoint(ndarrays_to_parameters(part[kind]), 0.5, {})
    assert saved(tmp_path / "latest.safetensors") == {**expected(), "bn.bias": [0, 0, 30]}


@pytest.mark.parametrize("kind", ["layers", "sparse"])
def test_a_round_that_names_nothing_changes_nothing(kind: str, tmp_path: Path) -> None:
    module = module_of(kind, tmp_path)
    for arrays in (weights(), [np.array([])]):
        module.maybe_checkpoint(ndarrays_to_parameters(arrays), 0.5, {})
    assert saved(tmp_path / "latest.safetensors") == expected()


def test_layers_of_one_shape_are_not_swapped(tmp_path: Path) -> None:
    module = module_of("layers", tmp_path)
    module.maybe_checkpoint(ndarrays_to_parameters(weights()), 0.5, {})
    swapped = layers(bn__bias=WEIGHTS["bn.bias"] + 1, fc__bias=WEIGHTS["fc.bias"] + 1)
    module.maybe_checkpoint(swapped, 0.5, {})
    found = saved(tmp_path / "latest.safetensors")
    assert found == {**expected(), "fc.bias": [8, 9, 10], "bn.bias": [14, 15, 16]}


def test_the_first_full_model_is_the_one_that_was_given(tmp_path: Path) -> None:
    module = module_of("layers", tmp_path)
    assert module.model is not None
    module.model.load_state_dict({name: torch.from_numpy(array) for name, array in WEIGHTS.items()})
    module.maybe_checkpoint(layers(fc__bias=np.zeros(3)), 0.5, {})
    assert saved(tmp_path / "latest.safetensors") == {**expected(), "fc.bias": [0, 0, 0]}


def test_the_full_model_does_not_change_with_the_module_that_is_hydrated(tmp_path: Path) -> None:
    module = module_of("layers", tmp_path)
    assert module.model is not None
    module.maybe_checkpoint(ndarrays_to_parameters(weights()), 0.5, {})
    nn.init.constant_(module.model.fc.weight, -1)  # type: ignore[arg-type,union-attr]
    module.maybe_checkpoint(layers(fc__bias=np.zeros(3)), 0.5, {})
    assert saved(tmp_path / "latest.safetensors") == {**expected(), "fc.bias": [0, 0, 0]}
