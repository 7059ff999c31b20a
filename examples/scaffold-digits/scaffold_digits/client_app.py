"""The client: it packs and unpacks as SCAFFOLD does, and keeps its own control variates."""

from __future__ import annotations

from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from scaffold_digits.task import Net, evaluate, load_partition, train, unpack
from scaffold_digits.variates import ControlVariates

app = ClientApp()


def _partition(context: Context) -> tuple[int, int]:
    return int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])


def _variates(context: Context, partition_id: int) -> ControlVariates:
    folder = Path(str(context.run_config["client-folder"]) or Path.home() / ".scaffold-digits")
    return ControlVariates(folder / str(context.run_config["checkpoint-run"]) / str(partition_id))


@app.train()
def train_round(message: Message, context: Context) -> Message:
    """Train on this client's share; return weights and the change of the client's control variates."""
    server_round = int(message.content["config"]["server-round"])
    partition_id, num_partitions = _partition(context)
    if progress := str(context.run_config["progress-file"]):
        with Path(progress).open("a") as file:
            file.write(f"{server_round} {partition_id}\n")

    model = Net()
    server_variates = unpack(model, message.content["arrays"].to_numpy_ndarrays())
    variates = _variates(context, partition_id)
    own = variates.before(server_round, server_variates)
    data = load_partition(partition_id, num_partitions)
    learning_rate = float(context.run_config["learning-rate"])
    seed = server_round * num_partitions + partition_id
    loss, new = train(model, data, learning_rate, seed, server_variates, own)
    variates.write(server_round, new)

    weights = [tensor.numpy() for tensor in model.state_dict().values()]
    changes = [(after - before).numpy() for after, before in zip(new, own, strict=True)]
    metrics = MetricRecord({"loss": loss, "num-examples": len(data)})
    content = RecordDict({"arrays": ArrayRecord([*weights, *changes]), "metrics": metrics})
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate_round(message: Message, context: Context) -> Message:
    """Evaluate the global model on this client's share."""
    model = Net()
    unpack(model, message.content["arrays"].to_numpy_ndarrays())
    data = load_partition(*_partition(context))
    loss, accuracy = evaluate(model, data)
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(data)})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)
