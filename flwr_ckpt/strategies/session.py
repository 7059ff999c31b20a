"""One wrapped strategy and its run: what the hooks of both APIs share.

A session opens the run, says what is on record, puts state back where it was taken, and hands each finished phase to
the writer. It knows nothing of messages or client proxies; `message` and `legacy` are the two ways in.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ..state import Snapshot, StateRecorder, StoredState, dicts_keyed_by
from ..store import (
    BackgroundWriter,
    Blob,
    CheckpointError,
    CheckpointMismatchError,
    Commit,
    Draft,
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
from . import logs
from .chain import Strategy, class_name, strategy_chain
from .failures import Failures
from .identity import Identity, check_configuration
from .opening import check_space, judge
from .privacy import is_private
from .record import Record
from .seeding import seed_everything, seed_random, sorted_ids
from .settings import Settings

_EARLY_ROUNDS = 3  # an attribute that cannot be stored ends a run that young; an older one is only told each round

# One run has one live writer in a process. Another process is fenced off by the store; two objects here would take
# turns at that without anybody noticing the mistake.
_live: weakref.WeakValueDictionary[str, Session] = weakref.WeakValueDictionary()


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
    order : tuple of Phase
        In which order the API makes the phases of a round.
    own_start : bool
        Whether the strategy brings its own ``start()``, which runs again on the record.
    run_config : Mapping[str, object] or None
        The run config, where the user showed it.
    """

    def __init__(
        self,
        strategy: Strategy,
        location: Location,
        settings: Settings,
        order: tuple[Phase, ...],
        *,
        own_start: bool,
        run_config: Mapping[str, Any] | None,
    ) -> None:
        chain = strategy_chain(strategy)
        self.strategy = weakref.ref(strategy)
        self.location = location
        self.settings = settings
        self.own_start = own_start
        self.run_config = run_config
        self.classes = [class_name(item) for item in chain]
        self.private = is_private(chain, settings.extra_state)
        self.before_release = (settings.durable or ("before-release" if self.private else "background")) == (
            "before-release"
        )
        if self.before_release and settings.save_every > 1:
            raise ValueError(
                f'save_every={settings.save_every} with durable="before-release": every round has to be on disk before '
                'its aggregate leaves the server; use save_every=1, or durable="background"'
            )
        self.keep: Keep = settings.keep or (KeepAll() if own_start else KeepLatest(3))
        self.reader = RunReader(location)
        self._moment = (0, "start")
        self._initial_done = False
        self.record = Record.of(order, ())
        self.loaded: Loaded | None = None
        self.identity: Identity | None = None
        self.configs: dict[str, Any] = {}
        self.num_rounds: int | None = None
        self.attempts: dict[int, int] = {}
        self.live = False  # whether a hook of this process has really been called
        self.rounds_trained = 0
        self.last_outcome = 0  # the last round of which anything was recorded
        self.quiet = logs.Quiet()
        self._recorder = StateRecorder(exclude=settings.exclude, private=self.private)
        self._order = order
        self._depth = threading.local()
        self._background: BackgroundWriter | None = None
        self._end: weakref.finalize[Any, Session] | None = None
        self._failures = Failures(location.path, raises=self.before_release or settings.on_error == "raise")
        self._pending: list[Outcome] = []
        self._held: Draft | None = None
        self._restored = True
        self._began = False
        self.closed = False
        self._offered: list[Any] = []
        self._ids_checked = False
        self._told = False

    # --- hooks ---------------------------------------------------------------------------------------------------

    @property
    def nested(self) -> bool:
        """Whether this thread is inside one of the strategy's own hooks: calls of others from there pass through."""
        return getattr(self._depth, "value", 0) > 0

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Mark the strategy's own hook as running, and explain the one failure that the wrapping brings about."""
        self._depth.value = getattr(self._depth, "value", 0) + 1
        try:
            yield
        except RecursionError as error:
            raise CheckpointError(
                f"{self.name} called itself without end. If it says `super(type(self), self)`, write `super()`: "
                "type(self) is not the class the method stands in as soon as anybody subclasses it, as wrapping does"
            ) from error
        finally:
            self._depth.value -= 1

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
        if self._began:
            raise CheckpointError(
                f"{self.name} has already been started; wrap a new strategy object for another run of the server"
            )
        self._began = True
        self.identity = identity
        if _live.get(str(self.location.path), self) is not self:
            raise CheckpointError(
                f"{self.location.path}: another strategy of this process is writing this run; use another run name"
            )
        for line in prepare(self.location):
            logs.warning("%s", line)
        logs.info("Checkpoints of this run: %s (%s)", self.location.path, self.location.source)
        newest = self.reader.newest()
        self._judge(newest)
        _live[str(self.location.path)] = self
        if newest is not None and newest.phase == "end" and self._reaches(newest.round):
            self._adopt(self.reader.resume(strict_history=self._strict))
        else:
            self._take_over()

    @property
    def _strict(self) -> bool:
        return self.settings.resume != "must"

    def _reaches(self, server_round: int) -> bool:
        return self.num_rounds is None or server_round >= self.num_rounds

    def _judge(self, newest: Commit | None) -> None:
        assert self.identity is not None
        judge(self.reader, newest, self.identity, self.settings.resume)

    def _take_over(self) -> None:
        """Take a generation; look again at whose run it is, now that no older server can change it."""
        writer = RunWriter.open(self.location, self.keep, strict_history=self._strict)
        try:
            self._judge(writer.resumed.commit if writer.resumed else None)
        except BaseException:
            writer.close()
            raise
        if self.loaded is None:
            self._adopt(writer.resumed)
        elif writer.resumed is None or writer.resumed.commit.path != self.loaded.commit.path:
            writer.close()
            raise CheckpointError(
                f"{self.location.path}: another server has gone on with this finished run meanwhile; start again to "
                "resume from where it is"
            )
        self._background = BackgroundWriter(writer.commit, writer.retain, on_error=self._failures.met)
        self._end = weakref.finalize(self, _end, self._background, writer)

    def _adopt(self, loaded: Loaded | None) -> None:
        if loaded is None:
            return
        self.loaded = loaded
        self.record = Record.of(self._order, loaded.outcomes)
        self.last_outcome = self.record.last_round
        self.attempts = {
            outcome.round: int(outcome.detail.get("attempts", 1))  # type: ignore[call-overload]
            for outcome in loaded.outcomes
            if outcome.phase == "train"
        }
        self.attempts.update({int(key): value for key, value in loaded.documents.get("attempts", {}).items()})
        self._restored = False
        self.quiet.begin()

    # --- state ---------------------------------------------------------------------------------------------------

    def roots(self) -> dict[str, Any]:
        """What is captured and put back: the strategy, the configs seen so far, what the user added."""
        return {"strategy": self.strategy(), **self.configs, "extra": dict(self.settings.extra_state)}

    def take_baseline(self) -> None:
        """Note what stands at the first hook of this process; for a finished run, compare it."""
        self._recorder.take_baseline(self.roots())

    def check_plain_attributes(self) -> None:
        """On a finished run, another number or boolean among the strategy's attributes is another run (``eta``)."""
        if self.loaded is None or self.settings.resume != "auto" or self._background is not None:
            return
        differences = self._recorder.differences(self.roots(), self._stored())
        if differences:
            assert self.identity is not None
            stored = Identity.from_json(self.loaded.documents["identity"])
            check_configuration(stored, self.identity, str(self.location.path), differences)

    def _stored(self) -> StoredState:
        assert self.loaded is not None
        documents = self.loaded.documents
        return StoredState(tree=documents["state"], baseline=documents["baseline"], read=self.loaded.state)

    def put_back(self) -> None:
        """Put the state of the resumed commit back, once."""
        if self._restored:
            return
        self._restored = True
        assert self.loaded is not None
        for line in self._recorder.restore(self.roots(), self._stored()):
            logs.warning("%s", line)

    # --- the phases ----------------------------------------------------------------------------------------------

    def replayed(self, server_round: int, phase: Phase) -> None:
        """Say that the record has answered a phase; the one whose commit is resumed brings the state back."""
        if self.record.is_position(server_round, phase):
            self.put_back()
            self._tell_resumed()

    def enter(self, server_round: int, phase: Phase, moment: str) -> None:
        """Prepare for a hook that is really called: be the writer, have the state, seed the generators."""
        self.raise_failure()
        if self.closed:
            raise CheckpointError(f"{self.name}: this run has been closed; wrap a new strategy object to go on")
        self.put_back()
        self._tell_resumed()
        if self._background is None:
            self._take_over()
            self.quiet.end()
        self.live = True
        self.seed(server_round, moment)

    def _tell_resumed(self) -> None:
        self.quiet.end()
        if self._told or self.loaded is None:
            return
        self._told = True
        last = self.record.last_round
        of = f" of {self.num_rounds}" if self.num_rounds is not None else ""
        phases = [phase for phase in self._order if self.record.outcome(last, phase)]
        logs.info(
            "Resumed after round %d%s (%s done); %s is not trained again",
            last,
            of,
            ", ".join(phases) or "initial arrays",
            "nothing" if last == 0 else "round 1" if last == 1 else f"what was done in rounds 1 to {last}",
        )

    def seed(self, server_round: int, moment: str) -> None:
        """Seed the global generators for one hook, unless noise has to stay fresh."""
        self._moment = (server_round, moment)
        if self.settings.seed is not None and not self.private:
            seed_everything(self.settings.seed, server_round, moment)

    def arrange(self, ids: list[Any]) -> list[Any]:
        """Put node ids into a fixed order, and seed what samples from them (``seed=``)."""
        if self.settings.seed is None:
            return ids
        if not self.private:
            seed_random(self.settings.seed, *self._moment)
        return sorted_ids(ids)

    def offered(self, ids: list[Any]) -> None:
        """Note which node ids (or client ids) there are."""
        self._offered = ids

    def check_nodes(self) -> None:
        """Before the first messages of a resumed run leave: are the nodes that the state speaks of still there?"""
        if self._ids_checked or not self._offered:
            return
        self._ids_checked = True
        if self.loaded is None or self.settings.resume == "must":
            return
        here = {str(item) for item in self._offered}
        for path, keys in self.loaded.documents.get("nodes", {}).items():
            if not any(str(key) in here for key in keys):
                raise CheckpointMismatchError(
                    f"{self.location.path}: {path} is keyed by node ids, and none of its {len(keys)} is connected now. "
                    "Give the SuperNodes keys of their own, so that their ids survive a restart; or list the attribute "
                    f'in exclude= if it is rebuilt every round; or resume="must" to keep the old entries'
                )

    def attempt(self, server_round: int) -> None:
        """Count that the training of a round is sent; before it leaves, where privacy asks for that."""
        self.attempts[server_round] = self.attempts.get(server_round, 0) + 1
        if self.before_release:
            documents = {"attempts": {str(server_round): self.attempts[server_round]}}
            self._submit(Draft(round=server_round, phase="attempt", documents=documents))
            self._settle()

    def wait_for_slow_disk(self, server_round: int) -> None:
        """Before messages leave: the initial arrays are durable, and so is the round before the last one."""
        assert self._background is not None
        self._background.wait(0 if server_round == 1 else server_round - 2)
        self.raise_failure()

    def commit_initial(self, blobs: Sequence[Blob]) -> None:
        """Make round 0 durable: the arrays every later start begins from."""
        if self.loaded is not None or self.last_outcome or self._initial_done:
            return
        self._initial_done = True
        if self.own_start and self.settings.keep is None and self.num_rounds is not None:
            check_space(self.location.path, self.name, sum(len(blob.data) for blob in blobs), self.num_rounds)
        snapshot = self._capture(0)
        if snapshot is not None:
            for line in snapshot.inventory:
                logs.info("  %s", line)
            self._submit(self._draft(0, "initial", tuple(blobs), snapshot))
            self._settle()

    def finished(self, outcome: Outcome, blobs: Sequence[Blob] | None = None) -> None:
        """Record a phase that has taken place, with the state as it is now."""
        if outcome.phase == "train":
            self.rounds_trained += 1
            attempts = self.attempts.get(outcome.round, 1)
            if attempts != 1:
                outcome = replace(outcome, detail={**outcome.detail, "attempts": attempts})
        self.absent(outcome)
        snapshot = self._capture(outcome.round)
        if snapshot is None:
            self._hold(Draft(outcome.round, outcome.phase, None if blobs is None else tuple(blobs)))
            return
        draft = self._draft(outcome.round, outcome.phase, None if blobs is None else tuple(blobs), snapshot)
        if outcome.round % self.settings.save_every and outcome.round != self.num_rounds:
            self._hold(draft)
            return
        self._submit(draft)
        if self.before_release:
            self._settle()

    def absent(self, outcome: Outcome) -> None:
        """Record a phase; one that did not take place makes no commit of its own."""
        self._pending.append(outcome)
        self.last_outcome = outcome.round

    def _capture(self, server_round: int) -> Snapshot | None:
        """Capture the state; None if some of it cannot be stored and the run is too old to be ended for that."""
        snapshot = self._recorder.capture(self.roots())
        if not snapshot.problems:
            return snapshot
        snapshot.release()
        message = "state that cannot be stored:\n" + "\n".join(f"  - {line}" for line in snapshot.problems)
        if self.rounds_trained <= _EARLY_ROUNDS:
            raise CheckpointError(message)
        logs.error("Round %d is not saved: %s", server_round, message)
        return None

    def _draft(
        self, server_round: int, phase: Phase, blobs: tuple[Blob, ...] | None, snapshot: Snapshot | None
    ) -> Draft:
        documents: dict[str, Json] = {}
        if snapshot is not None:
            nodes = dicts_keyed_by(snapshot.tree, self._offered) if self._offered else {}
            documents = {"state": snapshot.tree, "baseline": snapshot.baseline, "nodes": nodes}
        assert self.identity is not None
        documents |= {"identity": self.identity.to_json(), "attempts": {}}
        return Draft(
            round=server_round,
            phase=phase,
            arrays=blobs,
            state=None if snapshot is None else snapshot.blobs,
            documents=documents,
            outcomes=tuple(self._pending),
            release=(lambda: None) if snapshot is None else snapshot.release,
        )

    def _hold(self, draft: Draft) -> None:
        """Keep the newest snapshot back (``save_every``, or state that could not be captured)."""
        self._held = self._merged(draft)

    def _merged(self, draft: Draft) -> Draft:
        """Let a draft bring along what the one held back would have written."""
        held, self._held = self._held, None
        if held is None:
            return draft
        if draft.state is not None:
            held.release()
        else:
            draft = replace(draft, state=held.state, documents={**held.documents, **draft.documents}, release=held.release)
        return draft if draft.arrays is not None else replace(draft, arrays=held.arrays)

    def _submit(self, draft: Draft) -> None:
        self.raise_failure()
        assert self._background is not None
        draft = self._merged(draft) if draft.phase != "attempt" else draft
        if draft.phase != "attempt":
            self._pending.clear()
        self._background.submit(draft)

    # --- failures and the end ------------------------------------------------------------------------------------

    def raise_failure(self) -> None:
        """Raise what the writer met, where the user asked for that, or where another server has taken over."""
        if self._background is not None and self._background.fenced is not None:
            raise self._background.fenced
        self._failures.raise_once()

    def _settle(self) -> None:
        """Wait until all that was handed over is durable or has failed; raise what is to be raised."""
        assert self._background is not None
        self._background.wait(self.last_outcome + 1)
        self.raise_failure()

    def flush(self) -> None:
        """Wait until all that was handed over is durable, and raise what went wrong.

        Raises
        ------
        FencedError
            If another server has taken the run over.
        CheckpointError
            If a commit failed.
        """
        if self._background is None:
            return
        try:
            self._background.flush()
        except OSError as error:
            raise self._failures.describe(error) from error

    def finish(self) -> None:
        """The server has returned: write what was held back, and that the run is finished."""
        self.quiet.end()
        if not self.live:
            if self.loaded is not None:
                self._tell_finished()
            return
        if self._held is not None and self._held.state is None:
            raise CheckpointError(
                f"{self.location.path}: the state of round {self.last_outcome} could not be stored (see above); the run "
                "is not marked as finished"
            )
        if self._held is not None:
            held, self._held = self._held, None
            self._submit(replace(held, outcomes=tuple(self._pending)))
        snapshot = self._capture(self.last_outcome) if self._pending else None
        self._submit(self._draft(self.last_outcome, "end", None, snapshot))
        self._settle()

    def _tell_finished(self) -> None:
        logs.info(
            "The run in %s is finished after %d rounds: nothing was trained; a larger num_rounds extends it, another name "
            "or `flwr-ckpt rm` starts over",
            self.location.path,
            self.record.last_round,
        )

    def close(self) -> None:
        """Write what is still held back and end the writer; further calls do nothing."""
        if self.closed:
            return
        self.closed = True
        self.quiet.end()
        if _live.get(str(self.location.path)) is self:
            del _live[str(self.location.path)]
        background, end = self._background, self._end
        if background is None or end is None:
            return
        try:
            if self._held is not None and self._held.state is not None and background.fenced is None:
                background.submit(replace(self._held, outcomes=tuple(self._pending)))
        finally:
            end()
        self.raise_failure()


def _end(background: BackgroundWriter, writer: RunWriter) -> None:
    """End a run's threads; what its commits met has been logged or is kept for the caller."""
    try:
        background.close()
    except (OSError, CheckpointError):
        pass
    finally:
        writer.close()
