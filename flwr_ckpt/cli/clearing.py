"""`prune`, `rewind`, `fork` and `rm`: what changes a run, and so takes it over as a server does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from ..store import CheckpointStore, Keep, KeepAll, locate, parse_keep, readable_size
from .listing import rounds_done, server_said
from .options import HomeOption, JsonOption, RunArgument, YesOption, find_run, require_confirmed
from .render import emit_json, note, say

_ROUND = typer.Argument(metavar="ROUND", help="A round's number; `flwr-ckpt ls RUN` lists them.", show_default=False)


def prune(
    run: RunArgument,
    keep: Annotated[
        str | None,
        typer.Option("--keep", help='What stays: "latest:3|best:2:evaluate/loss:min|every:10".', show_default=False),
    ] = None,
    damaged: Annotated[bool, typer.Option("--damaged", help="What is damaged goes, too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Delete rounds by a policy; says first what would go, and asks. The newest sound round always stays."""
    if keep is None and not damaged:
        raise typer.BadParameter('say what stays, as in --keep "latest:3", or what goes: --damaged')
    policy: Keep = KeepAll() if keep is None else parse_keep(keep)
    store = find_run(run, home)
    if store.status().damaged:
        store.load()  # raises: of what is sound nothing would stay
    found = store.prunable(policy, damaged=damaged)
    if as_json:
        emit_json({"run": run, "rounds": found.rounds, "size": found.size, "dry_run": not yes})
    elif not found.size:
        say(f"{run}: nothing would go")
    else:
        say(f"{run}: {_numbered(found.rounds)} would go, {readable_size(found.size)}")
    if dry_run or not found.size or (as_json and not yes):
        return
    _warn_of_server(store)
    require_confirmed("Delete that?", yes=yes)
    store.prune(policy, damaged=damaged)
    if not as_json:
        say(f"{run}: deleted")


def rewind(
    run: RunArgument, server_round: Annotated[int, _ROUND], yes: YesOption = False, home: HomeOption = None
) -> None:
    """Let the next start of a run go on from an earlier round.

    Later rounds no longer count, and that server deletes them.
    """
    store = find_run(run, home)
    store.load(server_round)
    if _warn_of_server(store):
        require_confirmed("Stop it and go back?", yes=yes)
    store.rewind(server_round)
    say(f"{run}: the next start goes on after round {server_round}; what came later no longer counts")


def fork(
    run: RunArgument,
    new: Annotated[
        str, typer.Argument(metavar="NEW", help="The new run: a name, a path or a URL.", show_default=False)
    ],
    server_round: Annotated[
        int | None, typer.Option("--round", help="The newest if left out.", show_default=False)
    ] = None,
    home: HomeOption = None,
) -> None:
    """Make a new run from a round of another one, which stays as it is; nothing is shared but disk space."""
    made = find_run(run, home).fork(locate(new, home), server_round)
    say(f"{new}: a run of its own, which goes on after round {made.status().round} of {run}")


def rm(run: RunArgument, yes: YesOption = False, home: HomeOption = None) -> None:
    """Delete a whole run, and stop a server that is still writing it. Asks first."""
    store = find_run(run, home)
    status = store.status()
    _warn_of_server(store)
    what = f"{run} at {store.location.where} (round {rounds_done(status)}, {readable_size(store.size())})"
    require_confirmed(f"Delete {what}?", yes=yes)
    left = store.remove()
    say(f"{run}: deleted; a new run of the name begins at round 0")
    if left:
        note(f"{store.location.where} holds what is not the run's, and was left: {', '.join(sorted(left))}")


def _warn_of_server(store: CheckpointStore) -> bool:
    """Say that a server would be stopped; whether there is one."""
    status = store.status()
    running = status.server is not None and status.server.writing and not status.finished
    if running:
        note(f"{server_said(status.server)}: it will be fenced off, and stops at its next commit")
    return running


def _numbered(rounds: Sequence[int]) -> str:
    """Name rounds, in ranges: ``"rounds 1 to 7, 9"``."""
    ranges: list[list[int]] = []
    for number in rounds:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    if not ranges:
        return "no whole round"
    return ("rounds " if len(rounds) > 1 else "round ") + ", ".join(" to ".join(map(str, one)) for one in ranges)
