"""Write the metrics of a run to Weights & Biases."""

from __future__ import annotations

import argparse
import hashlib

import wandb

from record import rounds


def write(run: str, project: str) -> None:
    """Log the rounds that the W&B run lacks; its id is made of the run's name, so that it is found again."""
    run_id = hashlib.sha256(run.encode()).hexdigest()[:16]
    with wandb.init(project=project, id=run_id, name=run, resume="allow") as tracked:
        lacking = tracked.step  # the next step that W&B waits for: 0 in a new run, and always when offline
        for server_round, metrics in rounds(run).items():
            if server_round >= lacking:
                tracked.log(metrics, step=server_round)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--project", default="flower")
    arguments = parser.parse_args()
    write(arguments.run, arguments.project)
