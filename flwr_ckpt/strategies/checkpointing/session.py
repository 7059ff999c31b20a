"""One wrapped strategy and its run: what the hooks of both APIs share.

A session opens the run, says what is on record, puts state back where it was taken, and has each finished phase saved.
It knows nothing of messages or client proxies; `message` and `legacy` are the two ways in. It is longer than other
modules so that the order in which all this happens can be read in one place.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ...state import Snapshot
from ...store import (
    CheckpointError,
    Commit,
    Json,
    Keep,
    KeepAll,
    KeepLatest,
    Loaded,
    Location,
    Outcome,
    Phase,
    RunReader,
    RunWriter,
    prepare,
)
from .. import logs
from .api import Api, ServerParameters
from .chain import Strategy, class_name, strategy_chain
from .depth import Depth
from .documents import attempts_of, choices_of, identity_of, nodes_of, written_documents
from .failures import Failures
from .identity import Identity
from .kept import Kept
from .models import Models
from .nodes import Nodes
from .only import claim, give_up
from .opening import check_attributes, check_space, judge, refuse_damaged, tell_of_changes
from .privacy import is_private
from .record import Record
from .saver import Saver
from .settings import Settings
from .telling import (
    MetricNames,
    tell_begun,
    tell_end_unsaved,
    tell_kept,
    tell_nothing_to_do,
    tell_resumed,
    tell_taken_over,
    tell_unmarked,
)

if TYPE_CHECKING:
    from ...server_module import BaseServerCheckpointAndStateModule

_EARLY_ROUNDS = 3  # an attribute that cannot be stored ends a run that young; an older one is only told each round


class Session:
    """The run of one wrapped strategy.

    Parameters
    ----------
    strategy : Strategy
        The wrapped strategy.
    location : Location
        Where the run lies.
    settings : Settings
        What the user asked for.
    api : Api
        Which of Flower's two, and how it hands arrays over.
    own_start : bool
        Whether the strategy brings its own ``start()``, which runs again on the record.
    run_config : Mapping[str, object] or None
        The run config, where the user showed it.
    module : BaseServerCheckpointAndStateModule or None
        What the parameters mean.

    Attributes
    ----------
    record : Record
        What is finished, and is answered without asking anybody.
    loaded : Loaded or None
        The commit that is resumed; its arrays are let go of once a round has been trained.
    live : bool
        Whether a hook of this process has really been called.
    has_initial : bool
        Whether the initial arrays are on record, or have been handed over.
    """

    def __init__(
        self,
        strategy: Strategy,
        location: Location,
        settings: Settings,
        api: Api,
        *,
        own_start: bool,
        run_config: Mapping[str, Any] | None,
        module: BaseServerCheckpointAndStateModule | None,
    ) -> None:
        chain = strategy_chain(strategy)
        self.location = location
        self.settings = settings
        self.own_start = own_start
        self.run_config = run_config
        self.classes = [class_name(item) for item in chain]
        self.private = is_private(chain, settings.extra_state)
        self.before_release = settings.before_release(private=self.private)
        self.keep: Keep = settings.keep or (KeepAll() if own_start else KeepLatest(3))
        self.reader = RunReader(location)
        self._metrics = MetricNames(self.keep)
        self.record = Record.of(api.order, ())
        self.loaded: Loaded | None = None
        self.num_rounds: int | None = None
        self.attempts: dict[int, int] = {}
        self.nodes = Nodes(location.where, settings.seed, private=self.private)
        self.models = Models(module, settings.loss_key)
        others = {**self.models.roots, **({"extra": dict(settings.extra_state)} if settings.extra_state else {})}
        self.kept = Kept(strategy, others, exclude=settings.exclude, private=self.private)
        self.depth = Depth(self.name)
        self.live = False
        self.closed = False
        self._api = api
        self._newest: ServerParameters | None = None
        self._identity: Identity | None = None
        self._identity_json: Json = None
        self._saver: Saver | None = None
        self._failures = Failures(location.where, raises=self.before_release or settings.on_error == "raise")
        self._quiet = logs.Quiet()
        weakref.finalize(self, self._quiet.end)  # a server that breaks off in replay must not leave Flower silent
        self._has_state = True  # false from the resume until the state of the commit has been put back
        self.has_initial = False
        self._told = False
        self._finished = False  # by this server, and on disk
        self._rounds_trained = 0

    @property
    def name(self) -> str:
        """The class of the wrapped strategy, for messages."""
        return self.classes[0].partition(":")[2]

    # --- opening -------------------------------------------------------------------------------------------------

    def open(self, identity: Identity) -> None:
        """Find out what is on record, whether it is this run's, and take the run over unless it is finished.

        Raises
        ------
        CheckpointError
            One of its kinds, before anything is sent or written.
        """
        if self._identity is not None:
            raise CheckpointError(
                f"{self.name} has already been started; wrap a new strategy object for another run of the server"
            )
        self._identity, self._identity_json = identity, identity.to_json()
        claim(self.location.where, self)
        logs.end_quiet()
        try:
            self._find_out()
        except BaseException:
            give_up(self.location.where, self)  # whoever mends what was wrong may try again
            raise

    def _find_out(self) -> None:
        for line in prepare(self.location):
            logs.warning("%s", line)
        tell_begun(self.location, self.settings.seed, private=self.private)
        newest = self.reader.newest()
        if newest is None:
            refuse_damaged(self.reader)
        self._judge(newest)
        if newest is not None and newest.phase == "end" and newest.round >= (self.num_rounds or 0):
            self._adopt(self.reader.resume(strict_history=self._strict))
        else:
            self._take_over()

    @property
    def _strict(self) -> bool:
        return self.settings.resume != "must"

    def _judge(self, newest: Commit | None) -> None:
        assert self._identity is not None
        judge(self.reader, newest, self._identity, self.settings.resume)

    def _take_over(self) -> None:
        """Take a generation; look again at whose run it is, now that no older server can change it."""
        if self.loaded is None:
            tell_taken_over(self.reader.server())
        writer = RunWriter.open(self.location, self.keep, strict_history=self._strict, after=self.reader)
        resumed = writer.resumed
        try:
            if resumed is None:
                refuse_damaged(self.reader)
            self._judge(resumed.commit if resumed else None)
            if self.loaded is not None and (resumed is None or resumed.commit.path != self.loaded.commit.path):
                raise CheckpointError(
                    f"{self.location.where}: another server has gone on with this finished run meanwhile; start again "
                    "to resume from where it is"
                )
        except BaseException:
            writer.close()
            raise
        if self.loaded is None:
            self._adopt(resumed)
        self._saver = Saver(
            writer, self._failures, save_every=self.settings.save_every, before_release=self.before_release
        )

    def _adopt(self, loaded: Loaded | None) -> None:
        if loaded is None:
            return
        self.loaded = loaded
        self.record = Record.of(self.record.order, loaded.outcomes)
        self._metrics.known |= self.record.metric_names()
        self.attempts = self.record.attempts()
        self.attempts.update(attempts_of(loaded))
        if self._strict:
            self.nodes.keyed = nodes_of(loaded)
        self._has_state = False
        self.has_initial = True
        if self._identity is not None:
            tell_of_changes(identity_of(loaded.documents, loaded.commit.path), self._identity)
        if self.record.position > (0, 0):  # else there is nothing to replay, and nothing to be quiet about
            self._quiet.begin()

    # --- state ---------------------------------------------------------------------------------------------------

    def check_plain_attributes(self) -> None:
        """On a finished run, another number or boolean among the strategy's attributes is another run (``eta``)."""
        if self.loaded is not None and self.loaded.commit.phase == "end" and self.settings.resume == "auto":
            check_attributes(self.loaded, self.kept.differences(self.loaded), self.location.where)

    def _put_back(self) -> None:
        """Put the state of the resumed commit back, once."""
        if self._has_state or self.loaded is None:
            return
        self._has_state = True
        self.kept.put_back(self.loaded)
        if self.models.module is not None:
            self.models.take(self.newest())
            self.models.choose_again(
                choices_of(self.loaded), self.newest(), self.record.last_arrays(), self.loaded.commit
            )

    def newest(self) -> Any:
        """The newest arrays on record, as the API hands them over."""
        if self._newest is None:
            assert self.loaded is not None
            self._newest = self._api.arrays(self.loaded)
        return self._newest

    # --- before a phase ------------------------------------------------------------------------------------------

    def replayed(self, server_round: int, phase: Phase) -> None:
        """Say that the record has answered a phase; the one whose commit is resumed brings the state back."""
        if self.record.is_position(server_round, phase):
            self._put_back()
            self._quiet.end_with_round()
            self._tell_resumed()

    def enter(self, server_round: int, moment: str) -> None:
        """Prepare for a hook that is really called: be the writer, have the state, seed the generators."""
        if self.closed:
            raise CheckpointError(f"{self.name}: this run has been closed; wrap a new strategy object to go on")
        if self._saver is None:
            self._take_over()
        else:
            self._saver.raise_failure()
        if not self.live:
            self._put_back()
            self._quiet.end()
            self._tell_resumed()
            self.live = True
        self.nodes.seed(server_round, moment)

    def _tell_resumed(self) -> None:
        if self._told or self.loaded is None:
            return
        self._told = True
        tell_resumed(self.record, self.loaded.commit, self.num_rounds)

    def wait_for_disk(self, server_round: int) -> None:
        """Before training is sent: the initial arrays are durable, and so is the round before the last one."""
        assert self._saver is not None
        self._saver.wait(0 if server_round == 1 else server_round - 2)

    def attempt(self, server_round: int) -> None:
        """Count that the training of a round is sent; on disk before it leaves, where privacy asks for that."""
        self.attempts[server_round] = self.attempts.get(server_round, 0) + 1
        if self.before_release:
            assert self._saver is not None
            self._saver.attempt(server_round, self.attempts[server_round])

    # --- after a phase -------------------------------------------------------------------------------------------

    def commit_initial(self, arrays: ServerParameters) -> None:
        """Make round 0 durable: the arrays every later start begins from. Only while there is none (`has_initial`)."""
        self.has_initial = True
        assert self._saver is not None
        blobs = self._api.blobs(arrays)
        self.models.begin(arrays)
        self.models.take(arrays)
        if self.own_start and self.settings.keep is None and self.num_rounds is not None:
            check_space(self.location, self.name, sum(len(blob.data) for blob in blobs), self.num_rounds)
        snapshot, documents = self._capture({})
        for line in snapshot.inventory:
            logs.info("  %s", line)
        self._saver.save(0, "initial", blobs, snapshot, documents, lambda commit: None)
        self._saver.settle()

    def finished(self, outcome: Outcome, arrays: ServerParameters | None = None) -> None:
        """Save a phase that has taken place, with the state as it is now.

        Parameters
        ----------
        outcome : Outcome
        arrays : ArrayRecord or Parameters, optional
            What training has given.

        Raises
        ------
        CheckpointError
            If some of the state cannot be stored, in the first rounds; later that is logged as an error, each round.
        """
        assert self._saver is not None
        if outcome.phase == "train":
            self._rounds_trained += 1
            self._let_go_of_arrays()
            attempts = self.attempts.get(outcome.round, 1)
            if attempts != 1:
                outcome = outcome._replace(detail={**outcome.detail, "attempts": attempts})
        blobs = None if arrays is None else self._api.blobs(arrays)
        if arrays is not None:
            self.models.take(arrays)
        self._metrics.note(outcome)
        self._saver.note(outcome)
        choices, write = self.models.waiting()
        snapshot, documents = self._capture(choices)
        if snapshot.problems:
            snapshot.release()
            self._meet_problems(outcome.round, snapshot.problems)
            self._saver.skip(outcome.round, outcome.phase, blobs)
            return
        due = outcome.round == self.num_rounds
        self._saver.save(outcome.round, outcome.phase, blobs, snapshot, documents, write, due=due)

    def absent(self, outcome: Outcome) -> None:
        """Note a phase that did not take place; the next commit carries it."""
        assert self._saver is not None
        self._saver.note(outcome)

    def _let_go_of_arrays(self) -> None:
        """From here on this process has newer arrays; the resumed ones would be a second model in memory."""
        self._newest = None
        if self.loaded is not None:
            self.loaded = replace(self.loaded, arrays={}, state={})

    def _meet_problems(self, server_round: int, problems: Sequence[str]) -> None:
        message = "\n  - ".join(["state that cannot be stored:", *problems])
        if self._rounds_trained <= _EARLY_ROUNDS:
            raise CheckpointError(message)
        logs.error("Round %d is not saved: %s", server_round, message)

    def _capture(self, choices: Json) -> tuple[Snapshot, Callable[[], dict[str, Json]]]:
        snapshot = self.kept.capture()
        for line in snapshot.warnings:
            logs.warning("%s", line)
        # Without the snapshot itself: what a failed commit leaves to the next one must not hold the snapshot's buffers.
        documents = partial(
            written_documents, self._identity_json, snapshot.tree, snapshot.baseline, self.nodes.ids, choices
        )
        return snapshot, documents

    # --- the end -------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Wait until all that was handed over is durable, and raise what went wrong (see `Saver.flush`)."""
        if self._saver is not None and not self.closed:
            self._saver.flush()
        self._failures.raise_unsaved()

    def finish(self) -> None:
        """The server has returned: write what was held back, and that the run is finished."""
        self._quiet.end()
        if not self.live:
            if self.loaded is not None:
                tell_nothing_to_do(self.location, self.record.last_round)
            return
        assert self._saver is not None
        if self._saver.holds_unsaved:
            tell_unmarked(self.location)
            return
        self._saver.settle()
        choices, write = self.models.waiting()
        self._saver.end(self._capture, choices, write)
        if self._failures.unsaved:
            tell_end_unsaved(self.location)
            return
        self._finished = True

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to end here: that is done, or is for the process of which this is a fork."""
        return self.closed or (self._saver is not None and self._saver.is_copy)

    def close(self) -> None:
        """Write what is still held back and end the writer; further calls do nothing."""
        if self.is_over:
            return
        self.closed = True
        self._quiet.end()
        give_up(self.location.where, self)
        if self._saver is not None:
            self._saver.close()
        if self._finished:
            tell_kept(self.location, self.reader)
