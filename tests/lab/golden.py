"""Makes golden stores: ``python -m tests.lab.golden FOLDER``, once for each released version.

Each is one run of two servers, the second of which extended it; small arrays are shared over rounds, and history is
archived, so that all that the format knows is there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from flwr_ckpt import CheckpointStore
from flwr_ckpt.store.format import history
from flwr_ckpt.store.writing import assembly, contents, retention

from .lives import FIRST, KINDS, digest, history_of, live

NAMES = ("message/FedAdam", "legacy/FedAvgM")
FIRST_ROUNDS, ROUNDS = 3, 5


def make(folder: Path) -> None:
    """Write golden stores, and beside each what has to be read from it."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (contents, retention):
            patch.setattr(module, "SHARED_FROM", 1)
        patch.setattr(assembly, "_INLINE", 100)
        patch.setattr(history, "MOST_ROUNDS", 1)
        for kind in KINDS:
            if kind.name in NAMES:
                run = folder / kind.name.replace("/", "-")
                live(kind, run, FIRST_ROUNDS, FIRST)
                live(kind, run, ROUNDS, FIRST + 1)
                run.with_suffix(".json").write_text(json.dumps(read(run), indent=1) + "\n")


def read(run: Path) -> dict[str, Any]:
    """Read all that a store shows, as JSON."""
    store = CheckpointStore(run)
    return {
        "rounds": [[one.round, list(one.phases), one.generation] for one in store.rounds()],
        "digests": {str(one.round): digest(store.load(one.round).arrays.items()) for one in store.rounds()},
        "history": {key: {str(of): value for of, value in values.items()} for key, values in history_of(store).items()},
        "problems": [problem for result in store.verify() for problem in result.problems],
        "finished": store.status().finished,
    }


if __name__ == "__main__":
    make(Path(sys.argv[1]))
