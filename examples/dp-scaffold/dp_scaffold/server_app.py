"""The server: SCAFFOLD over private clients, its best model, and a count of what their noise has cost."""

from __future__ import annotations

from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from opacus import GradSampleModule
from opacus.accountants import RDPAccountant

from dp_scaffold.task import Net, Privacy, evaluate, load_held_out, unpack
from flwr_ckpt import CheckpointingStrategy
from flwr_ckpt.checkpointers import BestLossOpacusCheckpointer
from flwr_ckpt.server_module import DpScaffoldServerCheckpointAndStateModule
from flwr_ckpt.strategies import Scaffold

app = ServerApp()


def _module(context: Context) -> DpScaffoldServerCheckpointAndStateModule:
    folder = Path(str(context.run_config["model-folder"]) or Path.home() / ".dp-scaffold")
    best = BestLossOpacusCheckpointer(folder / str(context.run_config["checkpoint-run"]), "best.safetensors")
    return DpScaffoldServerCheckpointAndStateModule(GradSampleModule(Net()), best)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for the rounds that are still missing."""
    torch.manual_seed(2026)  # of the first model, not of any noise
    model = Net()
    privacy, delta = Privacy.of(context), float(context.run_config["delta"])
    accountant = RDPAccountant()
    strategy = CheckpointingStrategy.from_run_config(
        Scaffold(model=model, fraction_evaluate=0.0, min_available_nodes=int(context.run_config["num-clients"])),
        context,
        module=_module(context),
        extra_state={"accountant": accountant},
    )

    def evaluate_held_out(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Evaluate the global model on public patients, and count what this round has cost.

        Clients have different patients, so what one of them spends is what all do. Each time that a round was sent
        they made noisy gradients, even if the server was killed before it heard of them.
        """
        for _ in range(strategy.attempts.get(server_round, 0) * privacy.steps):
            accountant.step(noise_multiplier=privacy.noise_multiplier, sample_rate=privacy.sample_rate)
        evaluated = Net()
        unpack(evaluated, arrays.to_numpy_ndarrays())
        loss, accuracy = evaluate(evaluated, load_held_out())
        return MetricRecord({"loss": loss, "accuracy": accuracy, "epsilon": float(accountant.get_epsilon(delta))})

    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=int(context.run_config["num-server-rounds"]),
        evaluate_fn=evaluate_held_out,
    )
