"""Softmax regression on scikit-learn's digits in plain NumPy, dealt out so that each client has one or two digits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from flwr.common import NDArray, NDArrays

HELD_OUT = 297
BATCH_SIZE = 32


@dataclass(frozen=True)
class Digits:
    """Images and labels, and which of them each client has."""

    images: NDArray
    labels: NDArray
    shares: list[NDArray]
    held_out: NDArray
    seed: int

    @classmethod
    def split(cls, num_clients: int, seed: int) -> Digits:
        """Hold some images out, and deal out the others in the order of their labels."""
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(seed).permutation(len(labels))
        held_out, rest = order[:HELD_OUT], order[HELD_OUT:]
        shares = np.array_split(rest[np.argsort(labels[rest], kind="stable")], num_clients)
        return cls(images / 16, labels, shares, held_out, seed)

    def gradients(self, partition: int, server_round: int) -> Batches:
        """The client's gradients of one round: the same batches each time the round is trained."""
        return Batches(self, self.shares[partition], np.random.default_rng([self.seed, server_round, partition]))

    def train_loss(self, weights: NDArrays) -> float:
        """The mean loss over what all clients have."""
        return _loss(weights, self, np.concatenate(self.shares))

    def accuracy(self, weights: NDArrays) -> float:
        """The accuracy on images that no client has."""
        layer, bias = weights
        found = (self.images[self.held_out] @ layer + bias).argmax(1)
        return float((found == self.labels[self.held_out]).mean())


@dataclass
class Batches:
    """Gradients of the loss, each on another batch."""

    digits: Digits
    share: NDArray
    generator: np.random.Generator

    def __call__(self, weights: NDArrays) -> NDArrays:
        batch = self.generator.choice(self.share, BATCH_SIZE)
        images, labels = self.digits.images[batch], self.digits.labels[batch]
        error = _probabilities(weights, images)
        error[np.arange(BATCH_SIZE), labels] -= 1.0
        error /= BATCH_SIZE
        return [images.T @ error, error.sum(0)]

    def descend(self, weights: NDArrays, steps: int, learning_rate: float) -> NDArrays:
        """Plain stochastic gradient descent."""
        for _ in range(steps):
            weights = [y - learning_rate * g for y, g in zip(weights, self(weights), strict=True)]
        return weights

    def loss(self, weights: NDArrays) -> float:
        """The mean loss over the client's share."""
        return _loss(weights, self.digits, self.share)


def first_weights() -> NDArrays:
    return [np.zeros((64, 10)), np.zeros(10)]


def _probabilities(weights: NDArrays, images: NDArray) -> NDArray:
    layer, bias = weights
    logits = images @ layer + bias
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    result: NDArray = exponentials / exponentials.sum(1, keepdims=True)
    return result


def _loss(weights: NDArrays, digits: Digits, rows: NDArray) -> float:
    probabilities = _probabilities(weights, digits.images[rows])
    return float(-np.log(probabilities[np.arange(len(rows)), digits.labels[rows]]).mean())
