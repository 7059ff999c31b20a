"""One measurement in a process of its own, so that none finds what another one has left in memory."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .arrays import Layout
from .strategy_state import ArraysInPlace, LongTraining, ManyValues, NoState

_STATE_ARRAYS = 100


@dataclass(frozen=True)
class Task:
    """What a process measures.

    Attributes
    ----------
    kind : str
        ``"rounds"`` or ``"long"``: which module measures.
    contender : str
    layout : Layout
    rounds : int
    loads : int
    state : str
        What the strategy has of its own, ``"none"``, ``"arrays"`` or ``"values"``; ``"long"`` is none, and training
        that takes its time.
    state_size : int
        Bytes of all its arrays, or the number of values.
    keep : str
        Retention of a long run, as in a run config.
    """

    kind: str
    contender: str
    layout: Layout
    rounds: int
    loads: int = 0
    state: str = "none"
    state_size: int = 0
    keep: str = ""


def run(task: Task, scratch: Path) -> dict[str, Any]:
    """Have a task done by another process, in a folder that is removed afterwards.

    Raises
    ------
    RuntimeError
        If it failed, with what it printed.
    """
    folder = Path(tempfile.mkdtemp(prefix="flwr-ckpt-bench-", dir=scratch))
    try:
        command = [sys.executable, "-m", __name__, json.dumps(asdict(task)), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
        if done.returncode:
            raise RuntimeError(f"{task}: exit status {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
        return result
    finally:
        shutil.rmtree(folder)


def _environment() -> dict[str, str]:
    return {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}


def _do(task: Task, folder: Path) -> Any:
    if task.kind == "long":
        from .long_run import measure_long

        return measure_long(task.layout, task.rounds, task.keep, folder)
    from .rounds import measure

    return measure(task.contender, task.layout, task.rounds, task.loads, _state(task), folder)


def _state(task: Task) -> NoState:
    if task.state == "arrays":
        return ArraysInPlace(_STATE_ARRAYS, task.state_size // _STATE_ARRAYS)
    if task.state == "values":
        return ManyValues(task.state_size)
    return LongTraining() if task.state == "long" else NoState()


def main() -> None:
    """Do what the arguments say."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    fields, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    task = Task(**{**fields, "layout": Layout(**fields["layout"])})
    result = _do(task, folder)
    (folder / "result.json").write_text(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
