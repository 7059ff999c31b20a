"""Other libraries, each called as its manual says, with the ``fsync`` that it leaves out.

A round is saved once it survives a power loss; the others would be compared with what the page cache takes.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord

from ..instruments import sync_tree
from .contender import Arrived, Saver


class TorchSave(Saver):
    """``torch.save`` of the state dict, as Flower's how-to saves models."""

    def save(self, path: Path, arrays: ArrayRecord) -> None:
        """Convert, write, sync."""
        import torch

        torch.save(arrays.to_torch_state_dict(), path)
        _sync(path)

    def load(self, server_round: int, like: ArrayRecord, arrived: Arrived) -> None:
        """Read, and convert back."""
        import torch

        arrived(ArrayRecord(torch.load(self.path(server_round), weights_only=True)))


class Safetensors(Saver):
    """``safetensors.numpy.save_file``."""

    def save(self, path: Path, arrays: ArrayRecord) -> None:
        """Convert, write, sync."""
        from safetensors.numpy import save_file

        save_file({name: array.numpy() for name, array in arrays.items()}, path)
        _sync(path)

    def load(self, server_round: int, like: ArrayRecord, arrived: Arrived) -> None:
        """Read, and convert back."""
        from safetensors.numpy import load_file

        arrays = load_file(self.path(server_round))
        arrived(ArrayRecord({name: Array(arrays[name]) for name in like}))


class _Async(Saver):
    """A library that writes in the background, a folder a round."""

    _path: Path | None = None

    @abstractmethod
    def _finish(self) -> None:
        """Wait for the library."""

    def wait(self) -> None:
        """Wait for the library, and sync what it wrote."""
        if self._path is not None:
            self._finish()
            sync_tree(self._path)
            self._path = None


class DistributedCheckpoint(_Async):
    """``torch.distributed.checkpoint.async_save`` in one process."""

    _future: Any

    def save(self, path: Path, arrays: ArrayRecord) -> None:
        """Convert and stage; a thread of the library writes."""
        import torch.distributed.checkpoint as dcp

        self._path = path
        self._future = dcp.async_save(arrays.to_torch_state_dict(), checkpoint_id=path, no_dist=True)

    def _finish(self) -> None:
        self._future.result()

    def load(self, server_round: int, like: ArrayRecord, arrived: Arrived) -> None:
        """Read into a state dict that is there already, as a model's is, and convert back."""
        import torch
        import torch.distributed.checkpoint as dcp

        state = {name: torch.empty(array.shape) for name, array in like.items()}
        dcp.load(state, checkpoint_id=self.path(server_round), no_dist=True)
        arrived(ArrayRecord(state))


class Orbax(_Async):
    """Orbax's ``StandardCheckpointer``, which is asynchronous."""

    def __init__(self, folder: Path) -> None:
        import orbax.checkpoint as ocp

        super().__init__(folder)
        self._checkpointer = ocp.StandardCheckpointer()

    def save(self, path: Path, arrays: ArrayRecord) -> None:
        """Convert and stage; threads of the library write."""
        self._path = path
        self._checkpointer.save(path, {name: array.numpy() for name, array in arrays.items()})

    def _finish(self) -> None:
        self._checkpointer.wait_until_finished()

    def load(self, server_round: int, like: ArrayRecord, arrived: Arrived) -> None:
        """Read, and convert back."""
        import numpy as np

        arrays = self._checkpointer.restore(self.path(server_round))
        arrived(ArrayRecord({name: Array(np.asarray(arrays[name])) for name in like}))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
