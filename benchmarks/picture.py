"""The comparison as a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from .arrays import MIB
from .contenders import NAMES
from .figures import Figures, seconds, size
from .plan import OURS
from .results import Results

_OURS, _RAW, _OTHER = "#0b6e4f", "#7a7f87", "#b9c0c9"
_INK = "#22262b"


def draw(results: Results, path: Path) -> None:
    """Draw bars by contender, for the largest size at which all were measured."""
    comparison = results.figures()
    most = max(map(len, comparison.values()))
    mib = max(mib for mib, by_contender in comparison.items() if len(by_contender) == most)
    figures = comparison[mib]
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 10, "text.color": _INK, "axes.edgecolor": _INK}):
        figure = Figure(figsize=(13, 3.9), facecolor="white")  # without pyplot, which looks for a screen
        panels = figure.subplots(1, 4, sharey=True)
        _panel(panels[0], figures, "server blocked", lambda one: one.blocked, seconds)
        _panel(panels[1], figures, "until durable", lambda one: one.durable, _with_ratio(figures))
        _panel(panels[2], figures, "extra memory, × model", lambda one: one.memory_ratio, "{:.2f}".format)
        _panel(panels[3], figures, "on disk, × changed bytes", lambda one: one.disk_ratio, "{:.2f}".format)
        panels[0].set_yticks(range(len(figures)), [NAMES[name] for name in figures])
        panels[0].invert_yaxis()
        figure.suptitle(f"One round of a Flower server saved: {size(mib * MIB)} in 100 arrays", x=0.01, ha="left")
        figure.text(0.01, 0.01, _caption(results.machine), fontsize=7.5, color=_RAW)
        figure.tight_layout(rect=(0, 0.04, 1, 1))
        figure.savefig(path, dpi=130)


def _panel(
    axes: Any,
    figures: Mapping[str, Figures],
    title: str,
    value: Callable[[Figures], float],
    label: Callable[[float], str],
) -> None:
    values = [value(one) for one in figures.values()]
    colours = [_OURS if name == OURS else _RAW if name == "raw" else _OTHER for name in figures]
    bars = axes.barh(range(len(values)), values, color=colours, height=0.66)
    axes.bar_label(bars, [label(one) for one in values], padding=4, fontsize=9)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlim(0, max([*values, 1e-9]) * 1.45)
    axes.set_xticks([])
    axes.tick_params(left=False)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def _with_ratio(figures: Mapping[str, Figures]) -> Callable[[float], str]:
    ratios = {one.durable: one.durable_ratio for one in figures.values()}
    return lambda value: f"{seconds(value)} ({ratios[value]:.1f} × raw)"


def _caption(machine: Mapping[str, str]) -> str:
    return "   ·   ".join(machine[key] for key in ("processor", "memory", "kernel", "file system", "libraries"))
