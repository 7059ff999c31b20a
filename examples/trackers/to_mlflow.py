"""Write the metrics of a run to MLflow."""

from __future__ import annotations

import argparse
import time

from mlflow import MlflowClient
from mlflow.entities import Metric

from record import rounds

TAG = "flwr-ckpt-run"  # by which an MLflow run is found again
BATCH = 1000  # as many as MLflow takes at once


def write(run: str, tracking_uri: str, experiment: str) -> str:
    """Log the rounds that the MLflow run lacks; return its id."""
    client = MlflowClient(tracking_uri)
    run_id = _find(client, run, experiment)
    logged = {
        metric: {point.step for point in client.get_metric_history(run_id, metric)}
        for metric in client.get_run(run_id).data.metrics
    }
    now = int(time.time() * 1000)
    points = [
        Metric(metric, value, now, server_round)
        for server_round, metrics in rounds(run).items()
        for metric, value in metrics.items()
        if server_round not in logged.get(metric, ())
    ]
    for begin in range(0, len(points), BATCH):
        client.log_batch(run_id, metrics=points[begin : begin + BATCH])
    client.set_terminated(run_id)
    return run_id


def _find(client: MlflowClient, run: str, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    experiment_id = client.create_experiment(name) if experiment is None else experiment.experiment_id
    found = client.search_runs([experiment_id], f"tags.`{TAG}` = '{run}'")
    return (found[0] if found else client.create_run(experiment_id, tags={TAG: run}, run_name=run)).info.run_id


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--tracking-uri", default="sqlite:///mlflow.db")
    parser.add_argument("--experiment", default="flower")
    arguments = parser.parse_args()
    write(arguments.run, arguments.tracking_uri, arguments.experiment)
