"""What a run has already done: the phases on record, and how far they reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import MetricRecord

from ...store import CheckpointCorruptError, CheckpointError, Outcome, Phase, to_json

Position = tuple[int, int]  # round, and the index of a phase in the order of the API

MESSAGE_ORDER: tuple[Phase, ...] = ("initial", "train", "evaluate", "central")
_PLAIN = frozenset({bool, int, float, str})  # most metrics; of the others only `to_json` can tell
LEGACY_ORDER: tuple[Phase, ...] = ("initial", "train", "central", "evaluate")


@dataclass(frozen=True)
class Record:
    """The finished phases of a run, as its newest commit tells them.

    Attributes
    ----------
    order : tuple of Phase
        In which order the API makes the phases of a round.
    outcomes : Mapping[tuple[int, Phase], Outcome]
        What each phase answered.
    position : Position
        The last of them: where the state of the commit was taken. Everything up to it is answered from here.
    """

    order: tuple[Phase, ...]
    outcomes: Mapping[tuple[int, Phase], Outcome]
    position: Position

    @classmethod
    def of(cls, order: tuple[Phase, ...], outcomes: Sequence[Outcome]) -> Record:
        """Index the outcomes of a run."""
        by_phase = {(outcome.round, outcome.phase): outcome for outcome in outcomes}
        for _, phase in by_phase:
            if phase not in order:
                raise CheckpointCorruptError(f"the history tells of a phase {phase!r}, which has no answers")
        position = max(((server_round, order.index(phase)) for server_round, phase in by_phase), default=(0, 0))
        return cls(order, by_phase, position)

    @property
    def last_round(self) -> int:
        """The last round of which anything is on record."""
        return self.position[0]

    def is_past(self, server_round: int, phase: Phase) -> bool:
        """Whether this phase is answered from the record: an absent one in the past stays absent."""
        return (server_round, self.order.index(phase)) <= self.position

    def is_position(self, server_round: int, phase: Phase) -> bool:
        """Whether the state of the commit was taken as this phase ended."""
        return (server_round, self.order.index(phase)) == self.position

    def outcome(self, server_round: int, phase: Phase) -> Outcome | None:
        """What the phase answered, or None if it did not take place."""
        return self.outcomes.get((server_round, phase))

    def phases_of(self, server_round: int) -> list[Phase]:
        """The phases of a round that are on record."""
        return [phase for phase in self.order if (server_round, phase) in self.outcomes]

    def metric_names(self) -> set[str]:
        """The metrics on record, named as in ``CheckpointStore.history()``."""
        return set[str]().union(*map(metric_names, self.outcomes.values()))

    def attempts(self) -> dict[int, int]:
        """How often the training of each round on record was sent."""
        trained = (outcome for outcome in self.outcomes.values() if outcome.phase == "train")
        counts = {outcome.round: outcome.detail.get("attempts", 1) for outcome in trained}
        if wrong := [count for count in counts.values() if not isinstance(count, int)]:
            raise CheckpointCorruptError(f"the history counts attempts with {wrong[0]!r:.80}")
        return {server_round: int(str(count)) for server_round, count in counts.items()}

    def last_arrays(self) -> int:
        """The last round whose training returned arrays; 0 if none did."""
        trained = (r for (r, phase), outcome in self.outcomes.items() if phase == "train" and outcome.answered)
        return max(trained, default=0)


def metric_names(outcome: Outcome) -> set[str]:
    """The metrics of an outcome, named as in ``CheckpointStore.history()``."""
    names = set(outcome.metrics or {}) | ({"loss"} if outcome.loss is not None else set())
    return {f"{outcome.phase}/{name}" for name in names}


def metrics_of(value: Any, where: str) -> tuple[Mapping[str, Any] | None, dict[str, Any]]:
    """Split what a message-API hook answered into plain metrics and a word on what kind of mapping they came in."""
    if value is None:
        return None, {}
    if not isinstance(value, (MetricRecord, Mapping)):
        raise CheckpointError(
            f"{where} returned a {type(value).__name__} as metrics; expected a MetricRecord or None, as Flower does"
        )
    return storable(value, where), {} if isinstance(value, MetricRecord) else {"mapping": "dict"}


def storable(metrics: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Copy metrics, having made sure that each can be stored.

    Raises
    ------
    CheckpointError
        Naming the first that cannot.
    """
    plain = dict(metrics.items())
    for key, value in plain.items():
        if type(value) in _PLAIN:
            continue
        try:
            to_json(value)
        except TypeError as error:
            raise CheckpointError(
                f"{where} returned a metric that cannot be stored: {key!r} ({error}); return numbers, strings, bytes "
                "or lists of numbers"
            ) from None
    return plain


def metric_record(outcome: Outcome | None) -> Any:
    """Make again what a message-API hook answered as metrics."""
    if outcome is None or outcome.metrics is None:
        return None
    metrics = dict(outcome.metrics)
    if outcome.detail.get("mapping") == "dict":
        return metrics
    try:
        return MetricRecord(metrics)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise CheckpointCorruptError(
            f"the history has metrics of round {outcome.round} ({outcome.phase}) that Flower does not take: {error}"
        ) from error
