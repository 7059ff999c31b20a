"""`supervise`: starts a run again until it is finished."""

from __future__ import annotations

from typing import Annotated

import typer

from ..store import CheckpointStore, locate
from .attempts import Child
from .options import HomeOption, RunArgument
from .supervisor import Supervisor


def supervise(
    run: RunArgument,
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND...", help="What starts the server.", show_default=False)
    ],
    attempts: Annotated[
        int, typer.Option("--attempts", min=1, help="Give up after so many in a row without a new commit.")
    ] = 3,
    pause: Annotated[float, typer.Option("--pause", min=0, help="Seconds between two attempts.")] = 5.0,
    home: HomeOption = None,
) -> None:
    """Start a run, and start it again until it is finished: flwr-ckpt supervise digits -- flwr run . --stream

    Whether it is finished is read from its checkpoints, for `flwr run` ends well also when the run has failed.
    """
    store = CheckpointStore(locate(run, home))
    supervisor = Supervisor(store, run, lambda: Child(command), patience=attempts, pause=pause)
    with supervisor.taking_signals():
        raise typer.Exit(supervisor.run())
