"""What the log of a run says of its checkpoints: few lines, each of use to whoever reads it the morning after."""

from __future__ import annotations

import os
import shlex

from ...store import (
    CheckpointError,
    CheckpointStore,
    Commit,
    Keep,
    Location,
    Outcome,
    RunReader,
    Server,
    checkpoint_home,
    readable_age,
    readable_size,
)
from .. import logs
from .record import Record, metric_names


def command(verb: str, run: str, *arguments: object) -> str:
    """Say what to type: ``flwr-ckpt ls digits``."""
    return shlex.join(["flwr-ckpt", verb, run, *map(str, arguments)])


def tell_begun(location: Location, seed: int | None, *, private: bool) -> None:
    """Say where a run lies, and what of a seed is not followed."""
    logs.info("Checkpoints of this run: %s (%s)", location.where, location.source)
    if private and seed is not None:
        logs.warning(
            "seed=%d leaves noise and sampling alone under differential privacy: reused noise would give away what "
            "it hides, so two runs will differ",
            seed,
        )


def tell_taken_over(server: Server | None) -> None:
    """Say that another server, which is still there, is about to lose the run."""
    if server is not None and server.writing and server.pid != os.getpid():
        logs.warning(
            "Process %d on %s has this run open: it is taken over, and that server stops at its next commit",
            server.pid,
            server.host,
        )


def tell_resumed(record: Record, commit: Commit, num_rounds: int | None) -> None:
    """Say from where a run goes on, how old that is, and what is not done again."""
    last = record.last_round
    logs.info(
        "Resumed after round %d%s (%s), saved %s; %s",
        last,
        f" of {num_rounds}" if num_rounds is not None else "",
        ", ".join(record.phases_of(last)) or "initial arrays",
        readable_age(commit.time),
        "nothing had been trained yet" if last == 0 else f"what rounds 1 to {last} have done is not repeated",
    )


class MetricNames:
    """Which metrics a run has. Two rounds show them all: time to say that a policy looks at what no round has.

    Parameters
    ----------
    keep : Keep
        It would keep nothing for such a metric.
    """

    def __init__(self, keep: Keep) -> None:
        self.known: set[str] = set()
        self._keep = keep
        self._trained = 0

    def note(self, outcome: Outcome) -> None:
        """Take the metrics of a phase down."""
        if self._trained == 2:
            return
        self.known |= metric_names(outcome)
        self._trained += outcome.phase == "train"
        unknown = sorted(self._keep.metrics() - self.known)
        if self._trained == 2 and unknown:
            logs.warning(
                "keep=%s looks at %s, which no round has; there are %s",
                self._keep,
                ", ".join(unknown),
                ", ".join(sorted(self.known)) or "no metrics",
            )


def tell_nothing_to_do(location: Location, last_round: int) -> None:
    """Say that a run was finished before this server was started."""
    logs.info(
        "The run in %s is finished after %d rounds: nothing was trained; a larger num_rounds extends it, another "
        "run name or `%s` starts over",
        location.where,
        last_round,
        command("rm", _name(location)),
    )


def tell_unmarked(location: Location) -> None:
    """Say at the end of a run that it does not count as finished, for the state of its last round is not saved."""
    logs.error(
        "%s: the state of the last round could not be stored (see above); the run is not marked as finished",
        location.where,
    )


def tell_end_unsaved(location: Location) -> None:
    """Say at the end of a run that its last commit failed."""
    logs.error(
        "%s: the end of the run could not be saved: the final model is not on disk. Make room, or mend what the "
        "errors above name, and start again",
        location.where,
    )


def tell_kept(location: Location, reader: RunReader) -> None:
    """Say at the end of a run what is kept of it, how large that is, and how to look at it."""
    try:
        kept = f" ({_kept(location, reader)})"
    except (OSError, CheckpointError) as error:  # all is on disk: a look at it that fails ends no run
        kept = ""
        logs.warning("%s cannot be looked at just now: %s", location.where, error)
    logs.info(
        "The run is finished and kept in %s%s; look at it with `%s`",
        location.where,
        kept,
        command("ls", _name(location)),
    )


def _kept(location: Location, reader: RunReader) -> str:
    rounds = sorted({name.round for name in reader.names() if name.phase != "attempt"})
    size = ""
    if location.folder is not None:  # elsewhere each file would be a request
        size = f", {readable_size(CheckpointStore(location).size())}"
    return f"{len(rounds)} rounds up to round {max(rounds, default=0)}{size}"


def _name(location: Location) -> str:
    """What a command knows a run by: its name, where it looks under the same home."""
    return location.label if location.home == checkpoint_home(None)[0] else location.where
