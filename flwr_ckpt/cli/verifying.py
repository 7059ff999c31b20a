"""`verify`: whether every byte is what was written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.progress import Progress
from rich.text import Text

from ..store import Verified
from .codes import ExitCode
from .options import HomeOption, JsonOption, RunArgument, find_run
from .render import console, counted, emit_json, printable, say


def verify(run: RunArgument, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Read every byte that a run refers to, and compare it with what was written; 1 if something is damaged."""
    store = find_run(run, home)
    with _progress() as progress:
        results = store.verify(progress)
    damaged = [result for result in results if not result.ok]
    if as_json:
        emit_json([_fields(result) for result in results])
    else:
        _tell(run, results, damaged)
    raise typer.Exit(ExitCode.FAILED if damaged else ExitCode.DONE)


def _tell(run: str, results: list[Verified], damaged: list[Verified]) -> None:
    for result in damaged:
        what = "fence" if result.round is None else f"round {result.round} ({result.phase})"
        for problem in result.problems:
            say(Text("damaged", "red"), f"  {what}: {printable(problem)}")
    commits, rounds = len(results), len({result.round for result in results})
    if not damaged:
        say(f"{run}: every byte of {counted(commits, 'commit')} in {counted(rounds, 'round')} is what was written")
        return
    sound = {result.round for result in results} - {result.round for result in damaged}
    newest = max((number for number in sound if number is not None), default=None)
    if len(damaged) == commits:
        say(f"{run}: all of {counted(commits, 'commit')} are damaged; restore the folder from a backup")
        return
    say(
        f"{run}: {len(damaged)} of {counted(commits, 'commit')} are damaged; "
        + ("no round is whole" if newest is None else f"the newest round that is whole is {newest}")
        + ". A server that starts takes the newest sound commit by itself; "
        f"`flwr-ckpt prune {run} --damaged` clears away what is damaged"
    )


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Draw a bar on standard error while work goes on, if somebody is looking."""
    out = console(stderr=True)
    if not out.is_terminal:
        yield lambda done, of: None
        return
    with Progress(console=out, transient=True) as bar:
        task = bar.add_task("verifying", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def _fields(result: Verified) -> dict[str, Any]:
    return {
        "round": result.round,
        "phase": result.phase,
        "generation": result.generation,
        "path": result.path,
        "ok": result.ok,
        "problems": list(result.problems),
    }
