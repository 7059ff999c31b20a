"""`show`: what one round holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np
import typer

from ..store import Checkpoint, readable_size
from .options import HomeOption, JsonOption, MetricOption, ModeOption, RoundArgument, RunArgument, find_run, pick
from .render import Column, emit_json, moment, number, plain, printable, say, table

_NOTHING = object()  # a line without a value
_INDENT = "  "
_MOST = 20  # of a container's items, unless all are asked for


def show(
    run: RunArgument,
    which: RoundArgument = "latest",
    metric: MetricOption = None,
    mode: ModeOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Show all items of large containers.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Show a round: its arrays, the strategy's own state, metrics, and who wrote it."""
    checkpoint = pick(find_run(run, home), which, metric, mode)
    if as_json:
        emit_json(_fields(run, checkpoint))
        return
    say(f"{run}, round {checkpoint.round}, saved {moment(checkpoint.time)} by generation {checkpoint.generation}")
    say(checkpoint.path)
    _show_arrays(checkpoint)
    most = None if everything else _MOST
    for title, content in (
        ("strategy state", checkpoint.state),
        ("metrics", checkpoint.metrics),
        ("written by", _identity(checkpoint)),
    ):
        say()
        for line in outline(title, content, most):
            say(line)


def _show_arrays(checkpoint: Checkpoint) -> None:
    say()
    sizes = {name: array.nbytes for name, array in checkpoint.arrays.items()}
    columns = [Column("ARRAY"), Column("TYPE"), Column("SHAPE"), Column("SIZE", right=True)]
    shapes, dtypes = checkpoint.shapes, checkpoint.dtypes
    table(columns, [[name, dtypes[name], str(shapes[name]), readable_size(sizes[name])] for name in sizes])
    say(f"{len(sizes)} array{'s' if len(sizes) != 1 else ''}, {readable_size(sum(sizes.values()))}")


def _identity(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Who wrote it, without the arrays that stand above."""
    return {name: value for name, value in checkpoint.identity.items() if name != "arrays"}


def outline(title: str, content: object, most: int | None) -> Iterator[str]:
    """Write plain values and arrays out as an indented list; what contains itself stands there once.

    Parameters
    ----------
    most : int or None
        How many items of a container are shown; all for ``None``.
    """
    waiting: list[tuple[str, object, tuple[int, ...]]] = [(title, content, ())]
    while waiting:
        name, value, above = waiting.pop()
        items = [] if id(value) in above else _items(value)
        yield f"{_INDENT * len(above)}{name}{' <itself>' if id(value) in above else _leaf(value)}"
        inside = (*above, id(value))
        shown = items[:most]
        if len(shown) < len(items):
            waiting.append((f"... and {len(items) - len(shown)} more: --all shows them", _NOTHING, inside))
        waiting.extend((key, item, inside) for key, item in reversed(shown))


def _items(value: object) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(printable(key), item) for key, item in value.items()]
    if isinstance(value, list) and not all(isinstance(item, (int, float, str)) for item in value):
        return [(f"[{index}]", item) for index, item in enumerate(value)]
    return []


def _leaf(value: object) -> str:
    """What stands behind a name; nothing where its items stand below."""
    if value is _NOTHING or _items(value):
        return ""
    if isinstance(value, np.ndarray):
        return f": {value.dtype}{list(value.shape)}"
    if isinstance(value, (bytes, memoryview)):
        return f": {readable_size(len(value))} of bytes"
    if isinstance(value, (Mapping, list)) and not value:
        return ": (empty)"
    if isinstance(value, list):
        shown = ", ".join(number(item) for item in value[:_MOST])
        return f": [{shown}{', ...' if len(value) > _MOST else ''}]"
    return f": {number(value) if isinstance(value, float) else printable(value)}"


def _fields(run: str, checkpoint: Checkpoint) -> dict[str, Any]:
    shapes, dtypes = checkpoint.shapes, checkpoint.dtypes
    return {
        "run": run,
        "round": checkpoint.round,
        "time": checkpoint.time,
        "generation": checkpoint.generation,
        "path": checkpoint.path,
        "arrays": [
            {"name": name, "dtype": dtypes[name], "shape": list(shapes[name]), "size": array.nbytes}
            for name, array in checkpoint.arrays.items()
        ],
        "state": without_cycles(checkpoint.state),
        "metrics": checkpoint.metrics,
        "identity": _identity(checkpoint),
    }


def without_cycles(value: object, above: tuple[int, ...] = ()) -> Any:
    """Give a tree as JSON can say it; what contains itself is ``"<itself>"``."""
    if not isinstance(value, (Mapping, list)):
        return plain(value)
    if id(value) in above:
        return "<itself>"
    path = (*above, id(value))
    if isinstance(value, list):
        return [without_cycles(item, path) for item in value]
    return {str(key): without_cycles(item, path) for key, item in value.items()}
