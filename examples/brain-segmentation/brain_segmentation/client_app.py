"""The client: it describes its part of the brain once, then trains what the server has planned."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from monai.networks.nets import DynUNet
from torch.utils.data import TensorDataset

from brain_segmentation.plans import Plan
from brain_segmentation.task import evaluate, fingerprint, load_part, prepare, train

app = ClientApp()


def _part(context: Context) -> tuple[torch.Tensor, torch.Tensor]:
    return load_part(int(context.node_config["partition-id"]), int(context.node_config["num-partitions"]))


def _note(context: Context, server_round: int) -> None:
    if progress := str(context.run_config["progress-file"]):
        with Path(progress).open("a") as file:
            file.write(f"{server_round} {context.node_config['partition-id']}\n")


def _received(message: Message, context: Context) -> tuple[DynUNet, TensorDataset, TensorDataset]:
    plan = Plan.from_config(message.content["config"])
    model = plan.build()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return model, *prepare(*_part(context), plan)


@app.query("fingerprint")
def describe(message: Message, context: Context) -> Message:
    """Tell the server what this client's images look like."""
    _note(context, 0)
    images, _ = _part(context)
    return Message(content=RecordDict({"fingerprint": ConfigRecord(asdict(fingerprint(images)))}), reply_to=message)


@app.train()
def train_round(message: Message, context: Context) -> Message:
    """Train on this client's part."""
    server_round = int(message.content["config"]["server-round"])
    _note(context, server_round)
    model, data, _ = _received(message, context)
    seed = server_round * int(context.node_config["num-partitions"]) + int(context.node_config["partition-id"])
    loss = train(model, data, float(context.run_config["learning-rate"]), seed)
    metrics = MetricRecord({"loss": loss, "num-examples": len(data)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate_round(message: Message, context: Context) -> Message:
    """Evaluate the global model on what this client has held out."""
    model, _, held_out = _received(message, context)
    loss, (grey, white) = evaluate(model, held_out)
    metrics = MetricRecord({"loss": loss, "dice-grey": grey, "dice-white": white, "num-examples": len(held_out)})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)
