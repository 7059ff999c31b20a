"""Sizes and times as people read them."""

from __future__ import annotations

import time


def readable_size(count: float) -> str:
    """Format a number of bytes (``1.5 MiB``)."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def readable_age(seconds: float) -> str:
    """Say how long ago a moment was, given in seconds since 1970 (``2 minutes ago``)."""
    passed = time.time() - seconds
    for length, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if passed >= length:
            count = int(passed / length)
            return f"{count} {unit}{'s' if count != 1 else ''} ago"
    return "just now"  # also by a clock that is ahead of this one
