"""Going back and clearing away: by the ordinary protocol, and not undone by any older server."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

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
    CheckpointNotFoundError,
    CheckpointStore,
    FencedError,
    KeepAll,
    KeepBest,
    KeepEvery,
    KeepLatest,
    RunWriter,
)
from flwr_ckpt.store.commands.rewind import prune, rewind


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_a_rewound_run_goes_on_from_that_round(run: Path) -> None:
    run_to(opened(run), 5)
    commit = rewind(Place(run), 2)
    assert (commit.round, commit.phase, commit.generation) == (2, "evaluate", 2)
    assert seen(run) == (2, "evaluate", 2)
    assert "round-00000005/g0001-train.manifest" in files_in(run), "rewind itself deletes nothing"
    assert (run / "round-00000002/g0002-arrays.safetensors").stat().st_nlink == 2, "nothing is copied"
    writer = opened(run)
    writer.commit(train(3))
    writer.retain()
    assert seen(run) == (3, "train", 3)
    assert [name.round for name in reader(run).names()] == [0, 1, 1, 2, 2, 2, 3]
    assert not [name for name in files_in(run) if name.startswith("round-00000005")]


def test_a_rewind_acts_once(run: Path) -> None:
    run_to(opened(run), 3)
    rewind(Place(run), 1)
    run_to(opened(run), 3, first=2)
    assert seen(run) == (3, "evaluate", 3)
    rewind(Place(run), 0)
    assert seen(run) == (0, "initial", 0)


def test_a_round_made_of_many_files_gets_names_of_its_own(run: Path) -> None:
    writer = opened(run)
    writer.commit(initial(arrays=model(0, ["frozen"]), documents={"tree": 0, "large": "x" * 20_000}))
    for server_round in (1, 2, 3):
        writer.commit(train(server_round, arrays=model(server_round, ["frozen"])))
        writer.commit(later(server_round, state=(model(server_round)[0],)))
    expected = reader(run).of_round(2)
    assert expected is not None
    whole = reader(run).load(expected)
    commit = rewind(Place(run), 2)
    assert all(file.key.startswith("round-00000002/g0002-") for file in commit.files)
    for folder in ("round-00000000", "round-00000001", "round-00000003"):
        shutil.rmtree(run / folder)
    for file in (run / "round-00000002").glob("g0001*"):
        file.unlink()
    loaded = reader(run).resume()
    assert loaded is not None
    assert (loaded.arrays, loaded.state, loaded.documents) == (whole.arrays, whole.state, whole.documents)
    assert not reader(run).problems(loaded.commit)


def test_a_round_that_is_not_there_fences_nobody(run: Path) -> None:
    server = opened(run, KeepLatest(2))
    run_to(server, 4)
    for wrong in (1, 9):
        with pytest.raises(CheckpointNotFoundError, match="there are rounds 3, 4"):
            rewind(Place(run), wrong)
    server.commit(train(5))


def test_a_damaged_round_is_not_gone_back_to(run: Path) -> None:
    run_to(opened(run), 3)
    flip(run / "round-00000001/g0001-arrays.safetensors")
    with pytest.raises(ValueError, match="g0001-arrays"):
        rewind(Place(run), 1)
    assert seen(run) == (3, "evaluate", 3)


def test_a_live_server_is_fenced_by_a_rewind(run: Path) -> None:
    server = opened(run)
    run_to(server, 3)
    rewind(Place(run), 1)
    with pytest.raises(FencedError):
        server.commit(train(4))
    server.retain()
    assert seen(run) == (1, "evaluate", 1)


@pytest.mark.usefixtures("patient_disk")
def test_a_rewind_at_any_moment_of_a_servers_round(tmp_path: Path) -> None:
    """Round 1 is there under the new generation, or nothing has happened."""
    at, reached = 0, True
    results = set()
    while reached:
        run = tmp_path / str(at)
        files = WatchedFiles(run)
        server = opened(run, KeepLatest(2), files=files)
        run_to(server, 2)
        done = []

        def go_back(run: Path = run, done: list[object] = done) -> None:
            try:
                done.append(rewind(Place(run), 1))
            except CheckpointNotFoundError as error:
                done.append(error)

        files.before = countdown = Countdown(at, go_back)
        try:
            server.commit(train(3))
            durable = True
            server.retain()
        except FencedError:
            durable = False
        reached = countdown.count > at
        if reached and isinstance(done[0], CheckpointNotFoundError):
            assert durable
            assert seen(run) == (3, "train", 3)
        elif reached:
            # Of a round that retention was about to delete, the phases that were left.
            assert seen(run) in ((1, "evaluate", 1), (1, "train", 1)), at
        results.add((durable, type(done[0]).__name__ if done else ""))
        at += 1
    assert {(False, "Commit"), (True, "Commit"), (True, "CheckpointNotFoundError")} <= results


@pytest.mark.usefixtures("patient_disk")
def test_a_kill_at_any_moment_of_a_rewind(tmp_path: Path) -> None:
    at, finished = 0, False
    found = set()
    while not finished:
        run = tmp_path / str(at)
        run_to(opened(run), 3)
        try:
            rewind(Place(run), 1, files=WatchedFiles(run, Kill(at)))
            finished = True
        except KilledError:
            pass
        position = seen(run)
        assert position in ((3, "evaluate", 3), (1, "evaluate", 1))
        found.add(position)
        rewind(Place(run), 1)
        assert seen(run) == (1, "evaluate", 1)
        at += 1
    assert len(found) == 2


@pytest.mark.parametrize(
    ("moment", "what"), [("safetensors", "has not taken effect"), ("manifest", "may have taken effect")]
)
def test_a_rewind_that_is_fenced_says_if_it_may_have_taken_effect(run: Path, moment: str, what: str) -> None:
    run_to(opened(run), 3)
    files = WatchedFiles(run)

    def take_over(operation: str, key: str) -> None:
        if operation == "link" and key.endswith(moment):
            files.before = lambda operation, key: None
            opened(run)

    files.before = take_over
    with pytest.raises(FencedError, match=what):
        rewind(Place(run), 1, files=files)


# --- prune -------------------------------------------------------------------------------------------------------


def test_prune_deletes_what_a_policy_does_not_keep(run: Path) -> None:
    run_to(opened(run, KeepAll()), 5)
    commit = prune(Place(run), KeepLatest(2))
    assert commit is not None
    assert (commit.round, commit.generation) == (5, 2)
    assert seen(run) == (5, "evaluate", 5)
    assert {name.round for name in reader(run).names()} == {4, 5}
    assert sorted(one.name for one in run.glob("round-*")) == ["round-00000004", "round-00000005"]


def test_prune_of_nothing_makes_nothing(run: Path) -> None:
    assert prune(Place(run), KeepLatest(1)) is None
    assert not run.exists()


def test_prune_fences_a_live_server(run: Path) -> None:
    server = opened(run)
    run_to(server, 2)
    prune(Place(run), KeepLatest(1))
    with pytest.raises(FencedError):
        server.commit(train(3))


def test_prune_spares_what_is_damaged_unless_told(run: Path) -> None:
    run_to(opened(run, KeepAll()), 5)
    flip(run / "round-00000005/g0001-arrays.safetensors")
    flip(run / "round-00000003/g0001-train.manifest")
    flip(run / "round-00000002/g0001-arrays.safetensors")
    prune(Place(run), KeepAll())
    kept = files_in(run)
    assert {"round-00000005/g0001-train.manifest", "round-00000003/g0001-train.manifest"} <= kept
    prune(Place(run), KeepAll(), damaged=True)
    assert seen(run) == (4, "evaluate", 4)
    left = files_in(run)
    assert not [name for name in left if name.startswith(("round-00000005", "round-00000002"))]
    assert "round-00000003/g0001-train.manifest" not in left
    assert "round-00000003/g0001-evaluate.manifest" in left, "its own data is sound"
    for commit in reader(run).commits():
        assert not reader(run).problems(commit)


# --- what prune would do -----------------------------------------------------------------------------------------


def space(run: Path) -> int:
    """The bytes that a run takes on the disk: what has two names counts once."""
    files = {one.stat().st_ino: one.stat().st_size for one in run.glob("[rh]*/*") if one.is_file()}
    return sum(files.values())


POLICIES = [KeepLatest(1), KeepLatest(3), KeepEvery(4), KeepAll(), KeepBest(1, "evaluate/loss", "max")]


def resume(run: Path, server: RunWriter) -> None:
    run_to(opened(run), 8, first=7)


def go_back(run: Path, server: RunWriter) -> None:
    rewind(Place(run), 4)


def share(run: Path, server: RunWriter) -> None:
    for server_round in range(7, 11):
        server.commit(train(server_round, arrays=model(server_round, ["frozen"])))


def archive(run: Path, server: RunWriter) -> None:
    run_to(server, 70, first=7)


def damage(run: Path, server: RunWriter) -> None:
    flip(run / "round-00000006/g0001-arrays.safetensors")
    flip(run / "round-00000004/g0001-train.manifest")
    flip(run / "round-00000002/g0001-arrays.safetensors")


@pytest.mark.parametrize(
    ("then", "damaged"),
    [(resume, False), (go_back, False), (share, False), (archive, False), (damage, False), (damage, True)],
)
@pytest.mark.usefixtures("patient_disk")
def test_what_prune_would_delete_is_what_it_deletes(
    tmp_path: Path, then: Callable[[Path, RunWriter], None], damaged: bool
) -> None:
    original = tmp_path / "original"
    writer = opened(original)
    run_to(writer, 6)
    then(original, writer)
    for number, keep in enumerate(POLICIES):
        run = tmp_path / str(number)
        shutil.copytree(original, run)
        store = CheckpointStore(run)
        before, there = space(run), files_in(run)
        rounds = {record.round for record in store.rounds()}
        promised = store.prunable(keep, damaged=damaged)
        assert files_in(run) == there
        gone = store.prune(keep, damaged=damaged)
        # The newest round is stated once more, in a manifest whose size is not known before.
        manifests = (one for one in run.glob("round-*/*.manifest") if str(one.relative_to(run)) not in there)
        assert before - space(run) == promised.size - sum(one.stat().st_size for one in manifests), keep
        assert set(gone) == rounds & set(promised.rounds), keep
