"""The program `flwr-ckpt`: its commands, its own options, and how errors become one line and an exit code."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Annotated, Any

import typer
from click import UsageError
from typer.core import TyperGroup

from ..store import CheckpointError
from . import clearing, comparing, exporting, listing, plotting, showing, supervising, verifying
from .codes import ExitCode, code_of
from .render import note

_HELP = """Look at the checkpoints of Flower runs, and keep them in order.

A RUN is a run name (under ~/.flwr_ckpt, or wherever $FLWR_CKPT_HOME says), an absolute path or a URL.

Exit codes: 0 done; 1 an error, or damage; 2 no such run, or a wrong command; 3 not finished; 4 not finished and being
written by a server on this host; 5 taken over by another server."""


class Program(TyperGroup):
    """The group of commands: it says what went wrong in one line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Find ``--debug`` wherever it stands: who wants to see more has typed the command already."""
        own = args[: args.index("--")] if "--" in args else args
        ctx.meta["flwr_ckpt.debug"] = "--debug" in own
        rest = [arg for arg in own if arg != "--debug"] + args[len(own) :]
        return super().parse_args(ctx, rest or ["--help"])

    def invoke(self, ctx: Any) -> Any:
        """Run a command; an error of ours, of the disk or of a value given ends it."""
        with _warnings_as_lines():
            try:
                return super().invoke(ctx)
            except UsageError as error:
                command = " ".join(filter(None, ("flwr-ckpt", ctx.invoked_subcommand, "--help")))
                note(f"{error.format_message()} (see {command})")
                sys.exit(ExitCode.MISSING)
            except (CheckpointError, OSError, ValueError, ImportError) as error:
                if ctx.meta["flwr_ckpt.debug"]:
                    raise
                note("; ".join(filter(None, map(str.strip, str(error).splitlines()))))
                sys.exit(code_of(error))


app = typer.Typer(cls=Program, help=_HELP, pretty_exceptions_enable=False)


def _version(on: bool) -> None:
    if on:
        typer.echo(f"flwr-ckpt {metadata.version('flwr-ckpt')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", is_eager=True, callback=_version)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Take what is for all commands; `Program` looks for ``--debug`` itself."""


_COMMANDS: dict[str, Callable[..., None]] = {
    "ls": listing.ls,
    "status": listing.status,
    "show": showing.show,
    "verify": verifying.verify,
    "diff": comparing.diff,
    "export": exporting.export,
    "plot": plotting.plot,
    "prune": clearing.prune,
    "rewind": clearing.rewind,
    "fork": clearing.fork,
    "rm": clearing.rm,
    "supervise": supervising.supervise,
}
for name, command in _COMMANDS.items():
    app.command(name)(command)


def main() -> None:
    """Run the program."""
    app(prog_name="flwr-ckpt")


class _Lines(logging.Handler):
    """Each warning as one line, and once: a command may look at a run more than once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{record.levelname.lower()}: {record.getMessage()}"
        if line not in self._shown:
            self._shown.add(line)
            note(line)


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Show what the store warns of as lines of this program, not in the form of a server's log."""
    logger, ours = logging.getLogger("flwr"), _Lines()
    others = logger.handlers[:]
    logger.handlers[:] = [ours]
    try:
        yield
    finally:
        logger.handlers[:] = others
