"""Named states that survive: each one a run of its own in the project's store."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..store import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    Draft,
    KeepLatest,
    Location,
    RunReader,
    RunWriter,
    locate,
)
from ..store.names import STATES, parse_manifest
from ..store.places.location import refuse_url
from .named_state import NamedState

logger = logging.getLogger("flwr")


_KEEP = KeepLatest(2)  # the newest, and one to fall back to


class PerRoundStateCheckpointer:
    """Keeps dictionaries of state by name: durable once saved, verified when loaded, never pickled.

    A name lies in ``<checkpoint_dir>/states/<name>``. The newest two of what was saved under it are kept: if the newest
    is damaged, the one before it is loaded, with a warning. The first save of an object takes the name over: another
    one, or another server, that goes on saving under it gets a `FencedError` instead of destroying what is newer.

    Parameters
    ----------
    checkpoint_dir : str or os.PathLike
        A folder on a disk. It is made when something is saved, if it is not there.

    Attributes
    ----------
    checkpoint_dir : Path
        As it was given. Inside a run it has to be absolute.
    """

    def __init__(self, checkpoint_dir: str | os.PathLike[str]) -> None:
        refuse_url(checkpoint_dir)
        self.checkpoint_dir = Path(checkpoint_dir)
        self._home = self.checkpoint_dir.absolute() / STATES  # a change of the working folder moves nothing
        self._state = NamedState()
        self._held: dict[str, _Held] = {}

    def save_checkpoint(self, checkpoint_name: str, checkpoint_dict: Mapping[str, Any]) -> None:
        """Save a state; durable when this returns.

        Parameters
        ----------
        checkpoint_name : str
            Of letters, digits and ``. _ = -``.
        checkpoint_dict : Mapping of str to Any
            Tensors, arrays, plain values and containers of them, Flower's ``Parameters`` and ``ArrayRecord``, and
            objects with a ``state_dict``, such as modules and optimizers.

        Raises
        ------
        TypeError
            If it holds anything else; the key is named, and nothing has been saved.
        ValueError
            If it is no name.
        FencedError
            If somebody else saves under this name since.
        OSError, CheckpointError
            If it cannot be written; what was saved before is there.
        """
        location = self._location(checkpoint_name)
        snapshot = self._state.encode(checkpoint_dict)
        try:
            held = self._hold(checkpoint_name, location)
            held.server_round += 1
            held.writer.commit(
                Draft(held.server_round, "train", arrays=(), state=snapshot.blobs, documents={"state": snapshot.tree})
            )
        finally:
            snapshot.release()
        logger.info("Saved state %s in %s", checkpoint_name, location.where)
        try:
            held.writer.retain()
        except OSError as error:
            logger.warning(
                "%s: what is superseded could not be removed (%s); the next save tries again", location.where, error
            )

    def load_checkpoint(self, checkpoint_name: str) -> dict[str, Any]:
        """Load what was saved last under a name.

        Returns
        -------
        dict
            New values that the caller owns. Objects with a ``state_dict`` come back as that.

        Raises
        ------
        CheckpointNotFoundError
            If nothing has been saved under this name (a `FileNotFoundError`).
        CheckpointCorruptError
            If nothing that was saved is sound (a `ValueError`).
        ValueError
            If it is no name.
        """
        location = self._location(checkpoint_name)
        loaded = RunReader(location).resume()
        if loaded is not None:
            logger.info("Loaded state %s from %s", checkpoint_name, location.where)
            return self._state.decode(loaded.documents.get("state"), loaded.state)
        if _holds_any(location):
            raise CheckpointCorruptError(
                f"{location.where}: states were saved here, and none of them is sound. Bring the folder back from a "
                "backup, or remove it to start afresh"
            )
        raise CheckpointNotFoundError(f"{location.where}: no state has been saved under the name {checkpoint_name!r}")

    def checkpoint_exists(self, checkpoint_name: str) -> bool:
        """Whether anything has been saved under a name, be it damaged: a lost state is not a fresh start.

        Raises
        ------
        ValueError
            If it is no name.
        """
        return _holds_any(self._location(checkpoint_name))

    def _location(self, checkpoint_name: str) -> Location:
        try:
            location = locate(checkpoint_name, self._home)
        except ValueError as error:
            raise ValueError(f"{checkpoint_name!r} cannot name a state: {error}") from error
        if location.home is None or Path(location.where).parent != self._home:
            raise ValueError(
                f"{checkpoint_name!r} cannot name a state: it is a path. States are kept in {self._home}, each under "
                "a single name"
            )
        return location

    def _hold(self, name: str, location: Location) -> _Held:
        held = self._held.get(name)
        # A child made by fork must not go on under its parent's fence.
        if held is None or held.process != os.getpid():
            writer = RunWriter.open(location, _KEEP)
            last = 0 if writer.resumed is None else writer.resumed.commit.round
            held = self._held[name] = _Held(writer, last, os.getpid())
        return held


@dataclass
class _Held:
    """A name that this object saves under."""

    writer: RunWriter
    server_round: int  # what was saved last: only a count
    process: int


def _holds_any(location: Location) -> bool:
    return any(map(parse_manifest, location.files().keys()))
