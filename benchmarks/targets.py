"""The numbers to reach, and what was measured beside each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .figures import Figures, aged, case_figures, seconds
from .plan import OURS

_SECOND_COPY_ROUNDS = 2  # of a generation: an array that does not change is written in its first two


@dataclass(frozen=True)
class Target:
    """One line of the table.

    Attributes
    ----------
    what : str
    limit : str
        What was to be reached.
    measured : str
    over : float
        What was measured, in parts of what was allowed.
    """

    what: str
    limit: str
    measured: str
    over: float

    @property
    def verdict(self) -> str:
        """Whether it was reached."""
        return "ok" if self.over <= 1 else f"short, {self.over:.2f} × what is allowed"


PROVED_BY_TESTS = {
    "final model after a kill at any point, `seed` set: the same bits": "tests/strategies/test_killed.py",
    "rounds durable and then lost, over every crash point of a commit: 0": "tests/store/test_commit.py",
    "single-byte damage in a store that goes unnoticed: 0": "tests/store/test_damage.py",
}


def targets(comparison: Mapping[int, Mapping[str, Figures]], cases: Mapping[str, Any]) -> Iterator[Target]:
    """List the targets that these results can be held against.

    Parameters
    ----------
    comparison : Mapping
        Figures by size (MiB) and contender.
    cases : Mapping
        Results by case.
    """
    sizes = {mib: by_contender[OURS] for mib, by_contender in comparison.items() if OURS in by_contender}
    for mib, ours in sizes.items():
        yield _time(f"server blocked per round, {mib} MiB in 100 arrays", ours.blocked, 0.5e-3)
    if "many" in cases:
        many = case_figures(cases["many"])
        yield _time(f"server blocked per round, {_thousands(cases['many'])} arrays of 1 KiB", many.blocked, 3e-3)
    if "in_place" in cases:
        ratio = case_figures(cases["in_place"]).copy_ratio
        yield _ratio("blocked with strategy arrays that change in place, against a memcpy of them", ratio, 1.2)
    for mib, ours in sizes.items():
        yield _ratio(f"durable, against a raw writev + fsync, {mib} MiB", ours.durable_ratio, 1.10)
    for mib, ours in sizes.items():
        yield _ratio(f"peak of extra memory, against the model, {mib} MiB", ours.memory_ratio, 0.05)
    for mib, ours in sizes.items():
        yield _ratio(f"bytes on disk per round, against those that changed, {mib} MiB", ours.disk_ratio, 1.01)
    if "lora" in cases:
        lora = case_figures(cases["lora"], skip=_SECOND_COPY_ROUNDS)
        yield _ratio("… where only adapters change (LoRA)", lora.disk_ratio, 1.01)
    if "best" in cases:
        yield _ratio(
            "… with a best model that is a round's (no second copy)", case_figures(cases["best"]).disk_ratio, 1.01
        )
    for mib, ours in sizes.items():
        yield _ratio(f"resume, against one read of the same bytes, {mib} MiB", ours.load_ratio, 1.2)
    for case, policy in {"keep_latest": "KeepLatest(3)", "keep_all": "KeepAll()"}.items():
        if case in cases:
            yield _ratio(f"a late round against round 10, {policy}", aged(cases[case])[2], 1.1)


def _time(what: str, measured: float, limit: float) -> Target:
    return Target(what, f"≤ {limit * 1e3:g} ms", seconds(measured), measured / limit)


def _ratio(what: str, measured: float | None, limit: float) -> Target:
    assert measured is not None, what
    return Target(what, f"≤ {limit:g} ×", f"{measured:.3f} ×", measured / limit)


def _thousands(result: Mapping[str, Any]) -> str:
    return f"{result['model'] // 1024:,}"
