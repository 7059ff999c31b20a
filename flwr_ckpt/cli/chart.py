"""Curves in characters, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

_HEIGHT = 12
_MARKS = "ox+*#@"
_RESTART = {True: "┊", False: ":"}
_AXES = {True: ("│", "└", "─"), False: ("|", "+", "-")}


def draw(
    curves: Mapping[str, Mapping[int, float]], restarts: Sequence[int], *, width: int, unicode: bool
) -> Iterator[str]:
    """Draw curves of finite numbers over rounds.

    Parameters
    ----------
    curves : Mapping[str, Mapping[int, float]]
        By name, round to value; each has a point at the least.
    restarts : sequence of int
        Rounds to mark with a line.
    width : int
        Of the terminal.
    unicode : bool
        Whether it can show more than ASCII.

    Yields
    ------
    str
        One line after the other.
    """
    values = [value for curve in curves.values() for value in curve.values()]
    rounds = [number for curve in curves.values() for number in curve]
    low, high, first, last = min(values), max(values), min(rounds), max(rounds)
    labels = {0: f"{high:.4g}", _HEIGHT - 1: f"{low:.4g}"} if high > low else {_HEIGHT // 2: f"{high:.4g}"}
    margin = max(map(len, labels.values()))
    columns = max(min(width - margin - 2, 1 + 8 * (last - first)), 2)

    def column(server_round: int) -> int:
        return round((server_round - first) / max(last - first, 1) * (columns - 1))

    def row(value: float) -> int:
        # Halves first: the span of two finite numbers need not be one.
        span = high / 2 - low / 2
        return round((high / 2 - value / 2) / span * (_HEIGHT - 1)) if span else _HEIGHT // 2

    grid = [[" "] * columns for _ in range(_HEIGHT)]
    for number in restarts:
        if first <= number <= last:
            for line in grid:
                line[column(number)] = _RESTART[unicode]
    for mark, curve in zip(_marks(len(curves)), curves.values(), strict=True):
        for number, value in curve.items():
            grid[row(value)][column(number)] = mark
    side, corner, floor = _AXES[unicode]
    for index, line in enumerate(grid):
        yield f"{labels.get(index, ''):>{margin}} {side}{''.join(line)}".rstrip()
    yield f"{'':>{margin}} {corner}{floor * columns}"
    yield f"{'':>{margin}}  {first}{last:>{max(columns - len(str(first)), len(str(last)) + 1)}}"
    legend = [f"{mark} {name}" for mark, name in zip(_marks(len(curves)), curves, strict=True)]
    shown = [number for number in restarts if first <= number <= last]
    if shown:
        legend.append(f"{_RESTART[unicode]} restarted before round {', '.join(map(str, shown))}")
    yield f"{'':>{margin}}  {'   '.join(legend)}"


def _marks(count: int) -> list[str]:
    return [_MARKS[index % len(_MARKS)] for index in range(count)]
