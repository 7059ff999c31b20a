"""Curves as a PNG or SVG file, with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..store import CheckpointError

if TYPE_CHECKING:
    from .plotting import Panel

_WIDTH, _HEIGHT = 8.0, 2.8  # inches, of each panel


def save_picture(target: Path, title: str, panels: Sequence[Panel], restarts: Sequence[int]) -> None:
    """Draw panels below each other into a file.

    Raises
    ------
    CheckpointError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise CheckpointError(
            'pictures are drawn by matplotlib, which is not installed: pip install "flwr-ckpt[plot]", or draw in the '
            "terminal with -o -"
        ) from None
    # Not through pyplot: no window system is asked for, and no settings of the user's are changed.
    figure = Figure(figsize=(_WIDTH, 0.6 + _HEIGHT * len(panels)), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    for ax, panel in zip(axes, panels, strict=True):
        for name, curve in panel.curves.items():
            rounds = sorted(curve)
            ax.plot(rounds, [curve[number] for number in rounds], marker="o", markersize=3, label=name)
        for index, number in enumerate(restarts):
            # Between the rounds: it is before that one that another server took up.
            label = "restarted" if index == 0 else None
            ax.axvline(number - 0.5, color="grey", linestyle=":", linewidth=1, label=label)
        ax.set_ylabel(panel.title)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.25)
        ax.legend(fontsize="small", framealpha=0.6)
    axes[-1].set_xlabel("round")
    figure.savefig(target, format=target.suffix[1:], dpi=150)
