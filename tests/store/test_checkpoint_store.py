"""Looking at a run: what `CheckpointStore` shows of what a writer has written."""

from __future__ import annotations

import io
import logging
import math
import os
import resource
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flwr_ckpt.store import (
    BackgroundWriter,
    Blob,
    CheckpointCorruptError,
    CheckpointNotFoundError,
    CheckpointStore,
    Draft,
    FencedError,
    Json,
    Keep,
    KeepAll,
    KeepLatest,
    Outcome,
    Phase,
    RunWriter,
    locate,
)

Arrays = Mapping[str, "np.ndarray[Any, Any]"]


def npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def blob(name: str, array: np.ndarray[Any, Any]) -> Blob:
    """An array as the message API hands it over."""
    return Blob(name, npy(array), "npy", str(array.dtype), array.shape, "numpy.ndarray")


def weights(value: float) -> dict[str, np.ndarray[Any, Any]]:
    return {"w": np.full((3, 4), value, "f4"), "b": np.full(4, -value, "f8")}


class Server:
    """A server that writes a run, without one."""

    def __init__(self, path: Path, keep: Keep | None = None) -> None:
        self.path = path
        self.writer = RunWriter.open(locate(path), keep or KeepAll())

    def commit(
        self,
        server_round: int,
        phase: Phase,
        arrays: tuple[Blob, ...] | None = None,
        state: tuple[Blob, ...] | None = None,
        documents: Mapping[str, Json] | None = None,
        loss: float | None = None,
        **metrics: Any,
    ) -> None:
        outcome = Outcome(server_round, phase, True, metrics, loss)
        outcomes = () if phase in ("attempt", "end") else (outcome,)
        self.writer.commit(Draft(server_round, phase, arrays, state, documents or {}, outcomes))
        self.writer.retain()

    def start(self) -> Server:
        self.commit(0, "initial", tuple(blob(*item) for item in weights(0).items()), state=())
        return self

    def train(self, server_round: int, arrays: Arrays | None = None, **metrics: Any) -> None:
        arrays = weights(server_round) if arrays is None else arrays
        self.commit(server_round, "train", tuple(blob(*item) for item in arrays.items()), **metrics)

    def rounds(self, *numbers: int) -> Server:
        for number in numbers:
            self.train(number, lr=0.1 * number)
            self.commit(number, "evaluate", loss=1 / number, accuracy=number)
        return self


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, "flwr")
    return lambda: [record.getMessage() for record in caplog.records]


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def files_of(run: Path, pattern: str) -> list[Path]:
    return sorted(path for path in run.glob(pattern) if path.is_file())


def assert_same(arrays: Arrays, expected: Arrays) -> None:
    assert list(arrays) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)


# --- nothing there ---------------------------------------------------------------------------------------------------


def test_a_place_with_nothing_is_an_empty_store(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "home" / "run")
    assert (store.rounds(), store.latest(), store.best("evaluate/loss", "min")) == ([], None, None)
    assert (store.history(), store.verify()) == ({}, [])
    assert store.prune(KeepAll()) == []
    for call in (store.load, lambda: store.load(3), lambda: store.rewind(3)):
        with pytest.raises(CheckpointNotFoundError, match=str(tmp_path)):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_named_as_for_the_strategy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_CKPT_HOME", str(tmp_path))
    Server(tmp_path / "cifar" / "lr-0.1").start()
    for place in ("cifar/lr-0.1", str(tmp_path / "cifar" / "lr-0.1"), locate("cifar/lr-0.1")):
        assert [record.round for record in CheckpointStore(place).rounds()] == [0]
    for bad in (Path("relative"), "a b", "../a", "s3://bucket", "https://bucket/run"):
        with pytest.raises(ValueError, match=r"run |URL"):
            CheckpointStore(bad)


def test_a_folder_of_other_things_is_an_empty_store(tmp_path: Path) -> None:
    (tmp_path / "round-00000001").mkdir()
    (tmp_path / "round-00000001" / "notes.txt").write_text("mine")
    assert CheckpointStore(tmp_path).rounds() == []


# --- rounds and metrics ----------------------------------------------------------------------------------------------


def test_rounds_say_what_there_is(run: Path) -> None:
    Server(run).start().rounds(1, 2)
    records = CheckpointStore(run).rounds()
    assert [(record.round, record.phases, record.generation) for record in records] == [
        (0, ("initial",), 1),
        (1, ("train", "evaluate"), 1),
        (2, ("train", "evaluate"), 1),
    ]
    assert dict(records[2].metrics) == {"train/lr": 0.2, "evaluate/loss": 0.5, "evaluate/accuracy": 2}
    assert dict(records[0].metrics) == {}
    assert all(record.size == sum(len(npy(array)) for array in weights(1).values()) for record in records)
    assert records[0].time <= records[2].time
    assert CheckpointStore(run).latest() == records[2]


def test_phases_are_listed_as_they_were_made(run: Path) -> None:
    server = Server(run).start()
    server.train(1)
    server.commit(1, "central", loss=1.0)
    server.commit(1, "evaluate", loss=2.0)
    server.commit(1, "end")
    assert CheckpointStore(run).rounds()[1].phases == ("train", "central", "evaluate", "end")
    assert dict(CheckpointStore(run).rounds()[1].metrics) == {"central/loss": 1.0, "evaluate/loss": 2.0}


def test_a_round_that_was_only_attempted_is_none(run: Path) -> None:
    server = Server(run).start()
    server.rounds(1)
    server.commit(2, "attempt")
    store = CheckpointStore(run)
    assert [record.round for record in store.rounds()] == [0, 1]
    assert store.rounds()[1].phases == ("train", "evaluate")
    assert store.load().round == 1
    assert_same(store.load().arrays, weights(1))
    with pytest.raises(CheckpointNotFoundError, match="no round 2"):
        store.load(2)


def test_a_round_whose_aggregation_gave_nothing_has_the_arrays_before(run: Path) -> None:
    server = Server(run).start().rounds(1)
    server.writer.commit(Draft(2, "train", outcomes=(Outcome(2, "train", False),)))
    assert_same(CheckpointStore(run).load(2).arrays, weights(1))
    assert [record.round for record in CheckpointStore(run).rounds()] == [0, 1, 2]


def test_history_has_every_round_also_removed_ones(run: Path) -> None:
    server = Server(run, KeepLatest(1)).start()
    server.commit(0, "central", loss=9.0)
    server.rounds(1, 2, 3)
    store = CheckpointStore(run)
    assert [record.round for record in store.rounds()] == [3]
    assert store.history() == {
        "central/loss": {0: 9.0},
        "train/lr": {1: 0.1, 2: 0.2, 3: pytest.approx(0.3)},
        "evaluate/accuracy": {1: 1, 2: 2, 3: 3},
        "evaluate/loss": {1: 1.0, 2: 0.5, 3: 1 / 3},
    }


@pytest.mark.parametrize("value", [math.inf, -0.0, 2**80, [1.0, math.nan], b"\x00", "text", True])
def test_metrics_come_back_as_they_were(value: object, run: Path) -> None:
    server = Server(run).start()
    server.train(1, odd=value)
    assert repr(CheckpointStore(run).history()["train/odd"][1]) == repr(value)
    assert repr(CheckpointStore(run).load(1).metrics["train/odd"]) == repr(value)


def test_best_ranks_nan_worst_and_the_later_of_equals_first(run: Path) -> None:
    server = Server(run).start()
    for number, value in enumerate([math.nan, 0.5, 0.1, 0.1, 0.3], start=1):
        server.train(number, loss=value)
    store = CheckpointStore(run)

    def best(mode: Any) -> int | None:
        record = store.best("train/loss", mode)
        return record.round if record else None

    assert (best("min"), best("max")) == (4, 2)
    assert store.best("train/accuracy", "max") is None
    with pytest.raises(ValueError, match="'least'"):
        store.best("train/loss", "least")  # type: ignore[arg-type]


# --- arrays ----------------------------------------------------------------------------------------------------------

ODD = {
    "c": np.arange(6.0).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype="i2").reshape(2, 3)),
    "big": np.arange(3, dtype=">f8"),
    "text": np.array(["a", "longer", "ä"]),
    "bytes": np.array([b"a", b"bc"]),
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 3), "f4"),
    "bool": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "half": np.array([1.5], "f2"),
    "long": np.array([1.5], np.longdouble),
    "record": np.array([(1, 2.0)], [("a", "<i4"), ("b", ">f8", (2,))]),
    "time": np.array(["2024-01-01"], "M8[D]"),
    "odd/name with ☃": np.array([1, 2, 3], "u1"),
}


def test_arrays_of_every_kind_come_back_as_they_were(run: Path) -> None:
    Server(run).start().train(1, ODD)
    checkpoint = CheckpointStore(run).load(1)
    assert_same(checkpoint.arrays, ODD)
    assert checkpoint.arrays["fortran"].flags.f_contiguous
    assert checkpoint.dtypes == {name: str(array.dtype) for name, array in ODD.items()}
    assert "missing" not in checkpoint.arrays
    with pytest.raises(KeyError):
        checkpoint.arrays["missing"]


@settings(deadline=None, max_examples=30)
@given(
    array=hnp.arrays(
        st.one_of(
            hnp.integer_dtypes(endianness="?"),
            hnp.floating_dtypes(endianness="?"),
            hnp.unicode_string_dtypes(endianness="?", max_len=3),
            hnp.datetime64_dtypes(endianness="?"),
        ),
        hnp.array_shapes(min_dims=0, min_side=0, max_side=3),
    ),
    fortran=st.booleans(),
)
def test_any_array_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray[Any, Any], fortran: bool
) -> None:
    array = np.asfortranarray(array) if fortran and array.ndim else array
    run = tmp_path_factory.mktemp("any") / "run"
    Server(run).commit(0, "initial", (blob("x", array),), ())
    checkpoint = CheckpointStore(run).load()
    assert_same(checkpoint.arrays, {"x": array})
    assert checkpoint.array_record()["x"].data == npy(array)


def test_arrays_are_mapped_and_read_only(run: Path) -> None:
    Server(run).start()
    array = CheckpointStore(run).load().arrays["w"]
    assert not array.flags.writeable
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    assert type(base).__name__ == "mmap"


def test_many_arrays_do_not_use_up_the_files(run: Path) -> None:
    many = {f"layer{number:04d}": np.full(2, number) for number in range(1500)}
    Server(run).start().train(1, many)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, limits[0]), limits[1]))
    try:
        assert_same(CheckpointStore(run).load().arrays, many)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_what_numpy_lacks_is_bytes_with_its_name(run: Path) -> None:
    raw = bytes(range(12))
    arrays = (
        Blob("raw", raw, "raw", "bfloat16", (2, 3)),
        Blob("stated", raw, "npy", "bfloat16", (2, 3), "torch.raw"),
        Blob("void", npy(np.frombuffer(raw, "V2")), "npy", "bfloat16", (6,), "numpy.ndarray"),
        Blob("opaque", raw, "npy"),
        Blob("objects", raw + raw[:4], "raw", "object", (2,)),
        Blob("plain", raw, "raw", "float32", (3,)),
        Blob("short", npy(np.arange(9))[:-1], "npy", "int64", (9,)),
    )
    Server(run).commit(0, "initial", arrays, ())
    checkpoint = CheckpointStore(run).load()
    for name in ("raw", "stated", "void", "opaque"):
        np.testing.assert_array_equal(checkpoint.arrays[name], np.frombuffer(raw, "u1"), strict=True)
    assert [checkpoint.dtypes[name] for name in ("raw", "stated", "void")] == ["bfloat16"] * 3
    assert checkpoint.dtypes["opaque"] == "uint8"
    assert checkpoint.arrays["objects"].dtype == np.uint8
    np.testing.assert_array_equal(checkpoint.arrays["plain"], np.frombuffer(raw, "<f4"), strict=True)
    assert checkpoint.arrays["short"].dtype == np.uint8
    assert checkpoint.array_record()["stated"].data == raw


def test_python_objects_are_never_unpickled(run: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], object), allow_pickle=True)
    Server(run).commit(0, "initial", (Blob("x", buffer.getvalue()),), ())
    array = CheckpointStore(run).load().arrays["x"]
    assert array.dtype == np.uint8


def test_an_array_record_has_the_bytes_that_were_handed_over(run: Path) -> None:
    Server(run).start().train(1, ODD)
    record = CheckpointStore(run).load().array_record()
    assert list(record) == list(ODD)
    for name, array in ODD.items():
        assert (record[name].dtype, record[name].shape, record[name].stype) == (
            str(array.dtype),
            array.shape,
            "numpy.ndarray",
        )
        assert record[name].data == npy(array)
        np.testing.assert_array_equal(record[name].numpy(), array)


def test_legacy_parameters_have_the_tensors_that_were_handed_over(run: Path) -> None:
    tensors = [npy(array) for array in weights(2).values()]
    blobs = tuple(Blob(f"{index:04d}", tensor, "npy", stype="numpy.ndarray") for index, tensor in enumerate(tensors))
    Server(run).commit(0, "initial", blobs, ())
    checkpoint = CheckpointStore(run).load()
    assert list(checkpoint.arrays) == ["0000", "0001"]
    assert checkpoint.parameters().tensors == tensors
    assert checkpoint.parameters().tensor_type == "numpy.ndarray"
    record = checkpoint.array_record()
    assert [(array.dtype, array.shape, array.stype) for array in record.values()] == [
        ("float32", (3, 4), "numpy.ndarray"),
        ("float64", (4,), "numpy.ndarray"),
    ]


def test_legacy_tensors_that_are_no_arrays_come_back(run: Path) -> None:
    Server(run).commit(0, "initial", (Blob("0000", b'{"tree":1}', "npy", stype=""),), ())
    checkpoint = CheckpointStore(run).load()
    assert checkpoint.parameters().tensors == [b'{"tree":1}']
    assert bytes(checkpoint.arrays["0000"]) == b'{"tree":1}'


def test_state_is_shown_as_a_tree(run: Path) -> None:
    tree = {
        "roots": {
            "strategy": {
                "$": "object",
                "v": {
                    "eta": 0.1,
                    "m": {"$": "ndarray", "dtype": "<f4", "shape": [2], "blob": "strategy.m"},
                    "big": {"$": "ndarray", "dtype": ">i2", "shape": [2], "blob": "strategy.big"},
                    "t": {"$": "tensor", "dtype": "bfloat16", "shape": [1], "blob": "strategy.t"},
                    "file": {"$": "Array", "blob": "strategy.file"},
                },
            }
        },
        "deep": [],
    }
    state = (
        Blob("strategy.m", np.array([1, 2], "<f4").tobytes(), "raw", "float32", (2,)),
        Blob("strategy.big", np.array([1, 2], ">i2").tobytes(), "raw", "", (4,)),
        Blob("strategy.t", b"\x80\x3f", "raw", "bfloat16", (1,)),
        Blob("strategy.file", npy(np.array([7])), "npy", "int64", (1,), "numpy.ndarray"),
    )
    server = Server(run)
    server.commit(0, "initial", (blob("w", np.zeros(1)),), state, {"state": tree})
    shown = CheckpointStore(run).load().state["strategy"]
    assert shown.pop("eta") == 0.1
    expected = {
        "m": np.array([1, 2], "<f4"),
        "big": np.array([1, 2], ">i2"),
        "t": np.array([0x80, 0x3F], "u1"),
        "file": np.array([7]),
    }
    assert_same(shown, expected)


def test_a_run_without_stored_state_shows_none(run: Path) -> None:
    Server(run).commit(0, "initial", (blob("w", np.zeros(1)),), ())
    assert CheckpointStore(run).load().state == {}


# --- what is not sound -----------------------------------------------------------------------------------------------


def test_load_names_a_round_that_is_not_there(run: Path) -> None:
    Server(run, KeepLatest(2)).start().rounds(1, 2, 3)
    store = CheckpointStore(run)
    for missing in (1, 4, -1):
        with pytest.raises(CheckpointNotFoundError, match=f"no round {missing};.* There are 2, 3$") as caught:
            store.load(missing)
        assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize("damage", ["data", "manifests"])
def test_load_falls_back_with_a_warning_and_load_of_the_round_raises(
    damage: str, run: Path, warnings: Callable[[], list[str]]
) -> None:
    server = Server(run).start()
    server.train(1)
    server.train(2)
    pattern = "round-00000002/*arrays*" if damage == "data" else "round-00000002/*.manifest"
    (path,) = files_of(run, pattern)
    flip(path, path.stat().st_size - 3)
    checkpoint = CheckpointStore(run).load()
    assert checkpoint.round == 1
    assert_same(checkpoint.arrays, weights(1))
    assert len(warnings()) == 1
    assert str(path) in warnings()[0]
    wrong = [result for result in CheckpointStore(run).verify() if not result.ok]
    assert [(result.round, result.phase) for result in wrong] == [(2, "train")]
    if damage == "data":
        with pytest.raises(CheckpointCorruptError, match=path.name):
            CheckpointStore(run).load(2)


def test_a_truncated_file_makes_no_round(run: Path) -> None:
    server = Server(run).start()
    server.train(1)
    (path,) = files_of(run, "round-00000001/*arrays*")
    os.truncate(path, path.stat().st_size - 1)
    assert [record.round for record in CheckpointStore(run).rounds()] == [0]
    assert CheckpointStore(run).load().round == 0


def test_a_truncated_file_of_an_older_round_leaves_the_others(run: Path) -> None:
    server = Server(run).start()
    server.train(1)
    server.train(2)
    os.truncate(files_of(run, "round-00000001/*arrays*")[0], 10)
    assert [record.round for record in CheckpointStore(run).rounds()] == [0, 2]
    with pytest.raises(CheckpointCorruptError, match="round 1 is damaged"):
        CheckpointStore(run).load(1)


def test_nothing_sound_is_damage(run: Path) -> None:
    Server(run).start()
    (path,) = files_of(run, "round-00000000/*arrays*")
    flip(path, path.stat().st_size - 1)
    with pytest.raises(CheckpointCorruptError, match="none of the checkpoints here is sound"):
        CheckpointStore(run).load()


def test_a_sound_run_verifies(run: Path) -> None:
    Server(run).start().rounds(1, 2)
    results = CheckpointStore(run).verify()
    assert [(result.round, result.phase, result.generation, result.ok, result.problems) for result in results] == [
        (0, "initial", 1, True, ()),
        *((number, phase, 1, True, ()) for number in (1, 2) for phase in ("evaluate", "train")),
    ]
    assert all(Path(result.path).is_file() for result in results)


def test_verify_notices_every_flipped_byte(run: Path) -> None:
    Server(run).start().rounds(1)
    store = CheckpointStore(run)
    for path in files_of(run, "*/*"):
        for offset in {0, 1, path.stat().st_size // 2, path.stat().st_size - 1}:
            flip(path, offset)
            wrong = [result for result in store.verify() if not result.ok]
            assert wrong, f"byte {offset} of {path}"
            assert any(path.name in problem for result in wrong for problem in result.problems)
            flip(path, offset)
    assert all(result.ok for result in store.verify())


def test_verify_notices_a_run_none_of_whose_manifests_can_be_read(run: Path) -> None:
    Server(run).start().rounds(1)
    for path in files_of(run, "*/*.manifest"):
        flip(path, 9)
    assert [result.ok for result in CheckpointStore(run).verify()] == [False] * 3


def test_a_damaged_part_of_the_history_leaves_the_weights(run: Path, warnings: Callable[[], list[str]]) -> None:
    server = Server(run, KeepLatest(1)).start()
    for number in range(1, 70):
        server.train(number, loss=float(number))
    (path, *_) = files_of(run, "history/*")
    flip(path, 5)
    store = CheckpointStore(run)
    assert store.load().round == 69
    assert store.latest() is not None
    assert 69 in store.history()["train/loss"]
    assert any(path.name in line for line in warnings())
    assert not store.verify()[-1].ok


# --- looking changes nothing -----------------------------------------------------------------------------------------


def look_at_everything(run: Path) -> None:
    store = CheckpointStore(run)
    store.rounds()
    store.latest()
    store.best("evaluate/loss", "min")
    store.history()
    store.verify()
    assert_same(store.load().arrays, weights(2))
    assert store.load(1).state == {}


def test_looking_makes_nothing(run: Path) -> None:
    server = Server(run).start().rounds(1, 2)
    before = {path: path.stat().st_mtime_ns for path in [run, *run.rglob("*")]}
    look_at_everything(run)
    assert {path: path.stat().st_mtime_ns for path in [run, *run.rglob("*")]} == before
    server.rounds(3)  # and fences nobody


@pytest.fixture
def read_only(run: Path) -> Iterator[Path]:
    Server(run).start().rounds(1, 2)
    folders = [run, *(path for path in run.rglob("*") if path.is_dir())]
    opened = [parent for parent in run.parents if not parent.stat().st_mode & stat.S_IXOTH]
    modes = {path: path.stat().st_mode for path in opened}
    for path in opened:
        path.chmod(0o755)
    for path in folders:
        path.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield run
    os.seteuid(user)
    for path in folders:
        path.chmod(0o755)
    for path, mode in modes.items():
        path.chmod(mode)


def test_a_read_only_folder_can_be_looked_at(read_only: Path) -> None:
    with pytest.raises(PermissionError):
        (read_only / "new").touch()
    look_at_everything(read_only)


def test_a_round_that_was_loaded_stays_though_retention_removes_it(run: Path) -> None:
    server = Server(run, KeepLatest(1)).start().rounds(1)
    checkpoint = CheckpointStore(run).load()
    server.rounds(2, 3)
    assert files_of(run, "round-00000001/*") == []
    assert_same(checkpoint.arrays, weights(1))


# --- changing a run --------------------------------------------------------------------------------------------------


def test_prune_deletes_what_is_not_kept_and_nothing_else(run: Path) -> None:
    Server(run).start().rounds(1, 2, 3, 4)
    store = CheckpointStore(run)
    history = store.history()
    assert store.prune(KeepLatest(2)) == [0, 1, 2]
    assert [record.round for record in store.rounds()] == [3, 4]
    assert files_of(run, "round-00000001/*") == []
    assert_same(store.load().arrays, weights(4))
    assert store.history() == history
    assert all(result.ok for result in store.verify())


def test_prune_fences_a_live_server(run: Path) -> None:
    server = Server(run).start().rounds(1, 2)
    CheckpointStore(run).prune(KeepLatest(1))
    with pytest.raises(FencedError):
        server.train(3)
    assert CheckpointStore(run).load().round == 2


def test_rewind_goes_back_and_a_server_goes_on_from_there(run: Path) -> None:
    Server(run).start().rounds(1, 2, 3, 4)
    store = CheckpointStore(run)
    store.rewind(2)
    assert [record.round for record in store.rounds()] == [0, 1, 2]
    assert store.load().round == 2
    assert store.history()["evaluate/accuracy"] == {1: 1, 2: 2}
    with pytest.raises(CheckpointNotFoundError, match="no round 3"):
        store.load(3)
    server = Server(run)
    assert server.writer.resumed is not None
    assert server.writer.resumed.commit.round == 2
    server.train(3, weights(33))
    assert_same(store.load(3).arrays, weights(33))
    assert all(result.ok for result in store.verify())


def test_rewind_to_what_is_not_there_changes_nothing(run: Path) -> None:
    server = Server(run, KeepLatest(1)).start().rounds(1, 2)
    before = sorted(run.rglob("*"))
    with pytest.raises(CheckpointNotFoundError, match="no round 1"):
        CheckpointStore(run).rewind(1)
    assert sorted(run.rglob("*")) == before
    server.rounds(3)


def test_rewind_to_a_damaged_round_changes_nothing(run: Path) -> None:
    server = Server(run).start().rounds(1, 2)
    (path,) = files_of(run, "round-00000001/*arrays*")
    flip(path, path.stat().st_size - 1)
    before = sorted(run.rglob("*"))
    with pytest.raises(CheckpointCorruptError):
        CheckpointStore(run).rewind(1)
    assert sorted(run.rglob("*")) == before
    server.rounds(3)


def test_a_branch_that_was_cut_away_is_never_best(run: Path) -> None:
    Server(run).start().rounds(1, 2, 3)
    store = CheckpointStore(run)
    store.rewind(1)
    best = store.best("evaluate/accuracy", "max")
    assert best is not None
    assert best.round == 1


def test_a_damaged_round_is_neither_listed_nor_best(run: Path) -> None:
    Server(run).start().rounds(1, 2, 3)
    for path in files_of(run, "round-00000003/*.manifest"):
        flip(path, path.stat().st_size // 2)
    os.truncate(files_of(run, "round-00000002/*arrays*")[0], 10)
    store = CheckpointStore(run)
    best, latest = store.best("evaluate/accuracy", "max"), store.latest()
    assert best is not None
    assert best == latest == store.rounds()[-1]
    assert best.round == 1


def test_what_the_background_writer_wrote_is_there_once_it_is_closed(run: Path) -> None:
    writer = RunWriter.open(locate(run), KeepLatest(2))
    failures: list[BaseException] = []
    background = BackgroundWriter(writer.commit, writer.retain, on_error=lambda _, error: failures.append(error))
    background.submit(Draft(0, "initial", tuple(blob(*item) for item in weights(0).items()), ()))
    for number in range(1, 6):
        background.submit(Draft(number, "train", tuple(blob(*item) for item in weights(number).items()), ()))
        background.submit(Draft(number, "evaluate", outcomes=(Outcome(number, "evaluate", True, {}, 1 / number),)))
    background.close()
    store = CheckpointStore(run)
    assert failures == []
    assert [(record.round, record.phases) for record in store.rounds()] == [
        (number, ("train", "evaluate")) for number in (4, 5)
    ]
    assert_same(store.load(4).arrays, weights(4))
    assert list(store.history()["evaluate/loss"]) == [1, 2, 3, 4, 5]
