"""`ls` and `status`: which runs there are, how far they have come, and which rounds can be loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.text import Text

from ..store import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointStore,
    Location,
    RoundRecord,
    RunStatus,
    Server,
    checkpoint_home,
    locate,
    readable_age,
    readable_size,
    runs_under,
)
from .codes import ExitCode
from .options import (
    HomeOption,
    JsonOption,
    MetricOption,
    ModeOption,
    RunArgument,
    RunType,
    find_run,
    missing,
    mode_of,
)
from .render import Cell, Column, emit_json, fitting, moment, note, number, say, table

_USUAL = ("evaluate/loss", "central/loss", "train/loss")
_STATES = {
    ExitCode.DONE: "finished",
    ExitCode.FAILED: "damaged",
    ExitCode.MISSING: "missing",
    ExitCode.UNFINISHED: "unfinished",
    ExitCode.WRITING: "writing",
}


def ls(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="A run; all of them if left out.", click_type=RunType()),
    ] = None,
    metric: MetricOption = None,
    mode: ModeOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """List all runs under the checkpoint home, or the rounds of one that can be loaded."""
    if run is None:
        _list_runs(home, as_json)
    else:
        _list_rounds(find_run(run, home), metric, mode, as_json)


def status(run: RunArgument, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Say in one line how far a run has come; the exit code says it to scripts."""
    store = CheckpointStore(locate(run, home))
    found = store.status()
    code = code_of_status(found)
    if as_json:
        emit_json(_status_fields(store.location, found, store.size()))
    elif code == ExitCode.MISSING:
        raise missing(store)
    else:
        say(f"{run}: {_sentence(found, code, store.size())}")
    raise typer.Exit(code)


def code_of_status(status: RunStatus) -> ExitCode:
    """Sum a status up."""
    if not status.exists:
        return ExitCode.MISSING
    if status.damaged:
        return ExitCode.FAILED
    if status.finished:
        return ExitCode.DONE
    return ExitCode.WRITING if status.server is not None and status.server.writing else ExitCode.UNFINISHED


def rounds_done(status: RunStatus) -> str:
    """Say how many rounds a run has, and of how many: ``"31 of 50"``."""
    if status.round is None:
        return "-"
    return str(status.round) if status.num_rounds is None else f"{status.round} of {status.num_rounds}"


def server_said(server: Server | None) -> str:
    """Say what is known of the server that opened a run last."""
    if server is None:
        return "no server can be named"
    who = f"process {server.pid} on {server.host}"
    if server.command:
        return f"`flwr-ckpt {server.command}` ({who}) changed it last; a server that was at it stops at its next commit"
    if server.running:
        return f"{who} is writing it"
    return f"its last server ({who}) is gone" if server.running is False else f"its last server ({who}) is out of sight"


def _sentence(status: RunStatus, code: ExitCode, size: int) -> str:
    if code == ExitCode.FAILED:
        return "damaged: no checkpoint can be read; `flwr-ckpt verify` says why"
    if status.round is None or status.time is None:
        return f"nothing is saved yet; {server_said(status.server)}"
    saved = f"saved {moment(status.time)} ({readable_age(status.time)}), {readable_size(size)}"
    if code == ExitCode.DONE:
        return f"finished, round {rounds_done(status)}; {saved}"
    return f"not finished, round {rounds_done(status)}; {saved}; {server_said(status.server)}"


# --- all runs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """A run as it is listed: how far it has come, or why that cannot be told."""

    location: Location
    status: RunStatus | None
    size: int = 0
    problem: str = ""


def _list_runs(home: str | None, as_json: bool) -> None:
    runs = [run for run in map(_look_at, runs_under(home)) if run.status is None or run.status.exists]
    if as_json:
        emit_json([_run_fields(run) for run in runs])
        return
    if not runs:
        note(f"no runs under {checkpoint_home(home)[0]}")
        return
    columns = [Column("RUN"), Column("ROUND", right=True), Column("STATE"), Column("SIZE", right=True), Column("SAVED")]
    table(columns, [_run_cells(run) for run in runs])
    for run in runs:
        if run.problem:
            note(run.problem)


def _look_at(location: Location) -> _Run:
    try:
        store = CheckpointStore(location)
        return _Run(location, store.status(), store.size())
    except (CheckpointError, OSError) as error:  # one run of many is no reason to list none
        return _Run(location, None, problem=str(error))


def _run_cells(run: _Run) -> list[Cell]:
    status = run.status
    if status is None:
        return [run.location.label, "-", Text("unreadable", "red"), "-", "-"]
    code = code_of_status(status)
    style = {ExitCode.DONE: "green", ExitCode.FAILED: "red", ExitCode.WRITING: "yellow"}.get(code, "")
    state = Text(_STATES[code], style)
    return [run.location.label, rounds_done(status), state, readable_size(run.size), moment(status.time)]


def _run_fields(run: _Run) -> dict[str, Any]:
    if run.status is None:
        return {
            "run": run.location.label,
            "where": run.location.where,
            "state": "unreadable",
            "problem": run.problem,
        }
    return _status_fields(run.location, run.status, run.size)


def _status_fields(location: Location, status: RunStatus, size: int) -> dict[str, Any]:
    server = status.server
    return {
        "run": location.label,
        "where": location.where,
        "state": _STATES[code_of_status(status)],
        "round": status.round,
        "num_rounds": status.num_rounds,
        "phase": status.phase,
        "generation": status.generation,
        "time": status.time,
        "size": size,
        "restarts": list(status.restarts),
        "server": server and {"host": server.host, "pid": server.pid, "time": server.time, "running": server.running},
    }


# --- the rounds of one -------------------------------------------------------------------------------------------


def _list_rounds(store: CheckpointStore, metric: str | None, mode: str | None, as_json: bool) -> None:
    rounds = store.rounds()
    keys = _ordered({key for record in rounds for key in record.metrics}, metric)
    best = _best(store, keys, metric, mode)
    if as_json:
        emit_json([_round_fields(record, best) for record in rounds])
        return
    if not rounds:
        if store.status().damaged:
            raise CheckpointCorruptError(
                f"{store.location.where}: no round can be loaded; `flwr-ckpt verify` says what is wrong"
            )
        note(f"{store.location.where}: nothing is saved yet")
        return
    columns = [Column("ROUND", right=True), Column("PHASES"), Column("SAVED"), Column("SIZE", right=True)]
    columns += [Column("GEN", right=True), *(Column(key, right=True) for key in keys)]
    rows = [_round_cells(record, keys, best) for record in rounds]
    shown = fitting(columns, rows, 5)
    table(columns[:shown], [row[:shown] for row in rows])
    if best is not None:
        say(Text(f"* best {keys[0]} of the rounds that are kept", "dim"))
    if shown < len(columns):
        say(Text(f"not shown: {', '.join(column.title for column in columns[shown:])}", "dim"))


def _ordered(keys: set[str], metric: str | None) -> list[str]:
    """Order metrics: the one asked for, the losses, the others."""
    if metric is not None and metric not in keys:
        raise typer.BadParameter(
            f"no round that is kept has {metric!r}; there are {', '.join(sorted(keys)) or 'no metrics'}"
        )
    first = [key for key in (metric, *_USUAL) if key in keys and key is not None]
    return list(dict.fromkeys([*first, *sorted(keys)]))


def _best(store: CheckpointStore, keys: Sequence[str], metric: str | None, mode: str | None) -> int | None:
    if not keys or (keys[0] != metric and keys[0] not in _USUAL):
        return None
    found = store.best(keys[0], mode_of(keys[0], mode))
    return None if found is None else found.round


def _round_cells(record: RoundRecord, keys: Sequence[str], best: int | None) -> list[Cell]:
    is_best = record.round == best
    values = [number(record.metrics[key]) if key in record.metrics else "-" for key in keys]
    marked = Text(f"* {record.round}", "green") if is_best else str(record.round)
    phases = " ".join(record.phases)
    cells: list[Cell] = [marked, phases, moment(record.time), readable_size(record.size), str(record.generation)]
    return [*cells, *values]


def _round_fields(record: RoundRecord, best: int | None) -> dict[str, Any]:
    return {
        "round": record.round,
        "phases": record.phases,
        "time": record.time,
        "size": record.size,
        "generation": record.generation,
        "best": record.round == best,
        "metrics": record.metrics,
    }
