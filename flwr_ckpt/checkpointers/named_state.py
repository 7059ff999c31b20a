"""Dictionaries of state as trees of plain values and arrays, and back.

Unlike a strategy, whose objects live on and get their state back, what is stored here is made anew: an object with a
``state_dict`` comes back as that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from ..state import Snapshot, StateRecorder, StoredState
from ..store import Buffer, CheckpointError, Json

_ROOT = "state"


class NamedState:
    """The way of dictionaries into snapshots and out of them; the memory that arrays are copied to is used again."""

    def __init__(self) -> None:
        self._dictionary = _Dictionary()
        self._recorder = StateRecorder()
        self._recorder.take_baseline({_ROOT: self._dictionary})

    def encode(self, state: Mapping[str, object]) -> Snapshot:
        """Take a dictionary apart.

        Returns
        -------
        Snapshot
            Its `release` is to be called once the blobs have been written.

        Raises
        ------
        TypeError
            Naming the key of what cannot be stored.
        """
        try:
            self._dictionary.content = _plain(dict(state))
            return self._recorder.capture({_ROOT: self._dictionary})
        except CheckpointError as error:
            raise TypeError(_in_terms_of_keys(error)) from error
        except RecursionError as error:
            raise TypeError("the state contains itself, or is nested too deeply to be stored") from error
        finally:
            self._dictionary.content = {}

    def decode(self, tree: Json, read: Mapping[str, Buffer]) -> dict[str, Any]:
        """Make the dictionary again.

        Parameters
        ----------
        tree : Json
        read : Mapping of str to Buffer
            Blob name to exactly its bytes.

        Raises
        ------
        CheckpointError
            If it holds what cannot be made here.
        """
        self._recorder.restore({_ROOT: self._dictionary}, StoredState(tree, tree, read))
        content, self._dictionary.content = self._dictionary.content, {}
        return content


class _Dictionary:
    """A dictionary as an object whose state it is: stored whole or not at all."""

    def __init__(self) -> None:
        self.content: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return self.content

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.content = state


def _in_terms_of_keys(error: CheckpointError) -> str:
    """What is wrong, without the advice that is meant for strategies."""
    problem = str(error).replace(f"{_ROOT}.state_dict()", _ROOT).partition(". ")[0]
    return (
        f"{problem}. Put in what can be stored (tensors, arrays, plain values and containers of them, objects with a "
        "state_dict), or leave the key out"
    )


def _plain(value: Any) -> Any:
    """The value with every object that has a ``state_dict`` replaced by that, inside plain containers too."""
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _plain(item)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(_plain(item) for item in value)
    if not isinstance(value, type) and callable(getattr(type(value), "state_dict", None)):
        return _plain(value.state_dict())
    return value
