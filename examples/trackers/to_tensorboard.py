"""Write the metrics of a run to TensorBoard."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from tensorboard.summary import Writer

from record import rounds


def write(run: str, logdir: Path) -> None:
    """Write the run's folder anew: event files can only be appended to, and would show rounds twice."""
    folder = logdir / run.strip("/").replace("/", "-")
    shutil.rmtree(folder, ignore_errors=True)
    writer = Writer(str(folder))
    for server_round, metrics in rounds(run).items():
        for metric, value in metrics.items():
            writer.add_scalar(metric, value, server_round)
    writer.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--logdir", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    write(arguments.run, arguments.logdir)
