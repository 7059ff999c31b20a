"""Arrays, tensors and byte arrays that lie in the same memory: linked after a restart as they were before."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from restarts import Plain, Process, died, restart, resume

OFFERED: list[str] = ["float32", "int64", "uint8", ">f4", "complex64"]


class Mine(Plain):
    """From this module, so that this module's classes are the strategy's own."""


def set_to(**values: Any) -> Any:
    return lambda strategy: strategy.__dict__.update(values)


def is_linked(one: Any, other: Any) -> bool:
    return bool(np.shares_memory(one, other))


def test_a_slice_is_a_slice_again() -> None:
    def make() -> Mine:
        total = np.zeros(5)
        return Mine(total=total, view=total[1:3], back=total[::-1])

    strategy, warnings = restart(make, lambda alive: alive.total.__iadd__(np.arange(5)))
    assert strategy.view.tolist() == [1.0, 2.0]
    strategy.total[1] = 7
    strategy.view[1] = 8
    assert strategy.view.tolist() == [7.0, 8.0]
    assert strategy.back.tolist() == [4.0, 3.0, 8.0, 7.0, 0.0]
    assert warnings == []


def test_the_layers_of_a_flat_buffer_are_stored_once() -> None:
    flat = np.arange(12, dtype=np.float32)
    layers = {"weight": flat[:8].reshape(2, 4), "bias": flat[8:]}
    process = Process(Mine(layers=layers, flat=flat))
    (blob,) = process.capture().blobs
    assert (blob.name, blob.dtype, blob.shape) == ("strategy.flat", "float32", (12,))
    strategy, _ = restart(lambda: Mine(layers=None, flat=None), set_to(layers=layers, flat=flat))
    strategy.flat[:] = 5
    assert strategy.layers["weight"].tolist() == [[5.0] * 4] * 2
    assert strategy.layers["bias"].flags.writeable


def test_views_whose_base_is_nobodys_attribute() -> None:
    base = np.arange(10.0)
    process = Process(Mine(a=base[2:6], b=base[4:9]))
    (blob,) = process.capture().blobs
    assert memoryview(blob.data).nbytes == 7 * 8
    strategy, _ = restart(lambda: Mine(a=None, b=None), set_to(a=base[2:6], b=base[4:9]))
    assert (strategy.a.tolist(), strategy.b.tolist()) == ([2, 3, 4, 5], [4, 5, 6, 7, 8])
    strategy.a[2:] = -1
    assert strategy.b.tolist() == [-1, -1, 6, 7, 8]


def test_neighbours_that_do_not_overlap_are_apart() -> None:
    base = np.arange(4.0)
    names = [blob.name for blob in Process(Mine(a=base[:2], b=base[2:])).capture().blobs]
    assert names == ["strategy.a", "strategy.b"]


def test_another_type_over_the_same_bytes_and_a_read_only_look() -> None:
    bits = np.arange(4, dtype=np.float32)
    look = bits.view()
    look.flags.writeable = False
    strategy, _ = restart(
        lambda: Mine(bits=None, words=None, look=None), set_to(bits=bits, words=bits.view(np.int32)[1:], look=look)
    )
    strategy.words[0] = 0
    assert strategy.bits.tolist() == [0.0, 0.0, 2.0, 3.0]
    assert is_linked(strategy.look, strategy.bits)
    assert not strategy.look.flags.writeable


def test_a_column_in_order_f_and_a_field_of_records() -> None:
    matrix = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    records = np.zeros(3, [("a", "i4"), ("b", "f8")])
    values = {"matrix": matrix, "column": matrix[:, 1], "records": records, "field": records["b"]}
    strategy, _ = restart(lambda: Mine(held=None), set_to(held=values))
    strategy.held["column"][0] = 9
    strategy.held["field"][2] = 5
    assert strategy.held["matrix"].tolist() == [[0, 9, 2], [3, 4, 5]]
    assert strategy.held["matrix"].flags.f_contiguous
    assert strategy.held["records"]["b"].tolist() == [0, 0, 5]


def test_an_array_that_repeats_itself_is_stored_once() -> None:
    row = np.arange(3.0)
    process = Process(Mine(table=np.broadcast_to(row, (1000, 3))))
    assert sum(memoryview(blob.data).nbytes for blob in process.capture().blobs) == row.nbytes
    strategy, _ = restart(lambda: Mine(table=None), set_to(table=np.broadcast_to(row, (1000, 3))))
    assert strategy.table.shape == (1000, 3)
    assert strategy.table[999].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("length", [8, 4000])
def test_a_bytearray_and_an_array_over_it(length: int) -> None:
    buffer = bytearray(length)
    strategy, _ = restart(
        lambda: Mine(buffer=None, look=None), set_to(buffer=buffer, look=np.frombuffer(buffer, np.uint8)[2:])
    )
    strategy.look[0] = 7
    assert (type(strategy.buffer), len(strategy.buffer), strategy.buffer[2]) == (bytearray, length, 7)


def test_a_bytearray_can_grow_between_captures() -> None:
    process = Process(Mine(buffer=bytearray(3)))
    process.capture().release()
    process.strategy.buffer.append(1)
    assert len(process.strategy.buffer) == 4


def test_links_made_and_cut_by_the_run() -> None:
    def make() -> Mine:
        total = np.zeros(4)
        return Mine(a=total, b=total[:2])

    cut, _ = restart(make, lambda alive: setattr(alive, "b", alive.b.copy()))
    assert not is_linked(cut.a, cut.b)
    made, warnings = restart(lambda: Mine(a=np.zeros(4), b=np.zeros(2)), lambda alive: setattr(alive, "b", alive.a[2:]))
    assert is_linked(made.a, made.b)
    assert warnings == []


def test_links_within_a_state_dict_arrive_in_load_state_dict() -> None:
    class Keeper:
        def __init__(self) -> None:
            self.total = np.zeros(3)
            self.view = self.total[:1]

        def state_dict(self) -> dict[str, Any]:
            return dict(vars(self))

        def load_state_dict(self, state: dict[str, Any]) -> None:
            vars(self).update(state)

    strategy, warnings = restart(lambda: Mine(part=Keeper()), lambda alive: alive.part.total.__iadd__(1))
    strategy.part.total[0] = 5
    assert strategy.part.view.tolist() == [5.0]
    assert warnings == []


def test_a_link_that_load_state_dict_cuts_is_said_with_both_paths() -> None:
    class Copies:
        def __init__(self) -> None:
            self.total = np.zeros(3)

        def state_dict(self) -> dict[str, Any]:
            return {"total": self.total}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.total[:] = state["total"]

    def make() -> Mine:
        part = Copies()
        return Mine(part=part, view=part.total[:2])

    strategy, (warning,) = restart(make, lambda alive: alive.part.total.__iadd__(1))
    assert strategy.view.tolist() == [1.0, 1.0]
    assert "strategy.view" in warning
    assert "strategy.part.state_dict()['total']" in warning


def test_what_is_excluded_now_is_no_broken_link() -> None:
    total = np.zeros(3)
    state = died(lambda: Mine(a=total, b=total[:2]), lambda _: None)
    _, warnings = resume(lambda: Mine(a=np.ones(3), b=np.ones(2)), state, exclude=("b",))
    assert warnings == []


def test_masked_arrays_over_another_array() -> None:
    data = np.arange(4.0)
    masked = np.ma.MaskedArray(data, mask=[0, 1, 0, 0])
    strategy, _ = restart(lambda: Mine(data=None, masked=None), set_to(data=data, masked=masked))
    strategy.data[0] = 9
    assert strategy.masked.tolist() == [9.0, None, 2.0, 3.0]


@st.composite
def views(draw: st.DrawFn) -> list[np.ndarray[Any, Any]]:
    """A few views of one memory, the memory itself perhaps not among them."""
    base = np.arange(48, dtype=np.uint8).view(draw(st.sampled_from(OFFERED)))
    found = [base] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 4))):
        view = base.reshape(-1, 2) if draw(st.booleans()) and base.size % 2 == 0 else base
        start, stop = sorted(draw(st.tuples(st.integers(0, 6), st.integers(0, 6))))
        view = view[start : stop + 1 : draw(st.integers(1, 2))]
        view = view[::-1] if draw(st.booleans()) else view
        found.append(view.T if draw(st.booleans()) else view)
    return found


@settings(max_examples=60, deadline=None)
@given(views())
def test_whatever_is_written_to_one_is_seen_through_the_others(arrays: list[np.ndarray[Any, Any]]) -> None:
    strategy, warnings = restart(lambda: Mine(held=None), set_to(held=dict(enumerate(arrays))))
    back = strategy.held
    assert [back[index].tobytes() for index in back] == [array.tobytes() for array in arrays]
    for (i, a), (j, b) in itertools.combinations(enumerate(arrays), 2):
        assert np.shares_memory(a, b) == np.shares_memory(back[i], back[j])
    for index, array in enumerate(arrays):
        array[...], back[index][...] = index + 100, index + 100
        assert [back[k].tobytes() for k in back] == [array.tobytes() for array in arrays]
    assert warnings == []
