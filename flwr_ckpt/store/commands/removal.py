"""A whole run, removed so that nothing of it comes back."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import CheckpointNotFoundError
from ..format.generations import take_generation
from ..names import fence_key, generation_of
from ..places.files import Files
from ..reading.run import Located, RunReader
from ..reading.status import highest_removed


def remove(location: Located, files: Files) -> list[str]:
    """Remove a run. A live server is fenced by this.

    What stays is a fence: it says that nothing of a lower generation counts, whoever is still writing it.

    Returns
    -------
    list of str
        What lies in the run's folder and is not the run's, and so was left.

    Raises
    ------
    CheckpointNotFoundError
        If there is no run.
    FormatVersionError
        If a newer version of this package wrote it; nothing has happened then.
    """
    RunReader(location, files).newest()  # what a newer version wrote is not for this one to remove
    keys = files.keys()
    ours = {key for key in keys if generation_of(key) is not None}
    if ours <= {fence_key(highest_removed(files, keys))}:
        raise CheckpointNotFoundError(f"{files.describe()}: there is no run here")
    generation = take_generation(files, command="rm").generation
    while older := _of_generations_below(generation, files.keys()):
        for key in older:
            files.remove(key)
        ours |= older
    for folder in {key.rpartition("/")[0] for key in ours}:
        files.remove_folder(folder)
    files.sync_folder()
    left = files.keys()
    return [key for key in left if generation_of(key) is None]


def _of_generations_below(generation: int, keys: Iterable[str]) -> set[str]:
    return {key for key in keys if 0 < (generation_of(key) or 0) < generation}
