"""How a stored state tree is shown."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from flwr_ckpt.store.reading.view import view_state


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def show(node: Any, *deep: Any, **blobs: np.ndarray[Any, Any]) -> Any:
    """Show one node; blobs are as the store holds them."""
    shown = view_state(
        {"roots": {"strategy": node}, "deep": list(deep)},
        array=lambda name: blobs[name],
        data=lambda name: memoryview(blobs[name].tobytes()),
    )
    assert list(shown) == ["strategy"]
    return shown["strategy"]


def test_plain_values_stand_for_themselves() -> None:
    for value in (None, True, 3, 0.5, "text"):
        assert repr(show(value)) == repr(value)


def test_tagged_values_are_themselves_again() -> None:
    assert repr(show({"$": "float", "v": "nan"})) == "nan"
    assert show({"$": "int", "v": hex(10**2000)}) == 10**2000
    assert show({"$": "bytes", "v": text(b"\x00x")}) == b"\x00x"
    assert show({"$": "str", "v": text("\ud800".encode("utf-8", "surrogatepass"))}) == "\ud800"
    scalar = show({"$": "numpy", "dtype": ">f4", "v": text(np.array(1.5, ">f4").tobytes())})
    assert scalar == 1.5


def test_objects_and_dicts_are_dicts() -> None:
    node = {
        "$": "object",
        "type": "flwr:FedAdam",
        "id": "strategy",
        "v": {
            "eta": 0.1,
            "m_t": {"$": "dict", "v": {"w": {"$": "ndarray", "dtype": "<f4", "shape": [2], "blob": "m"}}},
        },
        "content": {"$": "dict", "v": {"a": 1}},
        "state_dict": {"$": "dict", "kv": [[1, "x"], [{"$": "tuple", "v": [1, "b"]}, "y"]]},
    }
    shown = show(node, m=np.array([1, 2], "f4"))
    np.testing.assert_array_equal(shown["m_t"].pop("w"), np.array([1, 2], "f4"), strict=True)
    assert shown == {"eta": 0.1, "m_t": {}, "content()": {"a": 1}, "state_dict()": {1: "x", (1, "b"): "y"}}


def test_order_of_keys_is_kept() -> None:
    assert list(show({"$": "dict", "v": {"b": {"$": "list", "v": []}, "a": 1, "c": {"$": "dict", "v": {}}}})) == [
        "b",
        "a",
        "c",
    ]


def test_sequences_are_lists() -> None:
    for kind in ("list", "tuple", "set", "deque", "namedtuple"):
        assert show({"$": kind, "v": [1, {"$": "list", "v": [2]}]}) == [1, [2]]


def test_aliases_are_one_object_and_cycles_are_cycles() -> None:
    node = {
        "$": "object",
        "id": "strategy",
        "v": {
            "first": {"$": "same", "as": "strategy.second"},
            "second": {"$": "list", "id": "strategy.second", "v": [{"$": "same", "as": "strategy"}]},
        },
    }
    shown = show(node)
    assert shown["first"] is shown["second"]
    assert shown["first"][0] is shown


def test_deep_subtrees_are_found_however_deep() -> None:
    depth = 50_000
    deep = [{"$": "list", "v": [{"$": "deep", "n": index + 1}]} for index in range(depth)]
    shown = show({"$": "deep", "n": 0}, *deep, 7)
    for _ in range(depth):
        (shown,) = shown
    assert shown == 7


def test_arrays_have_the_type_they_had() -> None:
    fortran = np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3))
    record = np.array([(1, 2.0)], [("a", "<i4"), ("b", "<f8")])
    stored = {"blob": "x", "$": "ndarray"}
    shown = show({**stored, "dtype": ">i2", "shape": [2, 3], "order": "F"}, x=np.frombuffer(fortran.tobytes("F"), "u1"))
    np.testing.assert_array_equal(shown, fortran, strict=True)
    assert shown.flags.f_contiguous
    description = [["a", "<i4"], ["b", "<f8"]]
    shown = show({**stored, "dtype": description, "shape": [1]}, x=np.frombuffer(record.tobytes(), "u1"))
    np.testing.assert_array_equal(shown, record, strict=True)


def test_tensors_records_and_opaque_bytes() -> None:
    weights = np.array([1.0, 2.0], "f4")
    assert show({"$": "tensor", "dtype": "float32", "shape": [2], "blob": "x"}, x=weights) is weights
    assert show({"$": "Parameters", "blobs": ["x", "x"], "type": "t", "count": 2}, x=weights) == [weights, weights]
    array = {"$": "Array", "dtype": "float32", "shape": [2], "stype": "numpy.ndarray", "blob": "x"}
    assert show({"$": "ArrayRecord", "v": [["w", array]]}, x=weights) == {"w": weights}
    assert show({"$": "large bytes", "nbytes": 8, "blob": "x"}, x=weights) == weights.tobytes()


def test_generators_and_stateful_objects_show_their_state() -> None:
    inner = {"$": "dict", "v": {"gamma": 0.5}}
    assert show({"$": "generator", "kind": "random.Random", "v": inner}) == {"state": {"gamma": 0.5}}
    deep = {"$": "deep", "n": 0}
    assert show({"$": "stateful", "type": "StepLR", "v": deep}, inner) == {"state_dict()": {"gamma": 0.5}}


def test_what_has_no_plain_form_is_text() -> None:
    assert show({"$": "function", "name": "app:weights"}) == "<function app:weights>"
    assert show({"$": "opaque", "type": "logging:Logger", "name": ""}) == "<opaque logging:Logger>"
    assert show({"$": "Decimal", "v": "0.1"}) == "<Decimal 0.1>"
    assert show({"$": "enum", "type": "app:Mode", "name": "FAST"}) == "<enum app:Mode FAST>"


def test_kinds_of_a_later_version_do_not_stop_the_view() -> None:
    assert show({"$": "quaternion", "v": [1, 2]}) == "<quaternion [1, 2]>"
    assert show({"$": "sorteddict", "v": {"a": 1}}) == {"a": 1}
    assert show({"$": "same", "as": "nowhere"}) == "<same as nowhere>"


@pytest.mark.parametrize("dtype", ["O", [["a", "|O"]], "T"])
def test_stored_bytes_are_never_taken_for_addresses(dtype: Any) -> None:
    node = {"$": "ndarray", "dtype": dtype, "shape": [1], "blob": "m"}
    with pytest.raises(ValueError, match="which is never stored"):
        show(node, m=np.zeros(1))
