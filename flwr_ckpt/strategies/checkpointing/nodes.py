"""The nodes of a run: the order they are offered in, what is seeded as they are, and whether state fits them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import TracebackType
from typing import Any

from ...store import CheckpointMismatchError
from .seeding import seed_everything, seed_random, sorted_ids


class Nodes:
    """What a run knows of its nodes (or clients, in the legacy API).

    Entered around a configure hook: before messages of a resumed run leave, are the nodes there that its state speaks
    of? Asked afterwards, since only the hook waits for nodes; also if it raised, as it may well do over a node that
    the state does not know. If none is there, that is a `CheckpointMismatchError`.

    Parameters
    ----------
    where : str
        Path or URL of the run, for messages.
    seed : int or None
        Makes order and sampling those of every run.
    private : bool
        Noise, and the sampling that its accounting amplifies, stay fresh.

    Attributes
    ----------
    ids : frozenset
        Those that were offered last.
    keyed : Mapping[str, list of str]
        What of the resumed state is keyed by node ids: path to ids; set as a run is resumed.
    """

    def __init__(self, where: str, seed: int | None, *, private: bool) -> None:
        self.ids: frozenset[Any] = frozenset()
        self.keyed: Mapping[str, list[str]] = {}
        self._where = where
        self._seed = seed
        self._private = private
        self._moment = (0, "start")

    def seed(self, server_round: int, moment: str) -> None:
        """Seed the global generators for one hook."""
        self._moment = (server_round, moment)
        if self._seed is not None and not self._private:
            seed_everything(self._seed, server_round, moment)

    def arrange(self, ids: list[Any]) -> list[Any]:
        """Put node ids into a fixed order, and seed what samples from them."""
        if self._seed is None:
            return ids
        if not self._private:
            seed_random(self._seed, *self._moment)
        return sorted_ids(ids)

    def offered(self, ids: Collection[Any]) -> None:
        """Note which nodes there are."""
        self.ids = frozenset(ids)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.keyed and self.ids and (error is None or isinstance(error, Exception)):
            self._check()

    def _check(self) -> None:
        keyed, self.keyed = self.keyed, {}  # asked once, of those who are there at the first hook
        here = {str(item) for item in self.ids}
        for path, keys in keyed.items():
            if here.isdisjoint(keys):
                raise CheckpointMismatchError(
                    f"{self._where}: {path} is keyed by node ids, and none of its {len(keys)} is connected now. Give "
                    "the SuperNodes keys of their own, so that their ids survive a restart; or list the attribute in "
                    'exclude= if it is rebuilt every round; or resume="must" to keep the old entries'
                )
