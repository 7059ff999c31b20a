"""Whatever plain value or array a strategy holds is the same after a restart, by type and by content."""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import enum
import fractions
import math
import random
import types
import uuid
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common import Parameters
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from restarts import Plain, Process, restart


class Mine(Plain):
    """From this module, so that this module's classes are the strategy's own."""


class Colour(enum.Enum):
    RED = 1
    GREEN = "g"


class Level(enum.IntFlag):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: float
    y: Any


@dataclass
class Best:
    score: float
    round: int = 0
    weights: Any = None


def identical(left: Any, right: Any) -> bool:
    """Equal by type, order and content; NaN equals NaN, −0.0 is not 0.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, np.ndarray):
        same = left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
        return same and left.flags.f_contiguous == right.flags.f_contiguous
    if isinstance(left, dict):
        return len(left) == len(right) and all(
            identical(a, b) and identical(left[a], right[b]) for a, b in zip(left, right, strict=True)
        )
    if isinstance(left, (list, tuple, collections.deque)):
        return len(left) == len(right) and all(map(identical, left, right))
    if isinstance(left, (set, frozenset)):
        return sorted(map(repr, left)) == sorted(map(repr, right))
    if isinstance(left, np.generic):
        return left.dtype == right.dtype and left.tobytes() == right.tobytes()
    if isinstance(left, slice):
        return identical([left.start, left.stop, left.step], [right.start, right.stop, right.step])
    if isinstance(left, Best):
        return identical(vars(left), vars(right))
    return repr(left) == repr(right)


def after_restart(value: Any) -> Any:
    """The value, which the run put where None was, in the next process."""
    strategy, warnings = restart(lambda: Mine(held=None), lambda running: setattr(running, "held", value))
    assert warnings == []
    return strategy.held


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None))
    | st.binary()
    | st.complex_numbers()
    | st.decimals()
    | st.fractions()
    | st.uuids()
    | st.datetimes()
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.sampled_from([*Colour, *Level, Level(3), Level(0), ..., NotImplemented, range(3, 9, 2)])
    | npst.arrays(npst.scalar_dtypes(), ()).map(lambda held: held[()])
)
keys = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.sampled_from(Colour)
)
arrays = npst.arrays(
    npst.scalar_dtypes() | npst.unicode_string_dtypes() | npst.array_dtypes() | npst.nested_dtypes(),
    npst.array_shapes(min_dims=0, min_side=0, max_side=3),
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    mappings = st.dictionaries(keys | st.tuples(keys, keys), inner, max_size=4)
    lists = st.lists(inner, max_size=4)
    return (
        lists
        | lists.map(tuple)
        | st.builds(collections.deque, lists, st.none() | st.integers(4, 9))
        | mappings
        | mappings.map(collections.OrderedDict)
        | st.builds(collections.defaultdict, st.sampled_from([None, int, list, dict, set, float]), mappings)
        | st.dictionaries(keys, st.integers(), max_size=3).map(collections.Counter)
        | st.sets(keys, max_size=4)
        | st.frozensets(keys, max_size=4)
        | st.builds(Point, inner, inner)
        | st.builds(Best, inner, inner, inner)
        | st.builds(slice, inner, inner)
    )


@given(st.recursive(scalars | arrays, containers, max_leaves=12))
def test_any_state_survives(value: Any) -> None:
    assert identical(after_restart(value), value)


@given(st.recursive(scalars | arrays, containers, max_leaves=8))
def test_state_survives_a_second_death(value: Any) -> None:
    def make() -> Mine:
        return Mine(held=None)

    first = Process(make())
    first.strategy.held = value
    second = Process(make())
    assert second.resume(first.save()) == []
    third = Process(make())
    assert third.resume(second.save()) == []
    assert identical(third.strategy.held, value)


@pytest.mark.parametrize(
    "value",
    [
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(12)[::3],
        np.arange(4, dtype=">i4"),
        np.array(["2024-01-01", "NaT"], dtype="datetime64[D]"),
        np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", ">f8", (2,))]),
        np.zeros((3, 0, 2), np.float16),
        np.array(7.5),
        np.array(["ab", "ü"]),
        np.array([b"a\0b"], dtype="S5"),
        np.zeros(3, dtype=np.dtype({"names": ["a"], "formats": ["i4"], "offsets": [4], "itemsize": 12})),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}",
)
def test_arrays_keep_type_shape_and_order(value: np.ndarray[Any, Any]) -> None:
    back = after_restart(value)
    assert back.dtype == value.dtype
    assert back.shape == value.shape
    assert np.array_equal(back, value, equal_nan=value.dtype.kind in "fM")
    assert back.flags.f_contiguous == value.flags.f_contiguous or not value.flags.c_contiguous
    assert back.flags.writeable


def test_large_arrays_are_captured_as_the_small_ones_are() -> None:
    """They are copied in parts, by several threads."""
    numbers = np.random.default_rng(1).integers(0, 2**31, (3000, 4001), np.int32)
    large = {
        "C": numbers,
        "Fortran": np.asfortranarray(numbers),
        "neither": numbers[::2, ::3],
        "many small ones": [numbers[row].copy() for row in range(100)],
    }
    assert identical(after_restart(large), large)


def test_integers_of_any_size_survive() -> None:
    assert after_restart([10**6000, -(2**4096), {2**64 + 1: 3}]) == [10**6000, -(2**4096), {2**64 + 1: 3}]


def test_read_only_and_special_arrays_stay_what_they_are() -> None:
    frozen = np.arange(3)
    frozen.flags.writeable = False
    assert not after_restart(frozen).flags.writeable
    masked = np.ma.MaskedArray([1.0, 2.0], mask=[True, False], fill_value=-1.0)
    back = after_restart(masked)
    assert (back.tolist(), back.fill_value) == ([None, 2.0], -1.0)
    records = np.rec.array([(1, "a")], dtype=[("n", "i4"), ("s", "U2")])
    assert after_restart(records).s[0] == "a"


@pytest.mark.parametrize(
    "value",
    [
        collections.ChainMap({"a": 1}, {"b": 2}),
        types.SimpleNamespace(a=1, b=[2]),
        array.array("d", [1.0, math.nan]),
        bytearray(b"abc"),
        bytearray(5000),
        b"x" * 5000,
        datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.timezone(datetime.timedelta(hours=2), "there")),
        {np.int64(3): "numpy key", ("a", 1): "tuple", frozenset({1}): "set"},
        "\ud800",
        {"\ud800": 1},
        {"$": "list", "v": 3},
        decimal.Decimal("NaN"),
        fractions.Fraction(10**50, 3),
        uuid.UUID(int=5),
        types.MappingProxyType({"a": 1}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_containers_survive(value: Any) -> None:
    assert repr(after_restart(value)) == repr(value)


def test_flower_records_survive_byte_for_byte() -> None:
    odd = Array(dtype="bfloat16", shape=(2,), stype="torch.raw", data=b"\x01\x02\x03\x04")
    record = ArrayRecord({"a": Array(np.arange(3.0)), "odd": odd})
    content = RecordDict(
        {"arrays": record, "config": ConfigRecord({"b": b"x", "l": [1.5]}), "m": MetricRecord({"n": 1})}
    )
    back = after_restart(content)
    assert back == content
    assert type(back["arrays"]) is ArrayRecord
    assert after_restart(record) == record
    assert after_restart(odd) == odd


def test_parameters_survive_whatever_their_bytes_are() -> None:
    assert after_restart(Parameters([b'{"json": 1}', b""], "")) == Parameters([b'{"json": 1}', b""], "")


def test_array_data_that_is_a_view_of_changing_memory_is_copied() -> None:
    memory = bytearray(b"before")
    pushed = Array(dtype="uint8", shape=(6,), stype="x", data=b"")
    pushed.data = memoryview(memory)  # type: ignore[assignment]
    record = ArrayRecord()
    record["a"] = pushed
    process = Process(Mine(held=record))
    snapshot = process.capture()
    memory[:] = b"after!"
    assert [bytes(blob.data) for blob in snapshot.blobs] == [b"before"]


def test_immutable_bytes_are_referenced_and_not_copied() -> None:
    data = b"\x93NUMPY" + bytes(5000)
    snapshot = Process(Mine(held=Parameters([data], "numpy.ndarray"))).capture()
    assert snapshot.blobs[0].data is data
    assert snapshot.blobs[0].kind == "npy"


def test_arrays_are_copied_when_they_are_captured() -> None:
    weights = np.arange(3.0)
    process = Process(Mine(weights=weights))
    snapshot = process.capture()
    weights += 1
    (blob,) = snapshot.blobs
    assert (blob.name, blob.dtype, blob.shape) == ("strategy.weights", "float64", (3,))
    assert np.frombuffer(blob.data).tolist() == [0.0, 1.0, 2.0]


def test_captures_that_are_both_waiting_share_no_memory() -> None:
    weights = np.zeros(1000)
    process = Process(Mine(weights=weights))
    done = process.capture()
    done.release()
    done.release()  # a second release must not lend the memory out twice
    first = process.capture()
    weights += 1
    second = process.capture()
    assert np.frombuffer(first.blobs[0].data).max() == 0
    assert np.frombuffer(second.blobs[0].data).min() == 1


@pytest.mark.parametrize("seeded", [random.Random, np.random.default_rng, np.random.RandomState])
def test_generators_go_on_where_they_were(seeded: Any) -> None:
    def draw(generator: Any) -> Any:
        return [generator.normal() if hasattr(generator, "normal") else generator.gauss(0, 1) for _ in range(3)]

    running = seeded(1)
    draw(running)
    expected = seeded(1)
    draw(expected)
    strategy, warnings = restart(lambda: Mine(rng=seeded(1)), lambda alive: draw(alive.rng))
    assert draw(strategy.rng) == draw(expected)
    assert warnings == []


def test_children_that_a_generator_spawned_are_not_spawned_again() -> None:
    expected = np.random.default_rng(5)
    expected.spawn(2)
    strategy, _ = restart(lambda: Mine(rng=np.random.default_rng(5)), lambda alive: alive.rng.spawn(2))
    assert strategy.rng.spawn(1)[0].random() == expected.spawn(1)[0].random()


def test_a_generator_is_put_back_into_the_object_others_hold() -> None:
    def make() -> Mine:
        shared = np.random.default_rng(3)
        return Mine(rng=shared, noise=types.SimpleNamespace(rng=shared))

    strategy, _ = restart(make, lambda alive: alive.rng.random(7))
    assert strategy.rng is strategy.noise.rng


def test_private_generators_draw_fresh_noise() -> None:
    strategy, _ = restart(
        lambda: Mine(rng=np.random.default_rng(3), draws=0),
        lambda alive: (alive.rng.random(7), setattr(alive, "draws", 7)),
        private=True,
    )
    assert strategy.rng.random() == np.random.default_rng(3).random()
    assert strategy.draws == 7
