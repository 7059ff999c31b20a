"""What a model file is: to other tools, to a reader who was lied to, and after a crash."""

from __future__ import annotations

import copy
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_zoo import Linear, Unusual, same
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from flwr_ckpt import CheckpointCorruptError, CheckpointError, CheckpointNotFoundError, FormatVersionError
from flwr_ckpt.checkpointers import (
    BestLossTorchModuleCheckpointer,
    LatestTorchModuleCheckpointer,
    TorchModuleCheckpointer,
    UnknownArchitectureError,
    model_file,
)
from flwr_ckpt.checkpointers.model_file import read_model, tensors_of

NAME = "model.safetensors"


def latest(folder: Path, name: str = NAME) -> LatestTorchModuleCheckpointer:
    return LatestTorchModuleCheckpointer(folder, name)


def test_a_file_opens_with_plain_safetensors_and_loads_strictly(tmp_path: Path) -> None:
    model = Unusual()
    model.norm.num_batches_tracked += 7
    latest(tmp_path).maybe_checkpoint(model, 0.5, {})

    tensors = load_file(tmp_path / NAME)
    target = Unusual()
    target.load_state_dict(tensors, strict=True)

    assert same(tensors, model.state_dict())
    assert same(target.state_dict(), model.state_dict())
    assert tensors["norm.num_batches_tracked"].dtype == torch.int64
    assert os.listdir(tmp_path) == [NAME]


_DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int16,
    torch.uint8,
    torch.bool,
    torch.float8_e4m3fn,
)
_SHAPES = st.lists(st.integers(0, 4), max_size=3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.dictionaries(
        st.text(st.characters(exclude_characters=".", exclude_categories=["Cs"]), min_size=1, max_size=8),
        st.tuples(st.sampled_from(_DTYPES), _SHAPES, st.booleans()),
        max_size=6,
    )
)
def test_any_buffers_come_back(tmp_path: Path, parts: dict[str, tuple[torch.dtype, list[int], bool]]) -> None:
    model = nn.Module()
    for name, (dtype, shape, transposed) in parts.items():
        tensor = (torch.rand(shape) * 100).to(dtype)
        if not hasattr(model, name):
            model.register_buffer(name, tensor.permute(tuple(reversed(range(tensor.ndim)))) if transposed else tensor)
    latest(tmp_path).maybe_checkpoint(model, 0.0, {})

    assert same(load_file(tmp_path / NAME), model.state_dict())
    assert same(latest(tmp_path).load_checkpoint(model=copy.deepcopy(model)).state_dict(), model.state_dict())


def test_memory_that_is_shared_within_a_tensor_is_written_out(tmp_path: Path) -> None:
    model = nn.Module()
    model.register_buffer("expanded", torch.tensor([1.5]).expand(4))
    latest(tmp_path).maybe_checkpoint(model, 0.5, {})
    assert load_file(tmp_path / NAME)["expanded"].tolist() == [1.5] * 4


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    BestLossTorchModuleCheckpointer(tmp_path, NAME).maybe_checkpoint(Linear(), 0.25, {})

    with safe_open(tmp_path / NAME, framework="pt") as file:
        metadata = file.metadata()

    assert metadata["format"] == "pt"
    assert metadata["flwr_ckpt.model"] == "model_zoo:Linear"
    assert (metadata["flwr_ckpt.score"], metadata["flwr_ckpt.score_name"]) == ("0.25", "Loss")
    assert "load_state_dict" in metadata["flwr_ckpt.load"]


def test_the_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        latest(tmp_path).maybe_checkpoint(Linear(), 0.5, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(tmp_path / NAME).st_mode) == 0o640


def test_folders_are_made_when_something_is_saved(tmp_path: Path) -> None:
    checkpointer = latest(tmp_path / "a", "b/" + NAME)
    assert not (tmp_path / "a").exists()
    checkpointer.maybe_checkpoint(Linear(), 0.5, {})
    assert (tmp_path / "a" / "b" / NAME).is_file()


# --- what cannot be saved --------------------------------------------------------------------------------------------


class _WithExtra(Linear):
    def get_extra_state(self) -> object:
        return {"epoch": 3}

    def set_extra_state(self, state: object) -> None: ...


class _WithSparse(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sparse", torch.eye(3).to_sparse())


class _WithLazy(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.lazy = nn.LazyLinear(2)


class _WithComplex128(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("wide", torch.ones(1, dtype=torch.complex128))


@pytest.mark.parametrize(
    ("model", "key"),
    [
        (_WithExtra, "_extra_state"),
        (_WithSparse, "sparse"),
        (_WithLazy, "lazy.weight"),
        (_WithComplex128, "wide"),
    ],
)
def test_what_a_file_cannot_hold_is_named_and_nothing_is_written(
    tmp_path: Path, model: type[nn.Module], key: str
) -> None:
    with pytest.raises(TypeError, match=key):
        latest(tmp_path).maybe_checkpoint(model(), 0.5, {})
    assert not os.listdir(tmp_path)


def test_only_modules_are_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="dict"):
        latest(tmp_path).maybe_checkpoint({"weight": 1}, 0.5, {})  # type: ignore[arg-type]


# --- loading ---------------------------------------------------------------------------------------------------------


def test_what_was_saved_is_loaded_into_a_copy(tmp_path: Path) -> None:
    model = Linear()
    checkpointer = latest(tmp_path)
    checkpointer.maybe_checkpoint(model, 0.5, {})
    saved = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model.linear.weight += 1

    loaded = checkpointer.load_checkpoint()

    assert isinstance(loaded, Linear)
    assert same(loaded.state_dict(), saved)
    with torch.no_grad():
        loaded.linear.weight.zero_()
    assert not torch.equal(model.linear.weight, loaded.linear.weight)
    assert same(load_file(tmp_path / NAME), saved)


def test_a_new_process_gives_the_architecture(tmp_path: Path) -> None:
    model, target = Linear(), Linear()
    latest(tmp_path).maybe_checkpoint(model, 0.5, {})

    assert latest(tmp_path).load_checkpoint(model=target) is target
    assert same(target.state_dict(), model.state_dict())


def test_an_older_file_can_be_named(tmp_path: Path) -> None:
    old, checkpointer = Linear(), latest(tmp_path)
    checkpointer.maybe_checkpoint(old, 0.5, {})
    os.rename(tmp_path / NAME, tmp_path / "old")
    checkpointer.maybe_checkpoint(Linear(), 0.5, {})

    assert same(checkpointer.load_checkpoint(str(tmp_path / "old")).state_dict(), old.state_dict())


def test_an_unknown_architecture_is_a_clear_error(tmp_path: Path) -> None:
    latest(tmp_path).maybe_checkpoint(Linear(), 0.5, {})
    with pytest.raises(ValueError, match=r"model_zoo:Linear.*load_checkpoint\(model="):
        latest(tmp_path).load_checkpoint()


class _CannotBeCopied(Linear):
    def __deepcopy__(self, memo: object) -> None:
        raise RuntimeError("holds a socket")


def test_an_architecture_that_cannot_be_copied_has_to_be_given(tmp_path: Path) -> None:
    model, checkpointer = _CannotBeCopied(), latest(tmp_path)
    checkpointer.maybe_checkpoint(model, 0.5, {})
    with pytest.raises(UnknownArchitectureError, match="holds a socket"):
        checkpointer.load_checkpoint()
    assert same(checkpointer.load_checkpoint(model=Linear()).state_dict(), model.state_dict())


def test_nothing_saved_yet_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=NAME):
        latest(tmp_path).load_checkpoint(model=Linear())


def test_a_model_that_does_not_fit_is_left_alone_and_both_sides_are_shown(tmp_path: Path) -> None:
    latest(tmp_path).maybe_checkpoint(nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(1, 1)}), 0.5, {})
    target = nn.ModuleDict({"a": nn.Linear(2, 4), "c": nn.Linear(1, 1)})
    before = copy.deepcopy(target.state_dict())

    with pytest.raises(
        ValueError, match=r"only in the file: b\.bias, b\.weight; only in the model: c\.weight, c\.bias"
    ) as raised:
        latest(tmp_path).load_checkpoint(model=target)

    assert "a.weight is (3, 2) in the file and (4, 2) in the model" in str(raised.value)
    assert same(target.state_dict(), before)


def test_lazy_modules_take_their_shapes_from_the_file(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    latest(tmp_path).maybe_checkpoint(model, 0.5, {})
    assert same(latest(tmp_path).load_checkpoint(model=nn.LazyLinear(2)).state_dict(), model.state_dict())


def test_a_file_of_another_tool_loads(tmp_path: Path) -> None:
    model = Linear()
    save_file(model.state_dict(), tmp_path / NAME)
    assert same(latest(tmp_path).load_checkpoint(model=Linear()).state_dict(), model.state_dict())


# --- damage ----------------------------------------------------------------------------------------------------------


def test_no_byte_can_change_unnoticed(tmp_path: Path) -> None:
    checkpointer, model = BestLossTorchModuleCheckpointer(tmp_path, NAME), Linear()
    checkpointer.maybe_checkpoint(model, 0.25, {})
    sound = (tmp_path / NAME).read_bytes()

    unnoticed = []
    for index in range(len(sound)):
        damaged = bytearray(sound)
        damaged[index] ^= 0x04
        (tmp_path / NAME).write_bytes(damaged)
        try:
            checkpointer.load_checkpoint(model=Linear())
        except CheckpointError:  # corrupt, or of a version that this is not
            continue
        unnoticed.append(index)

    assert not unnoticed


@pytest.mark.parametrize("size", [0, 7, 8, 60, -1])
def test_a_truncated_file_is_named(tmp_path: Path, size: int) -> None:
    latest(tmp_path).maybe_checkpoint(Linear(), 0.5, {})
    data = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(data[:size])
    with pytest.raises(CheckpointCorruptError, match=NAME):
        latest(tmp_path).load_checkpoint(model=Linear())


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    torch.save(Linear(), tmp_path / NAME)
    with pytest.raises(CheckpointCorruptError, match="nothing is unpickled"):
        latest(tmp_path).load_checkpoint(model=Linear())


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    metadata = {"flwr_ckpt.version": "2", "flwr_ckpt.crc32": "whatever"}
    save_file(Linear().state_dict(), tmp_path / NAME, metadata)
    with pytest.raises(FormatVersionError, match="version 2"):
        latest(tmp_path).load_checkpoint(model=Linear())


# --- crashes ---------------------------------------------------------------------------------------------------------


def _die(*_: object, **__: object) -> None:
    os._exit(9)


def _after(function: Callable[..., object]) -> Callable[..., None]:
    def call(*args: object, **kwargs: object) -> None:
        function(*args, **kwargs)
        os._exit(9)

    return call


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("operation", ["open", "writev", "fsync", "replace"])
def test_killed_while_writing_leaves_the_old_model_or_the_new_one(tmp_path: Path, operation: str, when: str) -> None:
    old, new = Linear(), Linear()
    BestLossTorchModuleCheckpointer(tmp_path, NAME).maybe_checkpoint(old, 0.5, {})
    child = os.fork()
    if not child:
        checkpointer = BestLossTorchModuleCheckpointer(tmp_path, NAME)
        assert checkpointer.best_score == 0.5
        setattr(os, operation, _die if when == "before" else _after(getattr(os, operation)))
        checkpointer.maybe_checkpoint(new, 0.25, {})
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9

    after = BestLossTorchModuleCheckpointer(tmp_path, NAME)
    replaced = (operation, when) == ("replace", "after")
    assert after.best_score == (0.25 if replaced else 0.5)
    assert same(after.load_checkpoint(model=Linear()).state_dict(), (new if replaced else old).state_dict())

    after.maybe_checkpoint(new, 0.25, {})  # offered again on resume
    assert same(load_file(tmp_path / NAME), new.state_dict())


@pytest.mark.parametrize("operation", ["writev", "fsync", "replace"])
def test_a_save_that_fails_leaves_file_and_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    old, checkpointer = Linear(), BestLossTorchModuleCheckpointer(tmp_path, NAME)
    checkpointer.maybe_checkpoint(old, 0.5, {})
    with monkeypatch.context() as patch:
        patch.setattr(os, operation, fail)
        with pytest.raises(OSError, match="No space left"):
            checkpointer.maybe_checkpoint(Linear(), 0.25, {})

    assert checkpointer.best_score == 0.5
    assert os.listdir(tmp_path) == [NAME]
    assert same(load_file(tmp_path / NAME), old.state_dict())
    newer = Linear()
    checkpointer.maybe_checkpoint(newer, 0.4, {})
    assert same(load_file(tmp_path / NAME), newer.state_dict())


def test_contents_are_on_the_disk_before_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        done.append("contents" if NAME in path else "folder")

    def replace(source: str, target: str) -> None:
        done.append("replace")
        os.rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    latest(tmp_path).maybe_checkpoint(Linear(), 0.5, {})
    # First of all the name of the folder itself: who made it may have died before that was synced.
    assert done == ["folder", "contents", "replace", "folder"]


# --- links -----------------------------------------------------------------------------------------------------------


def _round_file(folder: Path, model: nn.Module) -> Path:
    path = folder / "round.safetensors"
    save_file({name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}, path)
    return path


def test_a_file_with_the_same_names_and_bytes_is_linked(tmp_path: Path) -> None:
    model, checkpointer = Unusual(), BestLossTorchModuleCheckpointer(tmp_path, NAME)
    checkpointer.maybe_checkpoint(Unusual(), 0.9, {})
    source = _round_file(tmp_path, model)

    assert checkpointer.decide(0.5, {}) == 0.5
    assert checkpointer.link_from(source, model)
    assert checkpointer.link_from(source, model)  # offered again on resume

    assert os.path.samefile(source, tmp_path / NAME)
    assert sorted(os.listdir(tmp_path)) == [NAME, source.name]
    assert same(checkpointer.load_checkpoint().state_dict(), model.state_dict())
    assert BestLossTorchModuleCheckpointer(tmp_path, NAME).best_score is None


def test_saving_over_a_link_leaves_the_round_alone(tmp_path: Path) -> None:
    model, checkpointer = Linear(), BestLossTorchModuleCheckpointer(tmp_path, NAME)
    source = _round_file(tmp_path, model)
    assert checkpointer.link_from(source, model)
    checkpointer.maybe_checkpoint(Linear(), 0.1, {})
    assert same(load_file(source), model.state_dict())
    assert not os.path.samefile(source, tmp_path / NAME)


def _changed(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).view(-1)[-1] += 1
    return other


@pytest.mark.parametrize(
    "other",
    [
        _changed,
        lambda model: nn.ModuleDict({"other": model}),
        lambda model: copy.deepcopy(model).double(),
        lambda model: nn.ModuleDict({"linear": nn.Linear(3, 2)}),
    ],
    ids=["bytes", "names", "dtypes", "shapes"],
)
def test_a_file_that_differs_is_not_linked(tmp_path: Path, other: Callable[[nn.Module], nn.Module]) -> None:
    model, checkpointer = Linear(), latest(tmp_path)
    source = _round_file(tmp_path, other(model))
    assert not checkpointer.link_from(source, model)
    assert os.listdir(tmp_path) == [source.name]


def test_where_links_cannot_be_made_the_caller_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    model, checkpointer = Linear(), latest(tmp_path)
    source = _round_file(tmp_path, model)
    monkeypatch.setattr(os, "link", fail)
    assert not checkpointer.link_from(source, model)
    assert not checkpointer.link_from(tmp_path / "removed meanwhile", model)
    assert os.listdir(tmp_path) == [source.name]


def test_a_file_larger_than_the_header_says_is_no_model(tmp_path: Path) -> None:
    latest(tmp_path).maybe_checkpoint(Linear(), 0.5, {})
    head = json.dumps({"__metadata__": {}}).encode()
    (tmp_path / NAME).write_bytes(len(head).to_bytes(8, "little") + head + b"more")
    with pytest.raises(CheckpointCorruptError, match=NAME):
        latest(tmp_path).load_checkpoint(model=Linear())


def test_the_base_class_asks_for_a_decision() -> None:
    with pytest.raises(TypeError, match="abstract"):
        TorchModuleCheckpointer("", "")  # type: ignore[abstract]


# --- files that somebody else has written ----------------------------------------------------------------------------


def _file(header: object, data: bytes = b"\0" * 32, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def _tensor(dtype: str = "F32", shape: object = (2, 4), offsets: object = (0, 32)) -> dict[str, object]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


HOSTILE = {
    "a header of terabytes": _file(_tensor(), length=1 << 42),
    "a header of all there can be": _file(_tensor(), length=(1 << 64) - 1),
    "deep JSON": _file(b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "offsets outside": _file(_tensor(offsets=(0, 1 << 40))),
    "offsets that go back": _file(_tensor(offsets=(32, 0))),
    "negative offsets": _file(_tensor(offsets=(-8, 24))),
    "an overflow": _file(_tensor(shape=(1 << 33, 1 << 33))),
    "a negative shape": _file(_tensor(shape=(-2, -4))),
    "tensors across each other": _file({**_tensor(), "v": _tensor(offsets=(8, 32))["w"]}),
    "objects": _file(_tensor(dtype="O")),
    "no header": _file([]),
    "metadata that is no text": _file({"__metadata__": {"flwr_ckpt.version": 1}, **_tensor()}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(HOSTILE[name])
    with pytest.raises(CheckpointCorruptError, match=NAME):
        read_model(tmp_path / NAME)


@pytest.mark.parametrize(
    "metadata",
    [
        {"score": "a lot"},
        {"score": "0.5", "best": "lowest"},
        {"score": "0.5", "score_name": "Loss"},
        {"version": "9" * 5000},
        {"version": "²"},
        {},
    ],
)
def test_metadata_that_states_anything(metadata: dict[str, str], tmp_path: Path) -> None:
    """Its checksum is right, as anybody could make it."""
    stated = {"flwr_ckpt.version": "1", **{f"flwr_ckpt.{key}": value for key, value in metadata.items()}}
    tensors = tensors_of(Linear().state_dict())
    save_file(tensors, tmp_path / NAME, {**stated, "flwr_ckpt.crc32": model_file._checksum(stated, tensors)})
    if "score" in metadata:
        with pytest.raises(CheckpointCorruptError, match="score"):
            read_model(tmp_path / NAME)
    else:
        assert read_model(tmp_path / NAME).score is None
