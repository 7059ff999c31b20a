"""What the store asks of a place, of a disk and of buckets alike; and what object stores have of their own."""

from __future__ import annotations

import errno
import os
import re
import sys
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from flwr_ckpt.store import CheckpointError, CheckpointStore, locate, prepare, runs_under
from flwr_ckpt.store.places import object_files
from flwr_ckpt.store.places.cloud import open_url
from flwr_ckpt.store.places.files import Files, is_damage
from flwr_ckpt.store.places.local_files import LocalFiles
from flwr_ckpt.store.places.object_files import ObjectFiles
from tests.lab.bucket import SECRET, Answer, Fault, Faults, Forward, Request, S3Server, broken, lost, refused
from tests.lab.process import in_a_process

KEY = "round-00000001/g0001-arrays.safetensors"
_numbers = count()


def in_memory() -> ObjectFiles:
    """A folder that nobody else has."""
    return open_url(f"memory://{next(_numbers)}/run")


@pytest.fixture(params=["disk", "memory", "s3"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    """A run's folder, made."""
    made: Files
    if request.param == "disk":
        made = LocalFiles(tmp_path / "run")
    elif request.param == "memory":
        made = in_memory()
    else:
        made = open_url(f"s3://{request.getfixturevalue('s3').make_bucket()}/some/run")
    made.make_root()
    made.make_folder("round-00000001")
    return made


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> ObjectFiles:
    """A folder in S3; nobody waits between tries."""
    monkeypatch.setattr(object_files, "_PAUSES", (0.0, 0.0))
    return open_url(f"s3://{s3.make_bucket()}/run")


# --- alike -----------------------------------------------------------------------------------------------------------


def test_a_new_place_is_empty(files: Files) -> None:
    assert {*files.keys()} <= {"round-00000001/"}
    assert files.size(KEY) is None
    assert files.keys("round-00000001") == []


def test_what_is_created_is_read_in_whole_and_in_part(files: Files) -> None:
    beside: list[int] = []
    files.create(KEY, [b"abc", memoryview(b"xdefx")[1:4], b"", b"gh"], beside=lambda: beside.append(1))
    assert beside == [1]
    assert files.size(KEY) == 8
    for offset, size in [(0, None), (2, None), (0, 8), (2, 3), (2, 0), (6, 9), (8, 1), (20, 1), (9, None)]:
        expected = b"abcdefgh"[offset : None if size is None else offset + size]
        assert files.read(KEY, offset, size) == expected
        assert files.view(KEY, offset, size) == expected
        if size is not None:
            target = bytearray(size)
            assert b"".join(map(bytes, files.fill(KEY, offset, memoryview(target)))) == expected
            assert target[: len(expected)] == expected
    assert files.view(KEY).readonly


def test_a_file_of_no_bytes(files: Files) -> None:
    files.create(KEY, [])
    assert (files.size(KEY), files.read(KEY), files.read(KEY, 0, 3), bytes(files.view(KEY))) == (0, b"", b"", b"")


def test_a_name_is_taken_once(files: Files) -> None:
    files.create(KEY, [b"first"])
    files.publish("round-00000001/g0001-train.manifest", b"first")
    with pytest.raises(FileExistsError):
        files.create(KEY, [b"other"])
    with pytest.raises(FileExistsError):
        files.publish("round-00000001/g0001-train.manifest", b"other")
    assert files.read(KEY) == files.read("round-00000001/g0001-train.manifest") == b"first"


def test_what_was_published_may_be_published_again(files: Files) -> None:
    for _ in range(2):  # an answer that was lost looks like this
        files.publish("round-00000001/g0001-train.manifest", b"with a token")


def test_keys_are_those_of_a_run(files: Files) -> None:
    files.make_folder("generations")
    for key in (KEY, "generations/0001", "generations/0002"):
        files.create(key, [b"x"])
    assert sorted(files.keys()) == ["generations/0001", "generations/0002", KEY]
    assert sorted(files.keys("generations")) == ["generations/0001", "generations/0002"]
    assert files.keys("generation") == []


def test_what_is_missing_is_missing(files: Files) -> None:
    for read in (files.read, files.view):
        with pytest.raises(FileNotFoundError) as caught:
            read(KEY)
        assert is_damage(caught.value)
    with pytest.raises(FileNotFoundError):
        files.read(KEY, 0, 4)
    with pytest.raises(FileNotFoundError):
        files.adopt(files, KEY, f"{KEY}-2")
    files.remove(KEY)


def test_what_is_removed_is_gone(files: Files) -> None:
    files.create(KEY, [b"x"])
    files.remove(KEY)
    assert files.size(KEY) is None
    files.remove_folder("round-00000001")
    files.sync_folder()
    assert files.keys() == []


def test_an_adopted_file_outlives_the_first(files: Files, tmp_path: Path) -> None:
    other = LocalFiles(tmp_path / "other")
    other.make_root()
    other.create("there", [b"from a disk"])
    files.create(KEY, [b"x"])
    files.adopt(files, KEY, f"{KEY}-2")
    files.adopt(other, "there", f"{KEY}-3")
    other.adopt(files, KEY, "back")
    with pytest.raises(FileExistsError):
        files.adopt(files, KEY, f"{KEY}-2")
    files.remove(KEY)
    assert (files.read(f"{KEY}-2"), files.read(f"{KEY}-3"), other.read("back")) == (b"x", b"from a disk", b"x")
    files.sync(f"{KEY}-2")


def test_what_was_written_is_known_to_be_there(files: Files) -> None:
    files.create(KEY, [b"head", b"a" * 100, b"b" * 100])
    assert files.comparison(KEY)(4, b"a" * 100)
    assert files.comparison(KEY)(104, memoryview(b"b" * 100))
    assert not files.comparison(KEY)(4, b"a" * 99 + b"b")
    assert not files.comparison(KEY)(104, b"a" * 100)


def test_keys_are_described_in_full(files: Files) -> None:
    assert files.describe(KEY) == f"{files.describe()}/{KEY}"


# --- large objects ---------------------------------------------------------------------------------------------------


def test_a_large_object_goes_up_and_comes_down_in_parts(bucket: ObjectFiles, s3: S3Server) -> None:
    data = bytes(range(256)) * (33 << 12)
    bucket.create(KEY, [b"head", data, b"tail"])
    assert len([one for one in s3.requests if one.method == "PUT" and "partNumber" in one.path]) == 5
    s3.requests.clear()
    assert bucket.read(KEY) == b"head" + data + b"tail"
    assert len([one for one in s3.requests if one.method == "GET"]) == 5
    s3.requests.clear()
    assert bucket.read(KEY, len(data), 6) == data[-4:] + b"ta"
    assert [one.headers["Range"] for one in s3.requests] == [f"bytes={len(data)}-{len(data) + 5}"]
    with pytest.raises(FileExistsError):
        bucket.create(KEY, [data])


def test_parts_are_cut_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_files, "_PART", 7)
    monkeypatch.setattr(object_files, "_LARGEST_PUT", 20)
    monkeypatch.setattr(object_files, "_LARGEST_COPY", 20)
    files, data = in_memory(), bytes(range(100))
    files.create(KEY, [data[:30], data[30:31], data[31:]])
    assert files.read(KEY) == data
    assert files.read(KEY, 3, 90) == data[3:93]
    assert files.read(KEY, 90, 90) == data[90:]
    files.adopt(files, KEY, f"{KEY}-2")
    assert files.read(f"{KEY}-2") == data
    with pytest.raises(FileExistsError):
        files.adopt(files, KEY, f"{KEY}-2")


def test_nothing_is_downloaded_to_find_what_did_not_change(bucket: ObjectFiles, s3: S3Server) -> None:
    bucket.create(KEY, [b"a" * 100])
    s3.requests.clear()
    assert bucket.comparison(KEY)(0, b"a" * 100)
    assert not open_url(bucket.describe()).comparison(KEY)(0, b"a" * 100)  # only what this object wrote is known
    assert s3.requests == []


def test_of_many_files_the_last_are_known() -> None:
    files = in_memory()
    for number in range(40):
        files.create(f"{KEY}-{number}", [b"a"])
        assert files.comparison(f"{KEY}-0")(0, b"a")
    assert sum(files.comparison(f"{KEY}-{number}")(0, b"a") for number in range(40)) == 16


# --- faults on the way -----------------------------------------------------------------------------------------------


def new_object(request: Request) -> bool:
    return request.is_new_object


@pytest.mark.parametrize(
    "faults",
    [[lost], [broken], [lost, broken], [refused(503)], [refused(500)], [refused(409)], [refused(429)], [lost, lost]],
)
def test_a_put_whose_answer_was_lost_is_ours(faults: list[Fault], bucket: ObjectFiles, s3: S3Server) -> None:
    s3.fault = met = Faults(*faults, at=new_object)
    bucket.publish(KEY, b"with a token")
    assert met.left == []
    assert bucket.read(KEY) == b"with a token"


@pytest.mark.parametrize("faults", [[], [refused(412)], [refused(409)], [broken], [refused(500), broken]])
def test_a_put_that_another_one_came_before_is_not_ours(faults: list[Fault], bucket: ObjectFiles, s3: S3Server) -> None:
    bucket.publish(KEY, b"with another token")
    s3.fault = met = Faults(*faults, at=new_object)
    with pytest.raises(FileExistsError):
        bucket.publish(KEY, b"with a token")
    assert met.left == []
    assert bucket.read(KEY) == b"with another token"


def test_a_conflict_over_nothing_is_tried_again(bucket: ObjectFiles, s3: S3Server) -> None:
    s3.fault = Faults(refused(412), refused(409), at=new_object)
    bucket.publish(KEY, b"with a token")
    assert bucket.read(KEY) == b"with a token"


def test_tries_have_a_bound(bucket: ObjectFiles, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_files, "_RETRIES", {"max_retries": 0})
    s3.fault = refused(503)
    with pytest.raises(OSError, match=r"503 Service Unavailable, Trouble.*s3://bucket-\d+/run/round-00000001"):
        open_url(bucket.describe()).publish(KEY, b"with a token")
    assert len([one for one in s3.requests if one.is_new_object]) == 3


@pytest.mark.parametrize(
    ("status", "kind"),
    [(403, PermissionError), (401, PermissionError), (404, FileNotFoundError), (400, OSError), (501, OSError)],
)
def test_what_does_not_pass_is_not_tried_again(
    status: int, kind: type[OSError], bucket: ObjectFiles, s3: S3Server
) -> None:
    s3.fault = Faults(*[refused(status, "TheCode")] * 100, at=lambda request: True)
    for ask in (
        lambda: bucket.publish(KEY, b"x"),
        lambda: bucket.read(KEY),
        lambda: bucket.keys(),
        lambda: bucket.adopt(bucket, KEY, f"{KEY}-2"),
    ):
        s3.requests.clear()
        with pytest.raises(kind) as caught:
            ask()
        assert len(s3.requests) <= 6  # obstore tries again what a server says it has not
        assert is_damage(caught.value) == (status == 404)
        assert SECRET not in str(caught.value)
        assert caught.value.filename.startswith("s3://bucket-")


def test_no_network_fault_passes_for_damage(bucket: ObjectFiles, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a round would be passed over that is sound."""
    bucket.publish(KEY, b"x")
    monkeypatch.setattr(object_files, "_RETRIES", {"max_retries": 0})
    impatient = open_url(bucket.describe())
    for fault in (broken, refused(500), refused(503), refused(416)):
        s3.fault = Faults(*[fault] * 9, at=lambda request: request.method != "HEAD")
        for ask in (lambda: impatient.read(KEY, 0, 1), lambda: impatient.keys()):
            with pytest.raises(OSError, match="s3://") as caught:
                ask()
            assert not is_damage(caught.value)


def test_reads_are_tried_again(bucket: ObjectFiles, s3: S3Server) -> None:
    bucket.publish(KEY, b"x")
    s3.fault = met = Faults(broken, refused(503), at=lambda request: request.method == "GET")
    assert bucket.read(KEY) == b"x"
    assert met.left == []


def test_a_server_that_does_not_answer_is_not_waited_for(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_TIMEOUT", "100ms")
    monkeypatch.setattr(object_files, "_PAUSES", (0.0,))
    monkeypatch.setattr(object_files, "_RETRIES", {"max_retries": 1})
    files = open_url(f"s3://{s3.make_bucket()}/run")
    over = threading.Event()

    def silent(request: Request, forward: Forward) -> Answer | None:
        over.wait()
        return None

    s3.fault = silent
    try:
        for ask in (lambda: files.publish(KEY, b"x"), lambda: files.read(KEY)):
            with pytest.raises(TimeoutError, match="Connection timed out") as caught:
                ask()
            assert caught.value.errno == errno.ETIMEDOUT
            assert not is_damage(caught.value)
    finally:
        over.set()


def test_a_part_that_fails_leaves_no_object(bucket: ObjectFiles, s3: S3Server) -> None:
    for number in (1, 5):
        at = f"partNumber={number}"
        s3.fault = Faults(*[refused(403)] * 100, at=lambda request, at=at: at in request.path)
        with pytest.raises(PermissionError, match="403 Forbidden"):
            bucket.create(KEY, [bytes(33 << 20)])
        assert bucket.size(KEY) is None
    s3.fault = met = Faults(broken, refused(500), at=lambda request: "partNumber=2" in request.path)
    bucket.create(KEY, [bytes(33 << 20)])
    assert (met.left, bucket.size(KEY)) == ([], 33 << 20)
    assert b"<Upload>" not in s3.forward(Request("GET", f"/{bucket.describe().split('/')[2]}?uploads")).body


# --- whether an endpoint will do -------------------------------------------------------------------------------------


def overwrites(request: Request, forward: Forward) -> Answer | None:
    """An endpoint that does not know conditional puts."""
    headers = {name: value for name, value in request.headers.items() if name != "If-None-Match"}
    return forward(Request(request.method, request.path, headers, request.body))


def overwrites_and_denies(request: Request, forward: Forward) -> Answer | None:
    """One that says no after it has done it."""
    answer = overwrites(request, forward)
    return Answer(412) if request.is_new_object and request.body == b"second" else answer


def lists_late(request: Request, forward: Forward) -> Answer | None:
    """One whose listings are of a moment ago."""
    if "list-type" in request.path:
        return forward(Request("GET", re.sub("prefix=[^&]*", "prefix=earlier", request.path), request.headers))
    return forward(request)


@pytest.mark.parametrize("fault", [overwrites, overwrites_and_denies])
def test_an_endpoint_that_overwrites_is_refused(fault: Fault, bucket: ObjectFiles, s3: S3Server) -> None:
    s3.fault = fault
    with pytest.raises(CheckpointError, match=r"does not honour conditional puts.*a folder on a disk"):
        bucket.make_root()
    assert bucket.keys() == []


def test_an_endpoint_without_conditional_puts_is_refused(bucket: ObjectFiles, s3: S3Server) -> None:
    s3.fault = Faults(*[refused(501, "NotImplemented")] * 9, at=new_object)
    with pytest.raises(OSError, match="501 Not Implemented, NotImplemented"):
        bucket.make_root()


def test_an_endpoint_that_lists_late_is_refused(bucket: ObjectFiles, s3: S3Server) -> None:
    s3.fault = lists_late
    with pytest.raises(CheckpointError, match="does not list what has just been put"):
        bucket.make_root()


@pytest.mark.parametrize("faults", [[lost], [lost, lost], [broken], [refused(503)], [refused(409)]])
def test_an_endpoint_in_trouble_will_do(faults: list[Fault], bucket: ObjectFiles, s3: S3Server) -> None:
    s3.fault = Faults(*faults, at=new_object)
    bucket.make_root()
    assert bucket.keys() == []


def test_a_probe_that_was_left_behind_is_nobodys() -> None:
    files = in_memory()
    files.publish("generations/.tmp-0123456789abcdef-0000", b"first")
    files.make_root()
    assert CheckpointStore(files.describe()).rounds() == []


def test_a_child_made_by_fork_is_told_so(tmp_path: Path) -> None:
    """It would wait for ever."""
    files = in_memory()
    files.publish(KEY, b"x")

    def child() -> list[str]:
        asked = [lambda: files.read(KEY), lambda: files.publish(f"{KEY}-2", b"x"), lambda: in_memory().keys()]
        said = []
        for ask in asked:
            with pytest.raises(CheckpointError) as caught:
                ask()
            said.append(str(caught.value))
        return said

    for line in in_a_process(child, tmp_path):
        assert f"was opened in process {os.getpid()} and is used in process" in line
        assert "'spawn'" in line


# --- whether a run can be there --------------------------------------------------------------------------------------


def test_a_bucket_that_is_not_there_is_named(s3: S3Server) -> None:
    for ask in (lambda: prepare(locate("s3://nowhere/run")), lambda: CheckpointStore("s3://nowhere/run").rounds()):
        with pytest.raises(FileNotFoundError, match=r"NoSuchBucket.*s3://nowhere/"):
            ask()


def test_an_endpoint_without_tls_is_explained(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(OSError, match="set AWS_ALLOW_HTTP=true"):
        open_url("s3://bucket/run").publish(KEY, b"x")


def test_what_the_environment_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(OSError, match=r"Account must be specified.*az://container/run"):
        open_url("az://container/run")


def test_an_endpoint_is_shown_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_files, "_RETRIES", {"max_retries": 0})
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://user:{SECRET}@127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with pytest.raises(OSError, match=r"https://127\.0\.0\.1:1") as caught:
        open_url("s3://bucket/run").read(KEY)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_without_obstore_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "flwr_ckpt.store.places.object_files")
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ImportError, match=r"s3://bucket/run.*pip install \"flwr-ckpt\[cloud\]\""):
        CheckpointStore("s3://bucket/run")


@pytest.fixture(params=["memory", "s3"])
def home(request: pytest.FixtureRequest) -> Iterator[str]:
    """A checkpoint home behind a URL."""
    if request.param == "memory":
        return f"memory://{next(_numbers)}/home"
    return f"s3://{request.getfixturevalue('s3').make_bucket()}"


def test_runs_behind_a_url_do_not_lie_in_each_other(home: str) -> None:
    open_url(f"{home}/sweep/cifar/lr-0.1").publish("generations/0001", b"x")
    for name in ("sweep", "sweep/cifar"):
        with pytest.raises(ValueError, match=r"holds a run, .*sweep/cifar/lr-0\.1"):
            prepare(locate(name, home))
    for name in ("sweep/cifar/lr-0.1/x", "sweep/cifar/lr-0.1/x/y"):
        with pytest.raises(ValueError, match=r"inside the run .*sweep/cifar/lr-0\.1:"):
            prepare(locate(name, home))
    for name in ("sweep/cifar/lr-0.1", "sweep/cifar/lr-0.2", "sweep2"):
        assert prepare(locate(name, home)) == (
            []
            if home.startswith("s3")
            else [f"{home}/{name} is kept in this process's memory: checkpoints there are gone when it ends"]
        )


def test_credentials_for_one_folder_will_do(bucket: ObjectFiles, s3: S3Server) -> None:
    outside = Faults(
        *[refused(403)] * 9, at=lambda request: "prefix=" in request.path and "prefix=run" not in request.path
    )
    s3.fault = outside
    assert prepare(locate(bucket.describe())) == []
    assert len(outside.left) == 8


def test_runs_are_found_under_a_url(home: str) -> None:
    for name in ("digits", "cifar/lr-0.2", "cifar/lr-0.1"):
        open_url(f"{home}/{name}").publish("generations/0001", b"x")
    open_url(f"{home}/other").publish("notes/text", b"x")
    assert [location.label for location in runs_under(home)] == ["cifar/lr-0.1", "cifar/lr-0.2", "digits"]
