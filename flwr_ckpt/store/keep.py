"""Which rounds are worth their space: small policies, joined with ``|``.

A policy only ever *selects* what stays. That the newest sound round stays whatever a policy says, and that a
file goes only when nothing refers to it, is the business of retention.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

Mode = Literal["min", "max"]


class Scored(Protocol):
    """A finished round, as far as a policy looks at it."""

    @property
    def round(self) -> int:
        """The round's number."""

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Values by key as in ``CheckpointStore.history()``: ``"evaluate/loss"``."""


_Scored = TypeVar("_Scored", bound=Scored)


class Keep(ABC):
    """A retention policy. ``a | b`` keeps what either keeps; ``str()`` gives the text that `parse_keep` reads."""

    @abstractmethod
    def select(self, rounds: Sequence[Scored]) -> set[int]:
        """Choose the rounds to keep.

        Parameters
        ----------
        rounds : sequence of Scored
            All rounds there are, in any order, each number once.

        Returns
        -------
        set of int
            The numbers of the rounds that stay.
        """

    def metrics(self) -> set[str]:
        """The metrics that the policy looks at, as in ``CheckpointStore.history()``."""
        return set()

    def __or__(self, other: Keep) -> Keep:
        """Keep what either policy keeps."""
        if not isinstance(other, Keep):
            return NotImplemented
        return KeepEither((*_members(self), *_members(other)))


@dataclass(frozen=True)
class KeepEither(Keep):
    """What any of several policies keeps: what ``|`` makes.

    Attributes
    ----------
    policies : tuple of Keep
        None of them a `KeepEither`, so that ``(a | b) | c`` equals ``a | (b | c)``.
    """

    policies: tuple[Keep, ...]

    def select(self, rounds: Sequence[Scored]) -> set[int]:
        """Choose the rounds that any policy chooses."""
        return set[int]().union(*(policy.select(rounds) for policy in self.policies))

    def metrics(self) -> set[str]:
        """The metrics that any policy looks at."""
        return set[str]().union(*(policy.metrics() for policy in self.policies))

    def __str__(self) -> str:
        return "|".join(map(str, self.policies))


@dataclass(frozen=True)
class KeepLatest(Keep):
    """Keep the newest `n` rounds.

    Raises
    ------
    ValueError
        If `n` is below 1.
    """

    n: int

    def __post_init__(self) -> None:
        _require_count("KeepLatest", "n", self.n)

    def select(self, rounds: Sequence[Scored]) -> set[int]:
        """Choose the `n` highest round numbers."""
        return set(sorted(record.round for record in rounds)[-self.n :])

    def __str__(self) -> str:
        return f"latest:{self.n}"


@dataclass(frozen=True)
class KeepBest(Keep):
    """Keep the `n` rounds that score best.

    NaN ranks below every number, the later round wins a tie, and a round without the metric (or where it is
    not a number) is never chosen.

    Attributes
    ----------
    n : int
    metric : str
        A key as in ``CheckpointStore.history()``: ``"evaluate/loss"``, ``"central/accuracy"``.
    mode : {"min", "max"}
        Whether small or large values are good.

    Raises
    ------
    ValueError
        If `n` is below 1, `metric` is empty or `mode` unknown.
    """

    n: int
    metric: str
    mode: Mode

    def __post_init__(self) -> None:
        _require_count("KeepBest", "n", self.n)
        if not self.metric:
            raise ValueError(
                f'KeepBest(metric={self.metric!r}): expected a key as in history(), such as "evaluate/loss"'
            )
        require_mode(self.mode)

    def select(self, rounds: Sequence[Scored]) -> set[int]:
        """Choose the `n` rounds that rank best."""
        return {record.round for record in ranked(rounds, self.metric, self.mode)[: self.n]}

    def metrics(self) -> set[str]:
        """The one metric."""
        return {self.metric}

    def __str__(self) -> str:
        return f"best:{self.n}:{_escape(self.metric)}:{self.mode}"


@dataclass(frozen=True)
class KeepEvery(Keep):
    """Keep every `k`-th round, and round 0 with them.

    Raises
    ------
    ValueError
        If `k` is below 1.
    """

    k: int

    def __post_init__(self) -> None:
        _require_count("KeepEvery", "k", self.k)

    def select(self, rounds: Sequence[Scored]) -> set[int]:
        """Choose the rounds that `k` divides."""
        return {record.round for record in rounds if record.round % self.k == 0}

    def __str__(self) -> str:
        return f"every:{self.k}"


@dataclass(frozen=True)
class KeepAll(Keep):
    """Keep every round."""

    def select(self, rounds: Sequence[Scored]) -> set[int]:
        """Choose all rounds."""
        return {record.round for record in rounds}

    def __str__(self) -> str:
        return "all"


def keeps_all(policy: object) -> bool:
    """Whether a policy keeps every round, whatever their metrics."""
    if isinstance(policy, KeepEither):
        return any(map(keeps_all, policy.policies))
    return isinstance(policy, KeepAll)


def ranked(rounds: Iterable[_Scored], metric: str, mode: Mode) -> list[_Scored]:
    """Order the rounds that have a metric, best first: NaN last, the later of two equal rounds first."""

    def rank(record: _Scored) -> tuple[bool, float, int]:
        value = record.metrics[metric]
        if value != value:  # NaN; math.isnan would refuse an int too large for a float
            return (True, 0, -record.round)
        return (False, value if mode == "min" else -value, -record.round)

    return sorted((record for record in rounds if _is_number(record.metrics.get(metric))), key=rank)


def require_mode(mode: object) -> None:
    """Refuse a mode that is neither ``"min"`` nor ``"max"``, with a ``ValueError``."""
    if mode not in ("min", "max"):
        raise ValueError(f'mode {mode!r}: expected "min" (small is good, as a loss) or "max" (as an accuracy)')


def parse_keep(text: str) -> Keep:
    """Read a policy from text, as a run configuration or a command line gives it.

    Parameters
    ----------
    text : str
        Policies joined with ``|``: ``"latest:3"``, ``"best:2:evaluate/loss:min"``, ``"every:10"``, ``"all"``. In a
        metric's name ``|`` is written ``%7C``.

    Raises
    ------
    ValueError
        If a part is none of these; the message names it.
    """
    policies = [_parse_one(part.strip(), text) for part in text.split("|")]
    return policies[0] if len(policies) == 1 else KeepEither(tuple(policies))


def _parse_one(part: str, text: str) -> Keep:
    kind, _, rest = part.partition(":")
    readers: dict[str, Callable[[str], Keep]] = {
        "latest": lambda rest: KeepLatest(_parse_count(rest)),
        "best": _parse_best,
        "every": lambda rest: KeepEvery(_parse_count(rest)),
    }
    try:
        if part == "all":
            return KeepAll()
        if kind not in readers:
            raise ValueError("expected latest:N, best:N:METRIC:min or :max, every:K, or all")
        return readers[kind](rest)
    except ValueError as error:
        raise ValueError(f"cannot read {part!r} in the retention policy {text!r}: {error}") from None


def _parse_best(rest: str) -> KeepBest:
    count, _, scored = rest.partition(":")
    # From the right: a metric's name may hold colons of its own.
    metric, _, mode = scored.rpartition(":")
    if mode not in ("min", "max") or not metric:
        raise ValueError("expected best:N:METRIC:min or best:N:METRIC:max, such as best:2:evaluate/loss:min")
    return KeepBest(_parse_count(count), _unescape(metric), "min" if mode == "min" else "max")


def _parse_count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def _escape(metric: str) -> str:
    return metric.replace("%", "%25").replace("|", "%7C")


def _unescape(text: str) -> str:
    return text.replace("%7C", "|").replace("%25", "%")


def _members(keep: Keep) -> tuple[Keep, ...]:
    return keep.policies if isinstance(keep, KeepEither) else (keep,)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _require_count(policy: str, name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{policy}({name}={value!r}): expected a whole number of at least 1")
