"""Whether a run can be written behind a URL, and which runs there are."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from ..names import FENCES, problem_with_part
from .cloud import open_url

_MOST_FOLDERS_SEARCHED = 1_000  # each is a request


def prepare(url: str) -> list[str]:
    """Check that a run can begin behind a URL; nothing is made.

    Returns
    -------
    list of str
        Warnings to show.

    Raises
    ------
    ValueError
        If it lies inside another run, or holds runs itself.
    """
    scheme, _, rest = url.partition("://")
    bucket, *parts = rest.split("/")
    for length in range(len(parts)):
        above = f"{scheme}://{'/'.join((bucket, *parts[:length]))}"
        if _is_known_as_run(above):
            raise ValueError(f"{url} lies inside the run {above}: a run cannot hold another one; choose another name")
    if not _is_run(url):
        inner = next(filter(_is_run, _folders_below(url)), None)
        if inner is not None:
            raise ValueError(
                f"{url} holds a run, {inner}: a folder of runs cannot be a run itself; choose another name"
            )
    if scheme == "memory":
        return [f"{url} is kept in this process's memory: checkpoints there are gone when it ends"]
    return []


def runs_in(home: str) -> Iterator[str]:
    """Find the runs in a checkpoint home, by name."""
    waiting = _names_in(home)
    while waiting:
        name = waiting.pop()
        if _is_run(f"{home}/{name}"):
            yield name
        else:
            waiting.extend(f"{name}/{part}" for part in _names_in(f"{home}/{name}"))


def _names_in(url: str) -> list[str]:
    """The folders in a folder that may be runs, the last in order first."""
    return sorted((name for name in open_url(url).folders() if problem_with_part(name) is None), reverse=True)


def _is_known_as_run(url: str) -> bool:
    """Whether there is a run, as far as it may be looked: credentials for one folder alone are good ones."""
    try:
        return _is_run(url)
    except PermissionError:
        return False


def _is_run(url: str) -> bool:
    return bool(open_url(url).keys(FENCES))


def _folders_below(url: str) -> Iterator[str]:
    """Folders below another, those nearest first."""
    queue, found = deque([url]), 0
    while queue and found < _MOST_FOLDERS_SEARCHED:
        folder = queue.popleft()
        below = [f"{folder}/{name}" for name in open_url(folder).folders()]
        found += len(below)
        queue.extend(below)
        yield from below
