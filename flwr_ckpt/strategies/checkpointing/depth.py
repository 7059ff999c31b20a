"""How deep a thread is inside the strategy's own hooks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ...store import CheckpointError


class Depth:
    """Whether a hook was called by the server, or by another of the strategy's own hooks.

    Parameters
    ----------
    name : str
        The strategy's class, for the message.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._of = threading.local()

    @property
    def nested(self) -> bool:
        """Whether this thread is inside one of the strategy's own hooks: calls of others from there pass through."""
        return getattr(self._of, "value", 0) > 0

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Mark the strategy's own hook as running, and explain the one failure that the wrapping brings about.

        Raises
        ------
        CheckpointError
            Where a strategy calls itself without end.
        """
        self._of.value = getattr(self._of, "value", 0) + 1
        try:
            yield
        except RecursionError as error:
            raise CheckpointError(
                f"{self._name} called itself without end. If it says `super(type(self), self)`, write `super()`: "
                "type(self) is not the class the method stands in as soon as anybody subclasses it, as wrapping does"
            ) from error
        finally:
            self._of.value -= 1
