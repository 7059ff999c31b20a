"""The model, the data, and private training as DP-SCAFFOLD's clients do it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Context
from opacus import GradSampleModule
from opacus.data_loader import DPDataLoader
from opacus.optimizers import DPOptimizer
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.utils.data import TensorDataset

HELD_OUT = 119
NUM_FEATURES = 30
RADIUS = 0  # the feature that clients differ by


@dataclass(frozen=True)
class Privacy:
    """What a client's noise is, and what it costs.

    Attributes
    ----------
    noise_multiplier : float
        Standard deviation of the noise, in units of `max_grad_norm`.
    max_grad_norm : float
        What each patient's gradient is clipped to.
    sample_rate : float
        The probability with which a patient is in a batch.
    epochs : int
        How often a client goes through its patients in a round.
    """

    noise_multiplier: float
    max_grad_norm: float
    sample_rate: float
    epochs: int

    @classmethod
    def of(cls, context: Context) -> Privacy:
        """Read it from the run config, which server and clients share."""
        config = context.run_config
        return cls(
            float(config["noise-multiplier"]),
            float(config["max-grad-norm"]),
            float(config["sample-rate"]),
            int(config["local-epochs"]),
        )

    @property
    def steps(self) -> int:
        """The number of noisy gradients that a client makes in a round."""
        return self.epochs * int(1 / self.sample_rate)


class Net(nn.Module):
    """Logistic regression: noise is added to every parameter, so few of them learn more."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(NUM_FEATURES, 2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(features)


def unpack(model: nn.Module, packed: list[np.ndarray]) -> list[torch.Tensor]:
    """Load the weights of a packed list into the model, and return the control variates behind them."""
    names = list(model.state_dict())
    model.load_state_dict({name: torch.tensor(array) for name, array in zip(names, packed, strict=False)})
    return [torch.tensor(array) for array in packed[len(names) :]]


def _load_all() -> tuple[torch.Tensor, torch.Tensor]:
    features, labels = load_breast_cancer(return_X_y=True)
    public = features[-HELD_OUT:]  # mean and deviation of the clients' patients would have to be noisy, too
    scaled = (features - public.mean(0)) / public.std(0)
    return torch.tensor(scaled, dtype=torch.float32), torch.tensor(labels)


def load_held_out() -> TensorDataset:
    """Load the patients that no client has; they are public."""
    features, labels = _load_all()
    return TensorDataset(features[-HELD_OUT:], labels[-HELD_OUT:])


def load_partition(partition_id: int, num_partitions: int) -> TensorDataset:
    """Load one client's share: all that is left, in the order of the tumours' radius, cut into equal parts."""
    features, labels = _load_all()
    by_radius = torch.argsort(features[:-HELD_OUT, RADIUS], stable=True)
    mine = torch.tensor_split(by_radius, num_partitions)[partition_id]
    return TensorDataset(features[mine], labels[mine])


def train(
    model: Net,
    data: TensorDataset,
    learning_rate: float,
    privacy: Privacy,
    server_variates: list[torch.Tensor],
    own_variates: list[torch.Tensor],
) -> list[torch.Tensor]:
    """Train with noisy, corrected gradients; return the client's new control variates.

    They are cᵢ − c + (x − yᵢ) / (steps · learning rate), the mean of the noisy gradients: as private as these are.
    """
    # Every process starts torch's own generator from one and the same seed: clients would add the same noise.
    random = torch.Generator().manual_seed(secrets.randbits(63))
    wrapped = GradSampleModule(model)
    loader = DPDataLoader(data, sample_rate=privacy.sample_rate, generator=random)
    optimizer = DPOptimizer(
        torch.optim.SGD(wrapped.parameters(), learning_rate),
        noise_multiplier=privacy.noise_multiplier,
        max_grad_norm=privacy.max_grad_norm,
        expected_batch_size=round(privacy.sample_rate * len(data)),
        generator=random,
    )
    parameters = list(wrapped.parameters())
    start = [parameter.detach().clone() for parameter in parameters]
    wrapped.train()
    for _ in range(privacy.epochs):
        for features, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(wrapped(features), labels).backward()
            optimizer.pre_step()  # clips and adds noise; what follows needs no privacy of its own
            for parameter, server, own in zip(parameters, server_variates, own_variates, strict=True):
                parameter.grad += server - own
            optimizer.original_optimizer.step()
    moved = [x - y.detach() for x, y in zip(start, parameters, strict=True)]
    return [
        own - server + step / (privacy.steps * learning_rate)
        for own, server, step in zip(own_variates, server_variates, moved, strict=True)
    ]


@torch.no_grad()
def evaluate(model: Net, data: TensorDataset) -> tuple[float, float]:
    """Return loss and accuracy."""
    features, labels = data.tensors
    model.eval()
    logits = model(features)
    return nn.functional.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item()
