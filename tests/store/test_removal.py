"""A run that is removed does not come back, whoever is still at it."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_rig import Kill, KilledError, Place, WatchedFiles, flip, initial, opened, run_to, seen, train

from flwr_ckpt.store import CheckpointNotFoundError, CheckpointStore, FencedError, FormatVersionError
from flwr_ckpt.store.commands.removal import remove
from flwr_ckpt.store.format import manifest as manifests


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def lying(run: Path) -> list[str]:
    return sorted(str(one.relative_to(run)) for one in run.rglob("*"))


def test_nothing_but_a_fence_is_left(run: Path) -> None:
    run_to(opened(run), 70)  # with a history of its own
    assert CheckpointStore(run).remove() == []
    assert lying(run) == ["generations", "generations/0002"]
    assert seen(run) is None
    assert not CheckpointStore(run).status().exists


def test_the_next_run_begins_above_and_the_orphan_brings_nothing_back(run: Path) -> None:
    orphan = opened(run)
    run_to(orphan, 3)
    CheckpointStore(run).remove()
    fresh = opened(run)
    assert (fresh.resumed, fresh.generation) == (None, 3)
    fresh.commit(initial())
    with pytest.raises(FencedError):
        orphan.commit(train(4))
    assert seen(run) == (0, "initial", 0)
    fresh.commit(train(1))
    fresh.retain()
    assert not [name for name in lying(run) if "g0001" in name], "what the orphan left has gone"


def test_a_run_can_be_removed_again_and_again(run: Path) -> None:
    for _ in range(3):
        run_to(opened(run), 1)
        CheckpointStore(run).remove()
        assert len(lying(run)) == 2
        with pytest.raises(CheckpointNotFoundError, match="no run here"):
            CheckpointStore(run).remove()


def test_a_damaged_run_can_be_removed(run: Path) -> None:
    run_to(opened(run), 1)
    for file in run.rglob("*"):
        if file.is_file():
            flip(file)
    CheckpointStore(run).remove()
    assert lying(run) == ["generations", "generations/0002"]


def test_what_is_not_the_runs_is_left_and_named(run: Path) -> None:
    run_to(opened(run), 1)
    (run / "notes.txt").write_text("mine")
    (run / "round-00000001/mine").write_text("mine")
    (run / "states/named").mkdir(parents=True)
    assert sorted(CheckpointStore(run).remove()) == ["notes.txt", "round-00000001/mine", "states/"]
    assert (run / "states/named").is_dir()


def test_where_there_is_no_run_nothing_is_made(run: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="no run here"):
        CheckpointStore(run).remove()
    assert not run.exists()
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointNotFoundError):
        CheckpointStore(run).remove()
    assert lying(run) == ["notes.txt"]


def test_a_run_of_a_newer_version_is_not_touched(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "FORMAT", 2)
    run_to(opened(run), 1)
    monkeypatch.undo()
    before = lying(run)
    with pytest.raises(FormatVersionError, match="nothing has been touched"):
        CheckpointStore(run).remove()
    assert lying(run) == before


@pytest.mark.usefixtures("patient_disk")
def test_a_kill_at_any_moment_of_a_removal(tmp_path: Path) -> None:
    """The run is whole, or it is gone and the same command clears the rest away."""
    at, finished, found = 0, False, set()
    while not finished:
        run = tmp_path / str(at)
        run_to(opened(run), 2)
        try:
            remove(Place(run), WatchedFiles(run, Kill(at)))
            finished = True
        except KilledError:
            pass
        found.add(seen(run))
        if any("." in name for name in lying(run)):
            CheckpointStore(run).remove()
        assert not any("." in name for name in lying(run))
        assert seen(run) is None
        at += 1
    assert found == {None, (2, "evaluate", 2)}
