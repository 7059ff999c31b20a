"""Stored state that nobody of ours has written: an error of ours, nothing imported, and no more than it is worth."""

from __future__ import annotations

import collections
import contextlib
import copy
import os
import random
import socket
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from restarts import Plain, Process

from flwr_ckpt.state import StoredState
from flwr_ckpt.store import CheckpointCorruptError, CheckpointError
from tests.lab.hostile import VALUES, places_in, removed, replaced


@dataclass
class Settings:
    """A value of the user's own."""

    rate: float
    note: str = ""


execute = os.system  # a module may well hold such a thing under a name of its own


def weighted(*args: Any) -> float:
    """A function of the strategy's own module."""
    return float(len(args))


class Everything(Plain):
    """A strategy that holds one of each kind of thing."""

    def __init__(self) -> None:
        super().__init__(
            rate=0.1,
            counts=collections.Counter(a=1),
            late=collections.defaultdict(list),
            queue=collections.deque([1], maxlen=3),
            names={"a": (1, 2), 3: {4}},
            array=np.arange(6.0).reshape(2, 3),
            masked=np.ma.MaskedArray([1.0, 2.0], mask=[True, False]),
            tensor=torch.ones(2, 3),
            generator=np.random.default_rng(3),
            dice=random.Random(5),
            data=b"x" * 5000,
            settings=Settings(0.5),
            scheduler=torch.optim.lr_scheduler.MultiStepLR(
                torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), 0.1), [1]
            ),
        )
        self.weigh = weighted


def _died() -> StoredState:
    process = Process(Everything())
    strategy = process.strategy
    strategy.rate, strategy.settings.rate, strategy.weigh = 0.2, 0.7, None
    strategy.names["b"], strategy.queue = [1.5, "é"], collections.deque([2, 3], maxlen=3)
    strategy.again = strategy.array
    strategy.deep = [[[[1, {"x": [2]}]]]]
    return process.save()


STATE = _died()


def _resumed(tree: Any, baseline: Any = None) -> Any:
    process = Process(Everything())
    process.resume(StoredState(tree, STATE.baseline if baseline is None else baseline, STATE.read))
    return process.strategy


def test_what_is_sound_is_put_back() -> None:
    assert _resumed(copy.deepcopy(STATE.tree)).rate == 0.2


_PLACES = sorted(places_in(STATE.tree), key=repr)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.sampled_from(_PLACES), st.sampled_from(VALUES)), min_size=1, max_size=3), st.booleans())
def test_a_tree_that_states_anything(changes: list[tuple[Any, Any]], in_baseline: bool) -> None:
    tree = STATE.tree
    for where, value in changes:
        try:
            tree = removed(tree, where) if value is None and where else replaced(tree, where, value)
        except (KeyError, IndexError, TypeError):
            continue  # the change before has taken that place away
    before, loaded = os.getcwd(), set(sys.modules)
    with contextlib.suppress(CheckpointError):
        _resumed(STATE.tree if in_baseline else tree, tree if in_baseline else None)
    assert os.getcwd() == before
    assert {name.partition(".")[0] for name in set(sys.modules) - loaded} <= {"torch"}, "nothing else is imported"


@pytest.mark.parametrize("dtype", ["O", "|O", [["a", "|O"]], {"registered": "O"}, {"registered": "T"}])
def test_stored_bytes_are_never_taken_for_addresses(dtype: Any) -> None:
    """NumPy would follow them: the process would be gone, or be somebody else's."""
    with pytest.raises(CheckpointError, match="which is never stored"):
        _resumed(_with({"$": "ndarray", "dtype": dtype, "shape": [1], "blob": next(iter(STATE.read))}))


def _with(node: Any, name: str = "rate") -> Any:
    return replaced(STATE.tree, ("roots", "strategy", "v", name), node)


def _refused(tree: Any, match: str | None = None) -> None:
    with pytest.raises(CheckpointError, match=match):
        _resumed(tree)


HUGE = 1 << 40
_TENSOR = STATE.tree["roots"]["strategy"]["v"]["tensor"]
BOMBS = {
    "terabytes": {"$": "ndarray", "dtype": "<f8", "shape": [HUGE], "blob": "strategy.array"},
    "an overflow": {"$": "ndarray", "dtype": "<f8", "shape": [HUGE, HUGE, 0], "blob": "strategy.array"},
    "a tensor of terabytes": {**_TENSOR, "shape": [HUGE]},
    "a tensor elsewhere": {**_TENSOR, "device": "cuda:7"},
    "a pool": {
        "$": "generator", "id": "g", "kind": "numpy.Generator/PCG64",
        "v": {"$": "dict", "v": {"bits": None, "seed": {"$": "dict", "v": {"entropy": 1, "pool_size": HUGE}}}},
    },
    "an unknown kind": {"$": "pickle", "v": "gASVAAAAAAAAAAAu"},
    "an object of another class": {"$": "object", "id": "x", "type": "os:system", "v": {}},
    "an attribute that is ours": {"$": "object", "id": "x", "type": "a:B", "v": {"_flwr_ckpt": 1}},
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_node_that_asks_for_what_it_is_not_worth(name: str) -> None:
    _refused(_with(BOMBS[name]))


def test_a_few_bytes_do_not_stand_for_gigabytes() -> None:
    twice = [{"$": "list", "v": [{"$": "deep", "n": index + 1}] * 2} for index in range(60)]
    _refused({**_with({"$": "deep", "n": 0}), "deep": [*twice, 0]}, "no tree")
    _refused({**_with({"$": "deep", "n": 0}), "deep": [{"$": "deep", "n": 0}]}, "no tree")
    _refused({**_with({"$": "deep", "n": -1}), "deep": [0]}, "no tree")


def test_a_container_does_not_lie_in_itself() -> None:
    _refused(_with({"$": "list", "id": "x", "v": [{"$": "list", "v": [{"$": "same", "as": "x"}]}]}), "in itself")
    one = {"$": "list", "id": "x", "v": [{"$": "same", "as": "y"}]}
    other = {"$": "tuple", "id": "y", "v": [{"$": "same", "as": "x"}]}
    _refused(replaced(_with(one), ("roots", "strategy", "v", "deep"), other), "in itself")
    _refused(_with({"$": "same", "as": "nowhere"}), "no tree")


def test_children_of_a_seed_are_not_drawn_for_ever() -> None:
    """NumPy counts them; a count somebody has made up is met by a new generator, with the count as it is stated."""
    tree = copy.deepcopy(STATE.tree)
    seed = tree["roots"]["strategy"]["v"]["generator"]["v"]["v"]["seed"]
    seed["v"]["n_children_spawned"] = 1 << 31
    made = _resumed(tree).generator
    assert made.bit_generator.seed_seq.n_children_spawned == 1 << 31


@pytest.mark.parametrize(
    "name", [f"{__name__}:os.system", f"{__name__}:execute", "os:system", "builtins:eval", "posix:system"]
)
@pytest.mark.parametrize("kind", ["function", "defaultdict"])
def test_a_function_is_looked_up_on_the_modules_of_the_strategy_only(name: str, kind: str) -> None:
    """Not in what those modules import: `os` stands in this one."""
    node = {"$": "function", "name": name} if kind == "function" else {"$": "defaultdict", "function": name, "v": {}}
    _refused(_with(node), "not in the strategy's modules")


def test_a_class_is_looked_up_on_the_modules_of_the_strategy_only() -> None:
    """Not in what those modules import."""
    assert socket.AddressFamily["AF_INET"], "it is there, by that name"
    _refused(_with({"$": "enum", "type": f"{__name__}:socket.AddressFamily", "name": "AF_INET"}), "not there any more")


def test_a_function_of_the_strategys_own_module_is_found() -> None:
    tree = replaced(STATE.tree, ("roots", "strategy", "v", "weigh"), {"$": "function", "name": f"{__name__}:weighted"})
    assert _resumed(tree).weigh is weighted


def test_no_module_is_imported_because_a_name_says_so() -> None:
    assert "antigravity" not in sys.modules
    for node in (
        {"$": "function", "name": "antigravity:fly"},
        {"$": "enum", "type": "antigravity:Fly", "name": "A"},
        {"$": "object", "id": "x", "type": "antigravity:Fly", "v": {}},
        {"$": "namedtuple", "type": "antigravity:Fly", "v": []},
        {"$": "subclass", "type": "antigravity:Fly", "v": 1},
    ):
        _refused(_with(node))
    assert "antigravity" not in sys.modules


def test_what_is_no_tree_at_all() -> None:
    for tree in (
        None,
        3,
        [],
        {},
        {"roots": []},
        {"roots": {}, "deep": {}},
        {"roots": {"strategy": {"$": 1}}, "deep": []},
    ):
        with pytest.raises(CheckpointCorruptError):
            _resumed(tree)
