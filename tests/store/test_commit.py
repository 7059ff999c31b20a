"""Commits: what comes back, kills ahead of every operation, disks that fail, two servers at once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from run_rig import (
    LARGE,
    Countdown,
    FullDisk,
    Kill,
    KilledError,
    Place,
    WatchedFiles,
    blob,
    files_in,
    initial,
    later,
    model,
    opened,
    reader,
    run_to,
    seen,
    train,
)

from flwr_ckpt.store import Blob, Draft, FencedError, KeepLatest, Outcome, RunReader, RunWriter


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "digits"


def test_everything_comes_back_as_it_was_handed_over(run: Path) -> None:
    writer = opened(run)
    assert writer.resumed is None
    writer.commit(initial())
    arrays = (
        Blob("fortran", blob("", np.asfortranarray(np.arange(6.0).reshape(2, 3))).data),
        Blob("big", blob("", np.arange(4, dtype=">i4")).data),
        Blob("text", blob("", np.array(["a", "bc"])).data),
        Blob("none", blob("", np.empty((0, 3))).data, "npy", "float64", (0, 3), "numpy.ndarray"),
        Blob("opaque", b"\x93NUMPY but not really", "npy"),
        Blob("empty", b"", "npy"),
        Blob("half", b"\x80\x3f\x00\x40", "raw", "bfloat16", (2,), "torch.Tensor"),
        Blob("__metadata__", memoryview(b"abcdefgh"), "raw", "float64", (1,)),
        Blob("\ud800 no text", b"x", "raw"),
    )
    documents = {"tree": {"a": [1, 2.5, None]}, "large": ["text"] * 9000}
    outcome = Outcome(1, "train", True, {"nan": float("nan"), "big": 2**70, "raw": b"\x00"}, 0.25, {"why": "not"})
    writer.commit(Draft(1, "train", arrays, (Blob("s", b"12345678", "raw", "int64", (1,)),), documents, (outcome,)))
    loaded = reader(run).resume()
    assert loaded is not None
    assert list(loaded.arrays) == [one.name for one in arrays]
    assert [bytes(one.data) for one in arrays] == list(loaded.arrays.values())
    stated = [(one.name, one.kind, one.dtype, one.shape, one.stype) for one in loaded.commit.arrays]
    assert stated == [(one.name, one.kind, one.dtype, one.shape, one.stype) for one in arrays]
    assert loaded.state == {"s": b"12345678"}
    assert loaded.documents == documents
    assert repr(loaded.outcomes) == repr([outcome])
    assert [len(data) for data in loaded.arrays.values()] == [entry.nbytes for entry in loaded.commit.arrays]


def test_what_is_left_out_is_as_before(run: Path) -> None:
    writer = opened(run)
    writer.commit(initial(documents={"tree": 0, "who": "me", "large": "x" * 20_000}))
    writer.commit(train(1))
    writer.commit(Draft(2, "attempt"))
    writer.commit(train(2, arrays=None, state=None, documents={"large": "now small"}))
    loaded = reader(run).resume()
    assert loaded is not None
    assert loaded.arrays == {one.name: one.data for one in model(1)}
    assert loaded.state == {"m": blob("m", np.full(3, 1)).data}
    assert loaded.documents == {"tree": 1, "who": "me", "large": "now small"}


def test_a_name_given_twice_is_refused(run: Path) -> None:
    writer = opened(run)
    with pytest.raises(ValueError, match="two arrays are named 'w'"):
        writer.commit(initial(arrays=model(0) + model(1)))


def test_the_files_lie_where_the_format_says(run: Path) -> None:
    writer = opened(run)
    writer.commit(initial())
    writer.commit(train(1))
    writer.commit(later(1, state=(blob("m", np.zeros(5)),)))
    assert files_in(run) == {
        "round-00000000/g0001-arrays.safetensors",
        "round-00000000/g0001-initial.manifest",
        "round-00000001/g0001-arrays.safetensors",
        "round-00000001/g0001-strategy.safetensors",
        "round-00000001/g0001-train.manifest",
        "round-00000001/g0001-evaluate-strategy.safetensors",
        "round-00000001/g0001-evaluate.manifest",
    }


def test_state_found_unchanged_within_a_round_is_not_written_again(run: Path) -> None:
    writer = opened(run)
    writer.commit(initial())
    writer.commit(train(1))
    before = files_in(run)
    writer.commit(later(1, state=train(1).state, documents={"tree": 1}))
    assert files_in(run) - before == {"round-00000001/g0001-evaluate.manifest"}
    loaded = reader(run).resume()
    assert loaded is not None
    assert loaded.state == {"m": blob("m", np.full(3, 1)).data}


def test_one_array_under_two_names_is_written_once(run: Path) -> None:
    writer = opened(run)
    large = np.random.default_rng(0).random(LARGE)
    twin = blob("initial_parameters", large)
    writer.commit(initial(arrays=(blob("w", large),), state=(twin, blob("other", large + 1))))
    sizes = {name: (run / name).stat().st_size for name in files_in(run) if name.endswith("safetensors")}
    assert all(large.nbytes < size < 1.01 * large.nbytes for size in sizes.values()), sizes
    loaded = reader(run).resume()
    assert loaded is not None
    assert loaded.state == {"initial_parameters": twin.data, "other": blob("", large + 1).data}


# --- unchanged arrays --------------------------------------------------------------------------------------------


def _places(run: Path, name: str) -> list[str]:
    commit = reader(run).newest()
    assert commit is not None
    return [place.file for entry in commit.arrays if entry.name == name for place in entry.places]


def test_a_large_unchanged_array_is_written_twice_and_then_referred_to(run: Path) -> None:
    writer = opened(run)
    writer.commit(initial(arrays=model(0, ["frozen"])))
    for server_round in (1, 2, 3):
        writer.commit(train(server_round, arrays=model(server_round, ["frozen"])))
        assert len(_places(run, "w")) == 1
    assert _places(run, "frozen") == [
        "round-00000000/g0001-arrays.safetensors",
        "round-00000001/g0001-unchanged.safetensors",
    ]
    assert sum((run / name).stat().st_size for name in files_in(run) if "round-00000003" in name) < 10_000


def test_an_array_that_changes_in_its_last_byte_is_written_again(run: Path) -> None:
    writer = opened(run)
    array = np.zeros(LARGE)
    writer.commit(initial(arrays=(blob("w", array),)))
    array[-1] = 1
    writer.commit(train(1, arrays=(blob("w", array),)))
    loaded = reader(run).resume()
    assert loaded is not None
    assert loaded.arrays == {"w": blob("w", array).data}


def test_one_damaged_copy_of_a_shared_array_makes_no_round_unsound(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = opened(run)
    writer.commit(initial(arrays=model(0, ["frozen"])))
    for server_round in (1, 2, 3):
        writer.commit(train(server_round, arrays=model(server_round, ["frozen"])))
    first, second = (run / name for name in _places(run, "frozen"))
    data = first.read_bytes()
    for broken in (data[:-1] + b"?", data[:-1], None):
        first.unlink(missing_ok=True)
        if broken is not None:
            first.write_bytes(broken)
        loaded = reader(run).resume()
        assert loaded is not None
        assert loaded.commit.round == 3
        assert loaded.arrays == {one.name: one.data for one in model(3, ["frozen"])}
        assert reader(run).problems(loaded.commit)
    second.write_bytes(b"")
    caplog.clear()
    assert reader(run).resume() is None  # every round refers to both
    assert len(caplog.messages) == 4


def test_the_first_train_commit_of_a_generation_refers_to_nothing_older(run: Path) -> None:
    writer = opened(run)
    writer.commit(initial(arrays=model(0, ["frozen"])))
    writer.commit(train(1, arrays=model(1, ["frozen"]), documents={"tree": "x" * 20_000}))
    writer = opened(run)
    writer.commit(later(1))
    carried = reader(run).newest()
    assert carried is not None
    assert {file.key.split("/")[1][:5] for file in carried.files} == {"g0001"}
    # No arrays, as when too many clients failed: even then, what was carried becomes this generation's.
    writer.commit(train(2, arrays=None, state=None, documents={}))
    whole = reader(run).resume()
    assert whole is not None
    assert {file.key.split("/")[1][:5] for file in whole.commit.files} == {"g0002"}
    assert whole.arrays == {one.name: one.data for one in model(1, ["frozen"])}
    assert whole.documents == {"tree": "x" * 20_000}


# --- kills -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patient_disk")
def test_a_kill_ahead_of_any_operation_loses_nothing_durable(tmp_path: Path) -> None:
    script = [initial(), train(1), later(1), train(2)]
    states = [None, (0, "initial", 0), (1, "train", 1), (1, "evaluate", 1), (2, "train", 2)]
    at, done = 0, -1
    while done < len(script):
        run = tmp_path / str(at)
        kill = Kill(at)
        done = 0
        try:
            writer = opened(run, KeepLatest(1), files=WatchedFiles(run, kill))
            for draft in script:
                writer.commit(draft)
                done += 1
                writer.retain()
            done += 1
        except KilledError:
            pass
        # What was being written may be there or not; what was reported durable is.
        assert seen(run) in states[done : done + 2], f"killed ahead of operation {at}"
        # Whatever the dead left behind, the next server goes on.
        after = opened(run, KeepLatest(1))
        position = after.resumed.commit.round if after.resumed else -1
        after.commit(initial() if position < 0 else train(position + 1))
        after.retain()
        assert seen(run) == ((0, "initial", 0) if position < 0 else (position + 1, "train", position + 1))
        at += 1
    assert at > 50


# --- power -----------------------------------------------------------------------------------------------------------


def test_what_a_name_promises_is_on_the_disk_before_the_name(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = opened(run)
    events: list[str] = []
    fsync, link = os.fsync, os.link

    def watch_fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append("sync " + ("manifest" if ".manifest" in path.name else path.name))
        fsync(descriptor)

    def watch_link(source: Path, target: Path) -> None:
        events.append(f"link {target.name}")
        link(source, target)

    monkeypatch.setattr("os.fsync", watch_fsync)
    monkeypatch.setattr("os.link", watch_link)
    writer.commit(initial(state=model(5)))
    assert events == [
        "sync g0001-arrays.safetensors",
        "sync g0001-strategy.safetensors",
        "sync round-00000000",  # their names
        "sync manifest",
        "link g0001-initial.manifest",
        "sync round-00000000",
        "sync digits",  # the run's folder, which holds the round's
    ]


def test_what_is_taken_over_is_made_durable_before_anything_is_built_on_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = opened(run)
    writer.commit(initial())
    monkeypatch.setattr("flwr_ckpt.store.format.history.MOST_ROUNDS", 1)
    writer.commit(train(1))
    writer.commit(train(2))
    synced = set()
    opened(run, files=WatchedFiles(run, lambda operation, key: synced.add(key) if "sync" in operation else None))
    assert synced >= {
        "",
        "history",
        "history/g0001-00000002-train",
        "round-00000002",
        "round-00000002/g0001-arrays.safetensors",
        "round-00000002/g0001-strategy.safetensors",
        "round-00000002/g0001-train.manifest",
    }


# --- disks that fail ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", ["arrays", "strategy", "train.manifest"])
def test_after_a_failed_commit_the_next_round_carries_both(run: Path, failing: str) -> None:
    disk = FullDisk()
    writer = opened(run, files=WatchedFiles(run, disk))
    writer.commit(initial())
    disk.full_for = lambda operation, key: failing in key
    with pytest.raises(OSError, match="No space"):
        writer.commit(train(1))
    disk.full_for = lambda operation, key: False
    before = files_in(run)
    writer.commit(later(1))  # of a round that failed: not tried
    assert files_in(run) == before
    assert seen(run) == (0, "initial", 0)
    writer.commit(Draft(2, "attempt"))
    assert seen(run) == (2, "attempt", 1)
    writer.commit(train(2))
    loaded = reader(run).resume()
    assert loaded is not None
    assert [(outcome.round, outcome.phase) for outcome in loaded.outcomes] == [
        (1, "train"),
        (1, "evaluate"),
        (2, "train"),
    ]
    assert len(disk.tried) == len(set(disk.tried)), "a name was tried twice"


def test_what_failed_is_held_beyond_the_life_of_its_buffers(run: Path) -> None:
    disk = FullDisk()
    writer = opened(run, files=WatchedFiles(run, disk))
    writer.commit(initial())
    buffer = bytearray(b"12345678")
    disk.full_for = lambda operation, key: "train" in key
    state = (Blob("m", memoryview(buffer), "raw", "int64", (1,)),)
    with pytest.raises(OSError, match="No space"):
        writer.commit(train(1, state=state))
    buffer[:] = b"reused!!"
    disk.full_for = lambda operation, key: False
    writer.commit(train(2, state=None))
    loaded = reader(run).resume()
    assert loaded is not None
    assert loaded.state == {"m": b"12345678"}


def test_what_fails_before_anything_is_written_is_carried_too(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = opened(run)
    writer.commit(initial())

    def no_memory(*arguments: object, **given: object) -> None:
        monkeypatch.undo()
        raise MemoryError

    monkeypatch.setattr("flwr_ckpt.store.writing.commit.replace", no_memory)  # what a draft is put together with
    with pytest.raises(MemoryError):
        writer.commit(train(1))
    writer.commit(later(2))
    loaded = reader(run).resume()
    assert loaded is not None
    assert loaded.arrays == {one.name: one.data for one in model(1)}
    assert [(outcome.round, outcome.phase) for outcome in loaded.outcomes] == [(1, "train"), (2, "evaluate")]


def test_a_data_file_that_failed_leaves_its_room_to_others(run: Path) -> None:
    writer = opened(run)
    writer.commit(initial())
    with pytest.raises(TypeError):
        writer.commit(train(1, arrays=(Blob("w", 5),)))  # type: ignore[arg-type]
    files = WatchedFiles(run)
    with pytest.raises(TypeError):
        files.create("round-00000000/g0001-other.safetensors", [b"abc", "no buffer"])  # type: ignore[list-item]
    assert "round-00000000/g0001-other.safetensors" not in files_in(run)


def test_a_run_on_a_disk_without_hard_links(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*args: object, **kwargs: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    run_to(opened(run), 2)
    assert seen(run) == (2, "evaluate", 2)
    with pytest.raises(FileExistsError):
        WatchedFiles(run).publish("round-00000002/g0001-train.manifest", b"another")


# --- two servers -------------------------------------------------------------------------------------------------


def test_the_older_server_is_fenced_and_told_by_whom(run: Path) -> None:
    old = opened(run)
    old.commit(initial())
    opened(run)
    with pytest.raises(FencedError, match=r"process [0-9]+ on .*generation 2"):
        old.commit(train(1))
    with pytest.raises(FencedError):
        old.commit(train(2))
    assert seen(run) == (0, "initial", 0)


@pytest.mark.usefixtures("patient_disk")
def test_a_newer_server_at_any_moment_of_opening(tmp_path: Path) -> None:
    """Which of the two is the newer is told by their numbers; the other one stops, and nothing is lost."""
    at, reached = 0, True
    while reached:
        run = tmp_path / str(at)
        run_to(opened(run), 1)
        others: list[RunWriter] = []

        def open_and_write(run: Path = run, others: list[RunWriter] = others) -> None:
            others.append(opened(run, KeepLatest(1)))
            others[0].commit(train(2))
            others[0].retain()  # clears away what it takes for a dead server's

        countdown = Countdown(at, open_and_write)
        one = opened(run, KeepLatest(1), files=WatchedFiles(run, countdown))
        reached = countdown.count > at
        if reached and one.generation > others[0].generation:
            one.commit(train(3 if one.resumed and one.resumed.commit.round == 2 else 2))
            with pytest.raises(FencedError):
                others[0].commit(train(3))
        elif reached:
            with pytest.raises(FencedError):
                one.commit(train(2))
            assert seen(run) == (2, "train", 2)
        at += 1
    assert at > 10


def test_a_name_that_is_taken_is_another_servers_doing(run: Path) -> None:
    """A run that was removed by hand and begun anew has the names that its orphan is about to give."""
    old = opened(run)
    old.commit(initial())
    shutil.rmtree(run)
    new = opened(run)
    new.commit(initial())
    new.commit(train(1))
    with pytest.raises(FencedError, match="fence of this server is gone"):
        old.commit(train(1))
    assert seen(run) == (1, "train", 1)


def test_a_place_where_no_fence_can_be_made_says_so(run: Path) -> None:
    def gone(operation: str, key: str) -> None:
        if operation == "link":
            raise FileNotFoundError(key)

    with pytest.raises(FileNotFoundError):
        opened(run, files=WatchedFiles(run, gone))


@pytest.mark.usefixtures("patient_disk")
def test_a_newer_server_at_any_moment_of_a_commit(tmp_path: Path) -> None:
    """The older reports durable only what the newer then resumes from."""
    outcomes = set()
    at, reached = 0, True
    while reached:
        run = tmp_path / str(at)
        files = WatchedFiles(run)
        old = opened(run, KeepLatest(1), files=files)
        run_to(old, 1)
        newer = []
        files.before = countdown = Countdown(at, lambda run=run, newer=newer: newer.append(opened(run, KeepLatest(1))))
        try:
            old.commit(train(2))
            durable = True
        except FencedError:
            durable = False
        reached = countdown.count > at
        if reached:
            taken = newer[0].resumed.commit.round if newer[0].resumed else 0
            assert not durable or taken == 2, f"round 2 was durable, and a server that opened at {at} has not seen it"
            newer[0].commit(train(taken + 1))
            newer[0].retain()
            assert seen(run) == (taken + 1, "train", taken + 1)
            outcomes.add((durable, taken))
        at += 1
    assert outcomes == {(False, 1), (False, 2)}, outcomes


@pytest.mark.usefixtures("patient_disk")
def test_a_newer_server_at_any_moment_of_retention(tmp_path: Path) -> None:
    """Nothing that the newer one has written or resumed from is taken away by the older."""
    at, reached = 0, True
    while reached:
        run = tmp_path / str(at)
        files = WatchedFiles(run)
        run_to(opened(run, KeepLatest(9)), 3)
        old = opened(run, KeepLatest(1), files=files)
        old.commit(train(4))

        def take_over(run: Path = run) -> None:
            newer = opened(run, KeepLatest(2))
            newer.commit(later(4))
            newer.commit(train(5))

        files.before = countdown = Countdown(at, take_over)
        old.retain()
        reached = countdown.count > at
        if reached:
            assert seen(run) == (5, "train", 5)
            assert not RunReader(Place(run)).problems(reader(run).newest())  # type: ignore[arg-type]
        at += 1
    assert at > 10


def test_the_fence_is_looked_at_by_token(run: Path) -> None:
    old = opened(run)
    old.commit(initial())
    for one in sorted(run.rglob("*"), reverse=True):
        one.unlink() if one.is_file() else one.rmdir()
    run.rmdir()
    with pytest.raises(FencedError, match="removed or replaced"):
        old.commit(train(1))
    assert not run.exists(), "a writer never makes the run's folder again"
    run_to(opened(run), 1)
    with pytest.raises(FencedError):
        old.commit(train(2))
    assert seen(run) == (1, "evaluate", 1)


def test_a_damaged_fence_still_fences_and_stops_nobody_else(run: Path) -> None:
    writer = opened(run)
    writer.commit(initial())
    (run / "generations/0001").write_bytes(b"rubbish")
    writer.commit(train(1))
    opened(run)
    (run / "generations/0002").write_bytes(b"rubbish")
    with pytest.raises(FencedError, match="generation 2"):
        writer.commit(train(2))


def test_servers_that_open_and_never_commit_change_nothing(run: Path) -> None:
    run_to(opened(run), 2)
    for _ in range(10):
        opened(run)
    assert seen(run) == (2, "evaluate", 2)
    writer = opened(run)
    assert writer.generation == 12
    writer.commit(train(3))
    writer.retain()
    assert sorted(one.name for one in (run / "generations").iterdir()) == ["0001", "0012"]


def test_a_number_is_above_every_number_in_any_name(run: Path) -> None:
    run_to(opened(run), 1)
    (run / "generations/0001").unlink()
    (run / "round-00000001/g0007-arrays.safetensors").write_bytes(b"left by a server that died")
    assert opened(run).generation == 8


def test_generations_past_four_digits(run: Path) -> None:
    writer = opened(run)
    writer.commit(initial())
    (run / "generations/9999").write_bytes(b"")
    late = opened(run)
    assert late.generation == 10_000
    late.commit(train(1))
    late.commit(train(10**9))
    assert seen_round(run) == 10**9


def seen_round(run: Path) -> int:
    commit = reader(run).newest()
    assert commit is not None
    return commit.round
