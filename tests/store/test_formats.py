"""Bytes on disk: ``.npy`` headers, safetensors files, manifests. What was written comes back, and nothing else."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from run_rig import Place, flip, initial, npy, opened, reader, train

from flwr_ckpt.store import Blob, CheckpointCorruptError, Entry, FormatVersionError, RunReader
from flwr_ckpt.store.format.datafile import Piece, write_data_file
from flwr_ckpt.store.format.manifest import decode, encode, outcome_text, seal, unseal
from flwr_ckpt.store.format.npy import parse_header, split_npy
from flwr_ckpt.store.format.payloads import read_blob
from flwr_ckpt.store.places.local_files import LocalFiles
from flwr_ckpt.store.places.memory import WORTHWHILE
from flwr_ckpt.store.same import same_bytes

dtypes = st.one_of(
    hnp.scalar_dtypes(), hnp.byte_string_dtypes(), hnp.unicode_string_dtypes(), hnp.array_dtypes(hnp.scalar_dtypes())
)
arrays = hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))


@given(arrays, st.booleans())
def test_a_npy_file_is_split_where_its_header_ends(array: np.ndarray[Any, Any], fortran: bool) -> None:
    data = npy(np.asfortranarray(array) if fortran and array.ndim else array)
    header, payload = split_npy(data)
    assert header + payload == data
    assert len(payload) == array.nbytes
    parsed = parse_header(header)
    if array.dtype.names is None:
        assert parsed is not None
        assert parsed[2] == array.shape
        assert np.dtype(parsed[0]) == array.dtype


@given(st.one_of(st.binary(max_size=40), st.binary(max_size=40).map(lambda tail: b"\x93NUMPY" + tail)))
def test_any_bytes_are_split_into_themselves(data: bytes) -> None:
    header, payload = split_npy(data)
    assert header + payload == data
    if header:
        parse_header(header)


blobs = st.one_of(
    st.builds(
        Blob,
        st.text(max_size=4),
        st.one_of(arrays.map(npy), st.binary(max_size=40)),
        st.just("npy"),
        st.text(max_size=3),
        st.lists(st.integers(-(1 << 70), 1 << 70), max_size=3).map(tuple),  # whatever a client states
        st.text(max_size=3),
    ),
    st.builds(
        Blob,
        st.text(max_size=4),
        st.binary(max_size=40),
        st.just("raw"),
        st.sampled_from(["float32", "bfloat16", "float8_e5m2", "bool", "complex64", "", "nonsense"]),
        st.lists(st.integers(0, 5), max_size=3).map(tuple),
        st.text(max_size=3),
    ),
)


def named_once(most: int) -> st.SearchStrategy[list[Blob]]:
    return st.lists(blobs, max_size=most, unique_by=lambda blob: blob.name)


@pytest.mark.usefixtures("patient_disk")
@settings(max_examples=60)
@given(named_once(6), named_once(3))
def test_any_blobs_come_back_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, arrays: list[Blob], state: list[Blob]
) -> None:
    safetensors = pytest.importorskip("safetensors")
    run = tmp_path_factory.mktemp("run") / "run"
    opened(run).commit(initial(arrays=tuple(arrays), state=tuple(state)))
    loaded = reader(run).resume()
    assert loaded is not None
    assert loaded.arrays == {blob.name: blob.data for blob in arrays}
    assert loaded.state == {blob.name: blob.data for blob in state}
    assert [(one.kind, one.dtype, one.shape, one.stype) for one in loaded.commit.arrays] == [
        (one.kind, one.dtype, one.shape, one.stype) for one in arrays
    ]
    assert not reader(run).problems(loaded.commit)
    for file in run.rglob("*.safetensors"):
        safetensors.deserialize(file.read_bytes())


def test_other_tools_open_the_global_arrays(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    model = {
        "conv.weight": np.arange(24, dtype="f4").reshape(2, 3, 4),
        "conv.count": np.array(7),
        "flags": np.array([True, False, True]),
        "half": np.ones(3, "f2"),
        "wide": np.ones((1, 2), "f8"),
        "none": np.empty((0, 2), "f4"),
        "__metadata__": np.arange(3, dtype="u1"),
    }
    opened(tmp_path / "run").commit(initial(arrays=tuple(Blob(name, npy(array)) for name, array in model.items())))
    file = tmp_path / "run/round-00000000/g0001-arrays.safetensors"
    stored = numpy.load_file(file)
    model["__metadata__-2"] = model.pop("__metadata__")
    assert set(stored) == set(model)
    assert all(
        np.array_equal(stored[name], array) and stored[name].dtype == array.dtype for name, array in model.items()
    )
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    for entry in json.loads(data[8 : 8 + length]).values():
        size = {"F64": 8, "I64": 8, "F32": 4, "F16": 2}.get(entry["dtype"], 1)
        assert entry["data_offsets"][0] % size == 0


def test_more_buffers_than_the_system_takes_at_once(tmp_path: Path) -> None:
    payloads = [bytes([index % 251]) * (index % 7) for index in range(3000)]
    pieces = [Piece(str(index), memoryview(data), "U8", (len(data),)) for index, data in enumerate(payloads)]
    written = write_data_file(LocalFiles(tmp_path), "file", pieces)
    data = (tmp_path / "file").read_bytes()
    assert written.size == len(data)
    assert [data[one.offset : one.offset + one.size] for one in written.chunks] == payloads


def test_a_disk_that_takes_less_than_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, buffers: real(fd, [memoryview(buffers[0])[:3]]))
    LocalFiles(tmp_path).create("file", [b"abcdefgh", b"", b"ij"])
    assert (tmp_path / "file").read_bytes() == b"abcdefghij"


@pytest.mark.parametrize("refused", [False, True])
def test_the_disk_begins_with_one_part_of_a_large_file_while_the_next_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    calls: list[tuple[str, int, int]] = []
    write, sync = os.writev, os.fsync

    def writev(descriptor: int, buffers: list[memoryview]) -> int:
        written = write(descriptor, buffers)
        calls.append(("written", os.fstat(descriptor).st_size, written))
        return written

    def advise(descriptor: int, offset: int, size: int, advice: int) -> None:
        calls.append(("begun", offset, size))
        if refused:
            raise OSError(errno.EINVAL, "Invalid argument")

    def fsync(descriptor: int) -> None:
        calls.append(("synced", 0, 0))
        sync(descriptor)

    monkeypatch.setattr(os, "writev", writev)
    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(os, "fsync", fsync)
    buffers = [b"head", bytes(range(251)) * 70_000, b"", b"tail" * 1_500_000]
    LocalFiles(tmp_path).create("file", buffers)
    assert (tmp_path / "file").read_bytes() == b"".join(buffers)
    kinds = [kind for kind, _, _ in calls]
    begun = [(offset, size) for kind, offset, size in calls if kind == "begun"]
    assert kinds[:4] == ["written", "written", "begun", "written"]
    assert kinds[-1] == "synced"
    assert kinds.count("synced") == 1
    ends = [offset + size for offset, size in begun]
    assert [offset for offset, _ in begun] == [0, *ends[:-1]], "each once, and none left out"
    assert max(size for _, size in begun) <= 1 << 22
    last = [size for kind, _, size in calls if kind == "written"][-1]
    assert ends[-1] == len(b"".join(buffers)) - last, "the last part is the sync's own"


def test_a_small_file_is_only_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise")
    LocalFiles(tmp_path).create("file", [b"ab"] * 1024)
    assert (tmp_path / "file").read_bytes() == b"ab" * 1024


def test_a_disk_that_gives_less_than_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pread
    (tmp_path / "file").write_bytes(b"abcdefghij")
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: real(fd, min(size, 3), offset))
    assert LocalFiles(tmp_path).read("file") == b"abcdefghij"
    assert LocalFiles(tmp_path).read("file", 2, 7) == b"cdefghi"
    assert LocalFiles(tmp_path).read("file", 8, 7) == b"ij"


def test_memory_is_filled_by_a_disk_that_gives_less_than_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv
    (tmp_path / "file").write_bytes(b"abcdefghij")
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: real(fd, [buffers[0][:3]], offset))
    target = bytearray(7)
    assert list(map(bytes, LocalFiles(tmp_path).fill("file", 2, memoryview(target)))) == [b"cde", b"fgh", b"i"]
    assert target == b"cdefghi"
    assert list(map(bytes, LocalFiles(tmp_path).fill("file", 8, memoryview(target)))) == [b"ij"]


@pytest.fixture
def large(tmp_path: Path) -> tuple[LocalFiles, Entry, bytes]:
    """An array that is read in several pieces, the last one not full."""
    data = npy(np.arange(450_001.0))
    opened(tmp_path).commit(initial(arrays=(Blob("w", data),)))
    commit = reader(tmp_path).newest()
    assert commit is not None
    return LocalFiles(tmp_path), commit.arrays[0], data


def test_a_large_array_is_read_into_the_memory_it_is_handed_out_in(large: tuple[LocalFiles, Entry, bytes]) -> None:
    files, entry, data = large
    tracemalloc.start()
    try:
        read = read_blob(files, entry)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert type(read) is bytes
    assert read == data
    assert peak < len(data) + (1 << 18), "one copy"


@pytest.mark.parametrize("at", [0, (1 << 19) - 1, 1 << 19, -1])
def test_damage_in_any_piece_of_a_large_array_is_noticed(large: tuple[LocalFiles, Entry, bytes], at: int) -> None:
    files, entry, _ = large
    (place,) = entry.places
    flip(files.root / place.file, (place.offset if at >= 0 else entry.size + place.offset) + at)
    with pytest.raises(CheckpointCorruptError, match="checksum"):
        read_blob(files, entry)


def test_a_large_array_whose_file_was_cut_off(large: tuple[LocalFiles, Entry, bytes]) -> None:
    files, entry, _ = large
    (place,) = entry.places
    os.truncate(files.root / place.file, place.offset + (1 << 20))
    with pytest.raises(CheckpointCorruptError, match=f"1048576 of {entry.size} bytes"):
        read_blob(files, entry)


@given(st.binary(max_size=64), st.integers(0, 63))
def test_bytes_are_the_same_only_if_all_are(data: bytes, at: int) -> None:
    assert same_bytes(data, bytes(data))
    assert not same_bytes(data, data + b"x")
    if at < len(data):
        assert not same_bytes(data, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def test_large_bytes_that_differ_in_the_last_place() -> None:
    data = bytes(10_000_000)
    assert not same_bytes(data, data[:-1] + b"x")
    assert same_bytes(data, bytearray(data))


@pytest.mark.parametrize("size", [4095, 4096, 4097, 4103, 300_001])
def test_no_differing_byte_is_passed_over(size: int) -> None:
    data = bytes(size)
    for at in {0, 1, 4094, 4095, 4096, 4102, 36_863, 36_864, size - 9, size - 8, size - 1} & set(range(size)):
        other = bytearray(data)
        other[at] = 1
        assert not same_bytes(data, memoryview(other))
        assert same_bytes(memoryview(other), bytes(other))


# --- manifests that lie ------------------------------------------------------------------------------------------


def _body(run: Path) -> dict[str, Any]:
    manifest = run / "round-00000000/g0001-initial.manifest"
    body: dict[str, Any] = json.loads(manifest.read_bytes())["body"]
    return body


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    opened(run).commit(initial(state=(Blob("s", b"12345678", "raw", "int64", (1,)),)))
    return run


def test_a_manifest_is_written_as_it_is_read(run: Path) -> None:
    data = (run / "round-00000000/g0001-initial.manifest").read_bytes()
    commit = decode(data, "here")
    assert encode(commit, map(outcome_text, commit.outcomes)) == data


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [found for key, item in items for found in _paths(item, (*path, key))]


_HOSTILE = [
    None, True, -1, 2**63, 10**400, 1.5, float("1e300"), "", "x", "../../etc/passwd", "/etc/passwd",
    "round-00000000/../g0001-arrays.safetensors", "round-1/g0001-arrays.safetensors", [], [[]],
    [[0, 0, 0, 0]], {}, {"$": "odd"},
]  # fmt: skip


def test_a_manifest_that_states_nonsense_is_refused_or_harmless(run: Path) -> None:
    """Wherever a value of another kind stands: an error of ours, or a manifest that says nothing untrue of paths."""
    body = _body(run)
    refused = 0
    for path in _paths(body)[1:]:
        for value in _HOSTILE:
            changed = json.loads(json.dumps(body))
            place = changed
            for key in path[:-1]:
                place = place[key]
            if path == ("format",) and value in (10**400, 2**63):
                continue
            place[path[-1]] = value
            try:
                commit = decode(seal(changed), "manifest")
            except CheckpointCorruptError:
                refused += 1
            else:
                names = {file.key for file in commit.files} | {segment.key for segment in commit.segments}
                assert names <= {f"round-00000000/g0001-{label}.safetensors" for label in ("arrays", "strategy")}
    assert refused > 1000


@pytest.mark.parametrize(
    "text",
    [b"[" * 1_000_000, b'{"a":' * 100_000, b"1" * 100_000, b'{"format":NaN}', b"\xff\xfe", b"null", b"{}", b""],
    ids=["deep list", "deep object", "huge number", "NaN", "no text", "null", "empty", "nothing"],
)
def test_json_that_is_no_manifest(text: bytes) -> None:
    data = b'{"sha256":"' + hashlib.sha256(text).hexdigest().encode() + b'","body":' + text + b"}\n"
    tracemalloc.start()
    with pytest.raises(CheckpointCorruptError):
        decode(data, "manifest")
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


def test_a_manifest_larger_than_any_is_not_read(run: Path) -> None:
    with (run / "round-00000000/g0001-initial.manifest").open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    tracemalloc.start()
    assert reader(run).newest() is None
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


def test_names_in_a_manifest_that_is_not_its_own(run: Path) -> None:
    (run / "round-00000001").mkdir()
    (run / "round-00000000/g0001-initial.manifest").rename(run / "round-00000001/g0001-train.manifest")
    assert reader(run).newest() is None


def test_links_are_not_followed(run: Path, tmp_path: Path) -> None:
    arrays = run / "round-00000000/g0001-arrays.safetensors"
    arrays.rename(tmp_path / "elsewhere")
    arrays.symlink_to(tmp_path / "elsewhere")
    assert reader(run).newest() is None


def test_a_newer_format_is_told_from_damage_and_nothing_is_touched(run: Path) -> None:
    manifest = run / "round-00000000/g0001-initial.manifest"
    manifest.write_bytes(seal({**_body(run), "format": 2, "arrays": "something new"}))
    before = sorted((str(one), one.stat().st_mtime_ns) for one in run.rglob("*"))
    for act in (reader(run).newest, reader(run).resume, lambda: opened(run)):
        with pytest.raises(FormatVersionError, match=r"format version 2.*Upgrade"):
            act()
    assert sorted((str(one), one.stat().st_mtime_ns) for one in run.rglob("*")) == before


def test_a_fence_of_a_newer_format(run: Path) -> None:
    fence = run / "generations/0001"
    fence.write_bytes(seal({**unseal(fence.read_bytes(), ""), "format": 9}))
    with pytest.raises(FormatVersionError):
        reader(run).newest()


# --- every byte --------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    run = tmp_path / "tiny"
    writer = opened(run)
    writer.commit(initial(arrays=(Blob("w", npy(np.arange(3.0))),), documents={"tree": 0}))
    writer.commit(train(1, arrays=(Blob("w", npy(np.arange(3.0) + 1)),), state=(Blob("s", b"abc", "raw"),)))
    return run


_WRITTEN: dict[int, tuple[dict[str, bytes], dict[str, bytes], Any]] = {
    0: ({"w": npy(np.arange(3.0))}, {}, {"tree": 0}),
    1: ({"w": npy(np.arange(3.0) + 1)}, {"s": b"abc"}, {"tree": 1}),
}


def _outcome(run: Path) -> tuple[int | None, bool]:
    """The round that is served, which must be as it was written, and whether anything is seen to be wrong."""
    look = RunReader(Place(run))
    loaded = look.resume()
    commits = look.commits()
    noticed = len(commits) < 2 or any(look.problems(commit) for commit in commits)
    if loaded is None:
        return None, noticed
    assert (loaded.arrays, loaded.state, loaded.documents) == _WRITTEN[loaded.commit.round]
    return loaded.commit.round, noticed


def _is_of_round(path: Path, number: int) -> bool:
    return path.parent.name == f"round-{number:08d}"


def test_no_flipped_byte_goes_unnoticed_or_gives_a_wrong_value(tiny: Path) -> None:
    for path in sorted(one for one in tiny.rglob("g0*") if one.is_file()):
        data = path.read_bytes()
        for offset in range(len(data)):
            flipped = bytearray(data)
            flipped[offset] ^= 1 << (offset % 8)
            path.write_bytes(flipped)
            served, noticed = _outcome(tiny)
            header_only = path.suffix == ".safetensors" and offset < 8 + int.from_bytes(data[:8], "little")
            sound = 1 if header_only or _is_of_round(path, 0) else 0
            assert (served, noticed) == (sound, True), (path, offset)
        path.write_bytes(data)
    assert _outcome(tiny) == (1, False)


def test_no_truncation_goes_unnoticed_or_gives_a_wrong_value(tiny: Path) -> None:
    for path in sorted(one for one in tiny.rglob("g0*") if one.is_file()):
        data = path.read_bytes()
        for length in [*range(len(data)), None]:
            if length is None:
                path.unlink()
            else:
                path.write_bytes(data[:length])
            assert _outcome(tiny) == (1 if _is_of_round(path, 0) else 0, True), (path, length)
        path.write_bytes(data)


def test_damage_to_a_fence_changes_nothing(tiny: Path) -> None:
    fence = tiny / "generations/0001"
    data = fence.read_bytes()
    for offset in range(len(data)):
        flipped = bytearray(data)
        flipped[offset] ^= 1 << (offset % 8)
        fence.write_bytes(flipped)
        assert _outcome(tiny)[0] == 1


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


@pytest.mark.parametrize("size", [WORTHWHILE - 1, WORTHWHILE, 3 * WORTHWHILE + 4097])
@pytest.mark.parametrize("offset", [0, 1, 5000])
def test_memory_of_any_size_is_filled_and_nothing_beside_it(size: int, offset: int, tmp_path: Path) -> None:
    content = np.random.default_rng(size).bytes(offset + size)
    (tmp_path / "file").write_bytes(content)
    memory = bytearray(b"x" * (size + 20000))
    with memoryview(memory) as whole, whole[7 : 7 + size] as target:
        for part in LocalFiles(tmp_path).fill("file", offset, target):
            part.release()
    assert memory == b"x" * 7 + content[offset:] + b"x" * (20000 - 7)


def test_more_memory_than_a_file_has_is_not_asked_for(tmp_path: Path) -> None:
    """What a manifest states may be more than there is memory: the kernel is not to hand out what nobody fills."""
    (tmp_path / "file").write_bytes(b"short")
    before = anonymous_bytes()
    with io.BytesIO(bytes(1 << 28)).getbuffer() as target:  # of which nothing is there before it is touched
        assert sum(part.nbytes for part in LocalFiles(tmp_path).fill("file", 0, target)) == 5
        assert anonymous_bytes() - before < 1 << 24
