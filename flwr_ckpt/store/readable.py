"""Numbers as people read them."""

from __future__ import annotations


def readable_size(count: float) -> str:
    """Format a number of bytes (``1.5 MiB``)."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
