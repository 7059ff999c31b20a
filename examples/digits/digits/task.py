"""The model and the data, which scikit-learn ships."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

HELD_OUT = 297
BATCH_SIZE = 32


class Net(nn.Module):
    """A small CNN for images of 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc = nn.Linear(32 * 2 * 2, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.max_pool2d(torch.relu(self.conv1(images)), 2)
        hidden = nn.functional.max_pool2d(torch.relu(self.conv2(hidden)), 2)
        return self.fc(hidden.flatten(1))


def _load_all() -> TensorDataset:
    images, labels = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(labels))


def load_held_out() -> TensorDataset:
    """Load the images that no client has."""
    return TensorDataset(*_load_all()[-HELD_OUT:])


def load_partition(partition_id: int, num_partitions: int) -> tuple[TensorDataset, TensorDataset]:
    """Load one client's share: what it trains on, and what it evaluates on."""
    images, labels = (tensor[partition_id::num_partitions] for tensor in _load_all()[:-HELD_OUT])
    split = len(images) * 4 // 5
    return TensorDataset(images[:split], labels[:split]), TensorDataset(images[split:], labels[split:])


def train(model: Net, data: TensorDataset, learning_rate: float, seed: int) -> float:
    """Train for one epoch and return the mean loss; the same seed gives the same bits."""
    torch.set_num_threads(1)  # sums are split by threads: their number would show in the last bits
    shuffled = DataLoader(data, BATCH_SIZE, shuffle=True, generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.SGD(model.parameters(), learning_rate, momentum=0.9)
    model.train()
    total = 0.0
    for images, labels in shuffled:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(labels)
    return total / len(data)


@torch.no_grad()
def evaluate(model: Net, data: TensorDataset) -> tuple[float, float]:
    """Return loss and accuracy."""
    torch.set_num_threads(1)
    images, labels = data.tensors
    model.eval()
    logits = model(images)
    return nn.functional.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item()
