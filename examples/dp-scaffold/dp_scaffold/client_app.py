"""The client: private training, and control variates of its own.

It returns noisy arrays and nothing else of its patients: a loss on them would cost privacy that nobody counts.
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from dp_scaffold.task import Net, Privacy, load_partition, train, unpack
from dp_scaffold.variates import ControlVariates

app = ClientApp()


def _variates(context: Context, partition_id: int) -> ControlVariates:
    folder = Path(str(context.run_config["client-folder"]) or Path.home() / ".dp-scaffold")
    return ControlVariates(folder / str(context.run_config["checkpoint-run"]) / str(partition_id))


@app.train()
def train_round(message: Message, context: Context) -> Message:
    """Train on this client's share; return weights and the change of the client's control variates."""
    server_round = int(message.content["config"]["server-round"])
    partition_id = int(context.node_config["partition-id"])
    if progress := str(context.run_config["progress-file"]):
        with Path(progress).open("a") as file:
            file.write(f"{server_round} {partition_id}\n")

    model = Net()
    server_variates = unpack(model, message.content["arrays"].to_numpy_ndarrays())
    variates = _variates(context, partition_id)
    own = variates.before(server_round, server_variates)
    data = load_partition(partition_id, int(context.node_config["num-partitions"]))
    learning_rate = float(context.run_config["learning-rate"])
    new = train(model, data, learning_rate, Privacy.of(context), server_variates, own)
    variates.write(server_round, new)

    weights = [tensor.numpy() for tensor in model.state_dict().values()]
    changes = [(after - before).numpy() for after, before in zip(new, own, strict=True)]
    metrics = MetricRecord({"num-examples": len(data)})
    content = RecordDict({"arrays": ArrayRecord([*weights, *changes]), "metrics": metrics})
    return Message(content=content, reply_to=message)
