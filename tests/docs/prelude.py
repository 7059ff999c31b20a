"""What the pages take for granted: an app, a model, clients that answer at once, and a run that is there."""

from __future__ import annotations

from typing import Any

import flwr.server
import flwr.server.strategy
import flwr.serverapp.strategy
import numpy as np
import torch
from flwr.app import ArrayRecord, Context, RecordDict
from flwr.common import ndarrays_to_parameters
from flwr.serverapp import ServerApp
from torch import nn

from flwr_ckpt import CheckpointingStrategy, CheckpointStore
from tests.lab import legacy, message


class Net(nn.Module):
    """A model with the names that the pages use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 3)
        self.fc = nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.conv1(images)).flatten(1))


class Servers:
    """Runs the servers that a page defines, each with node ids of its own."""

    def __init__(self, run_config: dict[str, Any]) -> None:
        self.context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=run_config)
        self._started = 0

    def run(self, names: dict[str, Any]) -> None:
        """Run the server that a block has defined: the legacy API's if there is one."""
        self._started += 1
        if "server_fn" in names:
            components = names.pop("server_fn")(self.context)
            legacy.serve(components.strategy, legacy.clients(self._started), components.config.num_rounds)
            components.strategy.close()
        else:
            names["app"](message.FakeGrid(message.average_client, self._started), self.context)
        names["app"] = ServerApp()


def make_names(run_config: dict[str, Any]) -> dict[str, Any]:
    """Make what a page begins with."""
    initial = ndarrays_to_parameters([value.numpy() for value in Net().state_dict().values()])
    return {
        "app": ServerApp(),
        "ArrayRecord": ArrayRecord,
        "CheckpointingStrategy": CheckpointingStrategy,
        "CheckpointStore": CheckpointStore,
        "FedAdam": flwr.serverapp.strategy.FedAdam,
        "FedAvg": flwr.serverapp.strategy.FedAvg,
        "initial_parameters": initial,
        "Net": Net,
        "nn": nn,
        "np": np,
        "torch": torch,
    }


def train(run: str, num_rounds: int) -> None:
    """Make a run."""
    torch.manual_seed(1)
    strategy = CheckpointingStrategy(flwr.serverapp.strategy.FedAvg(), run, seed=1)
    grid = message.FakeGrid(message.average_client, 1)
    message.start(strategy, grid, num_rounds=num_rounds, arrays=ArrayRecord(Net().state_dict()), evaluate_fn=None)
