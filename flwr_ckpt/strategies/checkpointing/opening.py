"""May this server open this run? Asked by a plain read, and again when no older server can change it any more."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from ...store import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    Commit,
    Loaded,
    Location,
    RunReader,
    readable_size,
)
from .. import logs
from .documents import identity_of
from .identity import Identity, check_configuration, check_model
from .settings import Resume
from .telling import command


def judge(reader: RunReader, newest: Commit | None, identity: Identity, resume: Resume) -> None:
    """Compare what lies there with what was asked for and with who asks.

    Parameters
    ----------
    reader : RunReader
        Of the run.
    newest : Commit or None
        What is newest in it.
    identity : Identity
        Of the run that wants to open it.
    resume : {"auto", "must", "never"}

    Raises
    ------
    CheckpointNotFoundError
        If ``"must"`` finds nothing.
    CheckpointMismatchError
        If ``"never"`` finds something, or what lies there is another run's.
    """
    where = reader.location.where
    if newest is None:
        if resume == "must":
            raise CheckpointNotFoundError(
                f'{where}: there is no checkpoint, and resume="must" asks for one; check the run name and '
                'FLWR_CKPT_HOME, or use resume="auto" to start afresh'
            )
        return
    if resume == "never":
        raise CheckpointMismatchError(
            f'{where}: there are checkpoints up to round {newest.round}, and resume="never" asks for none; use another '
            'run name, or resume="auto" to go on'
        )
    stored = identity_of(reader.documents(newest), newest.path)
    check_model(stored, identity, where)
    if resume == "auto":
        check_configuration(stored, identity, where)
    done = newest.round - (newest.phase == "attempt")
    if identity.num_rounds is not None and done > identity.num_rounds:
        raise CheckpointMismatchError(
            f"{where}: {done} rounds are done, and num_rounds={identity.num_rounds} asks for fewer; round "
            f"numbers are absolute, so give num_rounds of at least what is done, or {_way_back(reader, identity)}"
        )


def _way_back(reader: RunReader, identity: Identity) -> str:
    where, wanted = reader.location.where, identity.num_rounds
    if reader.of_round(wanted or 0) is not None:
        return f"go back first, with `{command('rewind', where, wanted)}`"
    return f"use another run name (round {wanted} is no longer kept, so nobody can go back to it)"


def check_attributes(loaded: Loaded, differences: Sequence[str], where: str) -> None:
    """Refuse to go on with a strategy whose numbers are others than those that are stored.

    Raises
    ------
    CheckpointMismatchError
        With each difference.
    """
    if differences:
        stored = identity_of(loaded.documents, loaded.commit.path)
        check_configuration(stored, stored, where, differences)


def refuse_damaged(reader: RunReader) -> None:
    """Refuse a run of which there is something, and nothing sound: starting over is for its owner to decide.

    Raises
    ------
    CheckpointCorruptError
        If every commit is damaged.
    """
    if reader.resume(strict_history=False) is None and reader.passed:
        rounds = sorted({extent.last for extent in reader.passed})
        raise CheckpointCorruptError(
            f"{reader.location.where}: there are checkpoints up to round {rounds[-1]}, and none of them is sound (the "
            f"lines above say why, `{command('verify', reader.location.where)}` says more). Nothing has been deleted: "
            "restore the folder from a backup, or use another run name to start over"
        )


def tell_of_changes(stored: Identity, identity: Identity) -> None:
    """Log what is no reason to refuse a run: other code, and other strings in the configs (often today's folder)."""
    theirs, ours = stored.info.get("app-hash"), identity.info.get("app-hash")
    if theirs != ours and None not in (theirs, ours):
        logs.info("The app's code has changed since the last checkpoint (%.8s then, %.8s now)", theirs, ours)
    before = stored.info.get("strings", {})
    for config, strings in identity.info.get("strings", {}).items():
        for key, now in strings.items():
            then = before.get(config, {}).get(key, now)
            if then != now:
                logs.info("%s[%r] was %r then and is %r now", config, key, then, now)


def check_space(location: Location, name: str, size: int, num_rounds: int) -> None:
    """A strategy with its own ``start()`` keeps all rounds; better no start than a full disk overnight.

    Parameters
    ----------
    location : Location
        Of the run; nobody knows how much room a URL offers.
    name : str
        The strategy's class, for the message.
    size : int
        Bytes of the arrays of one round.
    num_rounds : int

    Raises
    ------
    CheckpointError
        If the rounds will not fit.
    """
    needed = size * (num_rounds + 1)
    logs.info(
        "%s has its own start(), which runs again on the record when the run resumes: all %d rounds are kept, about %s",
        name,
        num_rounds,
        readable_size(needed),
    )
    if location.folder is None:
        return
    existing = next(folder for folder in (location.folder, *location.folder.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise CheckpointError(
            f"{location.where}: keeping {num_rounds} rounds takes about {readable_size(needed)}, and "
            f"{readable_size(free)} are free; make room, or give keep= (start() cannot look at rounds it removes "
            "when the run resumes)"
        )
