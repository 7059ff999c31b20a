"""Deleting: what a policy does not keep goes; what anything still needs stays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_rig import (
    LARGE,
    FullDisk,
    Kill,
    KilledError,
    WatchedFiles,
    blob,
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

from flwr_ckpt.store import CheckpointStore, Draft, Keep, KeepAll, KeepBest, KeepEvery, KeepLatest, Outcome
from flwr_ckpt.store.names import parse_data


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def rounds_in(run: Path) -> list[int]:
    return sorted(int(one.name.removeprefix("round-")) for one in run.glob("round-*"))


def test_the_latest_rounds_stay(run: Path) -> None:
    run_to(opened(run, KeepLatest(3)), 6)
    assert rounds_in(run) == [4, 5, 6]
    assert {name.round for name in reader(run).names()} == {4, 5, 6}


def test_rounds_with_gaps_stay_over_restarts(run: Path) -> None:
    keep = KeepEvery(4) | KeepLatest(1)
    run_to(opened(run, keep), 5)
    assert rounds_in(run) == [0, 4, 5]
    run_to(opened(run, keep), 9, first=6)
    assert rounds_in(run) == [0, 4, 8, 9]
    look = reader(run)
    for server_round in (0, 4, 8, 9):
        commit = look.of_round(server_round)
        assert commit is not None
        assert look.load(commit).arrays == {one.name: one.data for one in model(server_round)}


def test_the_best_rounds_stay_over_restarts(run: Path) -> None:
    losses = [5.0, 1.0, 4.0, float("nan"), 2.0, 3.0]
    for server_round, loss in enumerate(losses, start=1):
        writer = opened(run, KeepBest(2, "evaluate/loss", "min"))
        if server_round == 1:
            writer.commit(initial())
        writer.commit(train(server_round))
        writer.retain()
        writer.commit(later(server_round, outcomes=(Outcome(server_round, "evaluate", True, {"loss": loss}),)))
        writer.retain()
    assert rounds_in(run) == [2, 5, 6], "the two best, and the newest"


def test_the_best_of_a_branch_that_was_cut_is_never_best(run: Path) -> None:
    old = opened(run, KeepAll())
    run_to(old, 4)
    for name in reader(run).names():
        if name.round >= 3:
            flip(run / name.key)
    writer = opened(run, KeepBest(1, "train/seen", "max"))
    assert writer.resumed is not None
    assert writer.resumed.commit.round == 2
    writer.commit(train(3, outcomes=(Outcome(3, "train", True, {"seen": 1}),)))
    writer.commit(train(4, outcomes=(Outcome(4, "train", True, {"seen": 0}),)))
    writer.retain()
    on_line = {name.round for name in reader(run).names()}
    assert on_line == {2, 4}, "round 2 is the best on the line, round 4 the newest"


def test_the_newest_sound_round_stays_whatever_the_policy_says(run: Path) -> None:
    class Nothing:
        def select(self, rounds: object) -> set[int]:
            return set()

    writer = opened(run, Nothing())
    run_to(writer, 2)
    writer.commit(Draft(3, "attempt"))
    writer.retain()
    assert seen(run) == (3, "attempt", 2)
    assert rounds_in(run) == [2, 3]


def test_nothing_is_deleted_before_an_own_durable_commit(run: Path) -> None:
    run_to(opened(run, KeepAll()), 4)
    (run / "round-00000009").mkdir()
    (run / "round-00000009/g0001-arrays.safetensors").write_bytes(b"left by a crash")
    before = files_in(run)
    writer = opened(run, KeepLatest(1))
    writer.retain()
    assert files_in(run) == before
    writer.commit(train(5))
    writer.retain()
    assert rounds_in(run) == [5]


def test_what_dead_servers_left_is_collected(run: Path) -> None:
    run_to(opened(run, KeepAll()), 2)
    (run / "round-00000003").mkdir()
    (run / "round-00000002/g0001-central-strategy.safetensors").write_bytes(b"no manifest, beside those that have one")
    (run / "round-00000003/g0001-arrays.safetensors").write_bytes(b"no manifest")
    (run / "round-00000003/.tmp-0123456789abcdef-g0001-train.manifest").write_bytes(b"half")
    (run / "generations/.tmp-0123456789abcdef-0001").write_bytes(b"half")
    (run / "round-00000004").mkdir()
    (run / "round-00000003/notes").write_bytes(b"somebody's own")
    writer = opened(run, KeepAll())
    writer.commit(train(3))
    writer.retain()
    assert rounds_in(run) == [0, 1, 2, 3]
    left = files_in(run)
    assert "round-00000003/g0001-arrays.safetensors" not in left
    assert "round-00000003/notes" in left, "not ours"
    assert not [name for name in left if ".tmp-" in name]
    assert sorted(one.name for one in (run / "generations").iterdir()) == ["0001", "0002"]


def test_names_of_a_higher_generation_are_never_touched(run: Path) -> None:
    old = opened(run, KeepLatest(1))
    run_to(old, 3, retain=False)
    newer = opened(run, KeepAll())
    newer.commit(later(3, "central"))
    (run / "round-00000004").mkdir()
    (run / "round-00000004/g0002-arrays.safetensors").write_bytes(b"data of the newer, no manifest yet")
    before = files_in(run)
    old.retain()
    assert files_in(run) == before, "nor anything else: the run is the newer's now"
    assert seen(run) == (3, "central", 3)


def test_what_was_found_damaged_stays(run: Path) -> None:
    run_to(opened(run, KeepAll()), 4)
    flip(run / "round-00000004/g0001-arrays.safetensors")
    flip(run / "round-00000003/g0001-arrays.safetensors")
    flip(run / "round-00000003/g0001-evaluate.manifest")
    damaged = {name for name in files_in(run) if name.startswith(("round-00000003", "round-00000004"))}
    for server_round in (3, 4, 5, 6, 7):
        writer = opened(run, KeepLatest(1))
        writer.commit(train(server_round))
        writer.retain()
        assert damaged <= files_in(run), "no later server deletes it either"
    assert seen(run) == (7, "train", 7)
    assert {name.split("/")[0] for name in files_in(run) - damaged} == {"round-00000007"}


def test_a_run_that_was_damaged_as_a_whole_stays_beside_the_new_one(run: Path) -> None:
    run_to(opened(run, KeepAll()), 2)
    for file in run.rglob("g0001-arrays.safetensors"):
        flip(file)
    damaged = files_in(run)
    writer = opened(run, KeepLatest(1))
    assert writer.resumed is None
    run_to(writer, 3)
    run_to(opened(run, KeepLatest(1)), 5, first=4)
    assert damaged <= files_in(run)
    assert seen(run) == (5, "evaluate", 5)


# --- references --------------------------------------------------------------------------------------------------


def test_a_data_file_stays_while_a_commit_refers_to_it(run: Path) -> None:
    writer = opened(run, KeepLatest(1))
    writer.commit(initial(arrays=model(0, ["frozen", "frozen2"])))
    for server_round in range(1, 6):
        writer.commit(train(server_round, arrays=model(server_round, ["frozen", "frozen2"])))
        writer.retain()
        loaded = reader(run).resume()
        assert loaded is not None
        assert loaded.arrays == {one.name: one.data for one in model(server_round, ["frozen", "frozen2"])}
        assert not reader(run).problems(loaded.commit)
    assert {name for name in files_in(run) if name < "round-00000005"} == {
        "round-00000000/g0001-arrays.safetensors",
        "round-00000001/g0001-unchanged.safetensors",
    }
    writer.commit(train(6))  # without the frozen layers
    writer.retain()
    assert rounds_in(run) == [6]


def test_references_of_an_older_generation_are_respected(run: Path) -> None:
    writer = opened(run, KeepAll())
    writer.commit(initial(arrays=model(0, ["frozen"])))
    for server_round in (1, 2, 3):
        writer.commit(train(server_round, arrays=model(server_round, ["frozen"])))
    writer = opened(run, KeepEvery(3))
    writer.commit(train(4))
    writer.retain()
    commit = reader(run).of_round(3)
    assert commit is not None
    assert not reader(run).problems(commit)
    assert "round-00000001/g0001-unchanged.safetensors" in files_in(run)
    assert "round-00000001/g0001-arrays.safetensors" not in files_in(run)


def test_what_lives_in_a_mostly_dead_file_is_written_anew(run: Path) -> None:
    """Rounds 0 and 1 wrote much that changed since: their files go once the frozen layer is in files of its own."""
    rng = np.random.default_rng(0)

    def arrays(frozen: bool) -> tuple[object, ...]:
        changing = [blob(f"c{index}", rng.random(LARGE)) for index in range(3)]
        return (*changing, *(model(0, ["frozen"])[2:] if frozen else ()))

    writer = opened(run, KeepLatest(2))
    writer.commit(initial(arrays=arrays(True)))
    whole = (run / "round-00000000/g0001-arrays.safetensors").stat().st_size
    for server_round in range(1, 8):
        writer.commit(train(server_round, arrays=arrays(True)))
        writer.retain()
    assert "round-00000000/g0001-arrays.safetensors" not in files_in(run)
    sizes = sum((run / name).stat().st_size for name in files_in(run))
    assert sizes < 2.2 * whole
    loaded = reader(run).resume()
    assert loaded is not None
    assert loaded.arrays["frozen"] == model(0, ["frozen"])[2].data
    frozen = next(entry for entry in loaded.commit.arrays if entry.name == "frozen")
    assert len({place.file for place in frozen.places}) == 2
    before = files_in(run)
    for server_round in range(8, 11):
        writer.commit(train(server_round, arrays=arrays(True)))
        writer.retain()
    kept = {place.file for place in frozen.places}
    assert kept <= before & files_in(run), "and not again every round"


def test_with_all_rounds_kept_nothing_is_written_anew(run: Path) -> None:
    writer = opened(run, KeepAll())
    for server_round in range(6):
        arrays = (*model(server_round, ["frozen"]), blob("c", np.full(2 * LARGE, server_round)))
        writer.commit(initial(arrays=arrays) if server_round == 0 else train(server_round, arrays=arrays))
        writer.retain()
    assert [name for name in files_in(run) if "unchanged" in name] == ["round-00000001/g0001-unchanged.safetensors"]


# --- failures ----------------------------------------------------------------------------------------------------


def test_files_of_a_failed_commit_go_with_its_round(run: Path) -> None:
    disk = FullDisk()
    writer = opened(run, KeepLatest(1), files=WatchedFiles(run, disk))
    run_to(writer, 1)
    disk.full_for = lambda operation, key: operation == "publish" and "train" in key
    with pytest.raises(OSError, match="No space"):
        writer.commit(train(2))
    disk.full_for = lambda operation, key: False
    assert "round-00000002/g0001-arrays.safetensors" in files_in(run)
    writer.retain()
    assert seen(run) == (1, "evaluate", 1)
    writer.commit(train(3))
    writer.retain()
    assert rounds_in(run) == [3]


@pytest.mark.usefixtures("patient_disk")
def test_a_kill_at_any_moment_of_retention_leaves_a_sound_run(tmp_path: Path) -> None:
    at, finished = 0, False
    while not finished:
        run = tmp_path / str(at)
        run_to(opened(run, KeepAll()), 3)
        files = WatchedFiles(run)
        writer = opened(run, KeepLatest(1), files=files)
        writer.commit(train(4))
        files.before = Kill(at)
        try:
            writer.retain()
            finished = True
        except KilledError:
            pass
        assert seen(run) == (4, "train", 4)
        for commit in reader(run).commits():
            assert not reader(run).problems(commit), (at, commit.name)
        after = opened(run, KeepLatest(1))
        after.commit(train(5))
        after.retain()
        assert rounds_in(run) == [5], "what the dead one left is collected"
        at += 1
    assert at > 15


def test_a_retention_that_failed_is_done_by_the_next(run: Path) -> None:
    files = WatchedFiles(run)
    writer = opened(run, KeepLatest(1), files=files)
    run_to(writer, 3, retain=False)

    def fail(operation: str, key: str) -> None:
        if operation == "remove" and "round-00000001" in key:
            raise OSError(5, "Input/output error")

    files.before = fail
    with pytest.raises(OSError, match="Input/output"):
        writer.retain()
    files.before = lambda operation, key: None
    writer.commit(train(4))
    writer.retain()
    assert rounds_in(run) == [4]


@pytest.mark.usefixtures("patient_disk")
def test_a_round_costs_the_same_however_many_are_kept(run: Path) -> None:
    counts: list[int] = []

    def count(operation: str, key: str) -> None:
        counts[-1] += 1 if operation != "keys" or key else 1000

    counts.append(0)
    writer = opened(run, KeepAll(), files=WatchedFiles(run, count))
    writer.commit(initial())
    for server_round in range(1, 60):
        counts.append(0)
        writer.commit(train(server_round))
        writer.retain()
        writer.commit(later(server_round))
        writer.retain()
    assert len(set(counts[2:])) == 1, counts
    assert counts[-1] < 40


@pytest.mark.usefixtures("patient_disk")
@pytest.mark.parametrize("keep", [KeepAll(), KeepLatest(1) | KeepAll()])
def test_a_policy_that_keeps_everything_is_not_asked_about_each_round(run: Path, keep: Keep) -> None:
    asked: list[int] = []

    class Counted(KeepAll):
        def select(self, rounds: Sequence[Any]) -> set[int]:
            asked.append(len(rounds))
            return super().select(rounds)

    run_to(opened(run, keep | Counted()), 5)
    assert asked == []
    assert [record.round for record in CheckpointStore(run).rounds()] == list(range(6))


@pytest.mark.usefixtures("patient_disk")
def test_only_files_that_lost_a_referrer_are_looked_at(run: Path) -> None:
    writer = opened(run, KeepEvery(2))
    run_to(writer, 9)
    retention = writer._retention
    assert not retention._released, "nothing is left to be looked at again"
    assert {name.round for name in map(parse_data, retention._written) if name} == {0, 2, 4, 6, 8, 9}
    assert all(retention._referrers[key] for key in list(retention._referrers))
