"""What of a run is state: the strategy, the configs it changes, what the user added, and the module's."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from ...state import Snapshot, StateRecorder
from ...store import Loaded
from .. import logs
from .chain import Strategy
from .documents import state_of


class Kept:
    """The objects that are captured and put back.

    Parameters
    ----------
    strategy : Strategy
    others : Mapping[str, object]
        Roots beside it.
    exclude : tuple of str
        Attribute paths of the strategy that are not state.
    private : bool
        Never put generators back.

    Attributes
    ----------
    configs : dict
        The train and evaluate configs, as far as they have been seen.
    """

    def __init__(
        self, strategy: Strategy, others: Mapping[str, Any], *, exclude: tuple[str, ...], private: bool
    ) -> None:
        self.strategy = weakref.ref(strategy)
        self.configs: dict[str, Any] = {}
        self._others = others
        self._recorder = StateRecorder(exclude=exclude, private=private)

    def _roots(self) -> dict[str, Any]:
        return {"strategy": self.strategy(), **self.configs, **self._others}

    def take_baseline(self) -> None:
        """Note what stands at the first hook of this process."""
        self._recorder.take_baseline(self._roots())

    def capture(self) -> Snapshot:
        """Take the state as it is now."""
        return self._recorder.capture(self._roots())

    def differences(self, loaded: Loaded) -> list[str]:
        """The numbers and booleans among the strategy's plain attributes that are given differently now."""
        return self._recorder.differences(self._roots(), state_of(loaded))

    def put_back(self, loaded: Loaded) -> None:
        """Put the state of a commit back, and log what was given another value by the user."""
        warnings = self._recorder.restore(self._roots(), state_of(loaded))
        told = {line.partition(":")[0] for line in warnings}
        for line in self.differences(loaded):
            if line.partition(":")[0] not in told:
                warnings.append(f"{line}; what is given now stands")
        for line in warnings:
            logs.warning("%s", line)
