"""Logistic regression in NumPy, on data that scikit-learn ships."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer

HELD_OUT = 119
BATCH_SIZE = 16
NUM_FEATURES = 30

Floats = NDArray[np.float64]


def initial_model() -> list[Floats]:
    """Return weights and bias."""
    return [np.zeros(NUM_FEATURES), np.zeros(1)]


def _load_all() -> tuple[Floats, Floats]:
    features, labels = load_breast_cancer(return_X_y=True)
    return (features - features.mean(0)) / features.std(0), labels.astype(np.float64)


def load_held_out() -> tuple[Floats, Floats]:
    """Load the patients that no client has."""
    features, labels = _load_all()
    return features[-HELD_OUT:], labels[-HELD_OUT:]


def load_partition(partition_id: int, num_partitions: int) -> tuple[Floats, Floats]:
    """Load one client's share."""
    features, labels = _load_all()
    return features[:-HELD_OUT][partition_id::num_partitions], labels[:-HELD_OUT][partition_id::num_partitions]


def _probabilities(model: list[Floats], features: Floats) -> Floats:
    weights, bias = model
    return 1 / (1 + np.exp(-(features @ weights + bias)))


def train(model: list[Floats], features: Floats, labels: Floats, learning_rate: float, seed: int) -> list[Floats]:
    """Train for one epoch; the same seed gives the same bits."""
    weights, bias = (array.copy() for array in model)
    order = np.random.default_rng(seed).permutation(len(labels))
    for batch in np.array_split(order, max(1, len(order) // BATCH_SIZE)):
        error = _probabilities([weights, bias], features[batch]) - labels[batch]
        weights -= learning_rate * (error @ features[batch]) / len(batch)
        bias -= learning_rate * error.mean()
    return [weights, bias]


def evaluate(model: list[Floats], features: Floats, labels: Floats) -> tuple[float, float]:
    """Return loss and accuracy."""
    probabilities = np.clip(_probabilities(model, features), 1e-12, 1 - 1e-12)
    loss = -np.mean(labels * np.log(probabilities) + (1 - labels) * np.log(1 - probabilities))
    return float(loss), float(np.mean((probabilities > 0.5) == labels))
