"""What a client of DP-SCAFFOLD keeps for itself: its control variates, in a folder by run name and partition.

Flower drops a client's state with the run, and a resumed run is a new one to Flower. There is one file a round: a
server that was killed may train a round again, which then has to start from the variates of the round before it.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

KEPT_ROUNDS = 4  # a killed server goes back by one round at most, if every round is saved


class ControlVariates:
    """The control variates of one client.

    Parameters
    ----------
    folder : Path
        Its own folder, such as ``<home>/<run name>/<partition>``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def before(self, server_round: int, like: list[torch.Tensor]) -> list[torch.Tensor]:
        """Read what the last round before this one left; zeros if there was none."""
        earlier = [path for path in self._files() if path < self._path(server_round)]
        if not earlier:
            return [torch.zeros_like(tensor) for tensor in like]
        with np.load(earlier[-1], allow_pickle=False) as file:
            return [torch.tensor(file[f"{place:04d}"]) for place in range(len(like))]

    def write(self, server_round: int, variates: list[torch.Tensor]) -> None:
        """Keep the variates of this round; what an earlier life of the server left of later rounds goes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(server_round)
        unfinished = path.with_suffix(".unfinished")
        with unfinished.open("wb") as file:
            np.savez(file, **{f"{place:04d}": tensor.numpy() for place, tensor in enumerate(variates)})
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        files = self._files()
        here = files.index(path)
        for old in [*files[: max(0, here + 1 - KEPT_ROUNDS)], *files[here + 1 :]]:
            old.unlink()

    def _path(self, server_round: int) -> Path:
        return self.folder / f"round-{server_round:08d}.npz"

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("round-*.npz"))
