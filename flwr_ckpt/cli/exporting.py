"""`export`: a model as one file, for other tools."""

from __future__ import annotations

import os
import secrets
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, BinaryIO

import numpy as np
import typer

from ..store import Checkpoint, CheckpointError, readable_size, safetensors_of
from .options import HomeOption, MetricOption, ModeOption, RoundArgument, RunArgument, find_run, pick
from .render import say


def export(
    run: RunArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="FILE.safetensors, FILE.pt or FILE.npz.")],
    which: RoundArgument = "latest",
    metric: MetricOption = None,
    mode: ModeOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    home: HomeOption = None,
) -> None:
    """Write a round's global arrays, all of them, into one file.

    A .pt file holds weights only: a dict of tensors, for torch.load(FILE, weights_only=True).
    """
    write = _WRITERS.get(output.suffix)
    if write is None:
        raise typer.BadParameter(f"{str(output)!r}: expected a name that ends in {', '.join(_WRITERS)}")
    if output.exists() and not force:
        raise _exists(output)
    checkpoint = pick(find_run(run, home), which, metric, mode)
    _write_at_once(output, lambda file: write(file, checkpoint), force=force)
    size = readable_size(output.stat().st_size)
    say(f"{output}: round {checkpoint.round} of {run}, {len(checkpoint.arrays)} arrays, {size}")


def _write_safetensors(file: BinaryIO, checkpoint: Checkpoint) -> None:
    for part in safetensors_of(checkpoint):
        file.write(part)


def _write_torch(file: BinaryIO, checkpoint: Checkpoint) -> None:
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            'a .pt file is written by torch, which is not installed: pip install "flwr-ckpt[torch]", or export '
            ".safetensors"
        ) from None
    tensors = {}
    for name, array in checkpoint.arrays.items():
        dtype = checkpoint.dtypes[name]
        if dtype != str(array.dtype):  # what NumPy lacks is flat bytes
            kind = getattr(torch, dtype, None)
            if not isinstance(kind, torch.dtype):
                raise ValueError(f"the array {name!r} is {dtype}, which torch lacks: export .safetensors")
            tensors[name] = torch.from_numpy(array.copy()).view(kind).reshape(checkpoint.shapes[name])
            continue
        try:
            tensors[name] = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
        except TypeError:
            raise ValueError(f"the array {name!r} is {dtype}, which torch lacks: export .npz") from None
    torch.save(tensors, file)


def _write_npz(file: BinaryIO, checkpoint: Checkpoint) -> None:
    for name, dtype in checkpoint.dtypes.items():
        if dtype != str(checkpoint.arrays[name].dtype):
            raise ValueError(f"the array {name!r} is {dtype}, which NumPy lacks: export .safetensors or .pt")
    with zipfile.ZipFile(file, "w") as archive:  # np.savez takes no array whose name is one of its arguments
        for name, array in checkpoint.arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


_WRITERS: dict[str, Callable[[BinaryIO, Checkpoint], None]] = {
    ".safetensors": _write_safetensors,
    ".pt": _write_torch,
    ".npz": _write_npz,
}


def _write_at_once(target: Path, write: Callable[[BinaryIO], None], *, force: bool) -> None:
    """Write a file that is there whole or not at all; one that is there already only if told to."""
    temporary = target.with_name(f".tmp-{secrets.token_hex(8)}-{target.name}")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if force:
            temporary.replace(target)
        else:
            os.link(temporary, target)
    except FileExistsError:
        raise _exists(target) from None
    finally:
        temporary.unlink(missing_ok=True)


def _exists(target: Path) -> CheckpointError:
    return CheckpointError(f"{target} is there already; --force replaces it")
