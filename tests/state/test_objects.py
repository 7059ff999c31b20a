"""Objects below a strategy: which are walked, how they come back, and what is said where they cannot."""

from __future__ import annotations

import collections
import json
import logging
import threading
import types
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.common import Parameters
from flwr.server import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from restarts import Plain, Process, died, restart, resume, stored

from flwr_ckpt.state import StateRecorder, dicts_keyed_by
from flwr_ckpt.store.errors import CheckpointError


class Mine(Plain):
    """From this module, so that this module's classes are the strategy's own."""


class Helper:
    def __init__(self, value: Any = 0) -> None:
        self.value = value


class Slotted:
    __slots__ = ("__hidden", "count")

    def __init__(self) -> None:
        self.count = 0
        self.__hidden = 0

    def step(self) -> int:
        self.count += 1
        self.__hidden += 1
        return self.__hidden


class Strict(Mine):
    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("sealed"):
            raise TypeError("sealed")
        super().__setattr__(name, value)


class Delegating(Mine):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "inner" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.inner, name)


class WithProperty(Mine):
    @property
    def rate(self) -> float:
        return float(self.__dict__["rate"])


@dataclass(frozen=True)
class Settings:
    rate: float
    tags: list[str] = field(default_factory=list)


class Ready:
    """An object that keeps its own state."""

    def __init__(self) -> None:
        self.seen: Any = None

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def first_rule(value: float) -> float:
    return value


def second_rule(value: float) -> float:
    return -value


def test_nested_objects_and_strategies_are_walked() -> None:
    def run(strategy: Mine) -> None:
        strategy.inner.helper.value = np.arange(3)
        strategy.inner.rate = 0.5

    strategy, warnings = restart(lambda: Mine(inner=Mine(helper=Helper(), rate=1.0)), run)
    assert strategy.inner.helper.value.tolist() == [0, 1, 2]
    assert strategy.inner.rate == 0.5
    assert warnings == []


def test_slots_private_ones_too_come_back() -> None:
    strategy, _ = restart(lambda: Mine(counter=Slotted()), lambda alive: alive.counter.step())
    assert strategy.counter.step() == 2


def test_attribute_access_of_the_users_class_is_not_disturbed() -> None:
    sealed, _ = restart(lambda: Strict(rate=1.0, sealed=True), lambda alive: alive.__dict__.update(rate=0.5))
    assert sealed.rate == 0.5
    delegating, _ = restart(lambda: Delegating(inner=Ready()), lambda alive: setattr(alive.inner, "seen", 3))
    assert delegating.inner.seen == 3
    assert "seen" not in vars(delegating)
    shadowed, _ = restart(
        lambda: types.MethodType(lambda self: self.__dict__.update(rate=1.0) or self, WithProperty())(),
        lambda alive: alive.__dict__.update(rate=0.5),
    )
    assert shadowed.rate == 0.5


def test_our_own_attribute_is_never_captured() -> None:
    strategy = Mine()
    object.__setattr__(strategy, "_flwr_ckpt", threading.Lock())
    snapshot = Process(strategy).capture()
    assert "_flwr_ckpt" not in json.dumps(snapshot.tree)
    assert snapshot.inventory == Process(Mine()).capture().inventory


def test_dataclasses_are_made_again_and_merged_field_by_field() -> None:
    made, _ = restart(lambda: Mine(best=None), lambda alive: setattr(alive, "best", Settings(0.5, ["a"])))
    assert made.best == Settings(0.5, ["a"])
    state = died(lambda: Mine(best=Settings(1.0, ["a"])), lambda alive: setattr(alive, "best", Settings(0.5, ["a"])))
    merged, warnings = resume(lambda: Mine(best=Settings(1.0, ["b"])), state)
    assert merged.best == Settings(0.5, ["b"])
    assert warnings == []


def test_objects_that_change_places_are_told_apart() -> None:
    def make() -> Mine:
        phases = [Helper("warm up"), Helper("main")]
        return Mine(active=phases[0], phases=phases)

    def run(strategy: Mine) -> None:
        strategy.active = strategy.phases[1]
        strategy.phases[1].value = "changed"

    strategy, warnings = restart(make, run)
    assert strategy.active is strategy.phases[1]
    assert [phase.value for phase in strategy.phases] == ["warm up", "changed"]
    assert warnings == []


def test_an_object_that_the_run_replaces_by_another_of_its_class_gets_the_state() -> None:
    strategy, _ = restart(lambda: Mine(helper=Helper(1)), lambda alive: setattr(alive, "helper", Helper(2)))
    assert strategy.helper.value == 2


def test_an_object_that_is_still_needed_elsewhere_does_not_take_anothers_state() -> None:
    def make() -> Mine:
        helper = Helper("first")
        return Mine(active=helper, all=[helper])

    with pytest.raises(CheckpointError, match=r"^strategy\.active: "):
        restart(make, lambda alive: setattr(alive, "active", Helper("second")))


def test_the_same_object_in_two_places_stays_one() -> None:
    def make() -> Mine:
        helper, weights = Helper(0), np.arange(3)
        return Mine(a=helper, b=helper, weights=weights, again=weights)

    strategy, _ = restart(make, lambda alive: setattr(alive.a, "value", 5))
    assert strategy.a is strategy.b
    assert strategy.b.value == 5
    assert strategy.weights is strategy.again


def test_aliases_are_stored_once() -> None:
    weights, record = np.arange(3), Parameters([bytes(10)], "numpy.ndarray")
    copy = Parameters(list(record.tensors), "numpy.ndarray")
    snapshot = Process(Mine(a=weights, b=[weights], record=record, initial=record, copy=copy)).capture()
    assert [blob.name for blob in snapshot.blobs] == ["strategy.a", "strategy.record.0000"]


def test_an_alias_made_by_the_run_is_an_alias_again() -> None:
    def run(strategy: Mine) -> None:
        strategy.momentum = [np.ones(2)]
        strategy.velocity = strategy.momentum

    strategy, _ = restart(lambda: Mine(momentum=None, velocity=None), run)
    assert strategy.velocity is strategy.momentum


def test_cycles_through_objects_are_aliases() -> None:
    def make() -> Mine:
        strategy = Mine(helper=Helper())
        strategy.helper.owner = strategy  # type: ignore[attr-defined]
        strategy.helper.siblings = [strategy.helper]  # type: ignore[attr-defined]
        return strategy

    strategy, _ = restart(make, lambda alive: setattr(alive.helper, "value", 3))
    assert strategy.helper.owner is strategy
    assert strategy.helper.siblings[0].value == 3


def test_a_list_that_contains_itself_is_an_error_that_names_the_path() -> None:
    loop: list[Any] = [1]
    loop.append({"k": loop})
    with pytest.raises(CheckpointError, match=r"^strategy\.loop\[1\]\['k'\]: "):
        Process(Mine(loop=loop))


def test_an_object_built_in_a_hook_is_asked_for_in_init() -> None:
    state = died(lambda: Mine(late=None), lambda alive: setattr(alive, "late", Helper(np.ones(2))))
    with pytest.raises(CheckpointError, match=r"^strategy\.late: .*Build it in __init__"):
        resume(lambda: Mine(late=None), state)
    strategy, warnings = resume(lambda: Mine(late=Helper()), state)
    assert strategy.late.value.tolist() == [1.0, 1.0]
    assert warnings == []
    excluded, _ = resume(lambda: Mine(late=None), state, exclude=("late",))
    assert excluded.late is None


def test_a_late_object_with_a_state_dict_is_asked_for_too() -> None:
    state = died(lambda: Mine(), lambda alive: setattr(alive, "late", Ready()))
    with pytest.raises(CheckpointError, match=r"^strategy\.late: "):
        resume(lambda: Mine(), state)


def test_a_component_of_another_class_is_the_users_wish() -> None:
    state = died(lambda: Mine(part=Helper(1)), lambda alive: setattr(alive.part, "value", 2))
    strategy, warnings = resume(lambda: Mine(part=Slotted()), state)
    assert isinstance(strategy.part, Slotted)
    assert warnings[0].startswith("strategy.part: ")


def test_objects_with_a_state_dict_are_loaded() -> None:
    strategy, _ = restart(lambda: Mine(ready=Ready()), lambda alive: setattr(alive.ready, "seen", {"a": np.ones(2)}))
    assert strategy.ready.seen["a"].tolist() == [1.0, 1.0]


def test_a_strategys_own_state_dict_adds_to_what_was_found() -> None:
    class Both(Mine):
        def state_dict(self) -> dict[str, Any]:
            return {"secret": hidden["secret"]}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            assert self.rate == 0.5  # the attributes are there already
            self.loaded = state

    hidden = {"secret": 7}
    strategy, _ = restart(lambda: Both(rate=1.0), lambda alive: alive.__dict__.update(rate=0.5))
    assert strategy.loaded == {"secret": 7}
    assert strategy.rate == 0.5


def test_extra_state_is_loaded_and_has_to_be_there() -> None:
    first = Process(Mine(), {"extra": {"accountant": Ready()}})
    first.roots["extra"]["accountant"].seen = 0.25
    state = first.save()
    accountant = Ready()
    Process(Mine(), {"extra": {"accountant": accountant}}).resume(state)
    assert accountant.seen == 0.25
    with pytest.raises(CheckpointError, match="accountant"):
        Process(Mine()).resume(state)


@pytest.mark.parametrize("held", [threading.Lock(), object(), lambda: 3, Helper()])
def test_a_state_dict_that_cannot_be_stored_is_an_error_at_the_first_hook(held: Any) -> None:
    ready = Ready()
    ready.seen = [held]
    with pytest.raises(CheckpointError, match=r"^strategy\.ready\.state_dict\(\)\['seen'\]\[0\]: "):
        Process(Mine(ready=ready))


def test_a_state_dict_that_fails_names_its_object() -> None:
    class Broken(Ready):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise KeyError("other")

    with pytest.raises(CheckpointError, match=r"^strategy\.part: .*KeyError"):
        restart(lambda: Mine(part=Broken()), lambda _: None)


def test_what_cannot_be_stored_is_named_once_and_is_no_problem() -> None:
    process = Process(Mine(writer=threading.Lock(), log=logging.getLogger("x"), best=None))
    snapshot = process.capture()
    assert snapshot.problems == ()
    assert [line for line in snapshot.inventory if line.startswith("strategy.writer: ") and "not kept" in line]
    process.strategy.writer = threading.Lock()
    assert process.capture().problems == ()


def test_an_attribute_that_became_unstorable_is_a_problem_that_says_what_to_do() -> None:
    process = Process(Mine(best=None, helper=Helper()))
    process.strategy.helper.value = {"k": threading.Lock()}
    (problem,) = process.capture().problems
    assert problem.startswith("strategy.helper.value['k']: ")
    for way in ("exclude=(\"helper.value['k']\",)", "state_dict", "extra_state"):
        assert way in problem


def test_excluded_paths_are_no_state() -> None:
    process = Process(
        Mine(writer=None, inner=Mine(cache=None), d={"k": 0}), exclude=("writer", "inner.cache", "d['k']")
    )
    process.strategy.writer = threading.Lock()
    process.strategy.inner.cache = threading.Lock()
    process.strategy.d["k"] = threading.Lock()
    snapshot = process.capture()
    assert snapshot.problems == ()
    assert not [line for line in snapshot.inventory if "cache" in line or "writer" in line]


def test_functions_are_stored_by_name_and_looked_up_in_the_strategys_modules() -> None:
    strategy, _ = restart(lambda: Mine(rule=first_rule), lambda alive: setattr(alive, "rule", second_rule))
    assert strategy.rule is second_rule
    gone, _ = restart(lambda: Mine(rule=first_rule), lambda alive: setattr(alive, "rule", None))
    assert gone.rule is None
    none_before, _ = restart(lambda: Mine(rule=lambda x: x), lambda alive: setattr(alive, "rule", None))
    assert none_before.rule is None
    bound, _ = restart(lambda: Mine(rule=None), lambda alive: setattr(alive, "rule", alive.summary))
    assert bound.rule.__self__ is bound


def test_a_function_that_cannot_be_found_again_is_a_problem() -> None:
    process = Process(Mine(rule=first_rule, other=lambda x: x))
    process.strategy.other = lambda x: x  # another one of the same qualified name is no change
    assert [p.partition(":")[0] for p in process.capture().problems] == []
    process.strategy.rule = lambda x: -x
    assert [p.partition(":")[0] for p in process.capture().problems] == ["strategy.rule"]


class Proxy(ClientProxy):
    def get_properties(self, *_: Any) -> Any: ...
    def get_parameters(self, *_: Any) -> Any: ...
    def fit(self, *_: Any) -> Any: ...
    def evaluate(self, *_: Any) -> Any: ...
    def reconnect(self, *_: Any) -> Any: ...


def test_handles_of_the_running_server_are_passed_over_as_attributes() -> None:
    def run(strategy: Mine) -> None:
        strategy.manager = SimpleClientManager()
        strategy.context = Context(1, 2, {}, RecordDict(), {})

    strategy, _ = restart(lambda: Mine(manager=None), run)
    assert strategy.manager is None
    assert not hasattr(strategy, "context")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sampled", [Proxy("7"), Proxy("8")]),
        ("sampled", [(Proxy("7"), 1), (Proxy("8"), 1)]),
        ("weights", {Proxy("7"): 0.5}),
        ("proxies", {"7": Proxy("7")}),
    ],
)
def test_handles_that_somebody_collects_are_a_problem_told_once(name: str, value: Any) -> None:
    """The clients of a round: nobody makes that list again when the round is replayed."""
    strategy = Mine(**{name: type(value)()})
    recorder = StateRecorder()
    recorder.take_baseline({"strategy": strategy})
    setattr(strategy, name, value)
    (problem,) = recorder.capture({"strategy": strategy}).problems
    assert problem.startswith(f"strategy.{name}")
    assert "Proxy" in problem
    assert "exclude=" in problem


def test_own_subclasses_of_containers_keep_content_and_attributes() -> None:
    strategy, _ = restart(
        lambda: Mine(log=Log(), table=Table(a=1)),
        lambda alive: (alive.log.append(3), alive.log.__dict__.update(name="n"), alive.table.update(b=np.ones(1))),
    )
    assert (type(strategy.log), list(strategy.log), strategy.log.name) == (Log, [3], "n")
    assert (type(strategy.table), list(strategy.table)) == (Table, ["a", "b"])


class Log(list):  # type: ignore[type-arg]
    name = ""


class Table(dict):  # type: ignore[type-arg]
    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError("not like this")


def test_deep_nesting_is_limited_by_memory_alone() -> None:
    def nest(levels: int) -> list[Any]:
        held: list[Any] = [np.arange(2)]
        for _ in range(levels):
            held = [held]
        return held

    strategy, _ = restart(lambda: Mine(held=None), lambda alive: setattr(alive, "held", nest(100_000)))
    held, levels = strategy.held, 0
    while isinstance(held[0], list):
        held, levels = held[0], levels + 1
    assert (levels, held[0].tolist()) == (100_000, [0, 1])
    while strategy.held:  # or else the interpreter recurses to free it
        strategy.held = strategy.held[0] if isinstance(strategy.held[0], list) else None


def test_a_chain_of_a_thousand_objects_is_walked() -> None:
    def make() -> Mine:
        head = Helper()
        for _ in range(5000):
            head = Helper(head)
        return Mine(head=head, seen=0)

    def last(strategy: Mine) -> Helper:
        helper: Helper = strategy.head
        while isinstance(helper.value, Helper):
            helper = helper.value
        return helper

    strategy, _ = restart(make, lambda alive: setattr(last(alive), "value", "end"))
    assert last(strategy).value == "end"


def test_many_small_values_come_back() -> None:
    table = {f"client-{index}": (index, index / 7) for index in range(20_000)}
    strategy, _ = restart(lambda: Mine(table={}), lambda alive: alive.table.update(table))
    assert strategy.table == table


def test_dictionaries_keyed_by_node_ids_are_found() -> None:
    ids = {2**63 + 1: 0.5, 7: 0.25}
    tree = (
        Process(Mine(weights=dict(ids), empty={}, other={7: 1, 8: 2}, inner=Mine(by_cid={"a": {7: 1}}))).capture().tree
    )
    tree = json.loads(json.dumps(tree))
    found = dicts_keyed_by(tree, [7, 2**63 + 1])
    assert found == {"strategy.weights": list(ids), "strategy.inner.by_cid['a']": [7]}
    assert list(dicts_keyed_by(tree, ["a"])) == ["strategy.inner.by_cid"]


def test_the_inventory_sums_up() -> None:
    moments = {f"layer{index}": np.zeros(128) for index in range(200)}
    snapshot = Process(Mine(m_t=moments, rng=np.random.default_rng(), ready=Ready())).capture()
    lines = [line for line in snapshot.inventory if not line.startswith("strategy: ")]
    assert lines[0] == "strategy.m_t: 200 arrays, 200.0 KiB"
    assert any(line.startswith("strategy.rng: ") for line in lines)
    assert any(line.startswith("strategy.ready: ") for line in lines)


def test_the_baseline_is_one_object_for_all_snapshots() -> None:
    process = Process(Mine(weights=np.ones(3)))
    assert process.capture().baseline is process.capture().baseline
    assert "blob" not in json.dumps(process.capture().baseline)


def test_objects_of_other_packages_are_not_walked() -> None:
    recorder = StateRecorder()
    strategy = Mine(parser=json.JSONDecoder(), counter=collections.Counter("aab"))
    recorder.take_baseline({"strategy": strategy})
    snapshot = recorder.capture({"strategy": strategy})
    assert stored(snapshot).read == {}
    assert any(line.startswith("strategy.parser: ") for line in snapshot.inventory)
