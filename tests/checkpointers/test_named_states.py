"""Named states: what comes back, what is refused, what survives damage, kills and a second server."""

from __future__ import annotations

import collections
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.common import ndarrays_to_parameters
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_zoo import Unusual, same

from flwr_ckpt import CheckpointCorruptError, CheckpointNotFoundError, CheckpointStore, FencedError
from flwr_ckpt.checkpointers import PerRoundStateCheckpointer

NAME = "server_state.pt"


def files(folder: Path, pattern: str) -> list[Path]:
    return sorted((folder / "states" / NAME).glob(pattern))


def test_a_training_state_comes_back(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 5])
    PerRoundStateCheckpointer(tmp_path).save_checkpoint(
        NAME, {"model": model, "optimizer": optimizer, "scheduler": scheduler, "current_round": 3}
    )

    state = PerRoundStateCheckpointer(tmp_path).load_checkpoint(NAME)

    assert list(state) == ["model", "optimizer", "scheduler", "current_round"]
    assert same(state["model"], model.state_dict())
    assert state["scheduler"] == scheduler.state_dict()
    assert state["current_round"] == 3
    target = torch.optim.Adam(model.parameters(), lr=0.5)
    target.load_state_dict(state["optimizer"])
    assert target.param_groups[0]["lr"] == 0.1
    for parameter in model.parameters():
        assert torch.equal(target.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])


def test_every_kind_of_tensor_comes_back(tmp_path: Path) -> None:
    model = Unusual()
    PerRoundStateCheckpointer(tmp_path).save_checkpoint(NAME, {"model": model, "loose": model.brief.detach()})
    state = PerRoundStateCheckpointer(tmp_path).load_checkpoint(NAME)
    assert same(state["model"], model.state_dict())
    assert same({"loose": state["loose"]}, {"loose": model.brief.detach()})
    state["loose"][0] = 7  # it is the caller's own


def test_modules_deep_inside_come_back_as_state_dicts(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    PerRoundStateCheckpointer(tmp_path).save_checkpoint(NAME, {"parts": [{"head": model}, (model, 1)]})
    state = PerRoundStateCheckpointer(tmp_path).load_checkpoint(NAME)
    assert same(state["parts"][0]["head"], model.state_dict())
    assert same(state["parts"][1][0], model.state_dict())
    assert state["parts"][1][1] == 1


def test_flower_parameters_and_records_keep_type_and_bytes(tmp_path: Path) -> None:
    parameters = ndarrays_to_parameters([np.arange(3.0), np.array(["a", "b"]), np.float64(1.5).reshape(())])
    record = ArrayRecord({"weight": Array(np.asfortranarray(np.ones((2, 3))))})
    PerRoundStateCheckpointer(tmp_path).save_checkpoint(NAME, {"server_parameters": parameters, "record": record})
    state = PerRoundStateCheckpointer(tmp_path).load_checkpoint(NAME)
    assert state["server_parameters"] == parameters
    assert state["record"] == record


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=st.dictionaries(st.text(max_size=6), _values, max_size=4))
def test_plain_values_come_back_equal_by_repr(tmp_path: Path, state: dict[str, Any]) -> None:
    checkpointer = PerRoundStateCheckpointer(tmp_path)
    checkpointer.save_checkpoint(NAME, state)
    assert repr(checkpointer.load_checkpoint(NAME)) == repr(state)


def test_an_empty_state_is_a_state(tmp_path: Path) -> None:
    checkpointer = PerRoundStateCheckpointer(tmp_path)
    checkpointer.save_checkpoint(NAME, {})
    assert checkpointer.checkpoint_exists(NAME)
    assert checkpointer.load_checkpoint(NAME) == {}


def test_what_was_saved_is_what_stood_then(tmp_path: Path) -> None:
    checkpointer, array, counter = PerRoundStateCheckpointer(tmp_path), np.zeros(3), collections.Counter("aab")
    checkpointer.save_checkpoint(NAME, {"array": array, "counter": counter})
    array += 1
    counter.clear()
    state = checkpointer.load_checkpoint(NAME)
    assert state["array"].tolist() == [0.0, 0.0, 0.0]
    assert state["counter"] == collections.Counter("aab")


# --- what is refused -------------------------------------------------------------------------------------------------


def _contains_itself() -> object:
    value: list[object] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [lambda: 0, object(), np.array([object()]), torch.eye(2).to_sparse(), open, [{"deep": object()}]],
    ids=["function", "object", "objects", "sparse", "builtin", "deep"],
)
def test_what_cannot_be_stored_is_named_and_nothing_is_saved(tmp_path: Path, value: object) -> None:
    checkpointer = PerRoundStateCheckpointer(tmp_path)
    with pytest.raises(TypeError, match=r"state\['culprit'\]"):
        checkpointer.save_checkpoint(NAME, {"fine": 1, "culprit": value})
    assert not list(tmp_path.iterdir())
    checkpointer.save_checkpoint(NAME, {"fine": 1})
    assert checkpointer.load_checkpoint(NAME) == {"fine": 1}


def test_a_state_that_contains_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="contains itself"):
        PerRoundStateCheckpointer(tmp_path).save_checkpoint(NAME, {"culprit": _contains_itself()})


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../other", "/absolute", "two words", "round-1", "s3://x/y"])
def test_what_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    checkpointer = PerRoundStateCheckpointer(tmp_path)
    for use in (lambda: checkpointer.save_checkpoint(name, {}), lambda: checkpointer.load_checkpoint(name)):
        with pytest.raises(ValueError, match="cannot name a state"):
            use()
    with pytest.raises(ValueError, match="cannot name a state"):
        checkpointer.checkpoint_exists(name)
    assert not list(tmp_path.iterdir())


def test_states_are_kept_on_a_disk() -> None:
    with pytest.raises(ValueError, match="named states are kept in a folder on a disk"):
        PerRoundStateCheckpointer("s3://bucket/states")


def test_a_path_into_the_folder_is_no_name(tmp_path: Path) -> None:
    checkpointer = PerRoundStateCheckpointer(tmp_path)
    with pytest.raises(ValueError, match="it is a path"):
        checkpointer.checkpoint_exists(str(tmp_path / "states" / NAME))


# --- looking, saving again -------------------------------------------------------------------------------------------


def test_nothing_there_is_said_and_nothing_is_made(tmp_path: Path) -> None:
    checkpointer = PerRoundStateCheckpointer(tmp_path / "missing")
    assert not checkpointer.checkpoint_exists(NAME)
    with pytest.raises(CheckpointNotFoundError, match=NAME):
        checkpointer.load_checkpoint(NAME)
    assert not list(tmp_path.iterdir())


def test_names_are_kept_apart(tmp_path: Path) -> None:
    checkpointer = PerRoundStateCheckpointer(str(tmp_path))
    checkpointer.save_checkpoint("one", {"round": 1})
    checkpointer.save_checkpoint("two", {"round": 2})
    assert checkpointer.load_checkpoint("one") == {"round": 1}
    assert checkpointer.load_checkpoint("two") == {"round": 2}


def test_the_newest_counts_and_old_ones_go(tmp_path: Path) -> None:
    for restart in range(3):
        checkpointer = PerRoundStateCheckpointer(tmp_path)
        for save in range(4):
            checkpointer.save_checkpoint(NAME, {"restart": restart, "save": save, "model": torch.randn(5)})
    assert checkpointer.load_checkpoint(NAME)["save"] == 3
    assert len(files(tmp_path, "round-*")) == 2
    assert len(files(tmp_path, "round-*/*")) == 4
    assert len(files(tmp_path, "generations/*")) == 1


def test_a_relative_folder_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    checkpointer = PerRoundStateCheckpointer("folder")
    monkeypatch.chdir(tmp_path)
    checkpointer.save_checkpoint(NAME, {"round": 1})
    assert (tmp_path / "here" / "folder" / "states" / NAME).is_dir()
    assert checkpointer.checkpoint_dir == Path("folder")


def test_a_state_can_be_looked_at_as_any_run(tmp_path: Path) -> None:
    PerRoundStateCheckpointer(tmp_path).save_checkpoint(NAME, {"model": torch.nn.Linear(1, 1), "round": 7})
    store = CheckpointStore(str(tmp_path / "states" / NAME))
    assert [record.round for record in store.rounds()] == [1]
    assert all(result.ok for result in store.verify())
    assert "'round': 7" in str(store.load().state)


# --- damage, kills, and two servers ----------------------------------------------------------------------------------


def _damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _saved_twice(folder: Path) -> None:
    checkpointer = PerRoundStateCheckpointer(folder)
    for number in (1, 2):
        checkpointer.save_checkpoint(NAME, {"number": number, "array": np.arange(4.0)})


@pytest.mark.parametrize("what", ["manifest", "safetensors"])
def test_a_damaged_state_falls_back_to_the_one_before(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    _saved_twice(tmp_path)
    _damage(files(tmp_path, f"round-*2/*.{what}")[0])
    restarted = PerRoundStateCheckpointer(tmp_path)
    assert restarted.load_checkpoint(NAME)["number"] == 1
    assert any(record.levelno == logging.WARNING for record in caplog.records)
    restarted.save_checkpoint(NAME, {"number": 3})
    assert PerRoundStateCheckpointer(tmp_path).load_checkpoint(NAME) == {"number": 3}


@pytest.mark.parametrize("what", ["manifest", "safetensors"])
def test_when_nothing_is_sound_that_is_no_fresh_start(tmp_path: Path, what: str) -> None:
    _saved_twice(tmp_path)
    for path in files(tmp_path, f"round-*/*.{what}"):
        _damage(path)
    restarted = PerRoundStateCheckpointer(tmp_path)
    assert restarted.checkpoint_exists(NAME)
    with pytest.raises(CheckpointCorruptError, match=NAME):
        restarted.load_checkpoint(NAME)


@pytest.mark.parametrize("operation", ["mkdir", "open", "writev", "fsync", "link", "unlink"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_killed_while_saving_leaves_the_old_state_or_the_new_one(tmp_path: Path, operation: str, count: int) -> None:
    checkpointer = PerRoundStateCheckpointer(tmp_path)
    checkpointer.save_checkpoint(NAME, {"number": 1, "array": np.arange(4.0)})
    child = os.fork()
    if not child:
        _kill_at(operation, count)
        PerRoundStateCheckpointer(tmp_path).save_checkpoint(NAME, {"number": 2, "array": np.arange(4.0)})
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    restarted = PerRoundStateCheckpointer(tmp_path)
    assert restarted.load_checkpoint(NAME)["number"] in ((2,) if status == 0 else (1, 2))
    restarted.save_checkpoint(NAME, {"number": 3})
    assert restarted.load_checkpoint(NAME) == {"number": 3}


def _kill_at(operation: str, count: int) -> None:
    real, calls = getattr(os, operation), iter(range(1, 1_000_000))

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == count:
            os._exit(9)
        return real(*args, **kwargs)

    setattr(os, operation, call)


def test_a_full_disk_leaves_what_was_saved_and_the_next_save_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    checkpointer = PerRoundStateCheckpointer(tmp_path)
    checkpointer.save_checkpoint(NAME, {"number": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", fail)
        with pytest.raises(OSError, match="No space left"):
            checkpointer.save_checkpoint(NAME, {"number": 2})
    assert checkpointer.load_checkpoint(NAME) == {"number": 1}
    checkpointer.save_checkpoint(NAME, {"number": 3})
    assert PerRoundStateCheckpointer(tmp_path).load_checkpoint(NAME) == {"number": 3}


def test_an_orphan_cannot_destroy_what_its_successor_saved(tmp_path: Path) -> None:
    orphan, successor = PerRoundStateCheckpointer(tmp_path), PerRoundStateCheckpointer(tmp_path)
    orphan.save_checkpoint(NAME, {"by": "orphan"})
    successor.save_checkpoint(NAME, {"by": "successor"})
    with pytest.raises(FencedError):
        orphan.save_checkpoint(NAME, {"by": "orphan"})
    assert successor.load_checkpoint(NAME) == {"by": "successor"}
    successor.save_checkpoint(NAME, {"by": "successor again"})
    assert orphan.load_checkpoint(NAME) == {"by": "successor again"}


def test_a_forked_child_takes_the_name_over(tmp_path: Path) -> None:
    checkpointer = PerRoundStateCheckpointer(tmp_path)
    checkpointer.save_checkpoint(NAME, {"by": "parent"})
    child = os.fork()
    if not child:
        try:
            checkpointer.save_checkpoint(NAME, {"by": "child"})
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert checkpointer.load_checkpoint(NAME) == {"by": "child"}
    with pytest.raises(FencedError):
        checkpointer.save_checkpoint(NAME, {"by": "parent"})
