"""The server: it learns the architecture from its clients, once, and keeps it with the run."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from brain_segmentation.plans import Fingerprint, Plan
from flwr_ckpt import CheckpointingStrategy
from flwr_ckpt.checkpointers import BestLossTorchModuleCheckpointer, PerRoundStateCheckpointer
from flwr_ckpt.parameter_exchange import FullParameterExchanger
from flwr_ckpt.server_module import NnUnetServerCheckpointAndStateModule

app = ServerApp()

PLANNED = "planned"  # the name of the state that is saved before round 1


def ask_for_plan(grid: Grid, num_clients: int) -> Plan:
    """Ask clients what their images look like, and plan for all of them."""
    while len(node_ids := list(grid.get_node_ids())) < num_clients:
        time.sleep(1)
    questions = [
        Message(content=RecordDict(), dst_node_id=node_id, message_type="query.fingerprint") for node_id in node_ids
    ]
    replies = list(grid.send_and_receive(questions))
    failed = [reply.error.reason for reply in replies if reply.has_error()]
    if failed or len(replies) < num_clients:
        raise RuntimeError(f"{len(replies)} of {num_clients} clients have described their images; errors: {failed}")
    return Plan.of([Fingerprint(**reply.content["fingerprint"]) for reply in replies])


def planned(module: NnUnetServerCheckpointAndStateModule, grid: Grid, num_clients: int) -> tuple[Plan, ArrayRecord]:
    """Give the module its model; return the plan and the first arrays, which are those of the run's first start."""
    state = module.maybe_load_state(PLANNED)
    if state is not None:
        plan = Plan.from_config(state["plan"])
        module.model = plan.build()
        return plan, state["server_parameters"]
    plan = ask_for_plan(grid, num_clients)
    torch.manual_seed(2026)
    module.model = plan.build()
    arrays = ArrayRecord(module.model.state_dict())
    module.save_state(PLANNED, arrays, {"plan": plan.to_config()})
    return plan, arrays


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Plan if that has not been done, and train for the rounds that are still missing."""
    folder = Path(str(context.run_config["model-folder"]) or Path.home() / ".brain-segmentation")
    num_clients = int(context.run_config["num-clients"])
    module = NnUnetServerCheckpointAndStateModule(
        parameter_exchanger=FullParameterExchanger(),
        model_checkpointers=BestLossTorchModuleCheckpointer(folder, "best.safetensors"),
        state_checkpointer=PerRoundStateCheckpointer(folder / "run"),
    )
    plan, arrays = planned(module, grid, num_clients)
    # The run lies where the module keeps its state.
    strategy = CheckpointingStrategy(FedAvg(min_available_nodes=num_clients), module=module, seed=2026)
    strategy.start(
        grid=grid,
        initial_arrays=arrays,
        num_rounds=int(context.run_config["num-server-rounds"]),
        train_config=ConfigRecord(plan.to_config()),
        evaluate_config=ConfigRecord(plan.to_config()),
    )
