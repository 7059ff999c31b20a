"""The run's history: what every phase of every round answered, without reading every round's manifest.

The newest outcomes stand in each manifest. Once they span too many rounds they move to a segment: a file of JSON
lines, named with its digest in each manifest that needs it. Segments of like size are merged, so that a run of n
rounds has about log n of them.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from typing import NamedTuple

from ..draft import Outcome
from ..errors import CheckpointCorruptError
from ..names import HISTORY
from ..places.files import Files, is_damage
from .manifest import outcome_from_json, outcome_text
from .records import Commit, Segment

logger = logging.getLogger("flwr")

MOST_ROUNDS = 64
_MOST_BYTES = 1 << 18  # of outcomes in a manifest: metrics may be long lists, and every commit writes them again


class HistoryCorruptError(CheckpointCorruptError):
    """A segment is damaged; the weights of the commit that needs it may be sound."""


def flat_metrics(outcome: Outcome) -> dict[str, object]:
    """Give an outcome's loss and metrics under the names that they have everywhere: ``"evaluate/loss"``."""
    flat = {f"{outcome.phase}/{name}": value for name, value in (outcome.metrics or {}).items()}
    if outcome.loss is not None:
        flat[f"{outcome.phase}/loss"] = outcome.loss
    return flat


def read_outcomes(files: Files, commit: Commit, *, strict: bool) -> tuple[list[Outcome], tuple[Segment, ...]]:
    """Read the whole history up to a commit.

    Parameters
    ----------
    strict : bool
        Whether a damaged segment is an error; else it is left out, with a warning.

    Returns
    -------
    outcomes : list of Outcome
        Oldest first.
    sound : tuple of Segment
        The segments that could be read.

    Raises
    ------
    CheckpointCorruptError
        Naming the rounds whose metrics are lost.
    """
    outcomes: list[Outcome] = []
    sound = []
    for segment in commit.segments:
        try:
            outcomes.extend(_outcomes_of(segment, _read(files, segment), files))
            sound.append(segment)
        except HistoryCorruptError as error:
            if strict:
                raise
            logger.warning("%s. Going on without them.", error)
    return [*outcomes, *commit.outcomes], tuple(sound)


def check_segment(files: Files, segment: Segment) -> None:
    """Make sure that a segment is what was written.

    Raises
    ------
    CheckpointCorruptError
        If it is not.
    """
    _outcomes_of(segment, _read(files, segment), files)


class Recent(NamedTuple):
    """The outcomes that stand in a manifest.

    Attributes
    ----------
    outcomes : tuple of Outcome
        Oldest first.
    lines : tuple of str
        Each as it is written: every commit writes all of them again.
    """

    outcomes: tuple[Outcome, ...] = ()
    lines: tuple[str, ...] = ()

    def and_then(self, outcomes: Sequence[Outcome]) -> Recent:
        """Add newer ones."""
        return Recent((*self.outcomes, *outcomes), (*self.lines, *map(outcome_text, outcomes)))

    def split(self, server_round: int) -> tuple[Recent, Recent]:
        """Part those before a round from the others."""
        count = sum(outcome.round < server_round for outcome in self.outcomes)
        return Recent(self.outcomes[:count], self.lines[:count]), Recent(self.outcomes[count:], self.lines[count:])


def is_due(recent: Recent) -> bool:
    """Whether outcomes are too many for a manifest."""
    rounds = {outcome.round for outcome in recent.outcomes}
    return len(rounds) > MOST_ROUNDS or (len(rounds) > 1 and sum(map(len, recent.lines)) > _MOST_BYTES)


def archive(files: Files, key: str, segments: Sequence[Segment], old: Recent) -> tuple[Segment, ...]:
    """Move outcomes to a segment, merged with the newest ones that are not larger.

    Returns
    -------
    tuple of Segment
        What a manifest names from now on. The segments that were merged stay for those that name them.
    """
    data = b"".join(f"{line}\n".encode("ascii") for line in old.lines)
    first, last = min(outcome.round for outcome in old.outcomes), max(outcome.round for outcome in old.outcomes)
    kept = list(segments)
    while kept and kept[-1].last - kept[-1].first <= last - first:
        try:
            older = _read(files, kept[-1])
        except HistoryCorruptError:
            break  # stays as it is, for whoever asks for those rounds to be told
        data, first = older + data, kept.pop().first
    files.make_folder(HISTORY)
    files.create(key, [data])
    files.sync_folder(HISTORY)
    files.sync_folder()
    return (*kept, Segment(key, len(data), hashlib.sha256(data).hexdigest(), first, last))


def _read(files: Files, segment: Segment) -> bytes:
    size = files.size(segment.key)
    if size not in (segment.size, None):  # asked first: what a manifest states may be more than there is memory
        raise _corrupt(files, segment, f"has {size} bytes instead of the {segment.size} written")
    try:
        data = files.read(segment.key, 0, segment.size)
    except OSError as error:
        if not is_damage(error):
            raise
        raise _corrupt(files, segment, f"cannot be read ({error.strerror})") from error
    if len(data) != segment.size or hashlib.sha256(data).hexdigest() != segment.digest:
        raise _corrupt(files, segment, f"has {len(data)} bytes, which are not those that were written")
    return data


def _outcomes_of(segment: Segment, data: bytes, files: Files) -> list[Outcome]:
    try:
        outcomes = [outcome_from_json(json.loads(line)) for line in data.splitlines()]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _corrupt(files, segment, f"is not one of outcomes ({error!r:.100})") from error
    return [outcome for outcome in outcomes if outcome.round <= segment.last]


def _corrupt(files: Files, segment: Segment, found: str) -> HistoryCorruptError:
    return HistoryCorruptError(
        f"{files.describe(segment.key)}: this part of the history {found}; it holds the metrics of rounds "
        f'{segment.first} to {segment.last}. The weights are sound: resume="must" goes on without those metrics'
    )
