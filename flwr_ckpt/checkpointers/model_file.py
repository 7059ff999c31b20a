"""Model files: plain safetensors, replaced as a whole, with what is needed to use them in ``__metadata__``.

The format is an 8-byte length, a JSON header padded with spaces, and the elements one after the other without holes.
It is written here from where the tensors lie, under the names of the ``state_dict``: each name has bytes of its own,
also where tensors share memory, so that any tool can load the file strictly.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from zlib_ng.zlib_ng import crc32

from ..store import CheckpointCorruptError, CheckpointNotFoundError, FormatVersionError
from ..store.places.local_files import LocalFiles
from ..store.same import same_bytes

VERSION = 1

_PREFIX = "flwr_ckpt."
_ALIGNMENT = 8
_TYPES = {
    getattr(torch, name): code
    for name, code in {
        "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
        "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
        "complex64": "C64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    }.items()
    if hasattr(torch, name)
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Score:
    """What a model was saved for.

    Attributes
    ----------
    name : str
        What is scored: ``"Loss"``, ``"accuracy"``.
    value : float
    maximize : bool
        Whether more is better. Scores of another name or direction cannot be compared.
    """

    name: str
    value: float
    maximize: bool


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model file, read and checked.

    Attributes
    ----------
    tensors : dict of str to Tensor
        Mapped from the file: to be copied from, not to be kept.
    score : Score or None
        None if the file holds none: another tool's, or a link to a round's arrays.
    model : str
        The class of the model, ``"module:Class"``; empty if the file does not say.
    """

    tensors: dict[str, Tensor]
    score: Score | None
    model: str


def class_name(model: object) -> str:
    """Name a class for messages and for the file; it is never looked up from there."""
    return f"{type(model).__module__}:{type(model).__qualname__}"


def tensors_of(state_dict: Mapping[str, object]) -> dict[str, Tensor]:
    """Take the tensors of a ``state_dict`` to where they can be written from: dense, contiguous, on the CPU.

    Raises
    ------
    TypeError
        Naming the entry that a safetensors file cannot hold.
    """
    return {name: _dense(name, value) for name, value in state_dict.items()}


def write_model(path: Path, tensors: Mapping[str, Tensor], model: str, score: Score | None) -> None:
    """Replace a model file: whoever looks, and whatever happens, there is the old file or the new one.

    Parameters
    ----------
    path : Path
        Folders that are missing are made.
    tensors : Mapping of str to Tensor
        As `tensors_of` gives them.
    model : str
        The class of the model.
    score : Score or None

    Raises
    ------
    OSError
        If it cannot be written; the old file is there then.
    """
    metadata = _metadata(path, model, score)
    metadata[f"{_PREFIX}crc32"] = _checksum(metadata, tensors)
    # Larger elements first, as safetensors itself does: every tensor then begins at a multiple of its element size.
    names = sorted(tensors, key=lambda name: -tensors[name].element_size())
    payloads = [_payload(tensors[name]) for name in names]
    with _replacing(path) as (files, temporary):
        files.create(temporary, [_head(metadata, names, tensors), *payloads])


def link_model(path: Path, source: Path, tensors: Mapping[str, Tensor]) -> bool:
    """Make a model file a second name of a file that holds exactly these tensors already.

    Returns
    -------
    bool
        False, with nothing done, if `source` does not hold them under these names, or cannot be linked to.
    """
    try:
        if not _holds(source, tensors):
            return False
        with _replacing(path) as (files, temporary):
            os.link(source, files.root / temporary)
    except (OSError, SafetensorError):
        return False
    return True


def read_model(path: Path) -> ModelFile:
    """Read a model file, whoever wrote it; one that was written here is checked to the last byte.

    Raises
    ------
    CheckpointNotFoundError
        If there is none.
    CheckpointCorruptError
        If it is no safetensors file, or not what was written.
    FormatVersionError
        If a newer version of this package wrote it.
    """
    if not path.exists():
        raise CheckpointNotFoundError(f"{path}: there is no model file; nothing has been saved there yet")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except (SafetensorError, ValueError, KeyError, AttributeError, RuntimeError) as error:  # torch may lack a type
        raise CheckpointCorruptError(
            f"{path}: not a sound safetensors file ({error}). If it is a pickled model of another tool, load it "
            "there and save it as safetensors: nothing is unpickled here"
        ) from error
    own = {key: value for key, value in metadata.items() if key.startswith(_PREFIX)}
    if own:
        _verify(path, own, metadata, tensors)
    return ModelFile(tensors, _score(path, own), own.get(f"{_PREFIX}model", ""))


def load_into(model: torch.nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load tensors into a model, all or nothing; elements are cast to the model's dtypes, as torch does.

    Raises
    ------
    ValueError
        If names or shapes differ; both sides are shown.
    """
    problems = list(_misfits(tensors, model.state_dict()))
    if problems:
        raise ValueError(f"{path} does not fit the {type(model).__name__}: {'; '.join(problems)}")
    model.load_state_dict(dict(tensors), strict=True)


# --- writing ---------------------------------------------------------------------------------------------------------


def _dense(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        found = f"a {type(value).__name__}"
    elif torch.nn.parameter.is_lazy(value):
        found = "a parameter whose shape is not known before the first forward pass"
    elif value.layout is not torch.strided or value.is_quantized or value.is_meta:
        found = f"a {value.layout} tensor of {value.dtype} on {value.device}"
    elif value.dtype not in _TYPES:
        found = f"a tensor of {value.dtype}"
    elif name == "__metadata__":
        found = "a tensor of a name that the format keeps for itself"
    else:
        return value.detach().resolve_conj().resolve_neg().cpu().contiguous()
    raise TypeError(
        f"state_dict()[{name!r}] is {found}, and a model file holds dense tensors: leave it out of the model's "
        "state_dict, or save the model with a checkpointer of your own"
    )


def _payload(tensor: Tensor) -> memoryview:
    """The elements of a dense tensor as bytes, where they lie."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _metadata(path: Path, model: str, score: Score | None) -> dict[str, str]:
    load = f"model.load_state_dict(safetensors.torch.load_file({path.name!r}), strict=True)"
    metadata = {"format": "pt", f"{_PREFIX}version": str(VERSION), f"{_PREFIX}model": model, f"{_PREFIX}load": load}
    if score is not None:
        metadata[f"{_PREFIX}score"] = repr(score.value)
        metadata[f"{_PREFIX}score_name"] = score.name
        metadata[f"{_PREFIX}best"] = "highest" if score.maximize else "lowest"
    return metadata


def _head(metadata: Mapping[str, str], names: Sequence[str], tensors: Mapping[str, Tensor]) -> bytes:
    table: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        table[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


@contextmanager
def _replacing(path: Path) -> Iterator[tuple[LocalFiles, str]]:
    """Give the name of a file to be made beside `path`, which then takes its place, durably."""
    files = LocalFiles(path.parent)
    files.make_root()
    temporary = f".tmp-{secrets.token_hex(8)}-{path.name}"
    try:
        yield files, temporary
        os.replace(files.root / temporary, path)
    finally:
        # Of a second name of the very file that is there, rename leaves both.
        files.remove(temporary)
    files.sync_folder()


# --- reading ---------------------------------------------------------------------------------------------------------


def _checksum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """One number for all that the file says, however its parts are ordered."""
    crc = crc32(json.dumps(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = crc32(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode(), crc)
        crc = crc32(_payload(tensor), crc)
    return f"{crc:08x}"


def _verify(path: Path, own: Mapping[str, str], metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    version = own.get(f"{_PREFIX}version", "")
    if re.fullmatch("[0-9]{1,9}", version) and int(version) > VERSION:
        raise FormatVersionError(
            f"{path}: a model file of version {version}, and this package reads up to {VERSION}: update flwr-ckpt"
        )
    rest = {key: value for key, value in metadata.items() if key != f"{_PREFIX}crc32"}
    stated, found = own.get(f"{_PREFIX}crc32", "none"), _checksum(rest, tensors)
    if stated != found:
        raise CheckpointCorruptError(
            f"{path}: is not what was written (checksum {stated} stated, {found} found). Take another copy of the "
            "file, or the arrays of a round of the run (`flwr-ckpt export`)"
        )


def _score(path: Path, own: Mapping[str, str]) -> Score | None:
    if f"{_PREFIX}score" not in own:
        return None
    try:
        value = float(own[f"{_PREFIX}score"])
        return Score(own[f"{_PREFIX}score_name"], value, own[f"{_PREFIX}best"] == "highest")
    except (ValueError, KeyError) as error:
        raise CheckpointCorruptError(f"{path}: states a score that is none ({error!r:.200})") from error


def _holds(source: Path, tensors: Mapping[str, Tensor]) -> bool:
    with safe_open(source, framework="pt", device="cpu") as file:
        return set(file.keys()) == set(tensors) and all(
            _is_same(file.get_tensor(name), tensor) for name, tensor in tensors.items()
        )


def _is_same(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return not math.prod(one.shape) or same_bytes(_payload(one), _payload(other))


def _misfits(tensors: Mapping[str, Tensor], expected: Mapping[str, object]) -> Iterator[str]:
    if extra := [name for name in tensors if name not in expected]:
        yield f"only in the file: {', '.join(extra)}"
    if missing := [name for name in expected if name not in tensors]:
        yield f"only in the model: {', '.join(missing)}"
    for name, tensor in tensors.items():
        target = expected.get(name)
        if isinstance(target, Tensor) and not torch.nn.parameter.is_lazy(target) and target.shape != tensor.shape:
            yield f"{name} is {tuple(tensor.shape)} in the file and {tuple(target.shape)} in the model"
