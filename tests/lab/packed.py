"""Clients that answer with packed lists, and the strategies they are for: driven hook by hook, or as a `Case`.

A client is here a function of the list it received, its partition and the round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import FitIns, FitRes, NDArrays, Parameters, ndarrays_to_parameters, parameters_to_ndarrays

from flwr_ckpt import strategies
from flwr_ckpt.strategies import legacy as legacy_strategies

from . import legacy as legacy_lab
from . import message as message_lab
from .catalogue import Case

Answer = Callable[[NDArrays, int, int], NDArrays]  # (received, partition, server_round) -> returned

NODE_IDS = [11, 22, 33, 44]
NUM_EXAMPLES = [10, 20, 30, 40]
APIS = ("message", "legacy")


class Federation:
    """A strategy of either API and four clients, driven hook by hook in a known order."""

    def __init__(
        self,
        api: str,
        name: str,
        weights: NDArrays,
        *,
        sampled: int = 4,
        num_examples: Sequence[int] = NUM_EXAMPLES,
        **arguments: Any,
    ) -> None:
        self.api = api
        self.server_round = 0
        self.num_examples = num_examples
        if api == "message":
            arguments |= {"fraction_train": sampled / 4, "min_train_nodes": sampled}
            self.strategy: Any = getattr(strategies, name)(**arguments)
            self.grid = message_lab.FakeGrid(message_lab.average_client, 1, node_ids=NODE_IDS)
            self._arrays = ArrayRecord(weights)
            self._train = self._train_message
        else:
            arguments |= {"fraction_fit": sampled / 4, "min_fit_clients": sampled}
            self.strategy = getattr(legacy_strategies, name)(
                initial_parameters=ndarrays_to_parameters(weights), **arguments
            )
            self._manager = legacy_lab.clients(1, ids=NODE_IDS)
            self._parameters = self.strategy.initialize_parameters(self._manager)
            self._train = self._train_legacy

    def train(self, answer: Answer) -> tuple[NDArrays, list[int], NDArrays | None]:
        """Train one round; return what clients received, which they were, and what the strategy made of it."""
        self.server_round += 1
        return self._train(answer)

    def _train_message(self, answer: Answer) -> tuple[NDArrays, list[int], NDArrays | None]:
        configured = self.strategy.configure_train(self.server_round, self._arrays, ConfigRecord(), self.grid)
        messages = sorted(configured, key=lambda message: message.metadata.dst_node_id)
        partitions = [NODE_IDS.index(message.metadata.dst_node_id) for message in messages]
        received = messages[0].content["arrays"].to_numpy_ndarrays()
        replies = [
            Message(
                reply(answer(received, partition, self.server_round), self.num_examples[partition]), reply_to=message
            )
            for message, partition in zip(messages, partitions, strict=True)
        ]
        arrays, _ = self.strategy.aggregate_train(self.server_round, replies)
        self._arrays = self._arrays if arrays is None else arrays
        return received, partitions, None if arrays is None else arrays.to_numpy_ndarrays()

    def _train_legacy(self, answer: Answer) -> tuple[NDArrays, list[int], NDArrays | None]:
        configured = self.strategy.configure_fit(self.server_round, self._parameters, self._manager)
        instructions = sorted(configured, key=lambda item: item[0].node_id)
        partitions = [client.partition for client, _ in instructions]
        received = parameters_to_ndarrays(instructions[0][1].parameters)
        results = [
            (client, self.result(answer(received, client.partition, self.server_round), client.partition))
            for client, _ in instructions
        ]
        parameters, _ = self.strategy.aggregate_fit(self.server_round, results, [])
        self._parameters = self._parameters if parameters is None else parameters
        return received, partitions, None if parameters is None else parameters_to_ndarrays(parameters)

    def result(self, arrays: NDArrays, partition: int) -> FitRes:
        return FitRes(legacy_lab.OK, ndarrays_to_parameters(arrays), self.num_examples[partition], {})

    def train_in_vain(self) -> None:
        """A round in which nobody answers."""
        self.server_round += 1
        if self.api == "message":
            self.strategy.configure_train(self.server_round, self._arrays, ConfigRecord(), self.grid)
            assert self.strategy.aggregate_train(self.server_round, []) == (None, None)
        else:
            self.strategy.configure_fit(self.server_round, self._parameters, self._manager)
            assert self.strategy.aggregate_fit(self.server_round, [], []) == (None, {})

    def received_for_evaluation(self) -> NDArrays:
        """What clients would be sent to evaluate now."""
        if self.api == "message":
            messages = self.strategy.configure_evaluate(self.server_round, self._arrays, ConfigRecord(), self.grid)
            return messages[0].content["arrays"].to_numpy_ndarrays()
        instructions = self.strategy.configure_evaluate(self.server_round, self._parameters, self._manager)
        return parameters_to_ndarrays(instructions[0][1].parameters)


def reply(arrays: NDArrays, num_examples: int) -> RecordDict:
    metrics = MetricRecord({"num-examples": num_examples})
    return RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})


# --- clients that train ----------------------------------------------------------------------------------------------

NAMES = ["conv.weight", "conv.bias"]


def _moved(array: np.ndarray, partition: int) -> np.ndarray:
    step = np.float32(0.1) * np.float32(partition + 1)
    return np.asarray(array + step * np.sin(array + np.float32(partition)), array.dtype)


class Variates:
    """The control variates of SCAFFOLD's clients, in a folder, one file a round.

    A round that is trained again starts from those of the round before it, as it did the first time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def before(self, server_round: int, partition: int, like: NDArrays) -> NDArrays:
        """Read what the client had after its last round before this one; zeros at first."""
        here = self._path(server_round, partition)
        earlier = [path for path in self.folder.glob(f"{partition}-*.npz") if path < here]
        if not earlier:
            return [np.zeros_like(array) for array in like]
        with np.load(max(earlier)) as file:
            return [file[key] for key in file.files]

    def write(self, server_round: int, partition: int, variates: NDArrays) -> None:
        np.savez(self._path(server_round, partition), *variates)

    def _path(self, server_round: int, partition: int) -> Path:
        return self.folder / f"{partition}-{server_round:04d}.npz"


Gradient = Callable[[NDArrays], NDArrays]


def train_scaffold(
    received: NDArrays, own: NDArrays, gradient: Gradient, steps: int, learning_rate: float
) -> tuple[NDArrays, NDArrays]:
    """Train as the paper says (option II); return the new weights and the client's new variates."""
    count = len(own)
    weights, variates = received[:count], received[count:]
    local = list(weights)
    for _ in range(steps):
        corrected = [g - o + c for g, o, c in zip(gradient(local), own, variates, strict=True)]
        local = [np.asarray(y - learning_rate * g, y.dtype) for y, g in zip(local, corrected, strict=True)]
    rate = 1.0 / (steps * learning_rate)
    triples = zip(own, variates, weights, local, strict=True)
    return local, [np.asarray(o - c + rate * (x - y), x.dtype) for o, c, x, y in triples]


def scaffold_answer(variates: Variates) -> Answer:
    """SCAFFOLD's clients on quadratic functions, each with another minimum and curvature."""

    def answer(received: NDArrays, partition: int, server_round: int) -> NDArrays:
        own = variates.before(server_round, partition, received[2:])

        def gradient(weights: NDArrays) -> NDArrays:
            return [(partition + 1) * (weight - partition) for weight in weights]

        local, new = train_scaffold(received, own, gradient, steps=3, learning_rate=0.1)
        variates.write(server_round, partition, new)
        return [*local, *(after - before for after, before in zip(new, own, strict=True))]

    return answer


def constraint_answer(received: NDArrays, partition: int, server_round: int) -> NDArrays:
    weight = float(received[-1])
    loss = np.array(1.0 / (1.0 + weight) + ((server_round * 7 + partition) % 5))
    return [*(_moved(array, partition) for array in received[:-1]), loss]


def clipped_answer(received: NDArrays, partition: int, server_round: int) -> NDArrays:
    bound = received[-1].item()
    differences = [_moved(array, partition) - array for array in received[:-1]]
    norm = float(np.sqrt(sum(np.square(difference).sum() for difference in differences)))
    clipped = [difference * min(1.0, bound / norm) for difference in differences]
    return [*clipped, np.array(float(norm <= bound))]


def layers_answer(received: NDArrays, partition: int, server_round: int) -> NDArrays:
    names = [str(name) for name in received[-1]] if received[-1].dtype.kind == "U" else NAMES
    layers = dict(zip(names, received, strict=False))
    chosen = NAMES if partition == 3 else [NAMES[(partition + server_round) % 2]]
    chosen = [name for name in chosen if name in layers]
    return [*(_moved(layers[name], partition) for name in chosen), np.array(chosen)]


def sparse_answer(received: NDArrays, partition: int, server_round: int) -> NDArrays:
    tensors = dict(zip(NAMES, received, strict=False))
    if received[-1].dtype.kind == "U":
        names = [str(name) for name in received[-1]]
        tensors = {name: _dense(*received[i : -1 : len(names)]) for i, name in enumerate(names)}
    moved = {name: _moved(tensor, partition) for name, tensor in tensors.items()}
    for tensor in moved.values():
        tensor.reshape(-1)[(partition + server_round) % 3 :: 3] = 0
    return [
        *(tensor[tensor != 0] for tensor in moved.values()),
        *(np.argwhere(tensor) for tensor in moved.values()),
        *(np.array(tensor.shape) for tensor in moved.values()),
        np.array(list(moved)),
    ]


def _dense(values: np.ndarray, indices: np.ndarray, shape: np.ndarray) -> np.ndarray:
    tensor = np.zeros(shape, values.dtype)
    tensor[tuple(indices.T)] = values
    return tensor


# --- cases for the tests that kill -----------------------------------------------------------------------------------


def message_client(answer: Answer, num_examples: Sequence[int] = NUM_EXAMPLES) -> message_lab.Client:
    def client(phase: str, partition: int, content: RecordDict) -> RecordDict:
        received = content["arrays"].to_numpy_ndarrays()  # type: ignore[union-attr]
        server_round = int(content["config"]["server-round"])  # type: ignore[index, arg-type]
        if phase == "train":
            return reply(answer(received, partition, server_round), num_examples[partition])
        numbers = [array for array in received if array.dtype.kind != "U"]
        loss = sum(float(np.abs(array).sum()) for array in numbers) / (partition + 2)
        return RecordDict({"metrics": MetricRecord({"num-examples": num_examples[partition], "loss": loss})})

    return client


def legacy_client(answer: Answer) -> type[legacy_lab.FakeClient]:
    class PackingClient(legacy_lab.FakeClient):
        def train(self, ins: FitIns) -> Parameters:
            received = parameters_to_ndarrays(ins.parameters)
            return ndarrays_to_parameters(answer(received, self.partition, int(ins.config["server_round"])))

        def metrics(self, parameters: Parameters) -> dict[str, Any]:
            numbers = [array for array in parameters_to_ndarrays(parameters) if array.dtype.kind != "U"]
            return {"loss": sum(float(np.abs(array).sum()) for array in numbers) / (self.partition + 2)}

    return PackingClient


def _arguments(name: str) -> dict[str, Any]:
    if name == "FedAvgWithAdaptiveConstraint":
        return {"adapt_loss_weight": True, "loss_weight_patience": 2}
    if name == "ClientLevelDPFedAvgM":
        return {"adaptive_clipping": True, "initial_clipping_bound": 0.5, "weight_noise_multiplier": 0.1}
    return {}


def cases(folder: Path) -> list[Case]:
    """Every strategy of the package in both APIs; clients keep what is theirs in `folder`."""
    answers: dict[str, Answer] = {
        "Scaffold": scaffold_answer(Variates(folder)),
        "FedAvgWithAdaptiveConstraint": constraint_answer,
        "ClientLevelDPFedAvgM": clipped_answer,
        "FedAvgDynamicLayer": layers_answer,
        "FedAvgSparseCooTensor": sparse_answer,
    }
    return [_case(api, name, answer) for api in APIS for name, answer in answers.items()]


def _case(api: str, name: str, answer: Answer) -> Case:
    private = name == "ClientLevelDPFedAvgM"
    if api == "message":

        def make_message(salt: int = 0) -> Any:
            zeros = [np.zeros_like(array) for array in message_lab.initial_arrays(salt).to_numpy_ndarrays()]
            variates = {"initial_control_variates": ArrayRecord(zeros)} if name == "Scaffold" else {}
            return getattr(strategies, name)(**_arguments(name), **variates)

        return Case(
            f"message/{name}", make_message, message_client(answer), message_lab.initial_arrays, private=private
        )

    def make_legacy(salt: int = 0) -> Any:
        initial = legacy_lab.initial_parameters(salt)
        zeros = [np.zeros_like(array) for array in parameters_to_ndarrays(initial)]
        variates = {"initial_control_variates": ndarrays_to_parameters(zeros)} if name == "Scaffold" else {}
        return getattr(legacy_strategies, name)(
            initial_parameters=initial,
            evaluate_fn=legacy_lab.central,
            on_fit_config_fn=lambda server_round: {"server_round": server_round},
            evaluate_metrics_aggregation_fn=legacy_lab.averaged,
            **_arguments(name),
            **variates,
        )

    return Case(f"legacy/{name}", make_legacy, legacy_client(answer), legacy_lab.initial_parameters, private=private)
