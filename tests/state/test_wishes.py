"""Whose value stands after a restart: the run's, or the one the user gives now."""

from __future__ import annotations

import collections
import math
import uuid
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord
from restarts import Plain, Process, died, restart, resume

from flwr_ckpt.state import StateRecorder
from flwr_ckpt.store.errors import CheckpointError


def set_to(**values: Any) -> Any:
    return lambda strategy: strategy.__dict__.update(values)


def test_a_learning_rate_that_the_run_has_decayed_is_put_back() -> None:
    strategy, warnings = restart(lambda: Plain(lr=0.1, mu=1.0), set_to(lr=0.05))
    assert (strategy.lr, strategy.mu, warnings) == (0.05, 1.0, [])


def test_a_learning_rate_that_the_user_gives_anew_stands_and_both_are_shown() -> None:
    state = died(lambda: Plain(lr=0.1), set_to(lr=0.05))
    strategy, warnings = resume(lambda: Plain(lr=0.2), state)
    assert strategy.lr == 0.2
    (warning,) = warnings
    assert warning.startswith("strategy.lr: 0.2")
    assert "0.05" in warning


def test_the_baseline_belongs_to_the_process_that_stored() -> None:
    first = died(lambda: Plain(lr=0.1), set_to(lr=0.05))
    second = Process(Plain(lr=0.2))
    second.resume(first)
    second.strategy.lr = 0.1
    third, warnings = resume(lambda: Plain(lr=0.2), second.save())
    assert (third.lr, warnings) == (0.1, [])


def test_a_value_that_the_run_left_alone_is_the_users() -> None:
    strategy, warnings = resume(lambda: Plain(mu=2.0), died(lambda: Plain(mu=1.0), set_to()))
    assert (strategy.mu, warnings) == (2.0, [])


def test_no_warning_where_the_user_gives_what_the_run_came_to() -> None:
    strategy, warnings = resume(lambda: Plain(lr=0.05), died(lambda: Plain(lr=0.1), set_to(lr=0.05)))
    assert (strategy.lr, warnings) == (0.05, [])


def test_a_value_that_is_new_in_every_process_does_not_take_its_neighbours_along() -> None:
    def make() -> Plain:
        return Plain(info={"run_id": uuid.uuid4(), "patience": 3})

    strategy, warnings = restart(make, lambda alive: alive.info.update(patience=1))
    assert strategy.info["patience"] == 1
    assert warnings == []


@pytest.mark.parametrize(
    ("before", "after"),
    [(1, True), (1, 1.0), (0.0, -0.0), ([1], [1.0]), (1.0, np.float64(1.0)), ({}, None), ((1,), [1])],
)
def test_a_change_of_type_or_sign_is_a_change(before: Any, after: Any) -> None:
    strategy, _ = restart(lambda: Plain(value=before), set_to(value=after))
    assert (type(strategy.value), repr(strategy.value)) == (type(after), repr(after))


def test_nan_is_the_same_as_nan() -> None:
    strategy, warnings = restart(lambda: Plain(best=math.nan), set_to(best=0.5))
    assert (strategy.best, warnings) == (0.5, [])


def test_arrays_are_state_even_if_they_never_change() -> None:
    made = iter([np.array([1.0]), np.array([2.0])])
    strategy, _ = restart(lambda: Plain(matrix=next(made)), set_to())
    assert strategy.matrix.tolist() == [1.0]


def test_arrays_in_lists_are_put_back_beside_plain_values() -> None:
    made = iter([1.0, 2.0])
    strategy, _ = restart(lambda: Plain(pair=[np.array([next(made)]), "lr", 0.5]), set_to())
    assert strategy.pair[0].tolist() == [1.0]


def test_dictionaries_are_put_back_key_by_key_into_the_one_that_others_hold() -> None:
    shared: list[dict[str, Any]] = []

    def make() -> Plain:
        shared.append({"lr": 0.1, "mu": 1, "old": 1})
        return Plain(options=shared[-1])

    def run(strategy: Plain) -> None:
        del strategy.options["old"]
        strategy.options["lr"] = 0.05
        strategy.options["seen"] = np.arange(2)

    strategy, warnings = restart(make, run)
    assert strategy.options is shared[-1]
    assert list(strategy.options) == ["lr", "mu", "seen"]
    assert strategy.options["lr"] == 0.05
    assert warnings == []


def test_the_order_of_a_dictionary_is_that_of_the_run() -> None:
    def run(strategy: Plain) -> None:
        strategy.options["a"] = strategy.options.pop("a")

    strategy, _ = restart(lambda: Plain(options={"a": 1, "b": 2}), run)
    assert list(strategy.options) == ["b", "a"]


def test_a_list_is_put_back_whole_into_the_one_that_others_hold() -> None:
    shared: list[list[int]] = []

    def make() -> Plain:
        shared.append([1, 2])
        return Plain(history=shared[-1])

    strategy, _ = restart(make, lambda alive: alive.history.append(3))
    assert strategy.history == [1, 2, 3]
    assert strategy.history is shared[-1]


def test_two_lists_that_are_one_now_do_not_mix() -> None:
    def make() -> Plain:
        shared: list[int] = []
        return Plain(a=shared, b=shared)

    strategy, _ = restart(make, set_to(a=[1], b=[2]))
    assert (strategy.a, strategy.b) == ([1], [2])


def test_what_the_run_deleted_is_deleted_again() -> None:
    strategy, _ = restart(lambda: Plain(warm_up=3), lambda alive: alive.__dict__.pop("warm_up"))
    assert not hasattr(strategy, "warm_up")


def test_what_the_replay_has_changed_already_is_no_wish_of_the_users() -> None:
    state = died(lambda: Plain(bad=0), set_to(bad=2))
    second = Process(Plain(bad=0))
    second.strategy.bad = 1  # the user's start() counts while it is replayed
    assert second.resume(state) == []
    assert second.strategy.bad == 2


def test_configs_are_put_back_key_by_key() -> None:
    def config() -> ConfigRecord:
        return ConfigRecord({"lr": 0.1, "path": "/today", "epochs": 2})

    first = Process(Plain(), {"train_config": config()})
    first.roots["train_config"]["lr"] = 0.025
    first.roots["train_config"]["server-round"] = 2
    given = config()
    given["epochs"] = 5
    second = Process(Plain(), {"train_config": given})
    assert second.resume(first.save()) == []
    assert dict(given) == {"lr": 0.025, "path": "/today", "epochs": 5, "server-round": 2}


def test_a_config_that_is_not_seen_yet_is_passed_over() -> None:
    first = Process(Plain(), {"train_config": ConfigRecord({"lr": 0.1})})
    assert Process(Plain()).resume(first.save()) == []


def test_a_config_that_appeared_after_the_baseline_is_kept_all_the_same() -> None:
    first = Process(Plain())
    first.roots = {"train_config": ConfigRecord({"lr": 0.05})}
    given = ConfigRecord({"lr": 0.1})
    second = Process(Plain())
    second.roots = {"train_config": given}
    second.resume(first.save())
    assert dict(given) == {"lr": 0.05}


def test_numbers_given_differently_are_listed_for_a_finished_run() -> None:
    state = died(lambda: Plain(eta=0.1, name="a", on=True, seen=[]), set_to(eta=0.05))
    second = Process(Plain(eta=0.2, name="b", on=False, seen=[]))
    assert second.recorder.differences(second.all_roots(), state) == [
        "strategy.eta: 0.1 there, 0.2 here",
        "strategy.on: True there, False here",
    ]


def test_recording_needs_a_baseline() -> None:
    with pytest.raises(RuntimeError, match="take_baseline"):
        StateRecorder().capture({"strategy": Plain()})


def test_a_defaultdict_with_a_factory_of_the_users_is_filled_in_place() -> None:
    strategy, _ = restart(
        lambda: Plain(seen=collections.defaultdict(lambda: [0])), lambda alive: alive.seen["a"].append(1)
    )
    assert strategy.seen["a"] == [0, 1]
    assert strategy.seen["new"] == [0]


def test_a_damaged_tree_is_an_error_that_names_the_path() -> None:
    state = died(lambda: Plain(held=None), set_to(held=np.arange(3)))
    state.read.pop("strategy.held")  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match=r"strategy\.held"):
        resume(lambda: Plain(held=None), state)
