"""What all trackers are given: the record of a run, a round at a time."""

from __future__ import annotations

from flwr_ckpt import CheckpointStore


def rounds(run: str) -> dict[int, dict[str, float]]:
    """Collect the metrics of each round that are numbers, rounds in order; a tracker draws nothing else."""
    found: dict[int, dict[str, float]] = {}
    for metric, values in CheckpointStore(run).history().items():
        for server_round, value in values.items():
            if isinstance(value, (int, float)):
                found.setdefault(server_round, {})[metric] = float(value)
    return dict(sorted(found.items()))
