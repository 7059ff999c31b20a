"""Every packed format, against lists that are written out here by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from flwr.common import NDArray, NDArrays, ndarrays_to_parameters, parameters_to_ndarrays
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flwr_ckpt.parameter_exchange import (
    FullParameterExchangerWithPacking,
    ParameterPackerAdaptiveConstraint,
    ParameterPackerByName,
    ParameterPackerWithClippingBit,
    ParameterPackerWithControlVariates,
    ParameterPackerWithLayerNames,
    SparseCooParameterPacker,
)

WEIGHT = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
BIAS = np.array([5.0, 6.0], dtype=np.float32)
MEAN = np.array([0.5], dtype=np.float32)


def assert_same(found: Sequence[NDArray], expected: Sequence[NDArray]) -> None:
    """Same number of arrays, and each with the same dtype, shape and elements."""
    assert [(array.dtype, array.shape) for array in found] == [(array.dtype, array.shape) for array in expected]
    assert [array.tolist() for array in found] == [array.tolist() for array in expected]


def sent(arrays: NDArrays) -> NDArrays:
    """What arrives of a list that Flower has sent."""
    return parameters_to_ndarrays(ndarrays_to_parameters(arrays))


def test_control_variates_come_after_all_weights() -> None:
    packer = ParameterPackerWithControlVariates(3)  # a BatchNorm mean has no variate
    packed = [WEIGHT, BIAS, MEAN, -WEIGHT, -BIAS]

    assert_same(packer.pack_parameters([WEIGHT, BIAS, MEAN], [-WEIGHT, -BIAS]), packed)
    weights, variates = packer.unpack_parameters(sent(packed))
    assert_same(weights, [WEIGHT, BIAS, MEAN])
    assert_same(variates, [-WEIGHT, -BIAS])


def test_control_variates_need_all_weights_before_them() -> None:
    packer = ParameterPackerWithControlVariates(3)
    with pytest.raises(ValueError, match=r"2 arrays were given; 3 weights"):
        packer.unpack_parameters([WEIGHT, BIAS])
    with pytest.raises(ValueError, match=r"2 weight arrays were given to a packer of 3"):
        packer.pack_parameters([WEIGHT, BIAS], [-WEIGHT, -BIAS])


@pytest.mark.parametrize("packer", [ParameterPackerWithClippingBit(), ParameterPackerAdaptiveConstraint()])
class TestNumberAtTheEnd:
    @pytest.mark.parametrize("last", [np.array(0.25), np.array([0.25]), np.array(0.25, dtype=np.float32)])
    def test_is_taken_off(self, packer: ParameterPackerWithClippingBit, last: NDArray) -> None:
        weights, number = packer.unpack_parameters(sent([WEIGHT, BIAS, last]))
        assert_same(weights, [WEIGHT, BIAS])
        assert number == 0.25
        assert type(number) is float

    def test_is_packed_as_float64_without_a_dimension(self, packer: ParameterPackerWithClippingBit) -> None:
        assert_same(packer.pack_parameters([WEIGHT, BIAS], 1), [WEIGHT, BIAS, np.array(1.0)])

    @pytest.mark.parametrize(
        "packed", [[], [WEIGHT, BIAS], [np.array([])], [WEIGHT, np.array(["conv"])], [WEIGHT, np.array([])]]
    )
    def test_is_needed(self, packer: ParameterPackerWithClippingBit, packed: NDArrays) -> None:
        with pytest.raises(ValueError, match=rf"the last of {len(packed)} arrays .* one number"):
            packer.unpack_parameters(packed)


def test_layer_names_in_any_order_and_number() -> None:
    packer = ParameterPackerWithLayerNames()
    packed = [BIAS, WEIGHT, np.array(["fc.bias", "fc.weight"])]

    assert_same(packer.pack_parameters([BIAS, WEIGHT], ["fc.bias", "fc.weight"]), packed)
    layers, names = packer.unpack_parameters(sent(packed))
    assert_same(layers, [BIAS, WEIGHT])
    assert names == ["fc.bias", "fc.weight"]
    assert list(packer.arrays_by_name(packed)) == ["fc.bias", "fc.weight"]


def test_no_layers_are_an_empty_array_of_floats() -> None:
    packer = ParameterPackerWithLayerNames()
    assert_same(packer.pack_parameters([], []), [np.array([])])
    assert packer.unpack_parameters(sent([np.array([])])) == ([], [])


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        ([WEIGHT, BIAS, np.array(["fc.weight"])], "2 layers and 1 names"),
        ([WEIGHT, np.array(["fc.weight", "fc.bias"])], "1 layers and 2 names"),
        ([WEIGHT, BIAS, np.array(["fc.weight", "fc.weight"])], "more than once: fc.weight"),
        ([WEIGHT, BIAS], "must hold names"),
        ([WEIGHT, np.array([])], "must hold names"),
        ([WEIGHT, np.array("fc.weight")], "must hold names"),
        ([], "must hold names"),
    ],
)
def test_layers_that_do_not_fit_their_names(packed: NDArrays, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParameterPackerWithLayerNames().unpack_parameters(packed)


def test_names_that_do_not_fit_are_not_packed() -> None:
    packer = ParameterPackerWithLayerNames()
    with pytest.raises(ValueError, match="2 layers and 1 names"):
        packer.pack_parameters([WEIGHT, BIAS], ["fc.weight"])
    with pytest.raises(ValueError, match="more than once: a"):
        packer.pack_parameters([WEIGHT, BIAS], ["a", "a"])


SPARSE = [
    np.array([7.0, 8.0], dtype=np.float32),  # values
    np.array([9.0], dtype=np.float32),
    np.array([[0, 1], [2, 0]]),  # indices: (nnz, ndim)
    np.array([[3]]),
    np.array([3, 2]),  # shapes
    np.array([4]),
    np.array(["fc.weight", "fc.bias"]),
]


def test_sparse_coo_by_hand() -> None:
    packer = SparseCooParameterPacker()
    values, (indices, shapes, names) = packer.unpack_parameters(sent(SPARSE))
    assert_same(values, SPARSE[0:2])
    assert_same(indices, SPARSE[2:4])
    assert_same(shapes, SPARSE[4:6])
    assert names == ["fc.weight", "fc.bias"]
    assert_same(packer.pack_parameters(values, (indices, shapes, names)), SPARSE)

    dense = packer.arrays_by_name(SPARSE)
    assert list(dense) == ["fc.weight", "fc.bias"]
    assert_same(
        list(dense.values()),
        [np.array([[0, 7], [0, 0], [8, 0]], dtype=np.float32), np.array([0, 0, 0, 9], dtype=np.float32)],
    )


def test_sparse_coo_of_nothing() -> None:
    packer = SparseCooParameterPacker()
    assert_same(packer.pack_parameters([], ([], [], [])), [np.array([])])
    assert packer.arrays_by_name(sent([np.array([])])) == {}


def test_sparse_coo_with_no_element_of_a_tensor() -> None:
    packed = [np.zeros(0), np.zeros((0, 2), dtype=np.int64), np.array([2, 3]), np.array(["w"])]
    assert_same([SparseCooParameterPacker().arrays_by_name(packed)["w"]], [np.zeros((2, 3))])


def replaced(place: int, array: NDArray) -> NDArrays:
    return [*SPARSE[:place], array, *SPARSE[place + 1 :]]


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (SPARSE[1:], "6 arrays were given with 2 names.* 7"),
        (SPARSE[:-1], "must hold names"),
        (replaced(6, np.array(["a"])), "7 arrays were given with 1 names.* 4"),
        (replaced(6, np.array(["a", "a"])), "more than once"),
        (replaced(2, np.array([[0, 1]])), r"fc.weight: values of shape \(2,\), indices of shape \(1, 2\)"),
        (replaced(2, np.array([[0.0, 1.0], [2.0, 0.0]])), "fc.weight: .*float64.*whole numbers"),
        (replaced(5, np.array([4, 1])), "fc.bias: .* do not belong together"),
        (replaced(0, WEIGHT), "fc.weight: .* do not belong together"),
        ([MEAN, np.zeros((1, 0), int), np.zeros(0, int), np.array(["a"])], "a: .* do not belong .* ndim at least 1"),
    ],
)
def test_sparse_lists_that_do_not_fit(packed: NDArrays, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseCooParameterPacker().unpack_parameters(packed)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([[0, 1], [3, 0]], r"fc.weight: an index lies outside .*\(3, 2\)"),
        ([[0, 1], [-1, 0]], "fc.weight: an index lies outside"),
        ([[0, 1], [0, 1]], "fc.weight: an element is listed more than once"),
    ],
)
def test_sparse_elements_that_do_not_fit(indices: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseCooParameterPacker().arrays_by_name(replaced(2, np.array(indices)))


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
        elements=st.sampled_from([0, 1.5, -2]),
    )
)
def test_sparse_coo_of_any_tensor_is_what_torch_says(dense: NDArray) -> None:
    values, indices, shape = SparseCooParameterPacker.extract_coo_info_from_dense(torch.from_numpy(dense))
    sparse = torch.from_numpy(dense).to_sparse_coo().coalesce()
    assert_same([values, indices, shape], [sparse.values().numpy(), sparse.indices().numpy().T, np.array(dense.shape)])

    packed = SparseCooParameterPacker().pack_parameters([values], ([indices], [shape], ["w"]))
    assert_same([SparseCooParameterPacker().arrays_by_name(sent(packed))["w"]], [dense])


@pytest.mark.parametrize(
    ("parameters", "packed"),
    [
        ([WEIGHT, np.array(["fc.weight"])], True),
        ([np.array([])], True),
        ([WEIGHT, BIAS], False),
        ([WEIGHT, np.array([])], False),
        ([WEIGHT, np.array(3)], False),
        ([], False),
    ],
)
def test_a_packed_list_is_told_by_its_last_array(parameters: NDArrays, packed: bool) -> None:
    assert ParameterPackerByName.is_packed(parameters) is packed


def test_the_exchanger_packs_as_its_packer() -> None:
    exchanger = FullParameterExchangerWithPacking(ParameterPackerWithClippingBit())
    packed = exchanger.pack_parameters(model_weights=[WEIGHT], additional_parameters=0.5)
    assert_same(packed, [WEIGHT, np.array(0.5)])
    weights, bound = exchanger.unpack_parameters(packed_parameters=packed)
    assert_same(weights, [WEIGHT])
    assert bound == 0.5
