"""Which models a run has chosen to save, and the scores that it has to beat."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flwr.common import Parameters

from ..checkpointers import FunctionTorchModuleCheckpointer, TorchModuleCheckpointer


@dataclass(frozen=True, slots=True)
class Choice:
    """A model that a checkpointer has chosen, and that is not written yet.

    Attributes
    ----------
    checkpointer : FunctionTorchModuleCheckpointer
    server_round : int
    score : float
    whole : Parameters or None
        The whole model as it was chosen, where what the server holds is only a part of one: by the time it is
        written, the next part may have come.
    """

    checkpointer: FunctionTorchModuleCheckpointer
    server_round: int
    score: float
    whole: Parameters | None


def with_best_score(checkpointers: Sequence[TorchModuleCheckpointer] | None) -> dict[str, Any]:
    """The checkpointers that keep a best score, the user's own too, each under a name that outlives the process.

    That is the name of its file, since a folder may move and the run with it; its path where another one has that name.
    """
    scored = [checkpointer for checkpointer in checkpointers or () if _has_best_score(checkpointer)]
    names = [os.path.basename(checkpointer.checkpoint_path) for checkpointer in scored]
    return {
        name if names.count(name) == 1 else os.path.abspath(checkpointer.checkpoint_path): checkpointer
        for name, checkpointer in zip(names, scored, strict=True)
    }


def _has_best_score(checkpointer: object) -> bool:
    # Asked of the class: an object of ours reads the score out of a file as soon as it is asked.
    return hasattr(type(checkpointer), "best_score") or "best_score" in getattr(checkpointer, "__dict__", {})
