"""The command line in process, and runs to look at."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp.strategy import FedAdam
from lab import message
from typer.testing import CliRunner

from flwr_ckpt import CheckpointingStrategy, KeepAll
from flwr_ckpt.cli.app import app
from flwr_ckpt.store import Blob, Draft, Outcome, RunWriter, locate


@dataclass(frozen=True)
class Ran:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """What it wrote, which is JSON and nothing else."""
        return json.loads(self.out, parse_constant=_no_constant)


def ran(*args: object, answer: str = "") -> Ran:
    """Give a command, and an answer to what it asks."""
    try:
        runner = CliRunner(mix_stderr=False)  # click before 8.2
    except TypeError:
        runner = CliRunner()
    result = runner.invoke(app, list(map(str, args)), input=answer, prog_name="flwr-ckpt")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


def _no_constant(text: str) -> None:
    raise AssertionError(f"{text} is not JSON")


def digits(folder: Path, *, num_rounds: int = 3) -> Path:
    """A run of FedAdam, finished."""
    strategy = CheckpointingStrategy(FedAdam(eta=0.01, min_available_nodes=2), folder, keep=KeepAll(), seed=1)
    message.start(strategy, message.FakeGrid(message.average_client, 1), num_rounds=num_rounds)
    return folder


def opened(folder: Path) -> RunWriter:
    """A server without Flower."""
    return RunWriter.open(locate(folder), KeepAll())


def blob(name: str, array: np.ndarray[Any, Any]) -> Blob:
    """An array as Flower hands it over."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return Blob(name, buffer.getvalue(), "npy", str(array.dtype), array.shape, "numpy.ndarray")


def written(writer: RunWriter, *rounds: int, num_rounds: int | None = None, **metrics: Mapping[int, Any]) -> None:
    """Write rounds of a small model; metrics by name, round to value."""
    for number in rounds:
        outcome = Outcome(number, "train", True, {name: of[number] for name, of in metrics.items() if number in of})
        arrays = (blob("w", np.full((2, 3), float(number))), blob("n", np.arange(3)))
        documents = {"identity": {"num_rounds": num_rounds, "app": "lab/app"}}
        phase = "train" if number else "initial"
        writer.commit(Draft(number, phase, arrays, (), documents, (outcome,) if number else ()))


def unfinished(folder: Path, rounds: int = 2, num_rounds: int = 5, **metrics: Mapping[int, Any]) -> RunWriter:
    """A run that is not finished, and the server that has it."""
    writer = opened(folder)
    written(writer, *range(rounds + 1), num_rounds=num_rounds, **metrics)
    return writer


def flip(path: Path) -> None:
    """Damage one byte of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40
    path.write_bytes(data)


def copied(source: Path, target: Path) -> Path:
    """A copy of a run."""
    shutil.copytree(source, target)
    return target


def listing(folder: Path) -> list[str]:
    """The files of a folder."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
