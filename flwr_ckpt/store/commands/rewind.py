"""Going back, and clearing away, as commands: both take a generation, as a server does."""

from __future__ import annotations

from dataclasses import replace

from ..errors import CheckpointCorruptError, CheckpointNotFoundError
from ..format.generations import look, take_generation
from ..format.records import Commit
from ..keep import KeepAll
from ..names import CommitName
from ..places.files import Files
from ..reading.run import Loaded, Located, RunReader
from ..writing.commit import RunWriter, make_durable
from ..writing.retention import KeepPolicy


def rewind(location: Located, server_round: int, *, files: Files | None = None) -> Commit:
    """Go back to a round: the next server resumes after it. Later rounds are cut off, and deleted by that server.

    Returns
    -------
    Commit
        The round, as a commit of a new generation.

    Raises
    ------
    CheckpointNotFoundError
        If the run does not have that round, or it was removed while this ran. Nothing has happened then.
    CheckpointCorruptError
        If the round is damaged. Nothing has happened then.
    FencedError
        If a server opened the run while this ran; the message says if it may have taken effect.
    """
    files = files if files is not None else location.files()
    _of_round(RunReader(location, files), server_round)  # a wrong number is no reason to fence a live server
    fence = take_generation(files, command="rewind")
    reader = RunReader(location, files, recheck=lambda: look(files, fence))
    loaded = reader.load(_of_round(reader, server_round), strict_history=False)
    make_durable(files, loaded.commit)
    writer = RunWriter(location, files, fence, KeepAll(), _sound(loaded))
    try:
        return writer.restate()
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(
            f"{files.describe()}: round {server_round} was removed while it was being gone back to ({error}); the run "
            "is as it was. Stop the server that is running and try again"
        ) from error


def prune(location: Located, keep: KeepPolicy, *, damaged: bool = False, files: Files | None = None) -> Commit | None:
    """Delete the rounds that a policy does not keep. A live server is fenced by this.

    Parameters
    ----------
    damaged : bool
        Whether commits that are damaged go too, whatever the policy says. Without it they are left where they are.

    Returns
    -------
    Commit or None
        The newest commit, as one of a new generation; ``None`` if there is none, and nothing was done.

    Raises
    ------
    FencedError
        If a server opened the run while this ran.
    """
    files = files if files is not None else location.files()
    if RunReader(location, files).newest() is None:
        return None
    fence = take_generation(files, command="prune")
    reader = RunReader(location, files, recheck=lambda: look(files, fence))
    loaded = reader.resume(strict_history=False)
    if loaded is None:
        return None
    make_durable(files, loaded.commit)
    base, condemned = _sound(loaded), None
    if damaged:
        base, condemned = replace(base, passed=()), damaged_commits(reader)
    writer = RunWriter(location, files, fence, keep, base, () if damaged else reader.passed, condemned)
    writer.remember(loaded.outcomes)
    commit = writer.restate()
    writer.retain()
    return commit


def _of_round(reader: RunReader, server_round: int) -> Commit:
    commit = reader.of_round(server_round)
    if commit is None:
        there = sorted({name.round for name in reader.names() if name.phase != "attempt"})
        raise CheckpointNotFoundError(
            f"{reader.location.where}: there is no sound checkpoint of round {server_round}; there are rounds "
            f"{', '.join(map(str, there)) or '(none)'}"
        )
    return commit


def _sound(loaded: Loaded) -> Commit:
    return replace(loaded.commit, segments=loaded.segments)


def damaged_commits(reader: RunReader) -> set[CommitName]:
    """Find the commits that cannot be loaded."""
    found = set()
    for name in reader.names():
        try:
            reader.load(reader.commit(name), strict_history=False)
        except CheckpointCorruptError:
            found.add(name)
    return found
