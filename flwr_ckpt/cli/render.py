"""What a terminal shows: tables, times, sizes, JSON. What is written into a file or a pipe is never wrapped."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

Cell = str | Text
_GAP = "  "


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    title: str
    right: bool = False


def console(*, stderr: bool = False) -> Console:
    """Give what writes to standard output, or standard error, as it is now."""
    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def say(*cells: Cell) -> None:
    """Write one line, as long as it is."""
    console().print(Text.assemble(*cells))


def note(text: str) -> None:
    """Write one line beside what a command gives: to standard error."""
    console(stderr=True).print(Text(f"flwr-ckpt: {printable(text)}"))


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> None:
    """Write rows under titles."""
    cells = [[_text(cell) for cell in row] for row in rows]
    titles = [Text(column.title, "bold") for column in columns]
    widths = [max(row[index].cell_len for row in (titles, *cells)) for index in range(len(columns))]
    out = console()
    for row in (titles, *cells):
        parts = [_aligned(cell, width, column.right) for cell, width, column in zip(row, widths, columns, strict=True)]
        line = Text(_GAP).join(parts)
        line.rstrip()
        out.print(line)


def fitting(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], least: int) -> int:
    """Say how many of the columns fit into a terminal's width, `least` at the least; all where there is none."""
    out = console()
    if not out.is_terminal:
        return len(columns)
    used = -len(_GAP)
    for index, column in enumerate(columns):
        used += len(_GAP) + max(_text(cell).cell_len for cell in (column.title, *(row[index] for row in rows)))
        if used > out.width and index >= least:
            return index
    return len(columns)


def emit_json(document: object) -> None:
    """Write JSON; what it has no number for is a string: ``"NaN"``, ``"Infinity"``, ``"-Infinity"``."""
    sys.stdout.write(json.dumps(plain(document), indent=2, allow_nan=False) + "\n")


def plain(value: object) -> Any:
    """Turn a value into what JSON can say: arrays into their type and shape, bytes into their number."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, np.integer, np.bool_)):
        return value.item() if isinstance(value, np.generic) else int(value)
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return number if math.isfinite(number) else {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[repr(number)]
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "shape": list(value.shape)}
    if isinstance(value, (bytes, memoryview)):
        return {"bytes": len(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return str(value)


def number(value: object) -> str:
    """Format a metric."""
    if isinstance(value, (float, np.floating)):
        return f"{float(value):.5g}"
    return printable(value) if isinstance(value, (int, str, np.generic)) else f"<{type(value).__name__}>"


def moment(seconds: float | None) -> str:
    """Format a time of the wall clock, here."""
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def printable(value: object) -> str:
    """Give the text of a value without characters that would do something to a terminal."""
    text = str(value)
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def _text(cell: Cell) -> Text:
    return cell if isinstance(cell, Text) else Text(printable(cell))


def _aligned(cell: Text, width: int, right: bool) -> Text:
    aligned = cell.copy()
    aligned.align("right" if right else "left", width)
    return aligned


def counted(number: int, what: str) -> str:
    """Write a number of things: ``"1 round"``, ``"3 rounds"``."""
    return f"{number} {what}{'' if number == 1 else 's'}"
