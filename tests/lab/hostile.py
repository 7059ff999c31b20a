"""Hostile documents: what somebody could write who knows the format, and how to put it in a sound document's place.

A digest keeps nobody from writing: it is computed here as anybody could.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flwr_ckpt.store import CheckpointError, CheckpointStore
from flwr_ckpt.store.format.manifest import seal, unseal

Step = tuple[Any, ...]  # the keys and indices that lead to a place in a document

HUGE = 1 << 61
DEEP: Any = json.loads("[" * 300 + "]" * 300)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 2, -1, 7, 1 << 20, HUGE, 1 << 62, 1 << 64, 10**40, 0.5, -0.0, 1e308),
    *(
        "",
        "x",
        "..",
        "../../../etc/passwd",
        "/etc/passwd",
        "round-00000001/../../x.safetensors",
        "\0",
        "\ud800",
        "é" * 99,
    ),
    *(
        "round-00000000/g0001-arrays.safetensors",
        "round-00000099/g0001-arrays.safetensors",
        "history/g0001-00000002-train",
    ),
    *(
        "os:system",
        "builtins:eval",
        "O",
        "object",
        "|O",
        "(9999999999,)f4",
        "2)f4",
        "V99999",
        "train",
        "attempt",
        "end",
    ),
    *([], {}, [[]], [{}], [HUGE], [0, HUGE], [HUGE, HUGE], [[0, 0]], [1] * 70, [0] * 999, DEEP, [None], [""]),
    *({"$": "deep", "n": 0}, {"$": "same", "as": "strategy"}, {"$": "float", "v": "x"}, {"$": "bytes", "v": "?"}),
    *(
        {"$": "numpy", "dtype": "|O", "shape": [HUGE], "v": ""},
        {"$": "numpy", "dtype": "<f8", "shape": [HUGE], "v": ""},
    ),
    *({"$": "tuple", "v": 3}, {"$": "dict", "v": [[[], 1]]}, {"$": "nothing"}, {"$": []}, {"": {}}),
    *({"$": "ndarray", "dtype": "<f8", "shape": [HUGE, HUGE], "blob": "x"}, {"$": "function", "name": "os:system"}),
)


def places_in(document: Any, where: Step = ()) -> Iterator[Step]:
    """Every place of a JSON document, without recursion for long lists of numbers."""
    stack = [(where, document)]
    while stack:
        path, value = stack.pop()
        yield path
        if isinstance(value, dict):
            stack.extend(((*path, key), item) for key, item in value.items())
        elif isinstance(value, list):
            stack.extend(((*path, index), item) for index, item in enumerate(value[:4]))


def replaced(document: Any, path: Step, value: Any) -> Any:
    """The document with another value at a place."""
    if not path:
        return value
    made = copy.deepcopy(document)
    inner = made
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return made


def removed(document: Any, path: Step) -> Any:
    """The document without what is at a place."""
    made = copy.deepcopy(document)
    inner = made
    for step in path[:-1]:
        inner = inner[step]
    del inner[path[-1]]
    return made


def body_of(path: Path) -> dict[str, Any]:
    """What a sealed file says."""
    return unseal(path.read_bytes(), str(path))


def write_sealed(path: Path, body: Any) -> None:
    """Put a document under a digest that is right."""
    path.write_bytes(seal(body))


def look_everywhere(run: Path) -> int:
    """Read a run in every way there is, and give the number of ways that raised an error of ours: no other may be."""
    store = CheckpointStore(run)
    ways: tuple[Callable[[], Any], ...] = (
        lambda: store._reader.resume(strict_history=False),
        lambda: store._reader.resume(),
        lambda: [_use(store.load(number)) for number in (None, 1, 2)],
        store.rounds,
        store.latest,
        lambda: repr(store.history()),
        lambda: store.best("evaluate/loss", "min"),
        store.verify,
        store.status,
        lambda: store.load(1).parameters(),
    )
    refused = 0
    for way in ways:
        try:
            way()
        except CheckpointError:
            refused += 1
    return refused


def _use(found: Any) -> None:
    for array in found.arrays.values():
        assert isinstance(array, np.ndarray)
        assert array.nbytes <= 1 << 20, "more than was written"
    repr(found.arrays)
    found.dtypes  # noqa: B018  # a property that looks
    found.array_record()
    repr(found.metrics)
    found.state  # noqa: B018
