"""What is newest, falling back along the line, and looking at a run that is changing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from run_rig import (
    Countdown,
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

from flwr_ckpt.store import CheckpointError, CheckpointNotFoundError, Draft, FencedError, KeepAll, KeepLatest, RunReader
from flwr_ckpt.store.commands.rewind import rewind
from flwr_ckpt.store.format.manifest import seal, unseal


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def manifest(run: Path, server_round: int, generation: int, phase: str) -> Path:
    return run / f"round-{server_round:08d}" / f"g{generation:04d}-{phase}.manifest"


def data(run: Path, server_round: int, generation: int, label: str = "arrays") -> Path:
    return run / f"round-{server_round:08d}" / f"g{generation:04d}-{label}.safetensors"


def test_a_place_with_nothing_there_is_a_run_without_commits(run: Path) -> None:
    look = reader(run)
    assert (look.newest(), look.resume(), look.commits(), look.of_round(0)) == (None, None, [], None)
    assert not run.exists(), "looking makes nothing"


def test_looking_changes_nothing(run: Path) -> None:
    run_to(opened(run), 2)
    before = sorted((str(one), one.stat().st_mtime_ns) for one in run.rglob("*"))
    look = reader(run)
    loaded = look.resume()
    assert loaded is not None
    look.load(loaded.commit)
    look.commits()
    look.problems(loaded.commit)
    assert sorted((str(one), one.stat().st_mtime_ns) for one in run.rglob("*")) == before


def test_damage_is_passed_over_with_one_warning_each(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_to(opened(run), 4)
    flip(manifest(run, 4, 1, "evaluate"))
    flip(data(run, 4, 1))
    manifest(run, 3, 1, "evaluate").write_bytes(b"")
    data(run, 3, 1).unlink()
    look = reader(run)
    for _ in range(3):
        loaded = look.resume()
        assert loaded is not None
        assert (loaded.commit.round, loaded.commit.phase) == (2, "evaluate")
    told = [message for message in caplog.messages if "Passing over" in message]
    assert len(told) == 4
    assert sum("g0001-arrays.safetensors" in message for message in told) == 2
    assert files_in(run) >= {"round-00000004/g0001-evaluate.manifest", "round-00000004/g0001-arrays.safetensors"}


def test_a_late_commit_of_an_older_server_is_passed_by(run: Path) -> None:
    """Linked between the newer's opening and the older's second look: not durable, and on no line."""
    files = WatchedFiles(run)
    old = opened(run, files=files)
    run_to(old, 2)
    newer = []

    def take_over(operation: str, key: str) -> None:
        if operation == "link" and not newer:
            newer.append(opened(run))

    files.before = take_over
    with pytest.raises(FencedError):
        old.commit(train(3))
    assert manifest(run, 3, 1, "train").exists()
    assert newer[0].resumed.commit.round == 2
    newer[0].commit(later(2, "central"))

    def check() -> None:
        assert seen(run) == (2, "central", 2)
        assert all(commit.name.key != "round-00000003/g0001-train.manifest" for commit in reader(run).commits())
        found = reader(run).of_round(3)
        assert found is None or found.generation == 2

    check()
    # Nor when the newer's own commit turns out to be damaged: its line leads around the late one.
    newer[0].commit(train(3))
    flip(data(run, 3, 2))
    check()


def test_a_late_commit_of_the_very_round_that_was_resumed(run: Path) -> None:
    files = WatchedFiles(run)
    old = opened(run, files=files)
    run_to(old, 1)
    old.commit(train(2))
    newer = []

    def take_over(operation: str, key: str) -> None:
        if operation == "link" and not newer:
            newer.append(opened(run))

    files.before = take_over
    with pytest.raises(FencedError):
        old.commit(later(2, state=(model(99)[0],)))
    assert newer[0].resumed.commit.phase == "train"
    newer[0].commit(later(2))
    newer[0].commit(train(3))
    for damage in (data(run, 3, 2), manifest(run, 2, 2, "evaluate")):
        flip(damage)
    # Generation 2 states that it left generation 1 at the train commit.
    loaded = reader(run).resume()
    assert loaded is not None
    assert (loaded.commit.round, loaded.commit.generation, loaded.commit.phase) == (2, 1, "train")


def test_all_commits_damaged_after_a_rewind_do_not_lead_into_the_branch_that_was_cut(run: Path) -> None:
    run_to(opened(run), 5)
    rewind(Place(run), 2)
    writer = opened(run)
    writer.commit(train(3))
    flip(data(run, 3, 3))
    flip(data(run, 2, 2))
    data(run, 2, 1).unlink()  # the same file as the one above by another name: damaged with it
    loaded = reader(run).resume()
    assert loaded is not None
    assert loaded.commit.round == 1
    flip(manifest(run, 3, 3, "train"))
    loaded = reader(run).resume()
    assert loaded is not None
    assert loaded.commit.round == 1


def test_a_generation_without_a_readable_manifest_is_told(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_to(opened(run), 5)
    rewind(Place(run), 2)
    flip(manifest(run, 2, 2, "evaluate"))
    assert seen(run) == (5, "evaluate", 5)
    assert any("no manifest of generation 2" in message and "rewind" in message for message in caplog.messages)


def test_files_without_any_manifest_are_no_reason_to_warn(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    data(run, 0, 1).parent.mkdir(parents=True)
    data(run, 0, 1).write_bytes(b"the server died here")
    assert reader(run).resume() is None
    assert not caplog.messages


def test_what_was_removed_stays_removed(run: Path) -> None:
    """A fence marked ``removed`` cuts off what an orphan of a lower generation links late."""
    run_to(opened(run), 3)
    fence = run / "generations/0002"
    body = unseal((run / "generations/0001").read_bytes(), "")
    fence.write_bytes(seal({**body, "generation": 2, "token": "t", "removed": True}))
    assert reader(run).newest() is None
    writer = opened(run, KeepLatest(1))
    assert (writer.generation, writer.resumed) == (3, None)
    writer.commit(initial())
    writer.retain()
    assert seen(run) == (0, "initial", 0)
    assert sorted(one.name for one in (run / "generations").iterdir()) == ["0002", "0003"]
    assert files_in(run) == {"round-00000000/g0003-arrays.safetensors", "round-00000000/g0003-initial.manifest"}


def test_a_manifest_of_another_server_under_the_number_of_this_one(run: Path, tmp_path: Path) -> None:
    run_to(opened(tmp_path / "other"), 2)
    run_to(opened(run), 1)
    shutil.copytree(tmp_path / "other/round-00000002", run / "round-00000002")
    assert seen(run) == (1, "evaluate", 1)


def test_phases_come_in_the_order_in_which_they_were_committed(run: Path) -> None:
    writer = opened(run)
    writer.commit(initial())
    writer.commit(later(0, "central"))
    writer.commit(Draft(1, "attempt"))
    for draft in (
        train(1),
        later(1, "central"),
        later(1, "evaluate"),
        train(2),
        later(2, "evaluate"),
        later(2, "central"),
    ):
        writer.commit(draft)
    writer.commit(Draft(2, "end"))
    order = [(commit.round, commit.phase) for commit in reader(run).commits()]
    assert order == [
        (0, "initial"), (0, "central"), (1, "attempt"), (1, "train"), (1, "central"), (1, "evaluate"),
        (2, "train"), (2, "evaluate"), (2, "central"), (2, "end"),
    ]  # fmt: skip
    newest = reader(run).newest()
    assert newest is not None
    assert newest.phase == "end"
    assert newest.parent is not None
    assert (newest.parent.round, newest.parent.phase) == (2, "central")


def test_of_round_gives_the_arrays_as_that_round_left_them(run: Path) -> None:
    run_to(opened(run), 2)
    writer = opened(run)
    writer.commit(Draft(3, "attempt"))
    look = reader(run)
    for server_round in range(3):
        commit = look.of_round(server_round)
        assert commit is not None
        assert [look.read(commit, entry) for entry in commit.arrays] == [one.data for one in model(server_round)]
        assert [bytes(view) for view in look.views(commit, commit.arrays)] == [
            one.data[len(entry.header) :] for one, entry in zip(model(server_round), commit.arrays, strict=True)
        ]
    assert look.of_round(3) is None, "an attempt has no arrays of its own"
    writer.commit(train(3))
    assert look.of_round(3) is not None, "rounds that came later are found"
    rewind(Place(run), 1)
    assert look.of_round(2) is None, "rounds that were cut off are not"


def test_a_round_that_is_removed_while_it_is_read(run: Path) -> None:
    run_to(opened(run), 1)
    look = reader(run)
    commit = look.newest()
    assert commit is not None
    shutil.rmtree(run / "round-00000001")
    for act in (
        lambda: look.load(commit),
        lambda: look.read(commit, commit.arrays[0]),
        lambda: look.commit(commit.name),
    ):
        with pytest.raises(CheckpointNotFoundError, match="round 1 is no longer there"):
            act()


@pytest.mark.usefixtures("patient_disk")
def test_a_round_that_vanishes_at_any_moment_of_a_resume(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The reader begins again, and never takes for damage what retention has removed."""

    class Slow(WatchedFiles):
        def read(self, key: str, offset: int = 0, size: int | None = None) -> bytes:
            self.before("read", key)
            return super().read(key, offset, size)

        def size(self, key: str) -> int | None:
            self.before("size", key)
            return super().size(key)

    at, reached = 0, True
    while reached:
        run = tmp_path / str(at)
        writer = opened(run, KeepLatest(1))
        run_to(writer, 1)

        def go_on(writer: object = writer) -> None:
            run_to(writer, 3, first=2)  # type: ignore[arg-type]

        countdown = Countdown(at, go_on)
        loaded = RunReader(Place(run), Slow(run, countdown)).resume()
        reached = countdown.count > at
        assert loaded is not None
        assert loaded.arrays == {one.name: one.data for one in model(loaded.documents["tree"])}
        at += 1
    assert not caplog.messages
    assert at > 10


def test_files_that_never_stop_vanishing(run: Path) -> None:
    class Haunted(WatchedFiles):
        def keys(self, folder: str = "") -> list[str]:
            return [*super().keys(folder), "round-00000009/g0001-train.manifest"]

    run_to(opened(run), 1)
    with pytest.raises(CheckpointError, match="the last file to vanish was round-00000009"):
        RunReader(Place(run), Haunted(run)).newest()


def test_no_permission_is_not_damage(run: Path) -> None:
    class Locked(WatchedFiles):
        def read(self, key: str, offset: int = 0, size: int | None = None) -> bytes:
            if key.endswith("train.manifest"):
                raise PermissionError(13, "Permission denied")
            return super().read(key, offset, size)

    run_to(opened(run), 1)
    with pytest.raises(PermissionError):
        RunReader(Place(run), Locked(run)).resume()


@pytest.mark.parametrize("how", ["copy", "tar"])
def test_a_folder_that_was_copied_opens_and_verifies(run: Path, tmp_path: Path, how: str) -> None:
    run_to(opened(run, KeepAll()), 3)
    rewind(Place(run), 2)
    there = tmp_path / "elsewhere" / "run"
    if how == "copy":
        shutil.copytree(run, there)
    else:
        shutil.unpack_archive(shutil.make_archive(str(tmp_path / "packed"), "tar", run), there)
    assert seen(there) == (2, "evaluate", 2)
    assert not any(reader(there).problems(commit) for commit in reader(there).commits())
    writer = opened(there)
    writer.commit(train(3))
    assert seen(there) == (3, "train", 3)


def test_no_decision_rests_on_time(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**9, 0, -1000))
    monkeypatch.setattr("time.time", lambda: float(next(clock)))
    run_to(opened(run, KeepLatest(1)), 2)
    run_to(opened(run, KeepLatest(1)), 4, first=3)
    assert seen(run) == (4, "evaluate", 4)


def test_manifests_say_who_wrote_them(run: Path) -> None:
    opened(run).commit(initial())
    fence = json.loads((run / "generations/0001").read_bytes())["body"]
    commit = reader(run).newest()
    assert commit is not None
    assert commit.token == fence["token"]
    assert commit.path == str(manifest(run, 0, 1, "initial"))
