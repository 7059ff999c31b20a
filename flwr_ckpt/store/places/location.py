"""Where a run lies: from what a user writes to a folder or a URL.

A ServerApp's working folder is that of whoever started the SuperLink, and its code runs from a copy: a relative
path would lead somewhere else each time. So only three things are understood: a run name, an absolute path, a URL.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..names import problem_with_part
from . import local_folder, object_folder
from .cloud import open_url
from .files import Files
from .local_files import LocalFiles

HOME_VARIABLE = "FLWR_CKPT_HOME"
DEFAULT_HOME = "~/.flwr_ckpt"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=://)")
_SCHEMES = ("s3", "gs", "az", "memory")
_URL_OR_PATH_OF_ONE = re.compile(rf"{_SCHEME.pattern}|(?:{'|'.join(_SCHEMES)}):/")  # Path takes a slash away
_SECRETS = re.compile(r"(:/{1,2}).*@|[?#].*", re.DOTALL)


@dataclass(frozen=True)
class Location:
    """The place of one run.

    Attributes
    ----------
    where : str
        The run's folder: an absolute path, or a URL.
    label : str
        What the user wrote.
    source : str
        Where that came from, for the log.
    home : str or None
        The checkpoint home that a run name lies under; ``None`` for a path or a URL of its own.
    """

    where: str
    label: str
    source: str
    home: str | None = None

    def __str__(self) -> str:
        return self.where

    @property
    def folder(self) -> Path | None:
        """The run's folder on a disk, or ``None`` if it is a URL."""
        return None if is_url(self.where) else Path(self.where)

    def files(self) -> Files:
        """Open the place; nothing is looked at or made.

        Raises
        ------
        ImportError
            If it is a URL and object storage is not installed.
        OSError
            If it is a URL and the environment lacks something, such as the name of an Azure account.
        """
        if self.folder is not None:
            return LocalFiles(self.folder)
        return open_url(self.where)


def locate(run: str | os.PathLike[str], home: str | os.PathLike[str] | None = None) -> Location:
    """Turn what a user wrote into a place, without looking at any file.

    Parameters
    ----------
    run : str or os.PathLike
        A run name (parts of ``[A-Za-z0-9._=-]`` joined by ``/``), an absolute path, or a URL
        (``"s3://bucket/runs/digits"``).
    home : str or os.PathLike, optional
        The checkpoint home, an absolute path or a URL; ``$FLWR_CKPT_HOME`` if left out, else ``~/.flwr_ckpt``.

    Raises
    ------
    ValueError
        If it is none of these, or the checkpoint home is neither an absolute path nor a URL.
    TypeError
        If it is not text or a path at all.
    """
    text = _text(run)
    if is_url(text):
        url = _url(text, "run")
        if url.count("/") < 3:
            raise ValueError(f"run {url!r}: a run needs a folder of its own below the bucket, as in '{url}/digits'")
        return Location(url, url, "a URL")
    if os.path.isabs(text):
        if not Path(text).name:
            raise ValueError(f"run {text!r}: a run needs a folder of its own below the root of the file system")
        return Location(str(Path(text)), text, "an absolute path")
    if isinstance(run, os.PathLike):
        raise ValueError(
            f"run {text!r} is a relative path, and a ServerApp's working folder is not yours (it is that of whoever "
            f"started the SuperLink): give an absolute path, or a run name as a str, which lies under {DEFAULT_HOME}; "
            "a URL is a str, too"
        )
    _require_name(text)
    folder, source = checkpoint_home(home)
    return Location(f"{folder.rstrip('/')}/{text}", text, f"a run name under {source}", folder)


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
    if location.folder is None:
        return object_folder.prepare(location.where)
    return local_folder.prepare(location.folder, None if location.home is None else Path(location.home))


def is_url(text: str) -> bool:
    """Whether text is meant as a URL."""
    return _SCHEME.match(text) is not None


def refuse_url(folder: str | os.PathLike[str]) -> None:
    """Make sure that what is to be a folder on a disk is not meant as a URL.

    Raises
    ------
    ValueError
        If it is.
    """
    text = os.fspath(folder)
    if _URL_OR_PATH_OF_ONE.match(text):
        raise ValueError(
            f"{_without_secrets(text)!r} is a URL, and model files and named states are kept in a folder on a disk: "
            "give one. The run itself may lie behind a URL (run=...)"
        )


def _without_secrets(text: str) -> str:
    return _SECRETS.sub(r"\1", text)


def _url(text: str, what: str) -> str:
    """Check a URL, and give the one spelling of it. What may be a secret is not repeated."""
    shown = _without_secrets(text)
    if shown != text:
        raise ValueError(
            f"{what} {shown!r}: this URL carries credentials or a query, which would be written into logs. Give them "
            "in the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …), and only the bucket and the folder here"
        )
    scheme, _, rest = text.partition("://")
    if scheme.lower() not in _SCHEMES:
        raise ValueError(
            f"{what} {text!r}: object storage is one of {', '.join(f'{one}://' for one in _SCHEMES)}; give one of "
            "those, a run name or an absolute path"
        )
    bucket, *folders = rest.rstrip("/").split("/")
    problem = next(filter(None, map(problem_with_part, (bucket, *folders))), None)
    if problem is not None:
        raise ValueError(f"{what} {text!r} is no URL of a folder in a bucket: {problem}")
    return f"{scheme.lower()}://{'/'.join((bucket, *folders))}"


def runs_under(home: str | os.PathLike[str] | None = None) -> Iterator[Location]:
    """Find the runs under a checkpoint home, by name, and the folders in it that cannot be looked into.

    Parameters
    ----------
    home : str or os.PathLike, optional
        As in `locate`.
    """
    root, _ = checkpoint_home(home)
    for name in object_folder.runs_in(root) if is_url(root) else local_folder.runs_in(Path(root)):
        yield locate(name, root)


def _text(run: object) -> str:
    text = os.fspath(run) if isinstance(run, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise TypeError(f"run {run!r}: expected a run name, an absolute path or a URL, found {type(run).__name__}")
    if "\0" in text:
        raise ValueError(f"run {_without_secrets(text)!r}: a path cannot hold a null character")
    return text


def _require_name(text: str) -> None:
    problem = next(filter(None, map(problem_with_part, text.split("/"))), None)
    if problem is None:
        return
    hint = " '~' is not expanded: use os.path.expanduser." if text.startswith("~") else ""
    raise ValueError(
        f"run {text!r} is not an absolute path and cannot be a run name: {problem}.{hint} A run name has parts of "
        "letters, digits and . _ = - joined by slashes (as in 'cifar/lr-0.1'); relative paths are not taken, "
        "because a ServerApp's working folder is not yours"
    )


def checkpoint_home(given: str | os.PathLike[str] | None) -> tuple[str, str]:
    """Find the folder or URL that run names lie under, and say where its name came from."""
    from_environment = os.environ.get(HOME_VARIABLE)
    if given is not None:
        text, source = os.fspath(given), "the given checkpoint home"
    elif from_environment:
        text, source = from_environment, f"${HOME_VARIABLE}"
    else:
        text, source = os.path.expanduser(DEFAULT_HOME), f"the default checkpoint home {DEFAULT_HOME}"
    if is_url(text):
        return _url(text, "the checkpoint home"), source
    if not os.path.isabs(text) or "\0" in text:
        raise ValueError(
            f"the checkpoint home {text!r} (from {source}) is not an absolute path or a URL: a ServerApp's working "
            "folder is not yours, so a relative one would lead somewhere else in each run"
        )
    return str(Path(text)), source
