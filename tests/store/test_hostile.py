"""Hostile files: an error of ours in bounded time and memory, whatever somebody has written who knows the format."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_rig import blob, opened, reader, train

from flwr_ckpt.store import CheckpointCorruptError, CheckpointError, CheckpointStore
from flwr_ckpt.store.format.generations import highest_generation
from flwr_ckpt.store.format.manifest import LARGEST
from flwr_ckpt.store.names import CommitName
from tests.lab.hostile import HUGE, VALUES, body_of, look_everywhere, places_in, removed, replaced, write_sealed
from tests.lab.small_run import SmallRun

Record = Callable[[str, object], None]


def _small_run(path: Path) -> Path:
    return SmallRun(path).path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _small_run(tmp_path_factory.mktemp("hostile") / "run")


def _newest(run: Path) -> Path:
    return run / "round-00000002/g0001-evaluate.manifest"


def _try(path: Path, body: Any) -> int:
    sound = path.read_bytes()
    write_sealed(path, body)
    try:
        return look_everywhere(path.parent.parent)
    finally:
        path.write_bytes(sound)


def test_the_sound_run_is_read_in_every_way(run: Path) -> None:
    assert look_everywhere(run) == 0


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_sealed_manifest_that_states_anything(run: Path, data: st.DataObject) -> None:
    """Values, types and names in any places of a manifest; its digest is right."""
    path = data.draw(st.sampled_from(sorted(run.glob("*/*.manifest"))))
    body: Any = body_of(path)
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.sampled_from(sorted(places_in(body), key=repr)))
        value = data.draw(st.sampled_from(VALUES))
        body = (
            removed(body, where)
            if where and data.draw(st.booleans()) and value is None
            else replaced(body, where, value)
        )
        if not isinstance(body, dict):
            break
    _try(path, body)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_every_value_in_every_place(part: int, tmp_path: Path, record_property: Record) -> None:
    path = _newest(_small_run(tmp_path / "run"))
    body = body_of(path)
    tried = 0
    for where in sorted(places_in(body), key=repr)[part::8]:
        for value in VALUES:
            _try(path, replaced(body, where, value))
            tried += 1
        if where:
            _try(path, removed(body, where))
            tried += 1
    record_property(
        "counted", ("hostile manifests under a right digest", {"tried": tried, "other errors than ours": 0})
    )


def test_a_fence_that_states_anything(run: Path, record_property: Record) -> None:
    """Whatever it says, it fences, and no more than that."""
    path = run / "generations/0001"
    sound, body = path.read_bytes(), body_of(path)
    changed = [replaced(body, where, value) for where in places_in(body) for value in VALUES[:: 1 if where else 4]]
    for document in changed[::7]:
        write_sealed(path, document)
        try:
            reader(run).resume()
            CheckpointStore(run).status()
        except CheckpointError:
            pass
        assert highest_generation(reader(run)._files.keys()) == 1
    path.write_bytes(sound)
    record_property("counted", ("hostile fences under a right digest", {"tried": len(changed[::7]), "wrong": 0}))


def _refused(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    body = body_of(_newest(run))
    change(body)
    sound = _newest(run).read_bytes()
    write_sealed(_newest(run), body)
    try:
        with pytest.raises(CheckpointCorruptError):
            reader(run).commit(CommitName(2, 1, "evaluate"))
        loaded = reader(run).resume()
        assert loaded is not None
        assert (loaded.commit.round, loaded.commit.phase) == (2, "train")
    finally:
        _newest(run).write_bytes(sound)


NAMES = (
    *(
        "../outside.safetensors",
        "/etc/passwd",
        "round-00000002/../../outside.safetensors",
        "round-00000002/g0001-a/b.safetensors",
    ),
    *(
        "round-00000002/g0001-\0.safetensors",
        "round-2/g0001-arrays.safetensors",
        "round-00000002/g0001-arrays.safetensors\n",
    ),
    *("", ".", "generations/0001", "history/g0001-00000002-train", "round-00000002/.tmp-0123456789abcdef-g0001-x"),
)


@pytest.mark.parametrize("name", NAMES)
def test_names_in_a_manifest_never_become_paths(name: str, run: Path) -> None:
    def change(body: dict[str, Any]) -> None:
        body["files"][0][0] = name

    def in_history(body: dict[str, Any]) -> None:
        body["segments"][0][0] = name

    _refused(run, change)
    if not name.startswith("history/"):
        _refused(run, in_history)


@pytest.mark.parametrize("offset", [-1, 1 << 40, 1 << 62, 10**30, 0, 7, 1.0, "8", None, True])
def test_an_offset_outside_of_what_was_written(offset: Any, run: Path) -> None:
    def change(body: dict[str, Any]) -> None:
        body["arrays"][0]["places"][0][1] = offset

    _refused(run, change)


def test_arrays_that_lie_across_each_other(run: Path) -> None:
    def change(body: dict[str, Any]) -> None:
        body["arrays"][0]["places"][0][1] += 4
        body["arrays"][0]["size"] -= 4

    _refused(run, lambda body: body["files"].append(body["files"][0]))
    _refused(run, lambda body: body["files"][0][4].append([body["files"][0][1] - 8, 8, 0]))
    _refused(run, lambda body: body["headers"].append("x" * 9000))
    body = body_of(_newest(run))
    body["arrays"].append({**body["arrays"][0], "name": "twin"})
    assert _try(_newest(run), body) == 0, "two arrays may lie at one place: the same bytes are written once"


# --- bounded: in a process that may have so much and no more ---------------------------------------------------------

_LOOK = """
    import resource, sys
    from pathlib import Path
    from tests.lab.hostile import look_everywhere
    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    for run in sys.argv[1:]:
        before = peak()
        print(look_everywhere(Path(run)), peak() - before)
"""


def _looked_at(*runs: Path, seconds: int) -> list[tuple[int, int]]:
    """Look at runs in a process that has so much time: in how many ways each was refused, and how many MiB it took."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_LOOK), *map(str, runs)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds)),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [(int(refused), int(mebibytes)) for refused, mebibytes in map(str.split, done.stdout.splitlines())]


def _entries(body: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """Many arrays that all lie where one does."""
    return [{**body["arrays"][0], "name": str(index)} for index in range(number)]


BOMBS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a shape that asks for terabytes": lambda body: body["arrays"][0].update(shape=[1 << 20, 1 << 20, 4]),
    "a shape whose product overflows": lambda body: body["arrays"][0].update(kind="raw", shape=[HUGE, HUGE, HUGE, 0]),
    "a segment of terabytes": lambda body: body["segments"][0].__setitem__(1, 1 << 45),
    "a header that Python's parser would work on": lambda body: body["headers"].__setitem__(
        0, "\x93NUMPY\x01\x00\x76\x00" + "-" * 8000 + "1\n"
    ),
    "three thousand arrays": lambda body: body.update(state=_entries(body, 3_000)),
    "a million nodes that stand for each other": lambda body: body["documents"].update(
        state={"roots": {"a": {"$": "deep", "n": 0}}, "deep": [_twice(index + 1) for index in range(60)] + [0]}
    ),
    "a node that stands for itself": lambda body: body["documents"].update(
        state={"roots": {"a": {"$": "deep", "n": 0}}, "deep": [{"$": "deep", "n": 0}]}
    ),
}


def _twice(index: int) -> dict[str, Any]:
    return {"$": "list", "v": [{"$": "deep", "n": index}] * 2}


def test_what_a_manifest_states_takes_no_more_than_it_is_worth(tmp_path: Path, record_property: Record) -> None:
    runs = []
    for number, change in enumerate(BOMBS.values()):
        runs.append(_small_run(tmp_path / str(number)))
        body = body_of(_newest(runs[-1]))
        change(body)
        write_sealed(_newest(runs[-1]), body)
    sparse = _small_run(tmp_path / "sparse")
    with open(sparse / "round-00000002/g0001-central.manifest", "wb") as file:
        file.truncate(1 << 43)  # of a hole, which takes no room on the disk, as much can be stated as one likes
    took = _looked_at(*runs, sparse, seconds=60)
    assert all(mebibytes < 200 for _, mebibytes in took), dict(zip([*BOMBS, "a hole"], took, strict=True))
    record_property("counted", ("hostile manifests, memory and time bounded", {"tried": len(took), "unbounded": 0}))


@pytest.mark.slow
@pytest.mark.parametrize("document", [b"[]", b"{}", b"[[[[]]]]", b'{"":0}', b"999", '"\u00ff0"'.encode()])
def test_the_largest_manifest_there_may_be(document: bytes, tmp_path: Path) -> None:
    run = _small_run(tmp_path / "run")
    items = [document] * (LARGEST // (len(document) + 1) - 99)
    _newest(run).write_bytes(SmallRun.frame(b'{"format":1,"x":[' + b",".join(items) + b"]}"))
    assert _newest(run).stat().st_size <= LARGEST
    [(refused, mebibytes)] = _looked_at(run, seconds=120)
    assert refused == 0, "the round before is sound"
    assert mebibytes < 4096


def test_a_commit_that_nobody_could_read_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = opened(tmp_path / "run")
    writer.commit(train(1))
    monkeypatch.setattr("flwr_ckpt.store.format.manifest.LARGEST", 2000)
    with pytest.raises(CheckpointError, match="more than a manifest may have"):
        writer.commit(train(2, arrays=tuple(blob(str(index), np.zeros(1)) for index in range(20))))
    loaded = reader(tmp_path / "run").resume()
    assert loaded is not None
    assert loaded.commit.round == 1
