"""What the figures were measured on; nothing by which anybody could tell whose it is."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import psutil

LIBRARIES = ("flwr-ckpt", "flwr", "numpy", "torch", "safetensors", "orbax-checkpoint", "jax")


def describe(folder: Path) -> dict[str, str]:
    """Describe the machine, the disk that a folder lies on, and the libraries."""
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release().partition('-')[0]}",
        "file system": _file_system(folder),
        "load before": f"{os.getloadavg()[0]:.1f} (processes that want a processor; of other programs, so 0 is best)",
        "Python": platform.python_version(),
        "libraries": ", ".join(_versions(LIBRARIES)),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _file_system(folder: Path) -> str:
    real = folder.resolve()
    mounts = [part for part in psutil.disk_partitions(all=True) if real.is_relative_to(part.mountpoint)]
    found = max(mounts, key=lambda part: len(part.mountpoint))
    return found.fstype + (" with discard" if "discard" in found.opts.split(",") else "")


def _versions(names: Iterable[str]) -> Iterable[str]:
    for name in names:
        try:
            yield f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
