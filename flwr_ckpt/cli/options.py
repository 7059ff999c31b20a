"""Arguments and options that several commands have, and how what was typed becomes a run or a round."""

from __future__ import annotations

from typing import Annotated, get_args

import typer
from click import Context, ParamType
from click.shell_completion import CompletionItem

from ..store import (
    Checkpoint,
    CheckpointError,
    CheckpointNotFoundError,
    CheckpointStore,
    Mode,
    locate,
    runs_under,
)


class RunType(ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """A run as it is typed; a shell is offered those under the checkpoint home."""

    name = "run"

    def shell_complete(self, ctx: Context, param: object, incomplete: str) -> list[CompletionItem]:
        """Offer runs."""
        try:
            names = [location.label for location in runs_under(ctx.params.get("home"))]
        except (OSError, ValueError):
            return []  # a shell that is completing has no place for an error
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run name, an absolute path or a URL.", click_type=RunType(), show_default=False
    ),
]
RoundArgument = Annotated[str, typer.Argument(metavar="ROUND", help="A round's number, 'latest' or 'best'.")]
HomeOption = Annotated[
    str | None,
    typer.Option("--home", help="The checkpoint home; else $FLWR_CKPT_HOME, else ~/.flwr_ckpt.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON.")]
MetricOption = Annotated[
    str | None,
    typer.Option("--metric", help="What 'best' goes by, such as evaluate/loss.", show_default=False),
]
ModeOption = Annotated[
    str | None,
    typer.Option("--mode", help="min if small values are good, max if large ones are.", show_default=False),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def find_run(run: str, home: str | None) -> CheckpointStore:
    """Give the store of a run that is there.

    Raises
    ------
    CheckpointNotFoundError
        If there is none.
    """
    store = CheckpointStore(locate(run, home))
    if not store.status().exists:
        raise missing(store)
    return store


def missing(store: CheckpointStore) -> CheckpointNotFoundError:
    """Say that a run is not there."""
    location = store.location
    hint = "" if location.home is None else f"; `flwr-ckpt ls` lists what is under {location.home}"
    return CheckpointNotFoundError(f"{location.where}: there is no run here{hint}")


def pick(store: CheckpointStore, which: str, metric: str | None, mode: str | None) -> Checkpoint:
    """Load the round that was asked for.

    Raises
    ------
    CheckpointNotFoundError
        If there is no such round.
    typer.BadParameter
        If it is neither a number, ``latest`` nor ``best``.
    """
    if which == "latest":
        return store.load()
    if which.isascii() and which.isdigit():
        return store.load(int(which))
    if which != "best":
        raise typer.BadParameter(f"{which!r}: expected a round's number, 'latest' or 'best'")
    if metric is None:
        raise typer.BadParameter("best by what? give --metric, such as --metric evaluate/loss")
    best = store.best(metric, mode_of(metric, mode))
    if best is None:
        known = ", ".join(sorted(store.history())) or "none"
        raise CheckpointNotFoundError(
            f"{store.location.where}: no round that is kept has {metric!r}; there are {known}"
        )
    return store.load(best.round)


def mode_of(metric: str, mode: str | None) -> Mode:
    """Say whether small or large values of a metric are good; its name tells of a loss and of an accuracy."""
    if mode is not None:
        for known in get_args(Mode):
            if mode == known:
                return known  # type: ignore[no-any-return]  # one of the literals
        raise typer.BadParameter(f"--mode {mode!r}: expected min (small is good, as a loss) or max (as an accuracy)")
    name = metric.rpartition("/")[2].lower()
    if "loss" in name or "error" in name:
        return "min"
    if "acc" in name:
        return "max"
    raise typer.BadParameter(f"is {metric!r} good when it is small or when it is large? give --mode min or --mode max")


def require_confirmed(question: str, *, yes: bool) -> None:
    """Ask, unless told not to.

    Raises
    ------
    CheckpointError
        If the answer is no, or nobody is there to ask.
    """
    if yes:
        return
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort:
        agreed = False
    if not agreed:
        raise CheckpointError("nothing has been changed; --yes does it without asking")
