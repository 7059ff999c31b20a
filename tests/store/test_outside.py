"""Links in a run's folder lead nowhere: nothing outside of it is read, written, made or deleted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from run_rig import Place, initial, model, opened, reader, run_to, train

from flwr_ckpt.store import CheckpointError, CheckpointStore, KeepLatest
from flwr_ckpt.store.commands.rewind import rewind
from flwr_ckpt.store.places.local_files import LocalFiles

pytestmark = pytest.mark.usefixtures("patient_disk")


def moved_out(run: Path, name: str) -> Path:
    """Move a folder of the run outside, and put a link to it in its place."""
    outside = run.parent / "outside"
    (run / name).rename(outside)
    (run / name).symlink_to(outside)
    return outside


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {one.name: (one.stat().st_mtime_ns, one.read_bytes()) for one in folder.iterdir()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    run_to(opened(path), 3)
    return path


def test_a_round_behind_a_link_is_not_there(run: Path) -> None:
    outside = moved_out(run, "round-00000003")
    before = state_of(outside)
    loaded = reader(run).resume()
    assert loaded is not None
    assert (loaded.commit.round, loaded.commit.phase) == (2, "evaluate")
    assert reader(run).of_round(3) is None
    assert [record.round for record in CheckpointStore(run).rounds()] == [0, 1, 2]
    writer = opened(run, KeepLatest(1))
    with pytest.raises(OSError, match=r"no link.*round-00000003"):
        writer.commit(train(3))
    writer.commit(train(4))
    writer.retain()
    assert state_of(outside) == before


def test_data_behind_a_link_is_damaged(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A manifest of round 3 refers to a file of round 2 as it would to a shared array."""
    outside = moved_out(run, "round-00000002")
    before = state_of(outside)
    files = LocalFiles(run)
    for name in before:
        key = f"round-00000002/{name}"
        assert files.size(key) is None
        files.remove(key)
        for use in (files.read, files.view, files.sync):
            with pytest.raises(OSError, match="no link"):
                use(key)
    with pytest.raises(OSError, match="no link"):
        files.adopt(files, "round-00000001/g0001-train.manifest", "round-00000002/g0002-train.manifest")
    with pytest.raises(OSError, match="no link"):
        files.publish("round-00000002/g0002-train.manifest", b"")
    assert state_of(outside) == before


@pytest.mark.parametrize("name", ["generations", "history"])
def test_the_folders_of_fences_and_history_are_no_links(name: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flwr_ckpt.store.format.history.MOST_ROUNDS", 1)
    run_to(opened(run), 5, first=4)
    outside = moved_out(run, name)
    before = state_of(outside)
    if name == "generations":
        with pytest.raises(OSError, match="no link"):
            opened(run)
        wrong = [problem for result in CheckpointStore(run).verify() for problem in result.problems]
        assert any("this fence is" in problem for problem in wrong)
    else:
        with pytest.raises(CheckpointError, match="history"):
            opened(run)
        writer = opened(run, strict_history=False)
        with pytest.raises(OSError, match="no link"):
            writer.commit(train(6))
    assert state_of(outside) == before


def test_a_file_behind_a_link_is_not_read_and_not_replaced(run: Path) -> None:
    for path in sorted(run.glob("round-00000003/*")):
        outside = run.parent / path.name
        path.rename(outside)
        path.symlink_to(outside)
    before = {one.name: one.read_bytes() for one in run.parent.iterdir() if one.is_file()}
    loaded = reader(run).resume()
    assert loaded is not None
    assert loaded.commit.round == 2
    writer = opened(run, KeepLatest(1))
    writer.commit(train(3))
    writer.retain()
    rewind(Place(run), 3)
    assert {one.name: one.read_bytes() for one in run.parent.iterdir() if one.is_file()} == before


def test_a_run_may_itself_lie_behind_a_link(tmp_path: Path) -> None:
    """That is its owner's choice, as for a larger disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    writer = opened(tmp_path / "run")
    writer.commit(initial())
    loaded = reader(tmp_path / "disk").resume()
    assert loaded is not None
    assert loaded.arrays == {one.name: one.data for one in model(0)}


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(run: Path) -> None:
    for path in sorted(run.glob("*/*")):
        data = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        look: Any = reader(run)
        assert look.resume() is not None
        CheckpointStore(run).verify()
        opened(run)
        path.unlink()
        path.write_bytes(data)
