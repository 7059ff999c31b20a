"""One run has one live writer in a process.

Another process is fenced off by the store; two objects here would take turns at that, and nobody would notice the
mistake.
"""

from __future__ import annotations

import weakref

from ...store import CheckpointError

_live: weakref.WeakValueDictionary[str, object] = weakref.WeakValueDictionary()


def claim(where: str, owner: object) -> None:
    """Be the only one of this process that has a run.

    Raises
    ------
    CheckpointError
        If another one has it.
    """
    if where in _live:
        raise CheckpointError(
            f"{where}: another strategy of this process has this run open. If it has ended, call its close() first "
            "(the legacy API cannot know); if it is another run, use another run name"
        )
    _live[where] = owner


def give_up(where: str, owner: object) -> None:
    """Let others of this process have a run; nothing happens if it was not the owner's."""
    if _live.get(where) is owner:
        del _live[where]
