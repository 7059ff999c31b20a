"""The server: FedAvgM of the legacy API, and one line that lets it be killed."""

from __future__ import annotations

from flwr.common import Context, Metrics, Scalar, ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvgM

from breast_cancer.task import Floats, evaluate, initial_model, load_held_out
from flwr_ckpt import CheckpointingStrategy


def evaluate_held_out(server_round: int, model: list[Floats], config: dict[str, Scalar]) -> tuple[float, Metrics]:
    """Evaluate the global model on patients that no client has."""
    loss, accuracy = evaluate(model, *load_held_out())
    return loss, {"accuracy": accuracy}


def mean_accuracy(results: list[tuple[int, Metrics]]) -> Metrics:
    """Average the clients' accuracies by their numbers of examples."""
    total = sum(num_examples for num_examples, _ in results)
    return {"accuracy": sum(num_examples * float(metrics["accuracy"]) for num_examples, metrics in results) / total}


def server_fn(context: Context) -> ServerAppComponents:
    """Configure the server for the rounds that are still missing."""
    strategy = FedAvgM(
        server_momentum=0.9,
        min_available_clients=int(context.run_config["num-clients"]),
        initial_parameters=ndarrays_to_parameters(initial_model()),
        on_fit_config_fn=lambda server_round: {"server_round": server_round},
        evaluate_fn=evaluate_held_out,
        evaluate_metrics_aggregation_fn=mean_accuracy,
    )
    strategy = CheckpointingStrategy(strategy, "breast-cancer", seed=2026)  # the one line
    config = ServerConfig(num_rounds=int(context.run_config["num-server-rounds"]))
    return ServerAppComponents(strategy=strategy, config=config)


app = ServerApp(server_fn=server_fn)
