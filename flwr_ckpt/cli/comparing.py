"""`diff`: what has changed from one round to another, of one run or of two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer

from ..store import Checkpoint
from .options import HomeOption, JsonOption, MetricOption, ModeOption, RunType, find_run, pick
from .render import Column, emit_json, number, plain, printable, say, table

_CHUNK = 1 << 20  # elements that are compared at once, as float64
_WIDEST = 40  # characters of a value that a table shows

_REFERENCE = "RUN or RUN@ROUND; a round is a number, 'latest' or 'best'."
Reference = Annotated[
    str, typer.Argument(metavar="RUN[@ROUND]", help=_REFERENCE, click_type=RunType(), show_default=False)
]


@dataclass(frozen=True)
class Moved:
    """How an array has changed.

    Attributes
    ----------
    change : str
        ``"moved"``, ``"other type"``, ``"only in A"``, ``"only in B"``.
    norm : float or None
        Length of the difference against that of the first; ``None`` where there is no number to take it of.
    detail : str
        What a reader sees.
    """

    name: str
    change: str
    norm: float | None
    detail: str


@dataclass(frozen=True)
class Differs:
    """A value that is another one; ``None`` stands for one that is missing."""

    name: str
    a: Any
    b: Any


def diff(
    a: Reference,
    b: Reference,
    metric: MetricOption = None,
    mode: ModeOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Compare two rounds, of one run or of two: arrays, strategy state, configuration, metrics.

    A round is given as RUN@ROUND: a number, 'latest' or 'best'. RUN alone is its newest.
    """
    first, second = (_load(reference, metric, mode, home) for reference in (a, b))
    arrays = list(_moved(first, second))
    same = len(first.arrays) - sum(item.change != "only in B" for item in arrays)
    values = {
        "state": list(_differences(first.state, second.state)),
        "identity": list(_differences(first.identity, second.identity)),
        "metrics": list(_differences(first.metrics, second.metrics)),
    }
    if as_json:
        fields = {part: [{"name": d.name, "a": plain(d.a), "b": plain(d.b)} for d in of] for part, of in values.items()}
        moved = [{"name": item.name, "change": item.change, "norm": item.norm} for item in arrays]
        emit_json({"a": first.round, "b": second.round, "same_arrays": same, "arrays": moved, **fields})
        return
    for letter, reference, one in (("A", a, first), ("B", b, second)):
        say(f"{letter}: {_split(reference)[0]}, round {one.round}")
    say()
    if arrays:
        table([Column("ARRAY"), Column("|B - A| / |A|", right=True)], [[item.name, item.detail] for item in arrays])
    say(f"{same} array{'s are' if same != 1 else ' is'} the same, bit for bit")
    for part, differences in values.items():
        _tell(part, differences)


def _load(reference: str, metric: str | None, mode: str | None, home: str | None) -> Checkpoint:
    run, which = _split(reference)
    return pick(find_run(run, home), which, metric, mode)


def _split(reference: str) -> tuple[str, str]:
    run, _, which = reference.rpartition("@")
    is_round = which in ("latest", "best") or which.isdigit()  # else the sign is part of a path
    return (run, which) if run and is_round else (reference, "latest")


def _tell(part: str, differences: list[Differs]) -> None:
    say()
    if not differences:
        say(f"{part}: the same")
        return
    table([Column(part.upper()), Column("A"), Column("B")], [[d.name, _short(d.a), _beside(d)] for d in differences])


def _moved(first: Checkpoint, second: Checkpoint) -> Iterator[Moved]:
    for name in dict.fromkeys([*first.arrays, *second.arrays]):
        if name not in second.arrays:
            yield Moved(name, "only in A", None, "only in A")
        elif name not in first.arrays:
            yield Moved(name, "only in B", None, "only in B")
        else:
            kinds = [f"{one.dtypes[name]}{list(one.shapes[name])}" for one in (first, second)]
            if kinds[0] != kinds[1]:
                yield Moved(name, "other type", None, " -> ".join(kinds))
            elif not _same(first.arrays[name], second.arrays[name]):
                norm = relative_norm(first.arrays[name], second.arrays[name])
                yield Moved(name, "moved", norm, "differs" if norm is None else f"{norm:.3g}")


def relative_norm(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float | None:
    """Length of ``b - a`` against that of ``a``; infinite if only ``a`` has none, ``None`` for what is no number."""
    if a.dtype.kind not in "iufc":
        return None
    moved, whole = 0.0, 0.0
    left, right = a.reshape(-1), b.reshape(-1)
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    for start in range(0, left.size, _CHUNK):
        x, y = (part[start : start + _CHUNK].astype(wide) for part in (left, right))
        with np.errstate(all="ignore"):  # NaN and infinity are answers here
            moved += float(np.sum(np.abs(y - x) ** 2))
            whole += float(np.sum(np.abs(x) ** 2))
    return float(np.sqrt(moved) / np.sqrt(whole)) if whole else float("inf")


def _same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Differs]:
    left, right = dict(_leaves(a)), dict(_leaves(b))
    for name in dict.fromkeys([*left, *right]):
        one, other = left.get(name), right.get(name)
        if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
            if not _same(one, other):
                yield Differs(name, one, other)
        elif type(one) is not type(other) or repr(one) != repr(other):
            yield Differs(name, one, other)


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Walk a tree to what is no container; what contains itself ends there."""
    waiting: list[tuple[str, Any, tuple[int, ...]]] = [("", tree, ())]
    while waiting:
        path, value, above = waiting.pop()
        if not isinstance(value, (Mapping, list)) or not value:
            yield path, value
        elif id(value) not in above:
            pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
            inner = [(f"{path}.{key}" if path else str(key), item, (*above, id(value))) for key, item in pairs]
            waiting.extend(reversed(inner))


def _beside(differs: Differs) -> str:
    """The second value; of an array, how far it has moved."""
    a, b = differs.a, differs.b
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and (a.dtype, a.shape) == (b.dtype, b.shape):
        norm = relative_norm(a, b)
        return "differs" if norm is None else f"moved by {norm:.3g} |A|"
    return _short(b)


def _short(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    text = number(value) if isinstance(value, float) else printable(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."
