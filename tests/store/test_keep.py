"""What retention policies choose."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flwr_ckpt.store import Keep, KeepAll, KeepBest, KeepEvery, KeepLatest, parse_keep


@dataclass(frozen=True)
class Finished:
    round: int
    metrics: dict[str, Any] = field(default_factory=dict)


def scored(*values: object, metric: str = "evaluate/loss") -> list[Finished]:
    """Rounds 0, 1, … with the given values; None stands for a round without the metric."""
    return [Finished(number, {} if value is None else {metric: value}) for number, value in enumerate(values)]


def best(n: int, mode: str, *values: object) -> set[int]:
    return KeepBest(n, "evaluate/loss", mode).select(scored(*values))  # type: ignore[arg-type]


def test_latest_keeps_the_highest_numbers_in_whatever_order_they_come() -> None:
    rounds = [Finished(number) for number in (7, 0, 9, 8, 3)]
    assert KeepLatest(2).select(rounds) == {8, 9}
    assert KeepLatest(9).select(rounds) == {0, 3, 7, 8, 9}
    assert KeepLatest(1).select([]) == set()


def test_every_keeps_multiples_and_round_zero() -> None:
    assert KeepEvery(5).select([Finished(number) for number in range(12)]) == {0, 5, 10}


def test_all_keeps_all() -> None:
    assert KeepAll().select(scored(1.0, None, 2.0)) == {0, 1, 2}


@pytest.mark.parametrize(("mode", "expected"), [("min", {1, 3}), ("max", {0, 2})])
def test_best_follows_the_mode(mode: str, expected: set[int]) -> None:
    assert best(2, mode, 0.9, 0.1, 0.8, 0.2) == expected


def test_best_of_zero_is_a_score() -> None:
    assert best(1, "min", 5.0, 0.0, 5.0) == {1}


def test_nan_ranks_below_every_number_and_blocks_none() -> None:
    assert best(1, "min", math.nan, 7.0) == {1}
    assert best(1, "max", math.nan, -math.inf) == {1}
    assert best(2, "max", math.nan, 3.0) == {0, 1}
    assert best(1, "min", math.nan, math.nan) == {1}


def test_the_later_round_wins_a_tie() -> None:
    assert best(1, "min", 1.0, 1.0, 2.0, 1) == {3}
    assert best(1, "max", -0.0, 0.0) == {1}


def test_what_is_no_number_is_never_best() -> None:
    assert best(5, "max", None, [1.0], "9", True, b"9", 1) == {5}


def test_whole_numbers_are_compared_exactly() -> None:
    assert best(1, "max", 2**53, 2**53 + 1, 2**53) == {1}
    assert best(1, "min", 10**400, 1.0) == {1}


def test_joined_policies_keep_what_any_keeps() -> None:
    rounds = scored(0.1, 0.5, 0.4, 0.3, 0.2)
    keep = KeepLatest(1) | KeepBest(1, "evaluate/loss", "min") | KeepEvery(2)
    assert keep.select(rounds) == {0, 2, 4}


def test_joining_is_associative() -> None:
    a, b, c = KeepLatest(1), KeepEvery(2), KeepAll()
    assert (a | b) | c == a | (b | c)
    assert hash((a | b) | c) == hash(a | (b | c))


def test_joining_with_something_else_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        KeepLatest(1) | 3  # type: ignore[operator]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: KeepLatest(0), "KeepLatest"),
        (lambda: KeepLatest(-1), "KeepLatest"),
        (lambda: KeepLatest(True), "KeepLatest"),
        (lambda: KeepLatest(1.5), "KeepLatest"),  # type: ignore[arg-type]
        (lambda: KeepEvery(0), "KeepEvery"),
        (lambda: KeepBest(0, "evaluate/loss", "min"), "KeepBest"),
        (lambda: KeepBest(1, "", "min"), "metric"),
        (lambda: KeepBest(1, "evaluate/loss", "least"), "'least'"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments_are_value_errors(make: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()


def test_parse_reads_all_kinds() -> None:
    assert parse_keep("latest:3|best:2:evaluate/loss:min|every:10|all") == (
        KeepLatest(3) | KeepBest(2, "evaluate/loss", "min") | KeepEvery(10) | KeepAll()
    )
    assert parse_keep(" latest:3 | all ") == KeepLatest(3) | KeepAll()
    assert parse_keep("best:1:central/a:b c:max") == KeepBest(1, "central/a:b c", "max")
    assert parse_keep("best:1:central/top5%:max") == KeepBest(1, "central/top5%", "max")


@pytest.mark.parametrize(
    "text",
    [
        *("", "|", "latest", "latest:", "latest:0", "latest:-1", "latest:x", "latest:1.5", "latest:²", "latest:3|"),
        *("best:2", "best:2:evaluate/loss", "best:2::min", "best:0:m:min", "best:x:m:min", "best:2:m:least"),
        *("every:0", "every", "all:3", "ALL", "newest:3"),
    ],
)
def test_parse_names_what_it_cannot_read(text: str) -> None:
    with pytest.raises(ValueError, match="cannot read '") as caught:
        parse_keep(text)
    assert repr(text) in str(caught.value)


_SIMPLE: st.SearchStrategy[Keep] = st.one_of(
    st.builds(KeepLatest, st.integers(1, 99)),
    st.builds(KeepEvery, st.integers(1, 99)),
    st.builds(KeepAll),
    st.builds(
        KeepBest,
        st.integers(1, 9),
        st.text(st.sampled_from("ab/:|% 7C25-"), min_size=1).map(lambda text: f"train/{text}."),
        st.sampled_from(["min", "max"]),
    ),
)


@given(st.lists(_SIMPLE, min_size=1, max_size=4))
def test_text_of_a_policy_reads_back_as_it(policies: list[Keep]) -> None:
    keep = policies[0]
    for policy in policies[1:]:
        keep = keep | policy
    assert parse_keep(str(keep)) == keep
