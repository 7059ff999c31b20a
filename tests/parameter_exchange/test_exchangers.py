"""Exchangers between torch models: what is sent, what is put back, and what is refused."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.common import NDArray, NDArrays
from torch import nn

from flwr_ckpt.parameter_exchange import (
    DynamicLayerExchanger,
    FixedLayerExchanger,
    FullParameterExchanger,
    LayerExchangerWithExclusions,
    LayerSelectionFunctionConstructor,
    ParameterExchanger,
    ParameterPackerWithLayerNames,
    SparseCooParameterExchanger,
)
from flwr_ckpt.parameter_exchange.parameter_selection_criteria import (
    largest_final_magnitude_scores,
    largest_increase_in_magnitude_scores,
    largest_magnitude_change_scores,
    smallest_final_magnitude_scores,
    smallest_increase_in_magnitude_scores,
    smallest_magnitude_change_scores,
)

ENTRIES = [
    "fc.weight",
    "fc.bias",
    "bn.weight",
    "bn.bias",
    "bn.running_mean",
    "bn.running_var",
    "bn.num_batches_tracked",
]


class Net(nn.Module):
    """Seven entries, four of which are trained."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3)
        self.bn = nn.BatchNorm1d(3)


class Square(nn.Module):
    """Two layers of one shape, which only their names tell apart."""

    def __init__(self, a: float = 0, b: float = 0) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        nn.init.constant_(self.a.weight, a)
        nn.init.constant_(self.b.weight, b)


def values(model: nn.Module) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in model.state_dict().items()}


def by_hand() -> NDArrays:
    """The entries of `Net`, written out."""
    return [
        np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float32),
        np.array([7, 8, 9], dtype=np.float32),
        np.array([10, 11, 12], dtype=np.float32),
        np.array([13, 14, 15], dtype=np.float32),
        np.array([16, 17, 18], dtype=np.float32),
        np.array([19, 20, 21], dtype=np.float32),
        np.array(22, dtype=np.int64),
    ]


class TestFull:
    def test_every_entry_goes_there_and_back(self) -> None:
        model = Net()
        FullParameterExchanger().pull_parameters(by_hand(), model)
        assert values(model) == dict(zip(ENTRIES, [array.tolist() for array in by_hand()], strict=True))
        pushed = FullParameterExchanger().push_parameters(model)
        assert [(a.dtype, a.tolist()) for a in pushed] == [(a.dtype, a.tolist()) for a in by_hand()]

    def test_what_was_pushed_does_not_change_with_the_model(self) -> None:
        model = Square(1, 2)
        pushed = FullParameterExchanger().push_parameters(model)
        nn.init.constant_(model.a.weight, 9)
        assert pushed[0].tolist() == [[1, 1], [1, 1]]

    def test_counters_that_were_averaged_are_cast(self) -> None:
        model = Net()
        FullParameterExchanger().pull_parameters([array.astype(np.float64) for array in by_hand()], model)
        assert model.bn.num_batches_tracked.dtype == torch.int64
        assert values(model)["bn.num_batches_tracked"] == 22
        assert model.fc.weight.dtype == torch.float32

    def test_types_that_numpy_lacks_go_as_float32(self) -> None:
        model = Square(1 / 3, -2.5).to(torch.bfloat16)
        pushed = FullParameterExchanger().push_parameters(model)
        assert [array.dtype for array in pushed] == [np.float32, np.float32]
        target = Square().to(torch.bfloat16)
        FullParameterExchanger().pull_parameters(pushed, target)
        assert values(target) == values(model)

    @pytest.mark.parametrize(
        "make",
        [
            lambda a: np.array(a, order="F"),
            lambda a: a.astype(a.dtype.newbyteorder(">")),
            lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
            lambda a: a[()],  # 0-d arrays become NumPy scalars, as arithmetic makes them
        ],
    )
    @pytest.mark.filterwarnings("error")
    def test_arrays_however_they_lie_in_memory(self, make: Callable[[NDArray], NDArray]) -> None:
        model = Net()
        FullParameterExchanger().pull_parameters([make(array) for array in by_hand()], model)
        assert values(model)["fc.weight"] == [[1, 2], [3, 4], [5, 6]]
        assert values(model)["bn.num_batches_tracked"] == 22

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda a: a[:-1], r"6 arrays were given, and Net has 7 .*6: nothing \| bn.num_batches_tracked \(\)"),
            (lambda a: [*a, a[0]], r"8 arrays were given, and Net has 7 .*7: \(3, 2\) \| nothing"),
            (lambda a: a[1:], r"6 arrays .*0: \(3,\) \| fc.weight \(3, 2\)"),
            (lambda a: [a[0].T, *a[1:]], r"7 arrays .*0: \(2, 3\) \| fc.weight \(3, 2\)$"),
            (lambda a: [*a[:-1], a[-1].reshape(1)], r"6: \(1,\) \| bn.num_batches_tracked \(\)"),
            (lambda a: [], "0 arrays were given, and Net has 7"),
            (lambda a: [a[0], np.array(["x", "y", "z"]), *a[2:]], "fc.bias: an array of dtype <U1"),
        ],
    )
    def test_what_does_not_fit_shows_both_sides_and_changes_nothing(
        self, change: Callable[[NDArrays], NDArrays], message: str
    ) -> None:
        model = Net()
        before = values(model)
        with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
            FullParameterExchanger().pull_parameters(change(by_hand()), model)
        assert values(model) == before

    def test_the_error_of_a_large_model_stays_short(self) -> None:
        model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(100)))
        with pytest.raises(ValueError, match=r"… and 192 more") as error:
            FullParameterExchanger().pull_parameters([np.zeros(7)] * 200, model)
        assert len(str(error.value).splitlines()) < 12


class TestFixedLayers:
    def test_only_these_layers_in_this_order(self) -> None:
        model = Net()
        exchanger = FixedLayerExchanger(["bn.bias", "fc.weight"])
        fc_bias = values(model)["fc.bias"]
        arrays = [np.array([1, 2, 3.0]), np.array([[1, 2], [3, 4], [5, 6.0]])]
        exchanger.pull_parameters(arrays, model)
        assert values(model)["bn.bias"] == [1, 2, 3]
        assert values(model)["fc.weight"] == [[1, 2], [3, 4], [5, 6]]
        assert values(model)["fc.bias"] == fc_bias
        assert [array.tolist() for array in exchanger.push_parameters(model)] == [array.tolist() for array in arrays]

    def test_counts_and_shapes_are_checked(self) -> None:
        exchanger = FixedLayerExchanger(["bn.bias", "fc.weight"])
        with pytest.raises(ValueError, match=r"1 arrays .* part of Net has 2"):
            exchanger.pull_parameters([np.zeros(3)], Net())
        with pytest.raises(ValueError, match=re.compile(r"0: \(3, 2\) \| bn.bias \(3,\)", re.DOTALL)):
            exchanger.pull_parameters([np.zeros((3, 2)), np.zeros(3)], Net())

    def test_layers_that_the_model_has_not(self) -> None:
        exchanger = FixedLayerExchanger(["fc.wieght"])
        for use in (lambda: exchanger.push_parameters(Net()), lambda: exchanger.pull_parameters([np.zeros(1)], Net())):
            with pytest.raises(ValueError, match=r"Net has no fc.wieght, .* it has: fc.weight, fc.bias"):
                use()

    def test_excluded_types_stay_at_home(self) -> None:
        model = Net()
        exchanger = LayerExchangerWithExclusions(model, {nn.BatchNorm1d})
        assert exchanger.layers_to_transfer == ["fc.weight", "fc.bias"]
        exchanger.pull_parameters([np.ones((3, 2)), np.ones(3)], model)
        assert values(model)["bn.running_mean"] == [0, 0, 0]
        assert values(model)["fc.bias"] == [1, 1, 1]

    def test_a_module_under_two_names_stays_at_home_under_both(self) -> None:
        norm = nn.BatchNorm1d(1, affine=False, track_running_stats=False)
        norm.register_buffer("shift", torch.zeros(1))
        model = nn.ModuleDict({"first": norm, "again": norm, "fc": nn.Linear(1, 1)})
        assert LayerExchangerWithExclusions(model, {nn.BatchNorm1d}).layers_to_transfer == ["fc.weight", "fc.bias"]

    def test_a_module_is_not_taken_for_one_whose_name_begins_alike(self) -> None:
        model = nn.ModuleDict({"fc": nn.BatchNorm1d(1), "fc1": nn.Linear(1, 1)})
        exchanger = LayerExchangerWithExclusions(model, {nn.BatchNorm1d})
        assert exchanger.layers_to_transfer == ["fc1.weight", "fc1.bias"]


def dynamic(*names: str) -> DynamicLayerExchanger:
    def choose(model: nn.Module, initial_model: nn.Module | None) -> tuple[NDArrays, list[str]]:
        return [model.state_dict()[name].numpy() for name in names], list(names)

    return DynamicLayerExchanger(choose)


class TestDynamicLayers:
    def test_layers_of_one_shape_in_another_order_are_not_swapped(self) -> None:
        packed = dynamic("b.weight", "a.weight").push_parameters(Square(1, 2))
        assert packed[-1].tolist() == ["b.weight", "a.weight"]
        model = Square()
        dynamic().pull_parameters(packed, model)
        assert values(model) == values(Square(1, 2))

    def test_layers_that_are_not_named_stay(self) -> None:
        model = Square(3, 4)
        dynamic().pull_parameters([np.full((2, 2), 9.0), np.array(["b.weight"])], model)
        assert values(model) == values(Square(3, 9))
        dynamic().pull_parameters([np.array([])], model)
        assert values(model) == values(Square(3, 9))

    def test_the_plain_list_of_a_whole_model_is_taken_too(self) -> None:
        model = Square()
        dynamic().pull_parameters(FullParameterExchanger().push_parameters(Square(5, 6)), model)
        assert values(model) == values(Square(5, 6))

    @pytest.mark.parametrize(
        ("packed", "message"),
        [
            ([np.ones((2, 2)), np.array(["c.weight"])], r"c.weight \(2, 2\) \| no such entry.*Square has: a.weight, b"),
            ([np.ones((3, 2)), np.array(["a.weight"])], r"a.weight \(3, 2\) \| a.weight \(2, 2\)"),
            ([np.ones((2, 2))], "1 arrays were given, and Square has 2"),
            ([np.ones((2, 2)), np.array(["a.weight", "b.weight"])], "1 layers and 2 names"),
        ],
    )
    def test_what_does_not_fit_shows_both_sides_and_changes_nothing(self, packed: NDArrays, message: str) -> None:
        model = Square(1, 2)
        with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
            dynamic().pull_parameters(packed, model)
        assert values(model) == values(Square(1, 2))

    def test_layers_by_how_far_they_have_drifted(self) -> None:
        before, now = Square(0, 0), Square(0.5, 2)  # norms 1 and 4, by element 0.25 and 1
        far = LayerSelectionFunctionConstructor(1, 0.5, normalize=False)
        assert DynamicLayerExchanger(far.select_by_threshold()).push_parameters(now, before)[-1].tolist() == [
            "b.weight"
        ]
        near = LayerSelectionFunctionConstructor(0.25, 1.0, normalize=True, select_drift_more=False)
        assert near.select_by_threshold()(now, before)[1] == ["a.weight"]
        assert near.select_by_percentage()(now, before)[1] == ["a.weight", "b.weight"]
        assert far.select_by_percentage()(now, before)[1] == ["b.weight"]

    def test_drift_needs_the_same_model_before_training(self) -> None:
        select = LayerSelectionFunctionConstructor(1, 0.5).select_by_threshold()
        with pytest.raises(ValueError, match="initial_model is None"):
            select(Square(), None)
        with pytest.raises(ValueError, match=r"nothing \| a.weight"):
            select(Square(), Net())

    @pytest.mark.parametrize(("threshold", "share"), [(0, 0.5), (1, 0), (1, 1.1), (float("nan"), 0.5)])
    def test_numbers_out_of_range(self, threshold: float, share: float) -> None:
        with pytest.raises(ValueError, match="was expected"):
            LayerSelectionFunctionConstructor(threshold, share)


class TestSparse:
    def test_the_share_with_the_highest_scores(self) -> None:
        model = Square()
        with torch.no_grad():
            model.a.weight.copy_(torch.tensor([[1.0, -8.0], [3.0, 4.0]]))
            model.b.weight.copy_(torch.tensor([[0.0, 2.0], [-7.0, 0.5]]))
        exchanger = SparseCooParameterExchanger(0.25, largest_final_magnitude_scores)
        packed = exchanger.push_parameters(model)
        expected = [[-8.0], [-7.0], [[0, 1]], [[1, 0]], [2, 2], [2, 2], ["a.weight", "b.weight"]]
        assert [array.tolist() for array in packed] == expected

        target = Square(5, 6)
        exchanger.pull_parameters(packed, target)
        assert values(target) == {"a.weight": [[0, -8], [0, 0]], "b.weight": [[0, 0], [-7, 0]]}

    def test_zeros_and_counters_are_not_sent(self) -> None:
        model = Net()
        nn.init.constant_(model.fc.bias, 0)
        model.bn.num_batches_tracked.fill_(99)
        names = SparseCooParameterExchanger(1.0, largest_final_magnitude_scores).push_parameters(model)[-1].tolist()
        assert names == ["fc.weight", "bn.weight", "bn.running_var"]

    def test_tensors_that_are_not_named_stay(self) -> None:
        model = Square(1, 2)
        packed = [np.array([9.0]), np.array([[1, 1]]), np.array([2, 2]), np.array(["b.weight"])]
        SparseCooParameterExchanger(0.5, largest_final_magnitude_scores).pull_parameters(packed, model)
        assert values(model) == {"a.weight": [[1, 1], [1, 1]], "b.weight": [[0, 0], [0, 9]]}

    def test_the_plain_list_of_a_whole_model_is_taken_too(self) -> None:
        model = Net()
        SparseCooParameterExchanger(0.5, largest_final_magnitude_scores).pull_parameters(by_hand(), model)
        assert values(model)["bn.num_batches_tracked"] == 22

    @pytest.mark.parametrize(
        ("shape", "name", "message"),
        [
            ([2, 3], "b.weight", r"b.weight \(2, 3\) \| b.weight \(2, 2\)"),
            ([2, 2], "c", r"c \(2, 2\) \| no such entry"),
        ],
    )
    def test_what_does_not_fit_shows_both_sides_and_changes_nothing(
        self, shape: list[int], name: str, message: str
    ) -> None:
        model = Square(1, 2)
        packed = [np.array([9.0]), np.array([[1, 1]]), np.array(shape), np.array([name])]
        with pytest.raises(ValueError, match=message):
            SparseCooParameterExchanger(0.5, largest_final_magnitude_scores).pull_parameters(packed, model)
        assert values(model) == values(Square(1, 2))

    @pytest.mark.parametrize(
        ("score", "chosen"),
        [
            (largest_final_magnitude_scores, "b.weight"),
            (smallest_final_magnitude_scores, "a.weight"),
            (largest_magnitude_change_scores, "a.weight"),
            (smallest_magnitude_change_scores, "b.weight"),
            (largest_increase_in_magnitude_scores, "b.weight"),
            (smallest_increase_in_magnitude_scores, "a.weight"),
        ],
    )
    def test_scores(self, score: Callable[..., dict[str, NDArray]], chosen: str) -> None:
        before, now = Square(-4, 4), Square(1, 5)  # magnitudes 1 and 5, changed by 5 and 1, grown by -3 and 1
        exchanger = SparseCooParameterExchanger(0.5, score)
        assert exchanger.push_parameters(now, before)[-1].tolist() == [chosen]

    def test_scores_that_do_not_fit(self) -> None:
        exchanger = SparseCooParameterExchanger(0.5, lambda model, initial: {"a.weight": torch.zeros(3)})
        with pytest.raises(ValueError, match=r"a.weight \(3,\) \| a.weight \(2, 2\)"):
            exchanger.push_parameters(Square())

    @pytest.mark.parametrize("share", [0, -1, 1.01, float("nan")])
    def test_a_share_out_of_range(self, share: float) -> None:
        with pytest.raises(ValueError, match="sparsity_level"):
            SparseCooParameterExchanger(share, largest_final_magnitude_scores)


def test_tied_weights_go_by_either_name() -> None:
    model = Square(1, 2)
    model.b.weight = model.a.weight
    exchanger = FixedLayerExchanger(["b.weight"])
    exchanger.pull_parameters([np.full((2, 2), 7.0)], model)
    assert values(model) == values(Square(7, 7))


def test_an_exchanger_is_whatever_has_both_methods() -> None:
    class Duck:
        def push_parameters(self, model: nn.Module) -> NDArrays:
            return []

        def pull_parameters(self, parameters: NDArrays, model: nn.Module) -> None: ...

    assert isinstance(Duck(), ParameterExchanger)
    assert not isinstance(ParameterPackerWithLayerNames(), ParameterExchanger)

    class HalfDone(ParameterExchanger):
        def push_parameters(self, *args: object) -> NDArrays:
            return []

    with pytest.raises(TypeError, match="pull_parameters"):
        HalfDone()


def test_a_model_wrapped_by_opacus_is_exchanged_by_its_own_names() -> None:
    opacus = pytest.importorskip("opacus")
    model = opacus.GradSampleModule(nn.Linear(2, 1))
    other = copy.deepcopy(model._module)
    FullParameterExchanger().pull_parameters([np.array([[3.0, 4.0]]), np.array([5.0])], model)
    assert values(model) == {"_module.weight": [[3, 4]], "_module.bias": [5]}
    assert values(other) != values(model._module)


def test_importing_the_room_imports_no_torch() -> None:
    code = "import sys, flwr_ckpt.parameter_exchange; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
