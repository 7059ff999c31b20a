"""Where a run lies: from what a user writes to a folder, and whether that folder can be used.

A ServerApp's working folder is that of whoever started the SuperLink, and its code runs from a copy: a relative
path would lead somewhere else each time. So only three things are understood: a run name, an absolute path, a URL.
"""

from __future__ import annotations

import os
import re
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .mounts import warnings_about
from .names import FENCES, HISTORY

STATES = "states"  # the named states of a module whose folder a run shares; each is kept as a run is
HOME_VARIABLE = "FLWR_CKPT_HOME"
DEFAULT_HOME = "~/.flwr_ckpt"

_PART = re.compile(r"[A-Za-z0-9._=-]+")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_APP_TABLE = re.compile(r"^\s*\[\s*tool\s*\.\s*flwr\s*\.\s*app\s*[\].]", re.MULTILINE)
_LONGEST_PART = 255  # NAME_MAX of every file system that Linux runs on
# Looking for runs inside a folder that is to become one must not walk somebody's whole disk.
_MOST_FOLDERS_SEARCHED = 10_000


@dataclass(frozen=True)
class Location:
    """The place of one run.

    Attributes
    ----------
    path : Path
        The run's folder, absolute.
    label : str
        What the user wrote.
    source : str
        Where the path came from, for the log.
    home : Path or None
        The checkpoint home that a run name lies under; ``None`` for an absolute path.
    """

    path: Path
    label: str
    source: str
    home: Path | None = None


def locate(run: str | os.PathLike[str], home: str | os.PathLike[str] | None = None) -> Location:
    """Turn what a user wrote into a place, without looking at any file.

    Parameters
    ----------
    run : str or os.PathLike
        A run name (parts of ``[A-Za-z0-9._=-]`` joined by ``/``) or an absolute path.
    home : str or os.PathLike, optional
        The checkpoint home; ``$FLWR_CKPT_HOME`` if left out, else ``~/.flwr_ckpt``.

    Raises
    ------
    ValueError
        If it is neither, or the checkpoint home is not an absolute path.
    TypeError
        If it is not text or a path at all.
    """
    text = _text(run)
    if os.path.isabs(text):
        if not Path(text).name:
            raise ValueError(f"run {text!r}: a run needs a folder of its own below the root of the file system")
        return Location(Path(text), text, "an absolute path")
    if isinstance(run, os.PathLike):
        raise ValueError(
            f"run {text!r} is a relative path, and a ServerApp's working folder is not yours (it is that of whoever "
            f"started the SuperLink): give an absolute path, or a run name as a str, which lies under {DEFAULT_HOME}"
        )
    _require_name(text)
    folder, source = checkpoint_home(home)
    return Location(folder / text, text, f"a run name under {source}", folder)


def prepare(location: Location) -> list[str]:
    """Check that a run can be written at a place, and make the checkpoint home (mode 0700) if there is none.

    Everything is checked before anything is made; the run's own folder is not made.

    Returns
    -------
    list of str
        Warnings to show: a place in memory, in a container's own layer, on a read-only file system.

    Raises
    ------
    ValueError
        If the folder lies inside a Flower app (it would be packed into the app bundle), inside another run, or
        holds runs itself.
    NotADirectoryError
        If a file is where a folder should be.
    PermissionError
        If a folder may not be read or written.
    """
    existing = _nearest_folder(location.path)
    real = location.path.resolve()
    _refuse_app(real)
    _refuse_nesting(real)
    _require_access(location, existing)
    warnings = warnings_about(existing.resolve())
    if location.home is not None:
        _make_home(location.home)
    return warnings


def runs_under(home: str | os.PathLike[str] | None = None) -> Iterator[Location]:
    """Find the runs under a checkpoint home, by name, and the folders in it that cannot be looked into.

    Parameters
    ----------
    home : str or os.PathLike, optional
        As in `locate`.
    """
    root, _ = checkpoint_home(home)
    waiting = _names_in(root)
    while waiting:
        name = waiting.pop()
        if _is_run(root / name) or not os.access(root / name, os.R_OK | os.X_OK):
            yield locate(name, root)
        else:
            waiting.extend(f"{name}/{part}" for part in _names_in(root / name))


def _names_in(folder: Path) -> list[str]:
    """The folders in a folder that may be runs, the last in order first."""
    try:
        with os.scandir(folder) as entries:
            return sorted((one.name for one in entries if one.is_dir() and _problem(one.name) is None), reverse=True)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _text(run: object) -> str:
    text = os.fspath(run) if isinstance(run, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise TypeError(f"run {run!r}: expected a run name, an absolute path or a URL, found {type(run).__name__}")
    if "\0" in text:
        raise ValueError(f"run {text!r}: a path cannot hold a null character")
    _refuse_url(text)
    return text


def _refuse_url(text: str) -> None:
    """Object storage is not there yet: this is the one place that says so."""
    if _URL.match(text):
        raise ValueError(f"{text!r} is a URL, and object storage is not supported yet: give a name or an absolute path")


def _require_name(text: str) -> None:
    problem = next(filter(None, map(_problem, text.split("/"))), None)
    if problem is None:
        return
    hint = " '~' is not expanded: use os.path.expanduser." if text.startswith("~") else ""
    raise ValueError(
        f"run {text!r} is not an absolute path and cannot be a run name: {problem}.{hint} A run name has parts of "
        "letters, digits and . _ = - joined by slashes (as in 'cifar/lr-0.1'); relative paths are not taken, "
        "because a ServerApp's working folder is not yours"
    )


def _problem(part: str) -> str | None:
    if not part:
        return "a part of it is empty"
    if not _PART.fullmatch(part):
        return f"{part!r} holds other characters"
    if not part.strip("."):
        return f"{part!r} has nothing but dots"
    if part in (FENCES, HISTORY) or part.startswith("round-"):
        return f"{part!r} is a name that runs use for their own files"
    if len(part) > _LONGEST_PART:
        return f"a part of {len(part)} characters is longer than a file name may be ({_LONGEST_PART})"
    return None


def checkpoint_home(given: str | os.PathLike[str] | None) -> tuple[Path, str]:
    """Find the folder that run names lie under, and say where its name came from."""
    from_environment = os.environ.get(HOME_VARIABLE)
    if given is not None:
        text, source = os.fspath(given), "the given checkpoint home"
    elif from_environment:
        text, source = from_environment, f"${HOME_VARIABLE}"
    else:
        text, source = os.path.expanduser(DEFAULT_HOME), f"the default checkpoint home {DEFAULT_HOME}"
    _refuse_url(text)
    if not os.path.isabs(text) or "\0" in text:
        raise ValueError(
            f"the checkpoint home {text!r} (from {source}) is not an absolute path: a ServerApp's working folder is "
            "not yours, so a relative one would lead somewhere else in each run"
        )
    return Path(text), source


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


def _require_access(location: Location, existing: Path) -> None:
    for folder in (existing, location.path / FENCES):
        if not os.path.isdir(folder) or os.statvfs(folder).f_flag & os.ST_RDONLY:
            continue
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
            raise PermissionError(
                f"this user ({os.geteuid()}) may not read and write {folder} ({_owner(folder)}), which the run at "
                f"{location.path} needs; change its permissions, or choose another place or ${HOME_VARIABLE}"
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
