"""What a run does with its server module: parameters go to it as they are saved, and models that are chosen to files.

A model file is written after the commit that records the choice is durable: a server killed in between writes it as it
resumes, and one killed before that still has the previous best.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...store import Commit, Json
from .. import logs
from .api import ServerParameters

if TYPE_CHECKING:  # torch is the module's business; a run without one does without
    from ...server_module import BaseServerCheckpointAndStateModule, Choice


@dataclass(frozen=True)
class _Chosen:
    """A choice and the parameters it was made of."""

    choice: Choice
    parameters: ServerParameters


class Models:
    """The module of a run, or the place where one would be.

    Parameters
    ----------
    module : BaseServerCheckpointAndStateModule or None
        What the parameters mean.
    loss_key : str
        Message API: the metric that is the loss.
    """

    def __init__(self, module: BaseServerCheckpointAndStateModule | None, loss_key: str) -> None:
        self.module = module
        self._loss_key = loss_key
        self._lock = threading.Lock()
        self._waiting: list[_Chosen] = []  # chosen, and not known to be written; oldest first
        self._parameters: ServerParameters | None = None

    @property
    def roots(self) -> dict[str, Any]:
        """What of the module is state."""
        return {} if self.module is None else {"module": self.module}

    def begin(self, parameters: ServerParameters) -> None:
        """A fresh run: its initial arrays have to fit the model, and files of older runs do not count.

        Raises
        ------
        ValueError
            If they do not; both sides are shown.
        """
        if self.module is not None:
            self.module.check_parameters(parameters)
            self.module.forget_scores()

    def take(self, parameters: ServerParameters) -> None:
        """Hand over what the server holds: the initial arrays, each aggregate, and what a run resumes with.

        Raises
        ------
        ValueError
            If it does not fit the module's model.
        """
        if self.module is not None:
            self.module.take_parameters(parameters)
            self._parameters = parameters

    def loss_of(self, metrics: Mapping[str, Any]) -> float:
        """Find the loss among the metrics of the message API.

        Raises
        ------
        KeyError
            If it is not there; the message lists what is.
        """
        if self.module is None or not self.module.model_checkpointers:
            return float("nan")
        if self._loss_key not in metrics:
            raise KeyError(
                f"the evaluation has no metric {self._loss_key!r}, which is to be the loss; there are "
                f"{sorted(metrics)}. Name the one that is, with loss_key="
            )
        return float(metrics[self._loss_key])

    def offer(self, server_round: int, loss: float, metrics: Mapping[str, Any]) -> None:
        """Let the model checkpointers decide about the arrays of a round that has been evaluated."""
        if self.module is None or not self.module.model_checkpointers or self._parameters is None:
            return
        with self._lock:
            for choice in self.module.offer(server_round, loss, dict(metrics)):
                self._waiting.append(_Chosen(choice, self._parameters))

    def waiting(self) -> tuple[Json, Callable[[Commit], None]]:
        """What has been chosen and is not known to be written.

        Returns
        -------
        Json
            For a commit to say so.
        callable
            For the writer's thread, once that commit is durable: writes the files.
        """
        if self.module is None:
            return {}, _nothing
        with self._lock:
            items = tuple(self._waiting)
        document = {_path(item.choice): [item.choice.server_round, repr(item.choice.score)] for item in items}
        return document, lambda commit: self._write(items, commit)

    def choose_again(
        self,
        chosen: Mapping[str, tuple[int, float]],
        parameters: ServerParameters,
        server_round: int,
        commit: Commit,
    ) -> None:
        """On resume: write what the resumed commit says was chosen, and may never have reached its file.

        Parameters
        ----------
        chosen : Mapping
            What `waiting` gave then: path to round and score.
        parameters : Parameters or ArrayRecord
            The newest arrays.
        server_round : int
            The round they are of.
        commit : Commit
            The resumed one.
        """
        if self.module is None:
            return
        scores = {path: score for path, (chosen_in, score) in chosen.items() if chosen_in == server_round}
        for choice in self.module.choose_again(scores, server_round):
            self._waiting.append(_Chosen(choice, parameters))
        self._write(tuple(self._waiting), commit)

    def _write(self, items: Sequence[_Chosen], commit: Commit) -> None:
        """Write what has not been written yet, also what a better model has followed: it may never get its commit."""
        for item in items:
            if not any(item is waiting for waiting in self._waiting):
                continue
            try:
                assert self.module is not None
                self.module.write([item.choice], item.parameters, _whole_file(commit, item.choice))
            except (OSError, ValueError, TypeError) as error:
                logs.error(
                    "The model of round %d could not be written to %s: %s. It is tried again after the next commit",
                    item.choice.server_round,
                    _path(item.choice),
                    error,
                )
                continue
            with self._lock:
                self._waiting = [waiting for waiting in self._waiting if waiting is not item]


def _nothing(commit: Commit) -> None:
    """Write no model."""


def _path(choice: Choice) -> str:
    return os.path.abspath(choice.checkpointer.checkpoint_path)


def _whole_file(commit: Commit, choice: Choice) -> str | None:
    """The file that holds the arrays of a commit and nothing else, if there is one: the model may be a link to it."""
    if choice.whole is not None or not os.path.isabs(commit.path):  # to what lies behind a URL there is no link
        return None
    files = sorted({place.file for entry in commit.arrays for place in entry.places[:1]})
    if len(files) != 1:
        return None
    run = os.path.dirname(os.path.dirname(commit.path))
    return os.path.join(run, files[0])
