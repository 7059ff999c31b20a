"""The server: SCAFFOLD, and one line that lets it be killed."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from flwr_ckpt import CheckpointingStrategy
from flwr_ckpt.strategies import Scaffold
from scaffold_digits.task import Net, evaluate, load_held_out, unpack

app = ServerApp()


def evaluate_held_out(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Evaluate the global model on images that no client has."""
    model = Net()
    unpack(model, arrays.to_numpy_ndarrays())
    loss, accuracy = evaluate(model, load_held_out())
    return MetricRecord({"loss": loss, "accuracy": accuracy})


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for the rounds that are still missing."""
    torch.manual_seed(2026)
    model = Net()
    strategy = Scaffold(model=model, min_available_nodes=int(context.run_config["num-clients"]))
    strategy = CheckpointingStrategy.from_run_config(strategy, context, seed=2026)  # the one line
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=int(context.run_config["num-server-rounds"]),
        evaluate_fn=evaluate_held_out,
    )
