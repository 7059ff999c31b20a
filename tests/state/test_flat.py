"""What is captured without a walk is what a walk would have found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord
from restarts import Plain, Process

from flwr_ckpt.state import encode


def kept(metrics: list[Any]) -> list[Any]:
    return metrics


def dropped(metrics: list[Any]) -> list[Any]:
    return metrics[:0]


class Flat(Plain):
    """A strategy without arrays or objects of its own."""


def process() -> Process:
    strategy = Flat(eta=0.5, patience=3, name="digits", weight=kept, nothing=None, exact=True)
    return Process(strategy, {"train_config": ConfigRecord({"lr": 0.1, "server-round": 1})})


def set_(name: str, value: object) -> Callable[[Process], None]:
    return lambda process: setattr(process.strategy, name, value)


def configure(**values: Any) -> Callable[[Process], None]:
    return lambda process: process.roots["train_config"].update(values)


PLAIN = {
    "nothing": lambda process: None,
    "a number": set_("eta", 0.25),
    "another type": set_("patience", True),
    "a number for none": set_("nothing", 7),
    "a text": set_("name", "ünïcode"[1:2]),
    "a round in a config": configure(lr=0.05),
}
MORE = {
    "not a number": set_("eta", float("nan")),
    "a list": set_("patience", [3]),
    "an array": set_("patience", np.arange(3)),
    "another function": set_("weight", dropped),
    "none for a function": set_("weight", None),
    "a new attribute": set_("late", 1),
    "a removed attribute": lambda process: delattr(process.strategy, "name"),
    "a list in a config": configure(lrs=[0.1, 0.2]),
    "another config": lambda process: process.roots.update(train_config=ConfigRecord({"lr": 1.0})),
    "another order": lambda process: process.roots["train_config"].update(lr=process.roots["train_config"].pop("lr")),
}


@pytest.mark.parametrize("change", {**PLAIN, **MORE})
def test_a_change_is_captured_as_a_first_capture_would(change: str) -> None:
    first = process()
    first.capture()
    {**PLAIN, **MORE}[change](first)
    now = first.capture()
    walked = Process(first.strategy, first.roots).capture()
    assert repr(now.tree) == repr(walked.tree)
    assert [blob.name for blob in now.blobs] == [blob.name for blob in walked.blobs]


@pytest.mark.parametrize("change", PLAIN)
def test_plain_values_are_captured_without_a_walk(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = process()
    first.capture()
    PLAIN[change](first)
    walks: list[object] = []
    monkeypatch.setattr(encode.Encoder, "encode", lambda self, roots: walks.append(roots))
    first.capture()
    assert not walks


def test_what_was_captured_does_not_change_with_what_is_captured_later() -> None:
    first = process()
    before = first.capture()
    shown = repr(before.tree)
    for number in range(3):
        first.strategy.eta = float(number)
        first.roots["train_config"]["server-round"] = number
        first.capture()
    assert repr(before.tree) == shown


def test_an_attribute_that_became_unstorable_is_told_of_each_time() -> None:
    first = process()
    first.capture()
    first.strategy.weight = lambda metrics: metrics
    assert all("strategy.weight" in first.capture().problems[0] for _ in range(3))
    first.strategy.weight = kept
    assert first.capture().problems == ()
