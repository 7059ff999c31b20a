"""The model, the data, and training as SCAFFOLD's clients do it."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

HELD_OUT = 297
BATCH_SIZE = 32
EPOCHS = 2


class Net(nn.Module):
    """A small CNN for images of 8 x 8 pixels; BatchNorm's statistics would not fit clients that differ."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc = nn.Linear(32 * 2 * 2, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.max_pool2d(torch.relu(self.norm(self.conv1(images))), 2)
        hidden = nn.functional.max_pool2d(torch.relu(self.conv2(hidden)), 2)
        return self.fc(hidden.flatten(1))


def trained(model: nn.Module) -> list[nn.Parameter]:
    """List the parameters that have a control variate."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def unpack(model: nn.Module, packed: list[np.ndarray]) -> list[torch.Tensor]:
    """Load the weights of a packed list into the model, and return the control variates behind them."""
    names = list(model.state_dict())
    model.load_state_dict({name: torch.tensor(array) for name, array in zip(names, packed, strict=False)})
    return [torch.tensor(array) for array in packed[len(names) :]]


def _load_all() -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(labels)


def load_held_out() -> TensorDataset:
    """Load the images that no client has."""
    images, labels = _load_all()
    return TensorDataset(images[-HELD_OUT:], labels[-HELD_OUT:])


def load_partition(partition_id: int, num_partitions: int) -> TensorDataset:
    """Load one client's share: all that is left, in the order of the labels, cut into equal parts."""
    images, labels = _load_all()
    by_label = torch.argsort(labels[:-HELD_OUT], stable=True)
    mine = torch.tensor_split(by_label, num_partitions)[partition_id]
    return TensorDataset(images[mine], labels[mine])


def train(
    model: Net,
    data: TensorDataset,
    learning_rate: float,
    seed: int,
    server_variates: list[torch.Tensor],
    own_variates: list[torch.Tensor],
) -> tuple[float, list[torch.Tensor]]:
    """Train with corrected gradients; return the mean loss and the client's new control variates.

    The same seed gives the same bits. The new variates are those of the paper's option II,
    cᵢ − c + (x − yᵢ) / (steps · learning rate), which holds for plain SGD.
    """
    torch.set_num_threads(1)  # sums are split by threads: their number would show in the last bits
    shuffled = DataLoader(data, BATCH_SIZE, shuffle=True, generator=torch.Generator().manual_seed(seed))
    parameters = trained(model)
    start = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.SGD(parameters, learning_rate)
    model.train()
    total, steps = 0.0, 0
    for _ in range(EPOCHS):
        for images, labels in shuffled:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            for parameter, server, own in zip(parameters, server_variates, own_variates, strict=True):
                parameter.grad += server - own
            optimizer.step()
            total, steps = total + loss.item() * len(labels), steps + 1
    moved = [x - y.detach() for x, y in zip(start, parameters, strict=True)]
    new = [
        own - server + step / (steps * learning_rate)
        for own, server, step in zip(own_variates, server_variates, moved, strict=True)
    ]
    return total / (EPOCHS * len(data)), new


@torch.no_grad()
def evaluate(model: Net, data: TensorDataset) -> tuple[float, float]:
    """Return loss and accuracy."""
    torch.set_num_threads(1)
    images, labels = data.tensors
    model.eval()
    logits = model(images)
    return nn.functional.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item()
