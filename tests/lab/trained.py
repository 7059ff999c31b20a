"""Real training: small torch models on scikit-learn's digits, with clients for every packed format.

A client's training is a function of what it received, its partition and the round, so that a round that is trained
again gives the same; where noise is added, that is fresh each time. What a client keeps between rounds is in a folder.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import MetricRecord, RecordDict
from flwr.common import (
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    NDArrays,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.server import Server
from torch import Tensor, nn

from . import legacy as legacy_lab
from . import message as message_lab
from . import probe
from .packed import Answer, Variates, reply

torch.set_num_threads(1)  # before anything forks: a child has none of its parent's threads, and would wait for them

NUM_CLIENTS = 4
STEPS = 6
LEARNING_RATE = 0.2
BATCH_SIZE = 32
MAX_GRAD_NORM = 1.0
NOISE_MULTIPLIER = 0.8
HIDDEN = 12
_HELD_OUT = 60  # of each client's images

Loader = Callable[[NDArrays, int, int], nn.Module]  # (received, partition, server_round) -> what the client evaluates
Correction = Callable[[list[nn.Parameter]], list[Tensor]]  # what a method adds to the gradients


class Net(nn.Module):
    """Seven entries of the ``state_dict`` that take part in training, three of them not by gradients."""

    def __init__(self, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.first = nn.Linear(64, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.last = nn.Linear(hidden, 10)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.last(torch.relu(self.norm(self.first(images))))
        return result


class PlainNet(nn.Module):
    """Without BatchNorm, which mixes examples: for differential privacy."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, HIDDEN)
        self.last = nn.Linear(HIDDEN, 10)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.last(torch.relu(self.first(images)))
        return result


def wrapped_net() -> nn.Module:
    """The same as Opacus wraps it."""
    from opacus.grad_sample import GradSampleModule

    model: nn.Module = GradSampleModule(PlainNet())
    return model


@dataclass(frozen=True)
class Share:
    """One client's images and labels."""

    images: Tensor
    labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor


@functools.cache
def shares() -> list[Share]:
    """Deal the digits out."""
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    images, labels = torch.from_numpy(pixels / 16).float(), torch.from_numpy(digits).long()
    rows = np.array_split(np.random.default_rng(0).permutation(len(labels)), NUM_CLIENTS)
    return [
        Share(images[r[_HELD_OUT:]], labels[r[_HELD_OUT:]], images[r[:_HELD_OUT]], labels[r[:_HELD_OUT]]) for r in rows
    ]


def prepare() -> None:
    """Do before anything forks what each child would do again: read the digits, import what optimizers import."""
    shares()
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], LEARNING_RATE).zero_grad()


def arrays_of(model: nn.Module) -> NDArrays:
    return [tensor.numpy().copy() for tensor in model.state_dict().values()]


def with_arrays(model: nn.Module, arrays: NDArrays) -> nn.Module:
    tensors = [torch.from_numpy(np.array(array)) for array in arrays]
    model.load_state_dict(dict(zip(model.state_dict(), tensors, strict=True)), strict=True)
    return model


def descend(
    model: nn.Module,
    partition: int,
    server_round: int,
    correction: Correction | None = None,
    adjustment: Tensor | float = 0.0,
) -> float:
    """Stochastic gradient descent; return the mean loss."""
    share, batches = shares()[partition], np.random.default_rng([server_round, partition])
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, LEARNING_RATE)
    losses = []
    model.train()
    for _ in range(STEPS):
        rows = torch.from_numpy(batches.choice(len(share.labels), BATCH_SIZE, replace=False))
        loss = nn.functional.cross_entropy(model(share.images[rows]) + adjustment, share.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        _correct(parameters, correction)
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses))


def descend_privately(model: nn.Module, partition: int, correction: Correction | None = None) -> None:
    """The same with Opacus: a Poisson sample, clipped gradients of single examples, and noise, all of it fresh."""
    from opacus.optimizers import DPOptimizer

    share, parameters, noise = shares()[partition], list(model.parameters()), torch.Generator()
    noise.seed()
    optimizer = DPOptimizer(
        torch.optim.SGD(parameters, LEARNING_RATE),
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=MAX_GRAD_NORM,
        expected_batch_size=BATCH_SIZE,
        generator=noise,
    )
    model.train()
    for _ in range(STEPS):
        rows = torch.rand(len(share.labels), generator=noise) < sample_rate(partition)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(share.images[rows]), share.labels[rows]).backward()
        optimizer.pre_step()
        _correct(parameters, correction)  # of what is private already
        optimizer.original_optimizer.step()


def sample_rate(partition: int = 0) -> float:
    return BATCH_SIZE / len(shares()[partition].labels)


def _correct(parameters: list[nn.Parameter], correction: Correction | None) -> None:
    if correction is None:
        return
    for parameter, term in zip(parameters, correction(parameters), strict=True):
        assert parameter.grad is not None
        parameter.grad += term


# --- a client for each format ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clients:
    """How the clients of a federation train, and with which model they evaluate what they received."""

    train: Answer
    load: Loader


def _hidden(received: NDArrays) -> int:
    return int(received[0].shape[0])


def plain_clients() -> Clients:
    """The whole model, in whatever size it comes."""

    def load(received: NDArrays, partition: int, server_round: int) -> nn.Module:
        return with_arrays(Net(_hidden(received)), received)

    def train(received: NDArrays, partition: int, server_round: int) -> NDArrays:
        model = load(received, partition, server_round)
        descend(model, partition, server_round)
        return arrays_of(model)

    return Clients(train, load)


def prior_clients() -> Clients:
    """A format of the user's: weights, then how frequent each label is among all clients."""

    def load(received: NDArrays, partition: int, server_round: int) -> nn.Module:
        return with_arrays(Net(), received[:-1])

    def train(received: NDArrays, partition: int, server_round: int) -> NDArrays:
        model = load(received, partition, server_round)
        adjustment = torch.from_numpy(np.log(received[-1] + 1e-3)).float()
        descend(model, partition, server_round, adjustment=adjustment)
        labels = shares()[partition].labels.numpy()
        return [*arrays_of(model), np.bincount(labels, minlength=10) / len(labels)]

    return Clients(train, load)


def scaffold_clients(folder: Path, make: Callable[[], nn.Module] = Net, *, private: bool = False) -> Clients:
    """Weights, then control variates; a client keeps its own."""
    variates, size = Variates(folder), len(make().state_dict())

    def load(received: NDArrays, partition: int, server_round: int) -> nn.Module:
        return with_arrays(make(), received[:size])

    def train(received: NDArrays, partition: int, server_round: int) -> NDArrays:
        model, common = load(received, partition, server_round), received[size:]
        own = variates.before(server_round, partition, common)
        before = [parameter.detach().numpy().copy() for parameter in model.parameters()]
        terms = [torch.from_numpy(np.asarray(c - o)).float() for c, o in zip(common, own, strict=True)]
        if private:
            descend_privately(model, partition, lambda _: terms)
        else:
            descend(model, partition, server_round, lambda _: terms)
        after = [parameter.detach().numpy() for parameter in model.parameters()]
        rate = 1.0 / (STEPS * LEARNING_RATE)
        new = [o - c + rate * (x - y) for o, c, x, y in zip(own, common, before, after, strict=True)]
        variates.write(server_round, partition, new)
        return [*arrays_of(model), *(n - o for n, o in zip(new, own, strict=True))]

    return Clients(train, load)


def constraint_clients() -> Clients:
    """FedProx: weights, then the weight of the constraint; the train loss comes back in its place."""

    def load(received: NDArrays, partition: int, server_round: int) -> nn.Module:
        return with_arrays(Net(), received[:-1])

    def train(received: NDArrays, partition: int, server_round: int) -> NDArrays:
        model, weight = load(received, partition, server_round), float(received[-1])
        first = [parameter.detach().clone() for parameter in model.parameters()]

        def towards(parameters: list[nn.Parameter]) -> list[Tensor]:
            return [weight * (now.detach() - then) for now, then in zip(parameters, first, strict=True)]

        loss = descend(model, partition, server_round, towards)
        return [*arrays_of(model), np.array(loss)]

    return Clients(train, load)


def clipping_clients() -> Clients:
    """Weights, then the clipping bound; clipped differences and a bit come back."""

    def load(received: NDArrays, partition: int, server_round: int) -> nn.Module:
        return with_arrays(PlainNet(), received[:-1])

    def train(received: NDArrays, partition: int, server_round: int) -> NDArrays:
        model, bound = load(received, partition, server_round), received[-1].item()
        descend(model, partition, server_round)
        differences = [after - before for after, before in zip(arrays_of(model), received, strict=False)]
        norm = float(np.sqrt(sum(np.square(difference).sum() for difference in differences)))
        return [*(difference * min(1.0, bound / norm) for difference in differences), np.array(float(norm <= bound))]

    return Clients(train, load)


Part = Callable[[dict[str, np.ndarray], int], NDArrays]  # (whole model, which part) -> packed list
Unpack = Callable[[NDArrays], dict[str, np.ndarray]]


def partial_clients(folder: Path, part: Part, unpack: Unpack) -> Clients:
    """Some of the layers, by name; a client keeps the others as it had them."""
    memory = Variates(folder)

    def load_over(received: NDArrays, kept: Callable[[], NDArrays]) -> nn.Module:
        model = Net()
        if received[-1].dtype.kind != "U":  # before the first round: all of them, without names
            return with_arrays(model, received)
        whole = dict(zip(model.state_dict(), kept(), strict=True))
        return with_arrays(model, list({**whole, **unpack(received)}.values()))

    def load(received: NDArrays, partition: int, server_round: int) -> nn.Module:
        return load_over(received, lambda: memory.before(server_round + 1, partition, []))

    def train(received: NDArrays, partition: int, server_round: int) -> NDArrays:
        model = load_over(received, lambda: memory.before(server_round, partition, []))
        descend(model, partition, server_round)
        memory.write(server_round, partition, arrays_of(model))
        return part(dict(zip(model.state_dict(), arrays_of(model), strict=True)), partition + server_round)

    return Clients(train, load)


def some_layers(whole: dict[str, np.ndarray], which: int) -> NDArrays:
    chosen = [name for index, name in enumerate(whole) if (index + which) % 3]
    return [*(whole[name] for name in chosen), np.array(chosen)]


def layers_by_name(packed: NDArrays) -> dict[str, np.ndarray]:
    return {str(name): packed[index] for index, name in enumerate(packed[-1])}


def large_elements(whole: dict[str, np.ndarray], which: int) -> NDArrays:
    """Nine tenths of some tensors, without the statistics of BatchNorm: an element that is left out counts as 0."""
    chosen = [name for index, name in enumerate(whole) if (index + which) % 3 and not name.startswith("norm.")]
    kept = {name: whole[name] * (np.abs(whole[name]) >= np.quantile(np.abs(whole[name]), 0.1)) for name in chosen}
    return [
        *(tensor[np.nonzero(tensor)] for tensor in kept.values()),
        *(np.argwhere(tensor) for tensor in kept.values()),
        *(np.array(tensor.shape) for tensor in kept.values()),
        np.array(chosen),
    ]


def elements_by_name(packed: NDArrays) -> dict[str, np.ndarray]:
    count, tensors = len(packed[-1]), {}
    for index, name in enumerate(packed[-1]):
        values, places, shape = packed[index], packed[index + count], packed[index + 2 * count]
        tensors[str(name)] = np.zeros(tuple(shape), values.dtype)
        tensors[str(name)][tuple(places.T)] = values
    return tensors


def private_clients() -> Clients:
    """The whole model that Opacus has wrapped."""

    def load(received: NDArrays, partition: int, server_round: int) -> nn.Module:
        return with_arrays(wrapped_net(), received)

    def train(received: NDArrays, partition: int, server_round: int) -> NDArrays:
        model = load(received, partition, server_round)
        descend_privately(model, partition)
        return arrays_of(model)

    return Clients(train, load)


# --- the same clients in both APIs -----------------------------------------------------------------------------------


def loss_of(model: nn.Module, partition: int) -> float:
    """Evaluate on what the client has held out."""
    share = shares()[partition]
    model.eval()
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(share.held_out_images), share.held_out_labels))


def message_client(clients: Clients) -> message_lab.Client:
    def client(phase: str, partition: int, content: RecordDict) -> RecordDict:
        received = content["arrays"].to_numpy_ndarrays()  # type: ignore[union-attr]
        server_round = int(content["config"]["server-round"])  # type: ignore[index, arg-type]
        count = len(shares()[partition].labels)
        if phase == "train":
            return reply(clients.train(received, partition, server_round), count)
        loss = loss_of(clients.load(received, partition, server_round), partition)
        return RecordDict({"metrics": MetricRecord({"num-examples": count, "loss": loss})})

    return client


def named_message_client(clients: Clients) -> message_lab.Client:
    """For strategies that want back the names which they sent."""
    plain = message_client(clients)

    def client(phase: str, partition: int, content: RecordDict) -> RecordDict:
        answer = plain(phase, partition, content)
        if phase == "train":
            arrays = answer["arrays"]
            named = dict(zip(content["arrays"], arrays.values(), strict=True))
            answer["arrays"] = type(arrays)(named)
        return answer

    return client


class OneByOne(Server):
    """Flower's legacy server, without threads for clients: these are all in one process, and share torch."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.set_max_workers(1)


def legacy_client(clients: Clients) -> type[legacy_lab.FakeClient]:
    class TrainingClient(legacy_lab.FakeClient):
        def fit(self, ins: FitIns, timeout: float | None, group_id: int | None) -> FitRes:
            server_round = int(group_id or 0)
            probe.passed("train", server_round)
            trained = clients.train(parameters_to_ndarrays(ins.parameters), self.partition, server_round)
            return FitRes(legacy_lab.OK, ndarrays_to_parameters(trained), len(shares()[self.partition].labels), {})

        def evaluate(self, ins: EvaluateIns, timeout: float | None, group_id: int | None) -> EvaluateRes:
            server_round = int(group_id or 0)
            probe.passed("evaluate", server_round)
            model = clients.load(parameters_to_ndarrays(ins.parameters), self.partition, server_round)
            return EvaluateRes(legacy_lab.OK, loss_of(model, self.partition), len(shares()[self.partition].labels), {})

    return TrainingClient
