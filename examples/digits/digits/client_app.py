"""The client: nothing in it knows of checkpoints."""

from __future__ import annotations

from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits.task import Net, evaluate, load_partition, train

app = ClientApp()


def _partition(context: Context) -> tuple[int, int]:
    return int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])


def _model(message: Message) -> Net:
    model = Net()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return model


@app.train()
def train_round(message: Message, context: Context) -> Message:
    """Train on this client's share, by a seed made of round and partition."""
    server_round = int(message.content["config"]["server-round"])
    partition_id, num_partitions = _partition(context)
    if progress := str(context.run_config["progress-file"]):
        with Path(progress).open("a") as file:
            file.write(f"{server_round} {partition_id}\n")

    model = _model(message)
    data, _ = load_partition(partition_id, num_partitions)
    learning_rate = float(context.run_config["learning-rate"])
    loss = train(model, data, learning_rate, seed=server_round * num_partitions + partition_id)
    metrics = MetricRecord({"loss": loss, "num-examples": len(data)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate_round(message: Message, context: Context) -> Message:
    """Evaluate the global model on this client's share."""
    _, data = load_partition(*_partition(context))
    loss, accuracy = evaluate(_model(message), data)
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(data)})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)
