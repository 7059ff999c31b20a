"""Whether a run can be written in a folder on this machine, asked before anything is made."""

from __future__ import annotations

import os
import re
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from ..names import FENCES, STATES, problem_with_part
from .mounts import warnings_about

# Looking for runs inside a folder that is to become one must not walk somebody's whole disk.
_MOST_FOLDERS_SEARCHED = 10_000
_APP_TABLE = re.compile(r"^\s*\[\s*tool\s*\.\s*flwr\s*\.\s*app\s*[\].]", re.MULTILINE)


def prepare(run: Path, home: Path | None) -> list[str]:
    """Check that a run can be written in a folder, and make the checkpoint home (mode 0700) if there is none.

    Parameters
    ----------
    run : Path
        The run's folder; it is not made.
    home : Path or None
        The checkpoint home, if the run lies under one.

    Returns
    -------
    list of str
        Warnings to show.

    Raises
    ------
    ValueError, NotADirectoryError, PermissionError
        If it cannot; nothing has been made then.
    """
    existing = _nearest_folder(run)
    real = run.resolve()
    _refuse_app(real)
    _refuse_nesting(real)
    _require_access(run, existing)
    warnings = warnings_about(existing.resolve())
    if home is not None:
        _make_home(home)
    return warnings


def runs_in(home: Path) -> Iterator[str]:
    """Find the runs in a checkpoint home, by name, and the folders in it that cannot be looked into."""
    waiting = _names_in(home)
    while waiting:
        name = waiting.pop()
        if _is_run(home / name) or not os.access(home / name, os.R_OK | os.X_OK):
            yield name
        else:
            waiting.extend(f"{name}/{part}" for part in _names_in(home / name))


def _names_in(folder: Path) -> list[str]:
    """The folders in a folder that may be runs, the last in order first."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir() and problem_with_part(entry.name) is None]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(names, reverse=True)


def _nearest_folder(path: Path) -> Path:
    """Return the path itself, or the nearest folder above it that exists."""
    for candidate in (path, *path.parents):
        try:
            mode = candidate.stat().st_mode
        except FileNotFoundError as error:
            if candidate.is_symlink():
                raise NotADirectoryError(f"{candidate} is a link that leads nowhere: remove it") from error
            continue
        except NotADirectoryError:
            continue  # a part above is a file: found, and named, further up
        except PermissionError:
            raise PermissionError(
                f"{candidate} cannot be looked at: this user ({os.geteuid()}) may not enter {candidate.parent}"
            ) from None
        if not stat.S_ISDIR(mode):
            raise NotADirectoryError(f"{candidate} is a file, and the run at {path} needs a folder there")
        return candidate
    raise NotADirectoryError(f"{path}: nothing on this path exists, not even the root of the file system")


def _refuse_app(path: Path) -> None:
    for folder in (path, *path.parents):
        project = folder / "pyproject.toml"
        try:
            text = project.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # no such file, or not ours to read: Flower could not build an app from it either
        if _APP_TABLE.search(text):
            raise ValueError(
                f"{path} lies inside the Flower app {folder} ({project} has [tool.flwr.app]): its files could be "
                "packed into the app bundle. Choose a folder outside, or a run name"
            )


def _refuse_nesting(path: Path) -> None:
    for folder in path.parents:
        if _is_run(folder):
            raise ValueError(f"{path} lies inside the run {folder}: a run cannot hold another one; choose another name")
    if _is_run(path):
        return
    named_states = path / STATES
    others = (folder for folder in _folders_below(path) if named_states not in folder.parents)
    inner = next((folder for folder in others if _is_run(folder)), None)
    if inner is not None:
        raise ValueError(f"{path} holds a run, {inner}: a folder of runs cannot be a run itself; choose another name")


def _is_run(folder: Path) -> bool:
    return os.path.isdir(folder / FENCES)


def _folders_below(path: Path) -> Iterator[Path]:
    """Folders below a path, those nearest first."""
    queue, found = deque([path]), 0
    while queue and found < _MOST_FOLDERS_SEARCHED:
        try:
            with os.scandir(queue.popleft()) as entries:
                folders = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue
        found += len(folders)
        queue.extend(folders)
        yield from folders


def _require_access(run: Path, existing: Path) -> None:
    for folder in (existing, run / FENCES):
        if not os.path.isdir(folder) or os.statvfs(folder).f_flag & os.ST_RDONLY:
            continue
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
            raise PermissionError(
                f"this user ({os.geteuid()}) may not read and write {folder} ({_owner(folder)}), which the run at "
                f"{run} needs; change its permissions, or choose another place or $FLWR_CKPT_HOME"
            )


def _owner(folder: Path) -> str:
    status = folder.stat()
    return f"owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}"


def _make_home(home: Path) -> None:
    missing = [folder for folder in (home, *home.parents) if not folder.exists()]
    for folder in reversed(missing):
        try:
            folder.mkdir(mode=0o700 if folder == home else 0o777, exist_ok=True)
            _sync(folder.parent)
        except OSError as error:
            raise type(error)(f"the checkpoint home {home} cannot be made: {error}") from error


def _sync(folder: Path) -> None:
    # Else a power loss could take the home, and every run in it, whose own files were all synced.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
