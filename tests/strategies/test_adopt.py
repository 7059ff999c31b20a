"""Whatever object is given becomes a checkpointing one, and stays itself."""

from __future__ import annotations

import abc
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg

from flwr_ckpt import CheckpointError, CheckpointingStrategy, CheckpointStore
from tests.lab.message import FakeGrid, average_client, initial_arrays, start, told

T = TypeVar("T")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "home" / "run"


class Slots(FedAvg):
    __slots__ = ("count",)

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        self.count += 1
        return super().aggregate_train(server_round, replies)


class Counts(FedAvg):
    count = 0

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        self.count += 1
        return super().aggregate_train(server_round, replies)


class StrictCounts(Counts):
    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise AttributeError(f"no private attributes here: {name}")
        super().__setattr__(name, value)


class Delegating(Counts):
    """Answers every unknown name."""

    def __init__(self) -> None:
        super().__init__()
        self.target = {"answer": 42}

    def __getattr__(self, name: str) -> Any:
        if name == "target" or name.startswith("__"):
            raise AttributeError(name)
        return self.target.get(name, "something")


class Typed(Counts, Generic[T]):
    pass


@dataclass(eq=False)
class Data(Counts):
    extra: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()


class Meta(abc.ABCMeta):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        instance = super().__call__(*args, **kwargs)
        instance.made_by = cls.__name__
        return instance


class WithMeta(Counts, metaclass=Meta):
    pass


class Closes(Counts):
    """Holds a closure over itself that calls its hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.again = lambda server_round, replies: self.aggregate_train(server_round, replies)

    def start(self, grid: Any, initial_arrays: ArrayRecord, num_rounds: int = 3, **kwargs: Any) -> Any:
        from flwr.app import ConfigRecord
        from flwr.serverapp.strategy import Result

        result, arrays, config = Result(), initial_arrays, ConfigRecord()
        for server_round in range(1, num_rounds + 1):
            replies = grid.send_and_receive(self.configure_train(server_round, arrays, config, grid))
            arrays, result.train_metrics_clientapp[server_round] = self.again(server_round, replies)
            result.arrays = arrays
        return result


@pytest.mark.parametrize("make", [Slots, StrictCounts, Delegating, Typed[int], Data, WithMeta, Closes])
def test_classes_as_users_write_them(make: Any, run: Path) -> None:
    strategy = make()
    kind = type(strategy)
    wrapped = CheckpointingStrategy(strategy, run)
    assert wrapped is strategy
    assert isinstance(wrapped, kind)
    first = start(wrapped, FakeGrid(average_client, 1), num_rounds=3)
    resumed = CheckpointingStrategy(make(), run)
    grid = FakeGrid(average_client, 2)
    result = start(resumed, grid, num_rounds=3, arrays=initial_arrays(7))
    assert told(result) == told(first)
    assert grid.sent == []
    assert resumed.count == 3


def test_calls_of_hooks_from_inside_pass_through(run: Path) -> None:
    class Nested(Counts):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            replies = list(replies)
            if not getattr(self, "inside", False):
                self.inside = True
                self.aggregate_train(server_round, replies)
                self.aggregate_train(0, replies)
                self.inside = False
            return super().aggregate_train(server_round, replies)

    strategy = CheckpointingStrategy(Nested(), run)
    start(strategy, FakeGrid(average_client, 1), num_rounds=3)
    assert strategy.count == 9
    assert [record.round for record in CheckpointStore(run).rounds()] == [1, 2, 3]


def test_super_of_type_self_is_explained(run: Path) -> None:
    class Recurses(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            return super(type(self), self).aggregate_train(server_round, replies)

    with pytest.raises(CheckpointError, match=r"super\(type\(self\), self\)"):
        start(CheckpointingStrategy(Recurses(), run), FakeGrid(average_client, 1))


def test_a_class_that_cannot_be_subclassed_is_refused_by_name(run: Path) -> None:
    class Picky(FedAvg):
        def __init_subclass__(cls, *, flavour: str) -> None:
            super().__init_subclass__()

    with pytest.raises(TypeError, match=r"Picky cannot be subclassed.*flavour"):
        CheckpointingStrategy(Picky(), run)


def test_an_attribute_that_hides_a_hook_is_refused(run: Path) -> None:
    strategy = FedAvg()
    strategy.aggregate_train = lambda server_round, replies: (None, None)  # type: ignore[method-assign]
    with pytest.raises(TypeError, match="aggregate_train"):
        CheckpointingStrategy(strategy, run)


def test_a_method_stored_before_wrapping_is_noticed(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    strategy = FedAvg()
    strategy.old = strategy.aggregate_train  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING, "flwr"):
        CheckpointingStrategy(strategy, run)
    assert "strategy.old holds the method aggregate_train as it was before wrapping" in caplog.text


class TwoCalls(FedAvg):
    """A ``start()`` that calls a hook twice in a round."""

    twice = "aggregate_train"

    def start(self, grid: Any, initial_arrays: ArrayRecord, **kwargs: Any) -> Any:
        from flwr.app import ConfigRecord

        config = ConfigRecord()
        messages = self.configure_train(1, initial_arrays, config, grid)
        replies = list(grid.send_and_receive(messages))
        self.aggregate_train(1, replies)
        if self.twice == "aggregate_train":
            self.aggregate_train(1, replies)
        self.configure_train(1, initial_arrays, config, grid)


@pytest.mark.parametrize("twice", ["aggregate_train", "configure_train"])
def test_a_hook_called_twice_in_a_round_is_an_error(twice: str, run: Path) -> None:
    strategy = TwoCalls()
    strategy.twice = twice
    with pytest.raises(CheckpointError, match=f"{twice} was called"):
        start(CheckpointingStrategy(strategy, run), FakeGrid(average_client, 1))
