"""The hooks of the legacy API (``flwr.server.strategy.Strategy``).

There is no hook around the whole run here: it opens with the first hook (``initialize_parameters`` under Flower's
server) and ends with ``close()`` or the interpreter. Flower's ``Server`` skips ``aggregate_fit`` where nothing was
configured, so replay configures one client that lives in this process and answers at once.
"""

from __future__ import annotations

import atexit
import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from flwr.common import EvaluateIns, FitIns, Parameters
from flwr.server import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import Strategy

from ...store import Blob, CheckpointError, LateBlobs, Loaded, Outcome, Phase, settled
from .. import logs
from .api import Api
from .callers import caller_of_hook, running_server, server_name
from .clients import ReplayClient, arranged_manager
from .identity import Identity, parameters_types, shown_config, versions
from .lazy import LazyParameters, not_kept
from .record import LEGACY_ORDER, storable
from .seeding import sort_results
from .session import Session

Instructions = list[tuple[ClientProxy, Any]]
Hook = TypeVar("Hook", bound=Callable[..., Any])


def _notes_failure(hook: Hook) -> Hook:
    """Make a hook note that it raised: nothing else tells a run that broke off from one that is finished."""

    @functools.wraps(hook)
    def noting(run: LegacyRun, *args: Any, **kwargs: Any) -> Any:
        try:
            return hook(run, *args, **kwargs)
        except BaseException:
            run.raised = True
            raise

    return noting  # type: ignore[return-value]


class LegacyRun:
    """One run of a wrapped legacy strategy: the state its hooks share.

    Parameters
    ----------
    session : Session
        What this run has in common with those of the message API.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._opened = False
        self._expected: Parameters | None = None
        self._first_live: int | None = None
        self._last_configured = 0
        self._unanswered = 0  # a round whose training was sent and not aggregated
        self.raised = False
        self._history_told = False
        self._central: Outcome | None = None  # the last central evaluation of this process

    # --- hooks ---------------------------------------------------------------------------------------------------

    @_notes_failure
    def initialize_parameters(
        self, original: Callable[..., Parameters | None], client_manager: ClientManager
    ) -> Parameters | None:
        """``initialize_parameters``: the first arrays of a new run, the newest of a resumed one."""
        session = self.session
        if self._opened:
            raise CheckpointError(
                f"{session.name} has already been started; wrap a new strategy object for another run of the server"
            )
        self._refuse_inner()
        session.kept.take_baseline()
        session.nodes.seed(0, "initialize")
        manager = self._manager(client_manager)
        with session.depth:
            given = original(client_manager=manager)
        _check_parameters(given, f"initialize_parameters of {session.name} returned")
        self._open(given)
        if session.loaded is not None:
            self._expected = self.session.newest()
            return self._expected
        self._expected = given
        if given is not None:
            session.commit_initial(given)
        return given

    @_notes_failure
    def configure(
        self,
        original: Callable[..., Instructions],
        server_round: int,
        parameters: Parameters,
        client_manager: ClientManager,
        *,
        phase: Phase,
    ) -> Instructions:
        """``configure_fit`` and ``configure_evaluate``."""
        session = self.session
        self._enter_first_hook(parameters)
        self._end_unanswered()
        if phase == "train":
            self._check_grows(server_round)
        if session.record.is_past(server_round, phase):
            return self._replay_configure(server_round, phase)
        session.enter(server_round, f"configure-{phase}")
        self._check_passed_on(server_round, parameters)
        if not session.has_initial:
            session.commit_initial(parameters)
        if phase == "train":
            session.wait_for_disk(server_round)
        manager = self._manager(client_manager)
        with session.nodes, session.depth:
            instructions = list(
                original(server_round=server_round, parameters=parameters, client_manager=manager) or []
            )
        self._configured(server_round, phase, bool(instructions))
        return instructions

    @_notes_failure
    def aggregate_fit(
        self, original: Callable[..., Any], server_round: int, results: list[Any], failures: list[Any]
    ) -> tuple[Parameters | None, Any]:
        """``aggregate_fit``: the commit that writes the global arrays."""
        session = self.session
        if session.record.is_past(server_round, "train"):
            outcome = session.record.outcome(server_round, "train")
            parameters = self._parameters_of(server_round) if outcome is not None and outcome.answered else None
            session.replayed(server_round, "train")
            return parameters, {} if outcome is None else dict(outcome.metrics or {})
        session.enter(server_round, "aggregate-train")
        self._unanswered = 0
        with session.depth:
            parameters, metrics = original(server_round, self._in_order(results), failures)
        _check_parameters(parameters, f"aggregate_fit of {session.name} returned")
        outcome = Outcome(server_round, "train", parameters is not None, storable(metrics or {}, "aggregate_fit"))
        session.finished(outcome, parameters)
        self._expected = parameters if parameters is not None else self._expected
        return parameters, metrics

    @_notes_failure
    def aggregate_evaluate(
        self, original: Callable[..., Any], server_round: int, results: list[Any], failures: list[Any]
    ) -> tuple[float | None, Any]:
        """``aggregate_evaluate``: a commit of its own."""
        session = self.session
        if session.record.is_past(server_round, "evaluate"):
            outcome = session.record.outcome(server_round, "evaluate")
            session.replayed(server_round, "evaluate")
            return (None, {}) if outcome is None else (outcome.loss, dict(outcome.metrics or {}))
        session.enter(server_round, "aggregate-evaluate")
        with session.depth:
            loss, metrics = original(server_round, self._in_order(results), failures)
        plain = storable(metrics or {}, "aggregate_evaluate")
        if loss is not None:
            session.models.offer(server_round, loss, plain)
        session.finished(Outcome(server_round, "evaluate", True, plain, loss=loss))
        return loss, metrics

    @_notes_failure
    def evaluate(
        self, original: Callable[..., Any], server_round: int, parameters: Parameters
    ) -> tuple[float, Any] | None:
        """``evaluate``: central evaluation; a commit of its own, if it gave something."""
        session = self.session
        self._enter_first_hook(parameters)
        self._end_unanswered()
        if session.record.is_past(server_round, "central"):
            outcome = session.record.outcome(server_round, "central")
            session.replayed(server_round, "central")
            if outcome is None or not outcome.answered:
                return None
            return outcome.loss, dict(outcome.metrics or {})  # type: ignore[return-value]
        session.enter(server_round, "central")
        self._check_passed_on(server_round, parameters)
        if not session.has_initial:
            session.commit_initial(parameters)
        with session.depth:
            answer: tuple[float, Any] | None = original(server_round, parameters=parameters)
        if answer is None:
            session.absent(Outcome(server_round, "central", False))
        else:
            plain = storable(answer[1] or {}, "evaluate")
            self._central = Outcome(server_round, "central", True, plain, loss=answer[0])
            session.finished(self._central)
        return answer

    # --- opening and closing -------------------------------------------------------------------------------------

    def _open(self, given: Parameters | None) -> None:
        session = self.session
        self._opened = True
        arrays = None if given is None else parameters_types(given)
        shown = session.run_config and shown_config(session.run_config, session.location)
        configuration = {} if shown is None else {"run_config": shown}
        session.open(Identity("legacy", session.classes, arrays, configuration=configuration, info=versions()))
        atexit.register(_close_at_exit, weakref.ref(self))
        session.check_plain_attributes()

    def _enter_first_hook(self, parameters: Parameters) -> None:
        """A server of the user's may bring its own parameters and never call ``initialize_parameters``."""
        if not self._opened:
            self._refuse_inner()
            _check_parameters(parameters, f"{server_name()} handed over")
            self.session.kept.take_baseline()
            self._open(parameters)
            self._expected = self.session.newest() if self.session.loaded is not None else parameters

    def _refuse_inner(self) -> None:
        caller = caller_of_hook()
        if isinstance(caller, Strategy) and caller is not self.session.kept.strategy():
            raise CheckpointError(
                f"{self.session.name} is checkpointed inside a {type(caller).__name__}; turn that around: "
                f"CheckpointingStrategy({type(caller).__name__}({self.session.name}(...)), run)"
            )

    def close(self) -> None:
        """Mark the run as finished, if it looks so; flush, and end the writer."""
        session = self.session
        try:
            if self._opened and not self.raised and not self._unanswered and not session.is_over:
                self._warn_of_fewer_rounds()
                session.finish()
        finally:
            session.close()

    def _warn_of_fewer_rounds(self) -> None:
        last = self.session.record.last_round
        if 0 < self._last_configured < last:
            logs.warning(
                "%s: %d rounds are done, and the server stopped after round %d; round numbers are absolute, so its "
                "parameters are those of round %d, and its history ends early",
                self.session.location.where,
                last,
                self._last_configured,
                last,
            )

    # --- answers -------------------------------------------------------------------------------------------------

    def _replay_configure(self, server_round: int, phase: Phase) -> Instructions:
        outcome = self.session.record.outcome(server_round, phase)
        server = running_server()
        if outcome is None or outcome.detail.get("configured") is False or server is None:
            # Nothing was configured then, or no Server waits for replies (a workflow, which would send them to a
            # node): the aggregate hook will not be called, so the phase ends here.
            if server is None:
                self._tell_of_history()
            self.session.replayed(server_round, phase)
            return []
        instructions = FitIns if phase == "train" else EvaluateIns
        return [(ReplayClient(type(server).__name__), instructions(Parameters([], ""), {}))]

    def _tell_of_history(self) -> None:
        if self._history_told:
            return
        self._history_told = True
        logs.info(
            "A workflow runs %s, not a Server: what clients said is in its History from the resumed round on only; the "
            "strategy's store.history() is whole",
            self.session.name,
        )

    def _parameters_of(self, server_round: int) -> Parameters:
        session = self.session
        if server_round == session.record.last_arrays():
            newest: Parameters = session.newest()
            return newest
        return LazyParameters(session.newest().tensor_type, lambda: self._read(server_round))

    def _read(self, server_round: int) -> list[bytes]:
        session = self.session
        commit = session.reader.of_round(server_round)
        if commit is None:
            raise not_kept(session.location.where, server_round, session.keep, "the server")
        return [session.reader.read(commit, entry) for entry in commit.arrays]

    # --- checks --------------------------------------------------------------------------------------------------

    def _check_grows(self, server_round: int) -> None:
        if server_round <= self._last_configured:
            raise CheckpointError(
                f"{self.session.name}: configure_fit was called for round {server_round} after round "
                f"{self._last_configured}; round numbers have to grow, one call a round"
            )
        if self._unanswered:
            raise CheckpointError(
                f"{server_name()} trained round {self._unanswered} without the strategy's aggregate_fit; what it did "
                "with the replies cannot be saved, nor resumed"
            )
        self._last_configured = server_round

    def _check_passed_on(self, server_round: int, parameters: Parameters) -> None:
        """In its first round here, see that the server hands on what the strategy aggregated.

        A server that changes it, or brings its own, keeps the truth to itself: state and weights would part ways, and a
        resumed run would be wrong without a word.
        """
        if self._first_live is None:
            self._first_live = server_round
        if server_round > self._first_live + 1 or self._expected is None:
            return
        if parameters is not self._expected and not _same_tensors(parameters.tensors, self._expected.tensors):
            raise CheckpointError(
                f"{server_name()} hands other parameters to round {server_round} than the strategy returned. It keeps "
                "a model of its own beside the strategy's, which is not saved; a resumed run would be wrong. Move what "
                "it does with the parameters into the strategy's aggregate_fit"
            )

    def _end_unanswered(self) -> None:
        """A workflow may end a round before its replies are aggregated: secure aggregation does, with too few clients.

        That is a finished round without new parameters. A ``Server`` has no such way out: `_check_grows` refuses it.
        """
        if self._unanswered and running_server() is None:
            self.session.finished(Outcome(self._unanswered, "train", False))
            self._unanswered = 0

    # --- small things --------------------------------------------------------------------------------------------

    def _configured(self, server_round: int, phase: Phase, sent: bool) -> None:
        session = self.session
        if not sent:
            absent = Outcome(server_round, phase, False, detail={"configured": False})
            chosen = phase == "evaluate" and self._offer_central(server_round)
            (session.finished if phase == "train" or chosen else session.absent)(absent)
        elif phase == "train":
            self._unanswered = server_round
            session.attempt(server_round)

    def _offer_central(self, server_round: int) -> bool:
        """Where no client evaluates a round, models are chosen by the central evaluation, which came before."""
        central = self._central
        if central is None or central.round != server_round:
            central = self.session.record.outcome(server_round, "central")
        if central is None or not central.answered or central.loss is None or self.session.models.module is None:
            return False
        self.session.models.offer(server_round, central.loss, dict(central.metrics or {}))
        return True

    def _manager(self, manager: ClientManager) -> ClientManager:
        session = self.session
        if isinstance(getattr(manager, "clients", None), dict):
            session.nodes.offered(list(manager.clients))  # type: ignore[attr-defined]
        if session.settings.seed is None:
            return manager
        return arranged_manager(manager, session.nodes.arrange, session.nodes.offered)

    def _in_order(self, results: list[Any]) -> list[Any]:
        return results if self.session.settings.seed is None else sort_results(results)


def _check_parameters(parameters: object, who: str) -> None:
    if parameters is not None and not isinstance(parameters, Parameters):
        raise CheckpointError(
            f"{who} a {type(parameters).__name__} as parameters; only flwr.common.Parameters can be saved. What goes "
            "along with them can travel as further tensors, or in the strategy's attributes"
        )


def parameters_blobs(parameters: Parameters) -> Sequence[Blob]:
    """Refer to legacy tensors as they lie in memory, named by their place (``0000``, ``0001``, …)."""
    tensors, tensor_type = list(map(settled, parameters.tensors)), parameters.tensor_type
    return LateBlobs(
        len(tensors),
        lambda: (Blob(f"{index:04d}", tensor, "npy", stype=tensor_type) for index, tensor in enumerate(tensors)),
    )


def _parameters(loaded: Loaded) -> Parameters:
    entries = loaded.commit.arrays
    tensor_type = entries[0].stype if entries else "numpy.ndarray"
    return Parameters([loaded.arrays[entry.name] for entry in entries], tensor_type)


LEGACY = Api(LEGACY_ORDER, parameters_blobs, _parameters)


def _same_tensors(left: list[bytes], right: list[bytes]) -> bool:
    return len(left) == len(right) and all(mine is his or mine == his for mine, his in zip(left, right, strict=True))


def _close_at_exit(run: weakref.ref[LegacyRun]) -> None:
    """End a run as the interpreter ends: no hook follows the last round, and nobody is left to raise to."""
    alive = run()
    if alive is None:
        return
    try:
        alive.close()
    except (CheckpointError, OSError) as error:
        logs.error("The end of the run in %s could not be written: %s", alive.session.location.where, error)
