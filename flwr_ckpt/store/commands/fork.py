"""A new run out of a round of another: by the ordinary protocol, and self-contained."""

from __future__ import annotations

from dataclasses import replace

from ..errors import CheckpointError, CheckpointNotFoundError
from ..format.generations import look, take_generation
from ..format.records import Commit
from ..keep import KeepAll
from ..places.files import Files
from ..reading.run import Loaded, Located
from ..reading.status import has_checkpoints
from ..writing.commit import RunWriter, make_durable


def fork(source: Loaded, source_files: Files, target: Located, files: Files) -> Commit:
    """Begin a run with a round of another one.

    Parameters
    ----------
    source : Loaded
        The round, verified.
    source_files : Files
        Where it lies.
    target : Located
        The place of the new run, which has no checkpoints.
    files : Files
        That of the new run.

    Returns
    -------
    Commit
        The round, as the first commit of the new run.

    Raises
    ------
    CheckpointError
        If there are checkpoints at the new place. Nothing has happened then.
    CheckpointNotFoundError
        If the round was removed while this ran.
    FencedError
        If a server opened the new run while this ran.
    """
    _refuse_taken(files)
    make_durable(source_files, source.commit)
    fence = take_generation(files, command="fork")
    look(files, fence)
    _refuse_taken(files)  # a server may have begun there before its number was passed
    writer = RunWriter(target, files, fence, KeepAll(), replace(source.commit, segments=source.segments))
    try:
        return writer.restate(source_files)
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(
            f"{source_files.describe()}: round {source.commit.round} was removed while it was being copied ({error}); "
            f"there is no run at {files.describe()}. Take another round, or stop the server and try again"
        ) from error


def _refuse_taken(files: Files) -> None:
    if has_checkpoints(files, files.keys()):
        raise CheckpointError(
            f"{files.describe()}: there is a run already, and nothing has been changed; choose another name, or remove "
            "that run first with `flwr-ckpt rm`"
        )
