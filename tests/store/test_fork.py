"""A new run out of a round of another: self-contained, by the ordinary protocol."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from run_rig import (
    Countdown,
    Kill,
    KilledError,
    Place,
    WatchedFiles,
    files_in,
    flip,
    initial,
    later,
    model,
    opened,
    reader,
    run_to,
    seen,
    train,
)

from flwr_ckpt.store import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointNotFoundError,
    CheckpointStore,
    FencedError,
    KeepLatest,
)
from flwr_ckpt.store.commands.fork import fork
from flwr_ckpt.store.places.local_files import LocalFiles


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return tmp_path / "new"


def test_a_fork_goes_on_from_its_round_and_leaves_the_other_alone(run: Path, new: Path) -> None:
    run_to(opened(run), 4)
    before = files_in(run)
    forked = CheckpointStore(run).fork(new, 2)
    assert seen(new) == (2, "evaluate", 2)
    assert [record.round for record in forked.rounds()] == [2]
    assert list(forked.history()["train/seen"].values()) == [1, 2]
    run_to(opened(new), 5, first=3)
    assert seen(new) == (5, "evaluate", 5)
    assert (seen(run), files_in(run)) == ((4, "evaluate", 4), before)


def test_a_fork_is_of_the_newest_round_if_none_is_named(run: Path, new: Path) -> None:
    run_to(opened(run), 3)
    CheckpointStore(run).fork(new)
    assert seen(new) == (3, "evaluate", 3)


def test_a_fork_needs_nothing_of_the_other_run(run: Path, new: Path) -> None:
    writer = opened(run)
    writer.commit(initial(arrays=model(0, ["frozen"]), documents={"tree": 0, "large": "x" * 20_000}))
    for server_round in range(1, 70):  # more than the history keeps in a manifest
        writer.commit(train(server_round, arrays=model(server_round, ["frozen"])))
    whole = reader(run).resume()
    CheckpointStore(run).fork(new)
    shutil.rmtree(run)
    loaded = reader(new).resume()
    assert whole is not None
    assert loaded is not None
    assert (loaded.arrays, loaded.state, loaded.documents) == (whole.arrays, whole.state, whole.documents)
    assert loaded.outcomes == whole.outcomes
    assert all(result.ok for result in CheckpointStore(new).verify())


def test_a_fork_of_a_fork_and_of_a_resumed_run(run: Path, new: Path, tmp_path: Path) -> None:
    for last in (1, 2, 3):
        writer = opened(run)
        run_to(writer, last, first=last)
    CheckpointStore(run).fork(new)
    CheckpointStore(new).fork(tmp_path / "third")
    assert seen(tmp_path / "third") == (3, "evaluate", 3)
    commit = reader(new).newest()
    assert commit is not None
    assert [span.generation for span in commit.line] == [1]
    assert commit.parent is None


def test_space_is_shared_where_there_are_hard_links(run: Path, new: Path) -> None:
    run_to(opened(run), 1)
    CheckpointStore(run).fork(new)
    assert (new / "round-00000001/g0001-arrays.safetensors").stat().st_nlink == 2


def test_a_fork_is_copied_where_there_are_no_hard_links(run: Path, new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_to(opened(run), 2)

    def link(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    CheckpointStore(run).fork(new)
    assert (new / "round-00000002/g0001-arrays.safetensors").stat().st_nlink == 1
    assert seen(new) == (2, "evaluate", 2)


def test_what_is_there_is_never_forked_over(run: Path, new: Path) -> None:
    run_to(opened(run), 2)
    server = opened(new)
    run_to(server, 1)
    with pytest.raises(CheckpointError, match="there is a run already"):
        CheckpointStore(run).fork(new)
    server.commit(train(2))
    flip(new / "round-00000000/g0001-initial.manifest")
    for manifest in new.glob("round-*/*.manifest"):
        flip(manifest)
    with pytest.raises(CheckpointError, match="there is a run already"):
        CheckpointStore(run).fork(new)


def test_a_removed_run_makes_room_for_a_fork(run: Path, new: Path) -> None:
    run_to(opened(run), 2)
    run_to(opened(new), 1)
    CheckpointStore(new).remove()
    CheckpointStore(run).fork(new, 1)
    assert seen(new) == (1, "evaluate", 1)


def test_a_round_that_is_not_there_or_damaged_makes_nothing(run: Path, new: Path) -> None:
    run_to(opened(run), 2)
    flip(run / "round-00000001/g0001-arrays.safetensors")
    with pytest.raises(CheckpointNotFoundError, match="no round 9"):
        CheckpointStore(run).fork(new, 9)
    with pytest.raises(CheckpointCorruptError):
        CheckpointStore(run).fork(new, 1)
    assert not new.exists()


def test_a_run_cannot_be_forked_into_itself(run: Path) -> None:
    run_to(opened(run), 2)
    with pytest.raises(ValueError, match="inside the run"):
        CheckpointStore(run).fork(run / "inner")


def test_a_server_that_opens_the_new_run_meanwhile_wins(run: Path, new: Path) -> None:
    run_to(opened(run), 2)
    loaded = reader(run).resume()
    assert loaded is not None
    files = WatchedFiles(new)

    def take_over(operation: str, key: str) -> None:
        if operation == "link" and key.endswith("manifest"):
            files.before = lambda operation, key: None
            opened(new)

    files.before = take_over
    with pytest.raises(FencedError):
        fork(loaded, LocalFiles(run), Place(new), files)


@pytest.mark.usefixtures("patient_disk")
def test_a_kill_at_any_moment_of_a_fork(run: Path, tmp_path: Path) -> None:
    """The round is there, or there is no run yet and the same command makes it."""
    run_to(opened(run), 2)
    loaded = reader(run).resume()
    assert loaded is not None
    at, finished, found = 0, False, set()
    while not finished:
        new = tmp_path / str(at)
        try:
            fork(loaded, LocalFiles(run), Place(new), WatchedFiles(new, Kill(at)))
            finished = True
        except KilledError:
            pass
        found.add(seen(new))
        if seen(new) is None:
            fork(loaded, LocalFiles(run), Place(new), LocalFiles(new))
        assert seen(new) == (2, "evaluate", 2)
        at += 1
    assert found == {None, (2, "evaluate", 2)}


@pytest.mark.usefixtures("patient_disk")
def test_a_fork_at_any_moment_of_a_servers_round(tmp_path: Path) -> None:
    at, reached = 0, True
    while reached:
        run, new = tmp_path / f"run-{at}", tmp_path / f"new-{at}"
        files = WatchedFiles(run)
        server = opened(run, KeepLatest(1), files=files)
        run_to(server, 2)
        done = []

        def copy(run: Path = run, new: Path = new, done: list[object] = done) -> None:
            try:
                done.append(CheckpointStore(run).fork(new))
            except (CheckpointNotFoundError, CheckpointCorruptError) as error:
                done.append(error)

        files.before = countdown = Countdown(at, copy)
        server.commit(train(3))
        server.commit(later(3))
        server.retain()
        reached = countdown.count > at
        assert seen(run) == (3, "evaluate", 3), "a fork fences nobody"
        if reached:
            assert isinstance(done[0], CheckpointStore), done[0]
            assert seen(new) in ((2, "evaluate", 2), (3, "train", 3), (3, "evaluate", 3))
        at += 1
