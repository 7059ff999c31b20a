"""What the documents of a commit say. A digest does not say who wrote them, so none of it is taken for granted."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ...state import StoredState, dicts_keyed_by
from ...store import CheckpointCorruptError, CheckpointError, Json, Loaded
from .identity import Identity

Documents = Mapping[str, Json]


def written_documents(
    identity: Json, tree: Json, baseline: Json, node_ids: Collection[Any], choices: Json
) -> dict[str, Json]:
    """What a commit says: who wrote it, the state, what of it is keyed by node ids, and which models are chosen."""
    keyed = dicts_keyed_by(tree, node_ids) if node_ids else {}
    return {
        "state": tree,
        "baseline": baseline,
        "identity": identity,
        "nodes": {path: [str(key) for key in keys] for path, keys in keyed.items()},
        "attempts": {},
        "choices": choices,
    }


def identity_of(documents: Documents, where: str) -> Identity:
    """Who wrote the commit.

    Raises
    ------
    CheckpointCorruptError
        If that cannot be read; `where` is named.
    """
    with _reading("identity", where):
        return Identity.from_json(documents["identity"])


def attempts_of(loaded: Loaded) -> dict[int, int]:
    """How often the training of rounds was sent that are not finished."""
    with _reading("attempts", loaded.commit.path):
        return {int(key): int(count) for key, count in loaded.documents.get("attempts", {}).items()}


def nodes_of(loaded: Loaded) -> dict[str, list[str]]:
    """What of the state is keyed by node ids: path to ids."""
    with _reading("nodes", loaded.commit.path):
        return {path: list(map(str, keys)) for path, keys in loaded.documents.get("nodes", {}).items()}


def choices_of(loaded: Loaded) -> dict[str, tuple[int, float]]:
    """The models that were chosen for a file: path to round and score."""
    with _reading("choices", loaded.commit.path):
        choices = loaded.documents.get("choices", {})
        return {path: (int(chosen_in), float(score)) for path, (chosen_in, score) in choices.items()}


def state_of(loaded: Loaded) -> StoredState:
    """The state, and the baseline of the process that stored it."""
    with _reading("state", loaded.commit.path):
        return StoredState(loaded.documents["state"], loaded.documents["baseline"], loaded.state)


@contextmanager
def _reading(name: str, where: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointCorruptError(f"{where}: it has no {name} that can be read ({error!r:.200})") from error
