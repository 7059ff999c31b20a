"""Whole runs in object stores: the rules of the store hold there as on a disk, whatever becomes of a request."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from pathlib import Path

import obstore
import pytest
from run_rig import Countdown, Kill, KilledError, at, initial, later, model, opened, reader, run_to, seen, train

from flwr_ckpt.store import (
    CheckpointCorruptError,
    CheckpointStore,
    FencedError,
    KeepAll,
    KeepLatest,
    RunReader,
    RunWriter,
)
from flwr_ckpt.store.commands.rewind import rewind
from flwr_ckpt.store.draft import Buffer
from flwr_ckpt.store.names import parse_manifest
from flwr_ckpt.store.places import object_files
from flwr_ckpt.store.places.cloud import open_url
from flwr_ckpt.store.places.object_files import ObjectFiles, open_folder
from tests.lab.bucket import Answer, Faults, Forward, Request, S3Server, broken, lost, refused

_numbers = count()


def in_memory() -> str:
    """A place that nobody else has."""
    return f"memory://runs/{next(_numbers)}/run"


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest) -> str:
    """A place for a run."""
    if request.param == "memory":
        return in_memory()
    return f"s3://{request.getfixturevalue('s3').make_bucket()}/run"


@pytest.fixture
def on_s3(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run in S3; nobody waits between tries."""
    monkeypatch.setattr(object_files, "_PAUSES", (0.0, 0.0))
    return f"s3://{s3.make_bucket()}/run"


def nothing(operation: str, key: str) -> None:
    """Let a request pass."""


def fail() -> None:
    """Fail as a server in trouble does."""
    raise OSError(errno.EREMOTEIO, "503 Service Unavailable")


class WatchedObjects(ObjectFiles):
    """A bucket that calls `before` ahead of each request; and, if `looks`, of each that only looks."""

    def __init__(self, url: str, before: Callable[[str, str], None] = nothing, *, looks: bool = False) -> None:
        folder = open_folder(url)
        super().__init__(folder._store, url, folder._root)
        self.before = before
        self.looks = looks

    def keys(self, folder: str = "") -> list[str]:
        self.before("keys", folder)
        return super().keys(folder)

    def remove(self, key: str) -> None:
        self.before("remove", key)
        super().remove(key)

    def _put_new(self, key: str, buffers: Sequence[Buffer]) -> None:
        self.before("put", key)
        super()._put_new(key, buffers)

    def _put_parts(self, key: str, parts: Iterable[Buffer], size: int) -> None:
        self.before("put parts", key)
        super()._put_parts(key, parts, size)

    def _copy(self, source: str, target: str) -> None:
        self.before("copy", target)
        super()._copy(source, target)

    def _is_refused(self, key: str, data: bytes) -> bool:
        self.before("put again", key)
        return super()._is_refused(key, data)

    def _get(self, key: str, start: int, length: int) -> bytes:
        if self.looks:
            self.before("get", key)
        return super()._get(key, start, length)

    def _size(self, key: str) -> int:
        if self.looks:
            self.before("size", key)
        return super()._size(key)


def manifests_in(url: str) -> list[str]:
    listed = open_url(url).keys()
    return sorted(filter(parse_manifest, listed))


def garbage_in(url: str) -> set[str]:
    """What lies in a run's folder, and neither a fence is nor any commit needs."""
    look = reader(url)
    needed = set()
    for name in look.names():
        commit = look.commit(name)
        needed |= {name.key, *(file.key for file in commit.files), *(segment.key for segment in commit.segments)}
    listed = open_url(url).keys()
    return {key for key in listed if not key.startswith("generations/")} - needed


# --- everyday use ----------------------------------------------------------------------------------------------------


def test_a_run_goes_on_over_restarts(url: str) -> None:
    run_to(opened(url, KeepLatest(3)), 4)
    again = opened(url, KeepLatest(3))
    assert again.resumed is not None
    assert (again.generation, again.resumed.commit.round) == (2, 4)
    run_to(again, 6, first=5)
    assert seen(url) == (6, "evaluate", 6)
    assert {name.round for name in reader(url).names()} == {4, 5, 6}
    assert garbage_in(url) == set()
    assert sorted(CheckpointStore(url).history()["train/seen"]) == [1, 2, 3, 4, 5, 6]


def test_a_large_unchanged_array_is_put_twice_and_never_fetched(on_s3: str, s3: S3Server) -> None:
    writer = opened(on_s3)
    writer.commit(initial(arrays=model(0, ["frozen"])))
    s3.requests.clear()
    for server_round in (1, 2, 3, 4):
        writer.commit(train(server_round, arrays=model(server_round, ["frozen"])))
    assert {
        one.path.rpartition("/")[2] for one in s3.requests if one.method == "GET" and "list-type" not in one.path
    } == {
        "0001"  # the fence
    }
    large = [one for one in s3.requests if one.method == "PUT" and int(one.headers["Content-Length"]) > 1 << 20]
    assert len(large) == 1, "the second copy, as round 0 holds the first"
    loaded = reader(on_s3).resume()
    assert loaded is not None
    assert loaded.arrays == {one.name: one.data for one in model(4, ["frozen"])}


def test_the_store_looks_at_it(url: str) -> None:
    run_to(opened(url, KeepAll()), 3)
    store = CheckpointStore(url)
    assert repr(store) == f"CheckpointStore('{url}')"
    assert [record.round for record in store.rounds()] == [0, 1, 2, 3]
    assert store.best("evaluate/loss", "max") == store.rounds()[1]
    assert float(store.load(2).arrays["w"][0, 0]) == 2
    assert all(found.ok for found in store.verify())
    assert store.status().round == 3
    store.rewind(2)
    assert seen(url) == (2, "evaluate", 2)
    assert store.prune(KeepLatest(1)) == [0, 1]
    assert store.remove() == []
    assert store.rounds() == []
    assert open_url(url).keys() == ["generations/0004"]


def test_runs_are_forked_from_bucket_to_disk_and_back(url: str, tmp_path: Path) -> None:
    run_to(opened(url), 3)
    CheckpointStore(url).fork(tmp_path / "fork", round=2)
    CheckpointStore(tmp_path / "fork").fork(f"{url}-2")
    CheckpointStore(f"{url}-2").fork(f"{url}-3")
    CheckpointStore(url).remove()
    for place in (tmp_path / "fork", f"{url}-2", f"{url}-3"):
        assert seen(place) == (2, "evaluate", 2)
        run_to(opened(place), 4, first=3)
        assert seen(place) == (4, "evaluate", 4)


def test_a_damaged_object_is_passed_over(url: str, caplog: pytest.LogCaptureFixture) -> None:
    run_to(opened(url), 2)
    files = open_url(url)
    key = "round-00000002/g0001-arrays.safetensors"
    data = bytearray(files.read(key))
    data[-1] ^= 1
    obstore.put(files._store, files._path(key), bytes(data))
    assert seen(url) == (1, "evaluate", 1)
    assert f"{url}/{key}" in caplog.text
    with pytest.raises(CheckpointCorruptError):
        CheckpointStore(url).load(2)
    assert [found.round for found in CheckpointStore(url).verify() if not found.ok] == [2, 2]


def test_the_older_server_is_fenced_and_told_by_whom(url: str) -> None:
    old = opened(url)
    run_to(old, 1)
    opened(url)
    with pytest.raises(FencedError, match=r"process [0-9]+ on .*generation 2"):
        old.commit(train(2))
    assert seen(url) == (1, "evaluate", 1)


def test_servers_that_open_in_the_same_instant(url: str) -> None:
    run_to(opened(url), 1)
    together = threading.Barrier(4)
    writers = []

    def serve() -> None:
        together.wait()
        writers.append(opened(url))

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    newest = max(writers, key=lambda writer: writer.generation)
    assert sorted(writer.generation for writer in writers) == [2, 3, 4, 5]
    newest.commit(train(2))
    for writer in writers:
        if writer is not newest:
            with pytest.raises(FencedError):
                writer.commit(train(2))
    assert seen(url) == (2, "train", 2)


# --- kills and errors at every request -------------------------------------------------------------------------------


def test_a_kill_ahead_of_any_request_loses_nothing_durable() -> None:
    script = [initial(), train(1), later(1), train(2)]
    states = [None, (0, "initial", 0), (1, "train", 1), (1, "evaluate", 1), (2, "train", 2)]
    moment, done = 0, -1
    while done < len(script):
        url = in_memory()
        done = 0
        try:
            writer = opened(url, KeepLatest(1), files=WatchedObjects(url, Kill(moment)))
            for draft in script:
                writer.commit(draft)
                done += 1
                writer.retain()
            done += 1
        except KilledError:
            pass
        assert seen(url) in states[done : done + 2], f"killed ahead of request {moment}"
        after = opened(url, KeepLatest(1))
        position = after.resumed.commit.round if after.resumed else -1
        after.commit(initial() if position < 0 else train(position + 1))
        after.retain()
        assert seen(url) == ((0, "initial", 0) if position < 0 else (position + 1, "train", position + 1))
        assert garbage_in(url) == set()
        moment += 1
    assert moment > 25


def test_an_error_at_any_request_costs_one_round_at_most() -> None:
    """The next round carries what failed; what was reported durable is there all the time."""
    moment, reached = 0, True
    while reached:
        url = in_memory()

        files = WatchedObjects(url, looks=True)
        writer = opened(url, KeepLatest(1), files=files)
        run_to(writer, 1)
        files.before = countdown = Countdown(moment, fail)
        durable = (1, "evaluate", 1)
        for draft in (train(2), later(2)):
            try:
                if writer.commit(draft) is not None:
                    durable = (2, draft.phase, 2)
                writer.retain()
            except OSError:
                assert countdown.count == moment + 1
            assert seen(url) in (durable, (2, draft.phase, 2))
        files.before = nothing
        writer.commit(train(3))
        writer.retain()
        assert seen(url) == (3, "train", 3)
        assert garbage_in(url) == set()
        reached = countdown.count > moment
        moment += 1
    assert moment > 15


def test_an_error_at_any_request_of_an_opening_fences_nobody_for_good() -> None:
    moment, opened_once = 0, False
    while not opened_once:
        url = in_memory()
        run_to(opened(url), 2)

        try:
            opened(url, files=WatchedObjects(url, Countdown(moment, fail), looks=True))
            opened_once = True
        except OSError:
            pass
        assert seen(url) == (2, "evaluate", 2)
        opened(url).commit(train(3))
        assert seen(url) == (3, "train", 3)
        moment += 1
    assert moment > 20


def test_a_newer_server_at_any_moment_of_a_commit_and_of_retention() -> None:
    """The older reports durable only what the newer then resumes from, and takes nothing of it away."""
    outcomes = set()
    moment, reached = 0, True
    while reached:
        url = in_memory()
        files = WatchedObjects(url, looks=True)
        old = opened(url, KeepLatest(1), files=files)
        run_to(old, 1)
        newer = []
        files.before = countdown = Countdown(
            moment, lambda url=url, newer=newer: newer.append(opened(url, KeepLatest(1)))
        )
        try:
            old.commit(train(2))
            durable = True
            old.retain()
        except FencedError:
            durable = False
        reached = countdown.count > moment
        if reached:
            taken = newer[0].resumed.commit.round if newer[0].resumed else 0
            assert not durable or taken == 2
            newer[0].commit(train(taken + 1))
            newer[0].retain()
            assert seen(url) == (taken + 1, "train", taken + 1)
            outcomes.add((durable, taken))
        moment += 1
    assert outcomes == {(False, 1), (False, 2), (True, 2)}


def test_a_kill_ahead_of_any_request_of_a_rewind() -> None:
    moment, done = 0, False
    while not done:
        url = in_memory()
        run_to(opened(url), 3)
        try:
            rewind(at(url), 1, files=WatchedObjects(url, Kill(moment)))
            done = True
        except KilledError:
            assert seen(url) in ((3, "evaluate", 3), (1, "evaluate", 1))
        rewind(at(url), 1)
        writer = opened(url, KeepLatest(1))
        writer.commit(train(2))
        writer.retain()
        assert seen(url) == (2, "train", 2)
        assert garbage_in(url) == set()
        moment += 1
    assert moment > 8


# --- answers that are lost or late -----------------------------------------------------------------------------------


def new_object(request: Request) -> bool:
    return request.is_new_object


def test_a_run_whose_every_answer_is_lost_once_is_the_same_run(on_s3: str, s3: S3Server) -> None:
    quiet = f"{on_s3}-quiet"
    run_to(opened(quiet, KeepLatest(2)), 3)
    known: set[str] = set()

    def first_time(request: Request, forward: Forward) -> Answer | None:
        if request.is_new_object and request.path not in known:
            known.add(request.path)
            return lost(request, forward)
        return forward(request)

    s3.fault = first_time
    run_to(opened(on_s3, KeepLatest(2)), 3)
    assert len(known) > 10
    assert seen(on_s3) == (3, "evaluate", 3)
    assert manifests_in(on_s3) == manifests_in(quiet)
    assert garbage_in(on_s3) == set()


def test_a_round_of_a_bucket_out_of_reach_is_carried_by_the_next(
    on_s3: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_files, "_RETRIES", {"max_retries": 0})
    writer = opened(on_s3, KeepLatest(2))
    run_to(writer, 1)
    for fault in (broken, refused(503), refused(403), refused(404)):
        s3.fault = fault
        with pytest.raises(OSError, match=r"s3://bucket-\d+/run"):
            writer.commit(train(2))
        assert writer.commit(later(2)) is None
        s3.fault = Faults(at=new_object)
        assert seen(on_s3) == (1, "evaluate", 1)
        writer._failed_round = None  # as if it were the next round
    writer.commit(train(3, arrays=model(3), outcomes=()))
    loaded = reader(on_s3).resume()
    assert loaded is not None
    assert (loaded.commit.round, loaded.arrays["w"]) == (3, model(3)[0].data)


def test_a_manifest_whose_answers_never_came_is_told_as_not_durable(on_s3: str, s3: S3Server) -> None:
    """It is there, and may be resumed from; the next round carries it all the same."""
    writer = opened(on_s3)
    run_to(writer, 1)

    def speechless(request: Request, forward: Forward) -> Answer | None:
        return lost(request, forward) if "g0001-train.manifest" in request.path else forward(request)

    s3.fault = speechless
    with pytest.raises(OSError, match=r"g0001-train\.manifest"):
        writer.commit(train(2))
    s3.fault = Faults(at=new_object)
    assert seen(on_s3) == (2, "train", 2)
    writer.commit(train(3))
    writer.retain()
    assert seen(on_s3) == (3, "train", 3)


def test_a_late_put_of_a_dead_server_is_passed_by(on_s3: str, s3: S3Server) -> None:
    """Its requests have left, and reach the bucket when a newer server has long been at work."""
    dead = opened(on_s3, KeepLatest(2))
    run_to(dead, 2)
    under_way: list[Request] = []

    def held_up(request: Request, forward: Forward) -> Answer | None:
        if request.is_new_object:
            under_way.append(request)
            return Answer(200, {"ETag": '"0"'})
        return forward(request)

    s3.fault = held_up
    dead.commit(train(3))  # as far as it knows
    s3.fault = Faults(at=new_object)
    newer = opened(on_s3, KeepLatest(2))
    assert newer.resumed is not None
    assert newer.resumed.commit.round == 2
    newer.commit(train(3, arrays=model(3), state=()))
    for request in under_way:
        assert s3.forward(request).status == 200
    assert len(under_way) == 3
    assert seen(on_s3) == (3, "train", 3)
    assert reader(on_s3).resume().state == {}  # type: ignore[union-attr]  # the newer one's, that is
    newer.commit(train(4))
    newer.retain()
    assert seen(on_s3) == (4, "train", 4)
    opened(on_s3, KeepLatest(2)).close()
    last = opened(on_s3, KeepLatest(1))
    last.commit(train(5))
    last.retain()
    assert garbage_in(on_s3) == set()


def test_a_round_that_vanishes_at_any_moment_of_a_resume() -> None:
    """A live server commits a round and removes the one before it, between any two requests of a reader."""
    moment, reached = 0, True
    while reached:
        url = in_memory()
        writer = opened(url, KeepLatest(1))
        run_to(writer, 2)

        def go_on(writer: RunWriter = writer) -> None:
            run_to(writer, 3, first=3)

        files = WatchedObjects(url, countdown := Countdown(moment, go_on), looks=True)
        loaded = RunReader(at(url), files).resume()
        reached = countdown.count > moment
        assert loaded is not None
        assert loaded.commit.round == 3 or (loaded.commit.round == 2 and not reached)
        moment += 1
    assert moment > 8
