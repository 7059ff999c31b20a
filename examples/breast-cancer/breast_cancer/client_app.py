"""The client: nothing in it knows of checkpoints."""

from __future__ import annotations

from pathlib import Path

from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import Config, Context, Scalar

from breast_cancer.task import Floats, evaluate, load_partition, train


class BreastCancerClient(NumPyClient):
    """A hospital with a share of the patients."""

    def __init__(self, context: Context) -> None:
        self.partition_id = int(context.node_config["partition-id"])
        self.num_partitions = int(context.node_config["num-partitions"])
        self.features, self.labels = load_partition(self.partition_id, self.num_partitions)
        self.learning_rate = float(context.run_config["learning-rate"])
        self.progress_file = str(context.run_config["progress-file"])

    def fit(self, parameters: list[Floats], config: Config) -> tuple[list[Floats], int, dict[str, Scalar]]:
        """Train on this client's share, by a seed made of round and partition."""
        server_round = int(config["server_round"])
        if self.progress_file:
            with Path(self.progress_file).open("a") as file:
                file.write(f"{server_round} {self.partition_id}\n")

        seed = server_round * self.num_partitions + self.partition_id
        return train(parameters, self.features, self.labels, self.learning_rate, seed), len(self.labels), {}

    def evaluate(self, parameters: list[Floats], config: Config) -> tuple[float, int, dict[str, Scalar]]:
        """Evaluate the global model on this client's share."""
        loss, accuracy = evaluate(parameters, self.features, self.labels)
        return loss, len(self.labels), {"accuracy": accuracy}


def client_fn(context: Context) -> Client:
    """Make the client of one node."""
    return BreastCancerClient(context).to_client()


app = ClientApp(client_fn=client_fn)
