"""What strategies also hold: what of it is kept, and that nothing else is lost without a word."""

from __future__ import annotations

import collections
import functools
import itertools
import json
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
from restarts import Plain, Process, restart

from flwr_ckpt.store.errors import CheckpointError


class Mine(Plain):
    """From this module, so that this module's classes are the strategy's own."""

    @functools.cached_property
    def scaled(self) -> Any:
        return np.ones(2) * self.scale


class Step(int):
    """A number with a name."""


class Label(str):
    """A string with a name."""


class Tagged(float):
    tag = ""


class Window(collections.deque):  # type: ignore[type-arg]
    name = ""


class Weights(np.ndarray):  # type: ignore[type-arg]
    """An array of a class of the user's."""


class Spot(NamedTuple):
    row: int
    name: str


@dataclass(frozen=True)
class Key:
    layer: str
    part: int = 0


def none_yet() -> list[int]:
    return [0]


def set_to(**values: Any) -> Any:
    return lambda strategy: strategy.__dict__.update(values)


def problem_of(make: Callable[[], Mine], run: Callable[[Mine], object]) -> str:
    process = Process(make())
    run(process.strategy)
    (problem,) = process.capture().problems
    return problem


@pytest.mark.parametrize(
    "value",
    [Step(3), Step(10**30), Label("é"), Tagged("nan"), Tagged(0.5)],
    ids=["int", "large", "str", "nan", "float"],
)
def test_numbers_and_strings_of_the_users_classes(value: Any) -> None:
    strategy, warnings = restart(lambda: Mine(held=None), set_to(held=value))
    assert (type(strategy.held), repr(strategy.held)) == (type(value), repr(value))
    assert warnings == []


def test_a_number_with_attributes_is_not_stored_in_part() -> None:
    tagged = Tagged(1)
    tagged.tag = "best"
    assert problem_of(lambda: Mine(held=None), set_to(held=tagged)).startswith("strategy.held: became ")


def test_keys_that_are_equal_by_their_fields() -> None:
    table = {Key("a"): 1, Spot(1, "b"): 2, Step(4): 3, (Key("c", 1), 2): 4}
    strategy, _ = restart(lambda: Mine(table={}), lambda alive: alive.table.update(table))
    assert strategy.table == table
    assert [type(key) for key in strategy.table] == [Key, Spot, Step, tuple]


@pytest.mark.parametrize("counter", [lambda: itertools.count(), lambda: itertools.count(0.5, 0.25)])
def test_a_counter_goes_on(counter: Any) -> None:
    expected = counter()
    for _ in range(4):
        next(expected)
    strategy, _ = restart(lambda: Mine(ids=counter()), lambda alive: [next(alive.ids) for _ in range(4)])
    assert next(strategy.ids) == next(expected)


def test_capturing_a_counter_takes_no_number() -> None:
    process = Process(Mine(ids=itertools.count()))
    process.capture()
    assert next(process.strategy.ids) == 0


def test_a_window_of_the_users_class_keeps_its_content_and_length() -> None:
    def run(strategy: Mine) -> None:
        strategy.window.extend([1, np.ones(2), 3])
        strategy.window.name = "losses"

    strategy, _ = restart(lambda: Mine(window=Window(maxlen=2)), run)
    assert (type(strategy.window), strategy.window.maxlen, strategy.window.name) == (Window, 2, "losses")
    assert [np.asarray(item).tolist() for item in strategy.window] == [[1.0, 1.0], 3]


def test_an_array_of_the_users_class_is_named_and_not_taken_for_an_empty_object() -> None:
    process = Process(Mine(held=np.zeros(2).view(Weights)))
    assert any(line.startswith("strategy.held: ") and "not kept" in line for line in process.capture().inventory)
    assert "Weights" in problem_of(lambda: Mine(held=None), set_to(held=np.zeros(2).view(Weights)))


def test_a_cached_property_is_state() -> None:
    strategy, _ = restart(lambda: Mine(scale=2.0), lambda alive: alive.scaled.__iadd__(1))
    assert strategy.scaled.tolist() == [3.0, 3.0]


def test_what_grows_and_changes_its_shape_each_round() -> None:
    process = Process(Mine(rounds={}, weights=np.zeros(2)))
    for server_round in range(1, 4):
        process.strategy.rounds[server_round] = {"delta": np.ones(server_round)}
        process.strategy.weights = np.zeros((server_round, 2), np.int32)
        state = process.save()
    second = Process(Mine(rounds={}, weights=np.zeros(2)))
    second.resume(state)
    assert {key: value["delta"].shape for key, value in second.strategy.rounds.items()} == {1: (1,), 2: (2,), 3: (3,)}
    assert (second.strategy.weights.shape, second.strategy.weights.dtype) == ((3, 2), np.int32)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, (number for number in [1])),
        (None, weakref.WeakValueDictionary()),
        (np, json),
        (functools.partial(max, 1), functools.partial(max, 2)),
        (functools.partial(max, key=None), functools.partial(min, key=None)),
        (dict, json.JSONDecoder),
        (None, np.array([None])),
    ],
    ids=["generator", "weak", "module", "partial", "another partial", "class", "objects"],
)
def test_what_cannot_be_stored_is_a_problem_when_it_is_replaced(before: Any, after: Any) -> None:
    assert problem_of(lambda: Mine(held=before), set_to(held=after)).startswith("strategy.held: became ")
    (line,) = [line for line in Process(Mine(held=after)).capture().inventory if "strategy.held" in line]
    assert line.endswith("not kept")


def test_arrays_beside_what_cannot_be_stored_are_put_back_into_the_same_list() -> None:
    def make() -> Mine:
        return Mine(held=[threading.Lock(), np.zeros(1)], pair=(threading.Lock(), [np.zeros(1)], 3))

    def run(strategy: Mine) -> None:
        strategy.held[1] += 1
        strategy.pair[1][0] += 2

    strategy, warnings = restart(make, run)
    assert strategy.held[1].tolist() == [1.0]
    assert strategy.pair[1][0].tolist() == [2.0]
    assert hasattr(strategy.held[0], "acquire")
    assert warnings == []


def test_a_list_that_changed_beside_what_cannot_be_stored_is_a_problem() -> None:
    def make() -> Mine:
        return Mine(held=[threading.Lock(), 1])

    assert Process(make()).capture().problems == ()
    problem = problem_of(make, lambda alive: alive.held.append(2))
    assert problem.startswith("strategy.held: changed")
    assert "strategy.held[0]" in problem
    assert "exclude=('held',)" in problem


def test_a_defaultdict_with_a_factory_that_cannot_be_found_is_a_problem_where_it_is_new() -> None:
    problem = problem_of(lambda: Mine(seen=None), set_to(seen=collections.defaultdict(lambda: 3, a=1)))
    assert problem.startswith("strategy.seen: became a collections:defaultdict")
    assert "factory" in problem
    listed = problem_of(
        lambda: Mine(seen=[collections.defaultdict(lambda: 3)]), lambda alive: alive.seen[0].update(a=1)
    )
    assert listed.startswith("strategy.seen: changed")


def test_a_defaultdict_with_a_factory_of_the_strategys_module_is_made_again() -> None:
    strategy, _ = restart(lambda: Mine(seen=None), set_to(seen=collections.defaultdict(none_yet, a=[1])))
    assert (strategy.seen["a"], strategy.seen["b"]) == ([1], [0])


def test_a_defaultdict_in_a_state_dict_needs_a_factory_that_can_be_found() -> None:
    class Keeper:
        def state_dict(self) -> dict[str, Any]:
            return {"seen": collections.defaultdict(lambda: 3)}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    with pytest.raises(CheckpointError, match=r"^strategy\.part\.state_dict\(\)\['seen'\]: "):
        Process(Mine(part=Keeper()))


def test_a_misspelt_exclude_is_said() -> None:
    process = Process(
        Mine(writer=threading.Lock(), table={"k": 1}), exclude=("writter", "writer", "table['k']", "table['l']")
    )
    lines = [line for line in process.capture().inventory if line.startswith("exclude: ")]
    assert lines == [
        "exclude: strategy.table['l'] matches nothing",
        "exclude: strategy.writter matches nothing",
    ]


def test_attributes_of_an_ordered_dict_are_kept() -> None:
    table = collections.OrderedDict(a=1)
    table.version = {"": 2}  # type: ignore[attr-defined]
    strategy, _ = restart(lambda: Mine(held=None), set_to(held=table))
    assert (strategy.held, strategy.held.version) == (table, {"": 2})
    filled, _ = restart(
        lambda: Mine(held=collections.OrderedDict(a=0)), lambda alive: alive.held.__dict__.update(version={"": 3})
    )
    assert filled.held.version == {"": 3}
