"""`plot`: metrics over rounds, as a picture or in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ..store import CheckpointNotFoundError
from .chart import draw
from .options import HomeOption, RunArgument, find_run
from .picture import save_picture
from .render import console, printable, say

Curve = Mapping[int, float]


@dataclass(frozen=True)
class Panel:
    """The curves that share an axis: a metric as training, clients and server see it.

    Attributes
    ----------
    title : str
        The metric's name without what comes before the slash.
    curves : Mapping[str, Mapping[int, float]]
        By key as in the history: round to value. NaN and infinity are gaps.
    """

    title: str
    curves: Mapping[str, Curve]


def plot(
    run: RunArgument,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help="A metric; may be given again.", show_default=False)
    ] = None,
    output: Annotated[
        str, typer.Option("-o", "--output", help="FILE.png or FILE.svg; '-' draws in the terminal.")
    ] = "-",
    home: HomeOption = None,
) -> None:
    """Draw metrics over rounds; where another server took up is marked."""
    if output != "-" and Path(output).suffix not in (".png", ".svg"):
        raise typer.BadParameter(f"{output!r}: expected a name that ends in .png or .svg, or - for the terminal")
    store = find_run(run, home)
    panels = panels_of(store.history(), metric or [], store.location.where)
    restarts = store.status().restarts
    if output == "-":
        _draw(panels, restarts)
    else:
        save_picture(Path(output), run, panels, restarts)
        say(f"{output}: {', '.join(key for panel in panels for key in panel.curves)} of {run}")


def panels_of(history: Mapping[str, Mapping[int, Any]], asked: Sequence[str], where: str) -> list[Panel]:
    """Sort a history's numbers into panels; only the metrics asked for, if any are.

    Raises
    ------
    CheckpointNotFoundError
        If there is none to draw, or not one that was asked for.
    """
    curves = {key: _numbers(values) for key, values in history.items()}
    known = [key for key, curve in curves.items() if curve]
    unknown = [key for key in asked if key not in known]
    if unknown or not known:
        named = f"no numbers of {', '.join(map(repr, unknown))}" if unknown else "no metrics to draw"
        raise CheckpointNotFoundError(f"{where}: there are {named}; there are {', '.join(sorted(known)) or 'none'}")
    panels: dict[str, dict[str, Curve]] = {}
    for key in asked or known:
        panels.setdefault(key.rpartition("/")[2], {})[key] = curves[key]
    return [Panel(title, of) for title, of in panels.items()]


def _numbers(values: Mapping[int, Any]) -> Curve:
    kinds = (int, float, np.integer, np.floating)
    numbers = {at: float(value) for at, value in values.items() if isinstance(value, kinds)}
    return {at: value for at, value in numbers.items() if math.isfinite(value)}


def _draw(panels: Sequence[Panel], restarts: Sequence[int]) -> None:
    out = console()
    width = out.width if out.is_terminal else 80
    unicode = (out.encoding or "").lower().startswith("utf")
    for index, panel in enumerate(panels):
        if index:
            say()
        for line in draw(panel.curves, restarts, width=width, unicode=unicode):
            say(printable(line))
