"""Who saves: this project, a raw write, and other libraries as their manuals say.

Each works inside the same Flower loop. Other libraries are imported when they are measured.
"""

from __future__ import annotations

from pathlib import Path

from .contender import Contender, Nobody

NOBODY = "nobody"
NAMES = {
    "raw": "raw writev + fsync",
    "flwr_ckpt": "flwr-ckpt",
    "torch_save": "torch.save + fsync",
    "safetensors": "safetensors + fsync",
    "dcp": "torch DCP async_save",
    "orbax": "Orbax async",
}


def contender(name: str, folder: Path) -> Contender:
    """Make a contender by its name, which saves in a folder.

    Beside those of `NAMES`, ``"best_model"`` is this project with a checkpointer, and `NOBODY` saves nothing.
    """
    if name == NOBODY:
        return Nobody(folder)
    if name == "raw":
        from .raw import RawWrite

        return RawWrite(folder)
    if name in ("flwr_ckpt", "best_model"):
        from .flwr_ckpt import FlwrCkpt, WithBestModel

        return FlwrCkpt(folder) if name == "flwr_ckpt" else WithBestModel(folder)
    from . import libraries

    made: dict[str, type[Contender]] = {
        "torch_save": libraries.TorchSave,
        "safetensors": libraries.Safetensors,
        "dcp": libraries.DistributedCheckpoint,
        "orbax": libraries.Orbax,
    }
    return made[name](folder)
