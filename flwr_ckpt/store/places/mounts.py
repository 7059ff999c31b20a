"""Whether a folder looks as if it will not be there tomorrow: what the kernel says about its mount."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

MOUNT_TABLE = Path("/proc/self/mountinfo")

_TEMPORARY = {
    "tmpfs": "is kept in memory (tmpfs): checkpoints there are gone after a reboot",
    "ramfs": "is kept in memory (ramfs): checkpoints there are gone after a reboot",
    "overlay": "is a container's own layer (overlay): checkpoints there are gone with the container; mount a volume",
}


@dataclass(frozen=True)
class _Mount:
    point: str
    filesystem: str


def warnings_about(folder: Path) -> list[str]:
    """Say what is wrong with keeping checkpoints in a folder.

    Parameters
    ----------
    folder : Path
        An existing folder, links resolved.

    Returns
    -------
    list of str
        Nothing where all is well, and where the system does not say.
    """
    warnings = []
    mount = _mount_of(folder)
    if mount is not None and mount.filesystem in _TEMPORARY:
        warnings.append(f"{folder} {_TEMPORARY[mount.filesystem]}")
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        warnings.append(f"{folder} is on a read-only file system: checkpoints can be read there, not written")
    return warnings


def _mount_of(folder: Path) -> _Mount | None:
    try:
        lines = MOUNT_TABLE.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    holding = [mount for mount in map(_parse, lines) if mount is not None and folder.is_relative_to(mount.point)]
    # The longest mount point holds the folder; of two on one point the later hides the earlier.
    return max(reversed(holding), key=lambda mount: len(mount.point), default=None)


def _parse(line: str) -> _Mount | None:
    """Read one line: ``id parent device root point options [tags…] - filesystem source options``."""
    before, separator, after = line.partition(" - ")
    fields = before.split(" ")
    if not separator or len(fields) < 6:
        return None
    return _Mount(_unescape(fields[4]), after.split(" ")[0])


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), field)
