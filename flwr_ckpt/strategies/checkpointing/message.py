"""The hooks of the message API (``flwr.serverapp.strategy.Strategy``).

Resume is replay: Flower's own loop, or the strategy's own ``start()``, runs from round 1. A hook whose phase is on
record is answered from there, and the strategy's own is not called; from the first that is not, everything is live.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from ...store import Blob, CheckpointError, Commit, Entry, LateBlobs, Loaded, Outcome, Phase, settled, without_secrets
from .api import Api
from .grid import CheckpointingGrid
from .identity import Identity, record_types, shown_config, versions
from .lazy import lazy_record, not_kept
from .record import MESSAGE_ORDER, metric_record, metrics_of
from .seeding import sort_replies
from .session import Session

EvaluateFn = Callable[[int, ArrayRecord], "MetricRecord | None"]
_START = inspect.signature(Strategy.start)
_DATA = attrgetter("data")


class MessageRun:
    """One run of a wrapped message-API strategy: the state its hooks share.

    Parameters
    ----------
    session : Session
        What this run has in common with those of the legacy API.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._initial: ArrayRecord | None = None
        self._restored_initial: ArrayRecord | None = None
        self._first_hook_done = False
        self._sent: dict[Phase, bool] = {}
        self._last_configured = 0
        self._aggregated: dict[Phase, int] = {}  # the last round of each
        self._evaluated = 0  # the last round that clients have evaluated

    # --- start ---------------------------------------------------------------------------------------------------

    def start(self, original: Callable[..., Result], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Result:
        """Run ``start()``, Flower's or the strategy's own, on the record."""
        session = self.session
        given = _bind(args, kwargs)
        initial: ArrayRecord = given["initial_arrays"]
        session.num_rounds = given["num_rounds"]
        session.kept.configs.update(
            {key: given[key] for key in ("train_config", "evaluate_config") if given.get(key) is not None}
        )
        try:
            session.open(_identity(session, given))
            self._initial = initial
            if session.loaded is not None and session.own_start:
                initial = given["initial_arrays"] = self._initial = self._first_arrays(initial)
            given["grid"] = CheckpointingGrid(given["grid"], session.nodes.arrange, session.nodes.offered)
            if given.get("evaluate_fn") is not None:
                given["evaluate_fn"] = self._wrap_evaluate_fn(given["evaluate_fn"])
            result = original(**given)
            session.finish()
            return result
        finally:
            session.close()

    def _first_arrays(self, given: ArrayRecord) -> ArrayRecord:
        """Round 0's own arrays for a ``start()`` that may merge them later; the user's where they are gone."""
        commit = self.session.reader.of_round(0)
        return given if commit is None else self._record_of(commit, 0)

    def _enter_first_hook(self) -> None:
        if self._initial is None:
            raise CheckpointError(
                f"{self.session.name}: its hooks are called, but its start() was not. A strategy that wraps another "
                "has to be inside: write CheckpointingStrategy(Wrapper(Strategy(...)), run), not "
                "Wrapper(CheckpointingStrategy(...))"
            )
        self._first_hook_done = True
        self.session.kept.take_baseline()
        self.session.check_plain_attributes()

    def close(self) -> None:
        """Flush, and end the writer."""
        self.session.close()

    # --- hooks ---------------------------------------------------------------------------------------------------

    def configure(
        self,
        original: Callable[..., Iterable[Message]],
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
        *,
        phase: Phase,
    ) -> list[Message]:
        """``configure_train`` and ``configure_evaluate``."""
        session = self.session
        session.kept.configs["train_config" if phase == "train" else "evaluate_config"] = config
        if not self._first_hook_done:
            self._enter_first_hook()
        if phase == "train":
            self._check_grows(server_round)
        if session.record.is_past(server_round, phase):
            return []
        session.enter(server_round, f"configure-{phase}")
        if not session.has_initial:
            session.commit_initial(self._initial_arrays())
        if phase == "train":
            session.wait_for_disk(server_round)
        with session.nodes, session.depth:
            messages = list(original(server_round, self._swapped(arrays), config, grid))
        self._sent[phase] = bool(messages)
        if phase == "train" and messages:
            session.attempt(server_round)
        return messages

    def aggregate_train(
        self, original: Callable[..., Any], server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, Any]:
        """``aggregate_train``: the commit that writes the global arrays."""
        session = self.session
        if not self._first_hook_done:
            self._enter_first_hook()
        if session.record.is_past(server_round, "train"):
            return self._replay_train(server_round)
        session.enter(server_round, "aggregate-train")
        self._check_once(server_round, "train")
        with session.depth:
            arrays, metrics = original(server_round, self._in_order(replies))
        if arrays is not None and not isinstance(arrays, ArrayRecord):
            raise CheckpointError(
                f"aggregate_train of {session.name} returned a {type(arrays).__name__}; only ArrayRecord can be saved"
            )
        plain, detail = metrics_of(metrics, "aggregate_train")
        outcome = Outcome(server_round, "train", arrays is not None, plain, detail=detail)
        session.finished(outcome, arrays)
        return arrays, metrics

    def aggregate_evaluate(self, original: Callable[..., Any], server_round: int, replies: Iterable[Message]) -> Any:
        """``aggregate_evaluate``: a commit of its own, if anybody was asked."""
        session = self.session
        if not self._first_hook_done:
            self._enter_first_hook()
        if session.record.is_past(server_round, "evaluate"):
            metrics = metric_record(session.record.outcome(server_round, "evaluate"))
            session.replayed(server_round, "evaluate")
            return metrics
        session.enter(server_round, "aggregate-evaluate")
        self._check_once(server_round, "evaluate")
        with session.depth:
            metrics = original(server_round, self._in_order(replies))
        plain, detail = metrics_of(metrics, "aggregate_evaluate")
        took_place = self._sent.pop("evaluate", False) or plain is not None
        outcome = Outcome(server_round, "evaluate", took_place, plain, detail=detail)
        if plain is not None:
            session.models.offer(server_round, session.models.loss_of(plain), plain)
        self._evaluated = server_round if plain is not None else self._evaluated
        (session.finished if took_place else session.absent)(outcome)
        return metrics

    def _wrap_evaluate_fn(self, evaluate_fn: EvaluateFn) -> EvaluateFn:
        """Central evaluation: a hook that Flower does not ask of the strategy."""

        def evaluate(server_round: int, arrays: ArrayRecord) -> Any:
            session = self.session
            if session.depth.level:
                return evaluate_fn(server_round, arrays)
            if not self._first_hook_done:
                self._enter_first_hook()
            if session.record.is_past(server_round, "central"):
                metrics = metric_record(session.record.outcome(server_round, "central"))
                session.replayed(server_round, "central")
                return metrics
            session.enter(server_round, "central")
            if not session.has_initial:
                session.commit_initial(self._initial_arrays())
            metrics = evaluate_fn(server_round, self._swapped(arrays))
            plain, detail = metrics_of(metrics, "evaluate_fn")
            outcome = Outcome(server_round, "central", plain is not None, plain, detail=detail)
            if plain is not None and server_round > 0 and not self._was_evaluated(server_round):
                session.models.offer(server_round, session.models.loss_of(plain), plain)
            (session.finished if plain is not None else session.absent)(outcome)
            return metrics

        return evaluate

    # --- answers -------------------------------------------------------------------------------------------------

    def _replay_train(self, server_round: int) -> tuple[ArrayRecord | None, Any]:
        session = self.session
        outcome = session.record.outcome(server_round, "train")
        arrays = self._arrays_of(server_round) if outcome is not None and outcome.answered else None
        session.replayed(server_round, "train")
        return arrays, metric_record(outcome)

    def _arrays_of(self, server_round: int) -> ArrayRecord | None:
        """The arrays a replayed round answers with.

        The newest are there already. Earlier ones only a ``start()`` of the strategy's own can look at: Flower's hands
        them from hook to hook.
        """
        session = self.session
        if server_round == session.record.last_arrays():
            newest: ArrayRecord = session.newest()
            return newest
        if not session.own_start:
            return None
        return self._record_of(session.reader.of_round(server_round), server_round)

    def _was_evaluated(self, server_round: int) -> bool:
        """Whether clients have evaluated a round: what they say of it goes before central evaluation."""
        on_record = self.session.record.outcome(server_round, "evaluate")
        return self._evaluated == server_round or (on_record is not None and on_record.metrics is not None)

    def _record_of(self, commit: Commit | None, server_round: int) -> ArrayRecord:
        session = self.session
        assert session.loaded is not None

        def fetch(entry: Entry) -> bytes:
            if commit is None:
                raise not_kept(session.location.where, server_round, session.keep, "the strategy's start()")
            return session.reader.read(commit, entry)

        return lazy_record((commit or session.loaded.commit).arrays, fetch)

    def _initial_arrays(self) -> ArrayRecord:
        assert self._initial is not None
        return self._initial

    def _swapped(self, arrays: ArrayRecord) -> ArrayRecord:
        """Put the run's arrays in the place of this process's random initial ones.

        Flower's loop holds on to what ``start()`` was given until a round answers with arrays; on a resumed run that is
        round 0's, or nothing if every round failed.
        """
        if self.session.loaded is None or arrays is not self._initial:
            return arrays
        if self._restored_initial is None:
            self._restored_initial = self.session.newest()
        return self._restored_initial

    def _in_order(self, replies: Iterable[Message]) -> list[Message]:
        listed = list(replies)
        if self.session.settings.seed is None:
            return listed
        return sort_replies(listed, getattr(self.session.kept.strategy(), "weighted_by_key", "num-examples"))

    def _check_grows(self, server_round: int) -> None:
        if server_round <= self._last_configured:
            raise CheckpointError(
                f"{self.session.name}: configure_train was called for round {server_round} after round "
                f"{self._last_configured}; round numbers have to grow, one call a round"
            )
        self._last_configured = server_round

    def _check_once(self, server_round: int, phase: Phase) -> None:
        if self._aggregated.get(phase) == server_round:
            raise CheckpointError(
                f"{self.session.name}: aggregate_{phase} was called twice for round {server_round}; a resumed run "
                "could not tell the two answers apart"
            )
        self._aggregated[phase] = server_round


def _bind(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Bind the arguments of ``start()`` by Flower's names, whatever signature the strategy's own has."""
    known = {key: value for key, value in kwargs.items() if key in _START.parameters}
    bound = _START.bind(None, *args, **known)
    given = dict(bound.arguments)
    given.pop("self")
    given.setdefault("num_rounds", _START.parameters["num_rounds"].default)
    return {**given, **{key: value for key, value in kwargs.items() if key not in known}}


def _identity(session: Session, given: Mapping[str, Any]) -> Identity:
    run = _run_of(given["grid"])
    configuration = _configs(given, (bool, int, float))
    configuration["override_config"] = shown_config(getattr(run, "override_config", None) or {}, session.location)
    if session.run_config is not None:
        configuration["run_config"] = shown_config(session.run_config, session.location)
    return Identity(
        api="message",
        classes=session.classes,
        arrays=record_types(given["initial_arrays"]),
        app=getattr(run, "fab_id", None) or None,
        configuration=configuration,
        num_rounds=given["num_rounds"],
        info={**versions(), "app-hash": getattr(run, "fab_hash", None) or None, "strings": _configs(given, (str,))},
    )


def _configs(given: Mapping[str, Any], kinds: tuple[type, ...]) -> dict[str, Any]:
    """What of some kinds stands in the configs that ``start()`` was given."""
    return {
        name: without_secrets({key: value for key, value in given[name].items() if isinstance(value, kinds)})
        for name in ("train_config", "evaluate_config")
        if given.get(name) is not None
    }


def _run_of(grid: Any) -> Any:
    """Flower's description of the run; a grid that serves no run (a test's) raises or has none."""
    try:
        return grid.run
    except (AttributeError, NotImplementedError, RuntimeError):
        return None


def record_blobs(record: ArrayRecord) -> Sequence[Blob]:
    """Refer to the arrays of a record as they lie in memory.

    A record, and the `Array` objects in it, may be changed as soon as the hook has returned, so the bytes are taken
    now; bytes of Flower's that can change are copied. What an `Array` states beside its bytes nobody believes, and
    the writer's thread reads it: with 10,000 arrays, that is a third of the time here.
    """
    names, arrays = list(record.keys()), list(record.values())  # of 10,000, a fifth of the time less than a dict
    data = list(map(_DATA, arrays))
    if set(map(type, data)) != {bytes}:
        data = list(map(settled, data))
    return LateBlobs(
        len(data),
        lambda: (
            Blob(name, data, "npy", array.dtype, tuple(array.shape), array.stype)
            for name, array, data in zip(names, arrays, data, strict=True)
        ),
    )


def _record(loaded: Loaded) -> ArrayRecord:
    record = ArrayRecord()
    for entry in loaded.commit.arrays:
        record[entry.name] = Array(entry.dtype, tuple(entry.shape), entry.stype, loaded.arrays[entry.name])
    return record


MESSAGE = Api(MESSAGE_ORDER, record_blobs, _record)
